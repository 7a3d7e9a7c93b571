"""Every example of the README is run: word for word, on small data, with runs cut short."""

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, blocks, competition_zip, photo_folder
from hub_server import Hub
from PIL import Image

BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
# Few steps of the size asked for; compiling alone would take longer than all of it.
SHORT = ["--max_steps", "2", "--torch_compile", "false", "--use_cpu", "true", "--per_device_train_batch_size", "8"]


def commands() -> list[str]:
    parts = [
        part.strip() for kind, text in BLOCKS if kind == "bash" for part in re.split(r"\n|&&", text) if part.strip()
    ]
    return [part for part in parts if not part.startswith(("pip install", "pytest"))]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables for a reader who is logged in as alice, on a Hub on loopback."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        scripts = str(Path(sys.executable).parent)
        yield hub.environment() | {"PYTHONPATH": str(REPOSITORY), "PATH": f"{scripts}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that has what the README's reader has: train.py, the data, a digit."""
    folder = tmp_path_factory.mktemp("readme")
    competition_zip(folder / "digit-recognizer.zip")
    photo_folder(folder / "photos")
    Image.fromarray(blocks(np.array([3]))[0]).save(folder / "digit.png")
    (folder / "train.py").write_text((REPOSITORY / "train.py").read_text())
    return folder


def test_the_readme_has_the_two_commands_and_they_install_what_they_run():
    text = (REPOSITORY / "README.md").read_text()
    assert "pip install -e . && accelerate launch train.py\n" in text
    assert 'pip install -e ".[test]" && pytest\n' in text


def run(command: str, folder: Path, environment: dict, before: list[Future]) -> None:
    for done in before:
        done.result()
    words = shlex.split(command)
    if words[:2] == ["vit-scratch", "explore"]:
        words += ["--trials", "1", "--num_train_epochs", "1", "--torch_compile", "false", "--use_cpu", "true"]
    if words[0] == "vit-scratch":
        words = [sys.executable, "-c", "from hf_vit_scratch.cli import main; main()", *words[1:]]
    elif words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:], *SHORT]
    else:
        words = [*words, *SHORT]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_commands_of_the_readme_run(folder, environment):
    """Two at a time, as most of each is the start of Python; what reads another's output comes after it."""
    assert len(commands()) >= 6
    runs: list[tuple[str, Future]] = []
    with ThreadPoolExecutor(2) as pool:
        for command in commands():
            words = set(shlex.split(command))
            before = [done for earlier, done in runs if words & made_by(earlier)]
            runs.append((command, pool.submit(run, command, folder, environment, before)))
    for _, done in runs:
        done.result()
    assert (folder / "submission.csv").read_bytes() == (folder / "output/digits/submission.csv").read_bytes()


def made_by(command: str) -> set[str]:
    """The folders, files and repositories that a command leaves, as they are written in it."""
    words = shlex.split(command)
    after = ("--output_dir", "--output_file", "--hub_model_id")
    pushed = {words[3]} if words[:2] == ["vit-scratch", "push"] else set()
    return {word for flag, word in zip(words, words[1:], strict=False) if flag in after} | pushed


def test_the_python_of_the_readme_runs_after_the_commands(folder, environment):
    for kind, code in BLOCKS:
        if kind == "python":
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{code}\n{done.stderr}"
    assert (folder / "output/digits-as-vit/model.safetensors").exists()
