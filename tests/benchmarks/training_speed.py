"""Images per second of `train.py`'s training beside transformers' ViT of the same size under a default Trainer.

    python tests/benchmarks/training_speed.py [--images 6000] [--runs 5]

Both train on the sample, in alternating runs of one process each, with batches of 128: ours by `train.py` with the
recipe digits-tiny (augmentation, moving average, logging and all), with and without torch.compile; the peer in the
usual way, with torchvision's transforms in `with_transform` and the Trainer's defaults. The first 40 steps of each
run, more than an epoch, are not timed: both sizes of batch are then compiled.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WARMUP_STEPS = 40

TIMER = f"""
import sys, time, torch, transformers
class Timer(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == {WARMUP_STEPS}:
            self.start = time.perf_counter()
    def on_train_end(self, args, state, control, **kwargs):
        seconds = time.perf_counter() - self.start
        print("images/s", 128 * (state.global_step - {WARMUP_STEPS}) / seconds)
"""

OURS = """
from hf_vit_scratch import training
original = training.ViTScratchTrainer.__init__
def with_timer(self, *args, **kwargs):
    original(self, *args, **kwargs)
    self.add_callback(Timer())
training.ViTScratchTrainer.__init__ = with_timer
training.main(sys.argv[1:])
"""

PEER = """
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from hf_vit_scratch import data
transform = v2.Compose([v2.ToImage(), v2.RandomAffine(15, (0.07, 0.07), (0.85, 1.15), 10),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
split = data.load("sample")["train"].with_transform(
    lambda rows: {"pixel_values": [transform(image) for image in rows["image"]], "labels": rows["label"]})
config = ViTConfig(image_size=28, patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=6,
                   num_attention_heads=4, intermediate_size=256, num_labels=10)
collate = lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows]),
                        "labels": torch.tensor([row["labels"] for row in rows])}
arguments = TrainingArguments(sys.argv[1], max_steps=int(sys.argv[2]), per_device_train_batch_size=128,
                              remove_unused_columns=False, report_to="none", save_strategy="no", disable_tqdm=True)
Trainer(ViTForImageClassification(config), arguments, train_dataset=split, data_collator=collate,
        callbacks=[Timer()]).train()
"""


def images_per_second(code: str, arguments: list[str]) -> float:
    command = [sys.executable, "-c", TIMER + code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("images/s")]
    return float(line.split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6000, help="Images timed in each run (default: %(default)s).")
    parser.add_argument("--runs", type=int, default=5, help="Alternating runs (default: %(default)s).")
    options = parser.parse_args()
    steps = WARMUP_STEPS + max(1, options.images // 128)
    results = {"transformers ViT, Trainer's defaults": [], "train.py": [], "train.py --torch_compile": []}
    for _ in range(options.runs):
        for name, rates in results.items():
            with tempfile.TemporaryDirectory() as folder:
                if name.startswith("transformers"):
                    rates.append(images_per_second(PEER, [folder, str(steps)]))
                else:
                    compiled = str("compile" in name)
                    flags = ["--recipe", "digits-tiny", "--max_steps", str(steps), "--torch_compile", compiled]
                    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]
                    rates.append(images_per_second(OURS, [*flags, "--output_dir", f"{folder}/out"]))
    peer = statistics.mean(next(iter(results.values())))
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {options.runs} runs")
    for name, rates in results.items():
        spread = statistics.stdev(rates) if len(rates) > 1 else 0.0
        mean = statistics.mean(rates)
        print(f"{name:40} {mean:7.0f} ± {spread:4.0f} images/s   {mean / peer:.2f} ×")


if __name__ == "__main__":
    main()
