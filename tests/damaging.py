"""Flags of a run with checkpoints, and ways to damage one of its files."""

from pathlib import Path

from helpers import TINY

from hf_vit_scratch.output_folder import write_manifest

# 24 steps, a checkpoint after each fifth and the last.
RUN = [*TINY, "--num_train_epochs", "4", "--save_steps", "5", "--eval_strategy", "no", "--save_total_limit", "9"]
RUN += ["--hidden_dropout_prob", "0.1"]
RESUME = ["--resume_from_checkpoint", "true"]
STATES = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]
FILES = ["model.safetensors", "average.safetensors", *STATES, "trainer_state.json", "config.json"]
WAYS = ["missing", "empty", "cut", "flipped"]


def harm(file: Path, way: str) -> None:
    """Damage a file in one of the ways: missing, empty, cut in half, or flipped: one bit in its middle."""
    content = bytearray(file.read_bytes())
    file.unlink()
    if way == "flipped":
        content[len(content) // 2] ^= 1
    if way != "missing":
        file.write_bytes(content[: {"empty": 0, "cut": len(content) // 2}.get(way, len(content))])


def seal_again(checkpoint: Path) -> None:
    """Write a manifest for the files as they are now."""
    write_manifest(checkpoint, [file for file in checkpoint.iterdir() if file.name != "manifest.json"])
