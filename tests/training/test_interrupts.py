"""SIGTERM, Ctrl-C, a launcher that is gone, and two runs in one folder."""

import itertools
import json
import os
import signal

import pytest
from damaging import RESUME, RUN
from helpers import TINY, refused_by_train, same, weights
from processes import Python, run_ranks

from hf_vit_scratch.output_folder import Lock, damage
from hf_vit_scratch.settings.flags import DataArguments, parse_arguments
from hf_vit_scratch.training import interrupts, main, train
from hf_vit_scratch.training.trainer import ViTScratchTrainer

FLAGS = [*RUN, "--eval_strategy", "steps", "--eval_steps", "6", "--drop_path_rate", "0.1", "--augmentation", "digits"]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    main(["--data", digits, *FLAGS, "--output_dir", str(folder)])
    return folder


def stopped(argv, monkeypatch, at, *numbers):
    """How a run ends that receives these signals in a step, counted from 1."""
    steps, original = itertools.count(1), ViTScratchTrainer.training_step

    def step(self, *args, **kwargs):
        if next(steps) == at:
            for number in numbers:
                signal.raise_signal(number)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as error:
        patch.setattr(ViTScratchTrainer, "training_step", step)
        train(parse_arguments(argv))
    return error.value.exit_code, error.value.__notes__


@pytest.mark.parametrize(
    ("numbers", "code", "at", "step"),
    [
        ((signal.SIGTERM,), 143, 8, 8),
        ((signal.SIGINT, signal.SIGINT), 130, 12, 12),  # twice at once, as a launcher passes it on; and evaluated too
        ((signal.SIGINT, signal.SIGTERM), 130, 24, 24),
    ],
)
def test_a_signal_is_followed_by_a_checkpoint_from_which_the_run_ends_as_if_never_stopped(
    numbers, code, at, step, whole, digits, tmp_path, monkeypatch, capfd
):
    out = tmp_path / "out"
    argv = ["--data", digits, *FLAGS, "--output_dir", str(out)]
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    way_on = f"To go on from step {step}, pass --resume_from_checkpoint true."
    assert stopped(argv, monkeypatch, at, *numbers) == (code, [way_on])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert f"checkpoint-{step} is saved" in capfd.readouterr().err
    assert damage(out / f"checkpoint-{step}") == [] and not (out / "config.json").exists()
    main([*argv, *RESUME])
    assert same(weights(whole), weights(out))
    results = json.loads((out / "all_results.json").read_text())
    assert results["resumed_from_step"] == step and results["train_runtime"] >= results["earlier_runtime"] > 0
    expected = 180 * 4 / results["train_runtime"]
    assert results["train_samples_per_second"] == pytest.approx(expected)
    assert f", resumed at step {step}" in (out / "README.md").read_text()
    losses = [json.loads((folder / "all_results.json").read_text())["train_loss"] for folder in (whole, out)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # that of the signal's step is not logged


def test_a_second_ctrl_c_does_not_wait_for_the_step(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "_SECONDS_OF_ONE_PRESS", 0.0)
    argv = ["--data", digits, *FLAGS, "--output_dir", str(tmp_path / "out")]
    code, notes = stopped(argv, monkeypatch, 8, signal.SIGINT, signal.SIGINT)
    assert (code, notes) == (130, ["To go on from step 5, pass --resume_from_checkpoint true."])
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-5"}


@pytest.mark.parametrize(("at", "words"), [(2, "nothing to resume from yet"), (7, "after the last finished CNN")])
def test_a_signal_during_the_training_of_a_teacher_promises_what_there_is(at, words, digits, tmp_path, monkeypatch):
    argv = ["--data", digits, *TINY, "--teacher_epochs", "1", "--num_teachers", "2"]
    code, notes = stopped([*argv, "--output_dir", str(tmp_path / "out")], monkeypatch, at, signal.SIGTERM)
    assert code == 143 and words in notes[0] and not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_signal_while_the_data_are_loaded_leaves_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(DataArguments, "load_splits", lambda self: signal.raise_signal(signal.SIGTERM))
    argv = ["--data", digits, *FLAGS, "--output_dir", str(tmp_path / "out")]
    assert stopped(argv, monkeypatch, 0) == (143, ["Nothing was written."])
    assert not (tmp_path / "out").exists()


def test_a_run_whose_launcher_is_gone_saves_and_ends(digits, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(interrupts, "LAUNCHER", -1)
    argv = ["--data", digits, *FLAGS, "--output_dir", str(tmp_path / "out")]
    code, notes = stopped(argv, monkeypatch, 0)
    assert (code, notes) == (143, ["To go on from step 1, pass --resume_from_checkpoint true."])
    assert "launcher of this process is gone" in capfd.readouterr().err
    code, notes = stopped([*argv, "--overwrite_output_dir", "--teacher_epochs", "1"], monkeypatch, 0)
    assert code == 143 and "nothing to resume from yet" in notes[0]


def test_a_process_says_so_and_leaves_with_the_usual_code(digits, tmp_path):
    code = "import sys; from hf_vit_scratch.console import leave_on_signals; leave_on_signals('train.py')\n"
    code += "from hf_vit_scratch.training import main; main(sys.argv[1:])"
    flags = ["--data", digits, *FLAGS, "--output_dir", str(tmp_path / "out"), "--max_steps", "100000"]
    process = Python(code, *flags, "--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no")
    while "'loss'" not in process.output()[0]:
        assert process.poll() is None, process.output()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    first, second, third = [line for line in errors.splitlines() if line.startswith("train.py:")]
    assert "SIGTERM: a checkpoint is saved after this step" in first and "is saved." in second
    assert third.startswith("train.py: stopped by SIGTERM. To go on from step ") and "Traceback" not in errors


RANKS = """
import os, signal, sys
from pathlib import Path
from helpers import same, weights
from hf_vit_scratch.settings.flags import parse_arguments
from hf_vit_scratch.training import train
from hf_vit_scratch.training.trainer import ViTScratchTrainer

argv, out = sys.argv[2:], Path(sys.argv[1])
train(parse_arguments([*argv, "--output_dir", str(out / "whole")]))
original, steps = ViTScratchTrainer.training_step, []

def step(self, *args, **kwargs):
    steps.append(1)
    if len(steps) == 4 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    return original(self, *args, **kwargs)

ViTScratchTrainer.training_step = step
argv += ["--output_dir", str(out / "stopped")]
try:
    train(parse_arguments(argv))
except KeyboardInterrupt as stop:
    assert stop.exit_code == 143 and "from step 5" in stop.__notes__[0], stop.__notes__  # agreed one step later
else:
    raise AssertionError
names = {path.name for path in (out / "stopped" / "checkpoint-5").iterdir()}
assert {"rng_state_0.pth", "rng_state_1.pth", "manifest.json"} <= names, names
train(parse_arguments([*argv, "--resume_from_checkpoint", "true"]))
assert same(weights(out / "whole"), weights(out / "stopped"))
"""


def test_several_processes_agree_on_the_step_if_the_signal_reaches_one(digits, tmp_path):
    flags = [*TINY, "--num_train_epochs", "3", "--ddp_backend", "gloo", "--eval_strategy", "no"]
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.path.dirname(os.path.dirname(__file__))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        run_ranks(RANKS, 2, tmp_path, "--data", digits, *flags, "--hidden_dropout_prob", "0.1")


# ---- two runs in one folder


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended_however_it_ended(digits, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--data", digits, *FLAGS, "--max_steps", "2", "--output_dir", str(out)]
    main(argv)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    code = "import os, sys, time; from pathlib import Path; from hf_vit_scratch.output_folder import Lock\n"
    code += "lock = Lock(Path(sys.argv[1])); lock.acquire()\n"
    code += "if child := os.fork(): print(child, flush=True)\n"  # such as a worker of a DataLoader
    code += "time.sleep(600)"
    process = Python(code, out)
    while not (child := process.output()[0].strip()):
        assert process.poll() is None, process.output()
    for more in (RESUME, ["--overwrite_output_dir"]):
        words = refused_by_train(capsys, *argv, *more)
        assert f"{out} is in use: process {process._process.pid} on " in words and "another --output_dir" in words
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lock = Lock(out)
    lock.acquire()  # although the child still lives
    os.kill(int(child), signal.SIGKILL)
    lock.release()
