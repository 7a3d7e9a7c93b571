"""Every example of every page is run: word for word, on small data, with runs cut short."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, blocks, competition_zip, photo_folder
from hub_server import Hub
from PIL import Image
from processes import run_python

README = REPOSITORY / "README.md"
FOLDERS = ("hf_vit_scratch/*", "tests", "tests/benchmarks", "model_cards")
PAGES = [README, *sorted(page for folder in FOLDERS for page in REPOSITORY.glob(f"{folder}/README.md"))]
# Few steps of the size asked for; compiling alone would take longer than all of it.
SHORT = ["--max_steps", "2", "--torch_compile", "false", "--use_cpu", "true", "--per_device_train_batch_size", "8"]


def examples(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, then its Python, in the order of the page, each with its kind."""
    found = re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for kind, text in found if kind == "bash" for line in re.split(r"\n|&&", text)]
    commands = [line for line in lines if line and not line.startswith(("pip install", "pytest"))]
    return [("bash", command) for command in commands] + [found for found in found if found[0] == "python"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables for a reader who is logged in as alice, on a Hub on loopback."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        scripts = str(Path(sys.executable).parent)
        yield hub.environment() | {"PYTHONPATH": str(REPOSITORY), "PATH": f"{scripts}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that has what a reader has: train.py, the data, a digit, a photograph, the released models."""
    folder = tmp_path_factory.mktemp("reader")
    competition_zip(folder / "digit-recognizer.zip")
    photo_folder(folder / "photos")
    Image.fromarray(blocks(np.array([3]))[0]).save(folder / "digit.png")
    Image.new("RGB", (300, 200), "white").save(folder / "photo.jpg")
    (folder / "model_cards").symlink_to(REPOSITORY / "model_cards")
    (folder / "train.py").write_text((REPOSITORY / "train.py").read_text())
    return folder


def test_the_readme_has_the_two_commands_and_they_install_what_they_run():
    text = README.read_text()
    assert "pip install -e . && accelerate launch train.py\n" in text
    assert 'pip install -e ".[test]" && pytest\n' in text


def run(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a command as it is typed. Where only train.py or vit-scratch start, without the start of Python."""
    if found := re.search(r'"\$\(vit-scratch config (\w+)\)"', command):  # as the shell would
        command = command.replace(found[0], str(REPOSITORY / f"hf_vit_scratch/settings/accelerate/{found[1]}.yaml"))
    words = shlex.split(command)
    if words[:2] == ["vit-scratch", "explore"]:
        words += ["--trials", "1", "--num_train_epochs", "1", "--torch_compile", "false", "--use_cpu", "true"]
    elif words[0] in ("accelerate", "torchrun"):
        words += SHORT
    if words[0] == "vit-scratch":
        run_python("from hf_vit_scratch.cli import main; main()", *words[1:], environment=environment, cwd=folder)
    elif words[:3] == ["accelerate", "launch", "train.py"] and len(words) > 3 + len(SHORT):
        train = "import runpy; runpy.run_path('train.py', run_name='__main__')"
        run_python(train, *words[3:], environment=environment, cwd=folder)
    else:
        if words[0] == "torchrun":
            words = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_examples_of_every_page_run_and_those_of_the_readme_first(folder, environment):
    ran = []
    for page in PAGES:
        for kind, code in examples(page):
            print(f"{page.relative_to(REPOSITORY)}: {code}")  # pytest shows the last where one fails
            if kind == "python":
                run_python(code, environment=environment, cwd=folder)
            else:
                run(code, folder, environment)
            ran.append(kind)
    assert ran.count("bash") >= 20 and ran.count("python") >= 7
    assert (folder / "submission.csv").read_bytes() == (folder / "output/digits/submission.csv").read_bytes()
    assert (folder / "output/digits-as-vit/model.safetensors").exists()
