"""The device, and its fastest settings: threads, allocator, attention and precision."""

import ctypes
import gc
import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

# Largest number of tokens for which eager attention trains faster on a CPU than scaled_dot_product_attention, whose
# backward pass is slow there. Measured at width 64: in bf16 eager attention is 1.4 times as fast at 257 tokens and 0.9
# times at 401. In fp32 (AVX2) it is 1.05 times as fast at 50 tokens and not faster from 100 tokens on; at 257 tokens
# it needs twice the memory.
_EAGER_TOKENS_ON_CPU = {"bf16": 300, "fp32": 150}


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def set_up_cpu() -> None:
    """Let torch use all cores, divided among the processes of a launch, and keep freed memory for the next step."""
    # `accelerate launch` sets OMP_NUM_THREADS to 1 unless it is set already, and torch then uses one core.
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, _num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if sys.platform == "linux":
        # By default glibc returns activations of a few MB to the kernel, which costs page faults at each step.
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in other C libraries
            libc.mallopt(m_mmap_threshold, 2**30)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device, num_processes: int = 1) -> str:
    """The device as a short text for the model card, such as "2 CPU cores (x86_64)"."""
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{num_processes} x {name}"
    return f"{_num_cores()} CPU cores ({platform.machine()})"


def can_compile() -> bool:
    """Whether a C++ compiler and setuptools, which torch.compile needs, are installed."""
    if find_spec("setuptools") is None:  # torch 2.9 imports it, but asks for it from Python 3.12 on
        return False
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl") if name)


def fastest_attention(num_tokens: int, device: torch.device, bf16: bool = False) -> str:
    """The `attn_implementation` that is fastest on a device: "eager" for short sequences on a CPU, else "sdpa"."""
    most = _EAGER_TOKENS_ON_CPU["bf16" if bf16 else "fp32"]
    return "eager" if device.type == "cpu" and num_tokens <= most else "sdpa"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware, so that bf16 is faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


class PeakMemory:
    """A context that measures the peak memory of its block, minus the memory at its beginning.

    The result is the attribute `megabytes`, in 10^6 bytes. On a GPU it covers the tensors of torch, on a CPU under
    Linux the whole process. On other systems it is None.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.megabytes: float | None = None
        self.known = device.type == "cuda" or sys.platform == "linux"

    def __enter__(self):
        gc.collect()  # garbage must neither count nor be freed in the block
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            libc = ctypes.CDLL(None)
            if hasattr(libc, "malloc_trim"):  # freed memory that is kept would hide new allocations
                libc.malloc_trim(0)
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:  # forbidden in some containers; the peak would include the time before
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
