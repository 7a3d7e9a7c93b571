"""Ranks that die or hang, in real launches of two processes over gloo."""

import re

import pytest
from helpers import TINY
from processes import start_ranks

FAILING = """
import os, signal, sys, time
from hf_vit_scratch.data.batches import ImageBatches
from hf_vit_scratch.training import job
original, calls = ImageBatches.__getitems__, []
def fail(self, indices):
    calls.append(indices)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[1] == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if sys.argv[1] == "hangs":
            time.sleep(600)
        raise ValueError("image 7 cannot be decoded")
    return original(self, indices)
ImageBatches.__getitems__ = fail
job.main(sys.argv[2:])
"""
LINES = {
    "killed": "rank 1 has died or does not answer",
    "stopped": "rank 1 has died or does not answer",
    "hangs": r"rank 1 has not computed the loss of step \d within 18 s \(90% of --ddp_timeout\), while others have",
    "raises": "rank 1 has ended: ValueError: image 7 cannot be decoded",
}
SLOW = pytest.mark.nightly


@pytest.mark.parametrize("how", ["killed", *(pytest.param(how, marks=SLOW) for how in ("hangs", "stopped", "raises"))])
def test_when_a_rank_fails_the_others_end_with_one_line_that_has_its_number(how, digits, tmp_path):
    flags = ["--data", digits, *TINY, "--output_dir", str(tmp_path / "out"), "--ddp_backend", "gloo"]
    timeout = "20" if how in ("hangs", "stopped") else "600"
    first, second = start_ranks(FAILING, 2, how, *flags, "--ddp_timeout", timeout, cwd=tmp_path)
    _, errors = first.communicate()
    assert first.returncode == 2
    assert "Traceback" not in errors, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("train.py")]
    assert re.fullmatch(f"train.py: error: {LINES[how]}. To resume from the last checkpoint, .*", line)
    if how == "stopped":
        second.send_signal(9)
    _, errors = second.communicate()
    assert second.returncode == (-9 if how in ("killed", "stopped") else 2)
    assert "rror" not in errors and "Traceback" not in errors
