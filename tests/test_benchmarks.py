"""The benchmarks, once, with tiny sizes: nothing in them is a timed test, but they must not rot."""

import json
import math
import os

import pytest
from helpers import REPOSITORY, competition_zip
from PIL import Image
from processes import run_python

BENCHMARKS = REPOSITORY / "tests" / "benchmarks"


def run(script: str, *flags: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, BENCHMARKS)))}
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return run_python(code, BENCHMARKS / script, *flags, environment=environment)


@pytest.mark.nightly
def test_one_command_measures_all_of_it(tmp_path):
    competition_zip(tmp_path / "digits.zip")
    printed = run(
        "run.py", "--tiny", "--runs", "1", "--data", str(tmp_path / "digits.zip"), "--json", str(tmp_path / "all.json")
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
    printed = run("growth.py", "--tiny", "--runs", "1", "--output_file", str(tmp_path / "growth.png"))
    for field in ("image size 28", "patch size 2", "width 32", "depth 1", "batch 1"):
        assert f"| {field} |" in printed
    with Image.open(tmp_path / "growth.png") as plot:
        assert min(plot.size) > 300


@pytest.mark.nightly
def test_learning_rates_are_compared_for_each_family_and_part(tmp_path):
    competition_zip(tmp_path / "digits.zip")
    (tmp_path / "bounds.yaml").write_text("fraction: [0.5, 1.0]\nlearning_rate: [1e-2]")
    model = ["--hidden_size", "8", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--patch_size", "4"]
    few = ["--num_train_epochs", "1", "--validation_size", "0.2", "--use_cpu", "true"]
    few += ["--torch_compile", "false", "--bf16", "false"]
    told = ["--study", "data", "--data", str(tmp_path / "digits.zip"), "--bounds", str(tmp_path / "bounds.yaml")]
    printed = run("learning_rates.py", *told, *model, *few, "--per_device_train_batch_size", "20")
    rows = [line.split(" | ")[:4] for line in printed.splitlines() if line.startswith(("| 60", "| 120"))]
    parts = [("| 120", "False"), ("| 60", "False"), ("| 60", "True")]
    families = ("plain ViT", "ViT with convolutional stem", "CNN")
    assert rows == [[*part, family, "0.01"] for part in parts for family in families]


@pytest.mark.nightly
def test_the_page_is_measured_and_its_screenshot_taken(tmp_path):
    printed = run("page.py", "--strokes", "2")
    assert [line.count("|") for line in printed.splitlines()] == [3] * 6
    run("page.py", "--screenshot", str(tmp_path / "page.png"))
    with Image.open(tmp_path / "page.png") as taken:
        assert taken.width == 900


def test_the_picture_of_the_readme_is_drawn(tmp_path):
    run("picture.py", "--output_file", str(tmp_path / "picture.png"))
    with Image.open(tmp_path / "picture.png") as drawn, Image.open(BENCHMARKS / "what_it_does.png") as shown:
        assert drawn.size == shown.size


def test_loading_of_a_stream_is_measured_beside_the_model(tmp_path):
    tiny = ["--tiny", "--images", "64", "--runs", "1", "--size", "digits-tiny", "--batch_size", "8"]
    printed = run("streaming.py", *tiny, "--workers", "0", "1")
    for what in ("loading parquet", "loading tar", "a training step"):
        assert f"| {what}" in printed


@pytest.mark.nightly
def test_small_photographs_are_measured_part_by_part():
    printed = run("photos.py", "--tiny", "--images", "800", "--runs", "1", "--workers", "0", "1")
    figures = [line.split("|")[2].split()[0] for line in printed.splitlines() if " ± " in line]
    assert len(figures) == 8 and all(float(figure.replace(",", "")) > 0 for figure in figures)


def test_the_kinds_of_pictures_of_digits_are_drawn_and_read():
    kinds = ("paper", "printed_on_a_tile", "form_box")
    printed = run("own_digits.py", "--half", "making", "nothing", "--number", "2", "--kinds", *kinds)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "%" in line]
    right = {row[0]: row[1] for row in rows}
    assert {*kinds, "mean", "blank", "texture", "letter"} < right.keys()
    assert right["printed_on_a_tile"] == right["blank"] == right["texture"] == "100%"
