import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from hf_vit_scratch.device import PeakMemory, best_device, computes_bf16, fastest_attention


@pytest.mark.parametrize(("world", "share"), [("1", 1), ("2", 2)])
def test_the_cores_are_shared_out_although_the_launcher_allows_one_thread(world, share):
    """accelerate launch sets OMP_NUM_THREADS=1."""
    code = (
        "import os, torch; from hf_vit_scratch.device import set_up_cpu; set_up_cpu();"
        "print(torch.get_num_threads(), len(os.sched_getaffinity(0)))"
    )
    environment = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": world, "PATH": "/usr/bin:/bin"}
    command, all_cores = [sys.executable, "-c", code], partial(os.sched_setaffinity, 0, range(os.cpu_count()))
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, preexec_fn=all_cores)
    printed = done.stdout
    threads, cores = map(int, printed.split())
    assert threads == max(1, cores // share)


def test_a_number_of_threads_that_the_user_chose_is_kept():
    code = (
        "import torch; from hf_vit_scratch.device import set_up_cpu;"
        "torch.set_num_threads(7); set_up_cpu(); print(torch.get_num_threads())"
    )
    environment = {"OMP_NUM_THREADS": "7", "LOCAL_WORLD_SIZE": "2", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip() == "7"


def test_the_peak_of_memory_is_that_of_what_was_taken_within_and_freed_again():
    taken = torch.ones(75_000_000)  # 300 MB, and freed before
    del taken
    with PeakMemory(torch.device("cpu")) as memory:
        taken = torch.ones(50_000_000)
        del taken
        torch.ones(1_000_000)
    if sys.platform == "linux":
        assert 195 < memory.megabytes < 260
    else:
        assert memory.megabytes is None


def test_the_device_is_one_that_can_be_used():
    torch.zeros(1, device=best_device())


def test_long_sequences_are_not_attended_eagerly():
    assert fastest_attention(10_000, torch.device("cpu")) == "sdpa"
    assert fastest_attention(50, torch.device("cuda")) == "sdpa"


def test_bf16_is_left_alone_where_nothing_is_known_of_it():
    assert not computes_bf16(torch.device("meta"))
