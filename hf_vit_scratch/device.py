"""What the device at hand does best: threads, allocator, attention, precision."""

import ctypes
import gc
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

# On a CPU the plain product trains up to about so many tokens faster than scaled_dot_product_attention, whose backward
# pass is slow there: at width 64 in bf16 1.4 times as fast at 257 tokens, but 0.9 times at 401. In fp32 (AVX2) it is
# 1.05 times as fast at 50 tokens, no faster from 100 on, and takes twice the memory at 257.
_EAGER_TOKENS_ON_CPU = {"bf16": 300, "fp32": 150}


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def set_up_cpu() -> None:
    """Let torch use all cores, shared out among the processes of a launch, and keep freed memory for the next step."""
    # `accelerate launch` sets OMP_NUM_THREADS to 1 where nobody else did, and torch follows it.
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, _num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if sys.platform == "linux":
        # glibc hands activations of a few MB back to the kernel and faults them in again at each step.
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # other C libraries have none
            libc.mallopt(m_mmap_threshold, 2**30)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device, num_processes: int = 1) -> str:
    """The device in words, for a model card."""
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{num_processes} x {name}"
    return f"{_num_cores()} CPU cores ({platform.machine()})"


def can_compile() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl") if name)


def fastest_attention(num_tokens: int, device: torch.device, bf16: bool = False) -> str:
    """The `attn_implementation` that trains fastest for a sequence length on a kind of device, in bf16 or fp32."""
    most = _EAGER_TOKENS_ON_CPU["bf16" if bf16 else "fp32"]
    return "eager" if device.type == "cpu" and num_tokens <= most else "sdpa"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware, so that it is faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


class PeakMemory:
    """Within it, the most memory that was taken at a time, beyond what was taken at its beginning.

    On a GPU that of torch's tensors, on Linux that of the whole process; elsewhere it is not known.

    `megabytes` has it in the end, in 10^6 bytes, or None.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.megabytes: float | None = None
        self.known = device.type == "cuda" or sys.platform == "linux"

    def __enter__(self):
        gc.collect()  # what came before must not count, nor be freed within
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            libc = ctypes.CDLL(None)
            if hasattr(libc, "malloc_trim"):  # what was freed and kept would hide what is taken now
                libc.malloc_trim(0)
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:  # a container may forbid it: the peak would be that of the process so far
                self.known = False
        self._begin = self._taken("VmRSS") if self.known else 0
        return self

    def __exit__(self, *error):
        if self.known:
            self.megabytes = (self._taken("VmHWM") - self._begin) / 1e6

    def _taken(self, field: str) -> int:
        if self.device.type == "cuda":
            now = field == "VmRSS"
            return torch.cuda.memory_allocated(self.device) if now else torch.cuda.max_memory_allocated(self.device)
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
