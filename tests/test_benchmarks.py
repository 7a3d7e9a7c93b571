"""The benchmarks, once, with tiny sizes: nothing in them is a timed test, but they must not rot."""

import json
import math
import os
import subprocess
import sys

from conftest import REPOSITORY, competition_zip
from PIL import Image


def run(script: str, *flags: str) -> str:
    command = [sys.executable, str(REPOSITORY / "tests/benchmarks" / script), "--tiny", *flags]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_command_measures_all_of_it(tmp_path):
    competition_zip(tmp_path / "digits.zip")
    printed = run(
        "run.py", "--runs", "1", "--data", str(tmp_path / "digits.zip"), "--json", str(tmp_path / "all.json")
    )
    measured = json.loads((tmp_path / "all.json").read_text())
    rows = measured["rows"]
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == len(rows) + 2
    parts = ("training step", "inference", "one image", "peak memory", "train.py", "files to first batch", "--help")
    assert all(any(part in row["what"] for row in rows) for part in parts)
    for row in rows:
        assert all(figure > 0 and math.isfinite(figure) for figure in row["ours"] + (row["peer"] or []))
        if row["peer"]:
            assert row["ratios"] == [ours / peer for ours, peer in zip(row["ours"], row["peer"], strict=True)]


def test_growth_is_plotted(tmp_path):
    printed = run("growth.py", "--runs", "1", "--output_file", str(tmp_path / "growth.png"))
    for field in ("image size 28", "patch size 2", "width 32", "depth 1", "batch 1"):
        assert f"| {field} |" in printed
    with Image.open(tmp_path / "growth.png") as plot:
        assert min(plot.size) > 300
