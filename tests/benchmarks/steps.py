"""Training steps and forward passes to be timed: contenders take turns, so that all see the same machine."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peers import PEERS, ours
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from hf_vit_scratch import ViTScratchConfig
from hf_vit_scratch.device import can_compile, computes_bf16
from hf_vit_scratch.training.short_attention import attention_for_training


@dataclass(frozen=True)
class Setting:
    """How a model is run."""

    attention: str = "sdpa"
    bf16: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.attention}, {'bf16' if self.bf16 else 'fp32'}{', compiled' if self.compiled else ''}"


def house_setting(config: ViTScratchConfig, device: torch.device, compiled: bool = True) -> Setting:
    """What train.py chooses for a model on a device."""
    bf16, compiled = computes_bf16(device), compiled and can_compile()
    return Setting(attention_for_training(config.num_tokens, device, bf16, compiled), bf16, compiled)


def settings_of(name: str, device: torch.device) -> list[Setting]:
    """All settings of a peer on a device, the first as it comes."""
    precisions = (False, True) if computes_bf16(device) else (False,)
    return [
        Setting(attention, bf16, compiled)
        for attention in PEERS[name][1]
        for bf16 in precisions
        for compiled in (False, True)
    ]


def build(name: str, config: ViTScratchConfig, setting: Setting, device: torch.device) -> torch.nn.Module:
    """The model `name`, "ours" or a peer's, with weights from a fixed seed."""
    torch.manual_seed(0)
    make = ours if name == "ours" else PEERS[name][0]
    return make(config, setting.attention).to(device)


def batch(config: ViTScratchConfig, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(size, C, height, width)` and labels `(size,)`, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, config.num_channels, *config.image_height_width, generator=generator)
    return images.to(device), torch.randint(config.num_labels, (size,), generator=generator).to(device)


def training_step(model: torch.nn.Module, setting: Setting, images, labels) -> Callable[[], None]:
    """One step of AdamW on a batch: forward, loss, backward, update."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(model) if setting.compiled else model

    def step():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=setting.bf16):
            loss = cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def synchronize():
    """Wait for an accelerator: its work goes on when the call has returned."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def rates(
    contenders: dict[str, Callable[[], None]], work: float, repeats: int, runs: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Work per second of each, one figure a run; in each run they take turns. `work` is what one call does."""
    for call in contenders.values():
        for _ in range(warmup):
            call()
    measured = {name: [] for name in contenders}
    for _ in range(runs):
        for name, call in contenders.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            synchronize()
            measured[name].append(work * repeats / (time.perf_counter() - start))
    return measured


def training_flops(config: ViTScratchConfig, name: str = "ours") -> float:
    """FLOPs of forward and backward for one image, by torch's counter."""
    device = torch.device("cpu")
    model = build(name, config, Setting("eager"), device)
    images, labels = batch(config, 2, device)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(images), labels).backward()
    return counter.get_total_flops() / 2


def matrix_product(device: torch.device, bf16: bool) -> tuple[Callable[[], None], float]:
    """A large square product, and its FLOPs."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in "ab")
    return lambda: a @ b, 2 * side**3


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Most bytes that tensors made within a step hold at once, once weights and optimizer states exist."""
    step()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most
