"""Nightly: runs killed at random moments, checkpoints damaged in each way, and launchers that are stopped.

The tables that the README of `hf_vit_scratch/training` quotes are printed: `pytest -m nightly -n 0 -s` shows them.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from damaging import FILES, RESUME, RUN, WAYS, harm, seal_again
from helpers import REPOSITORY, same, weights
from safetensors.torch import load_file, save_file

from hf_vit_scratch.output_folder import damage
from hf_vit_scratch.training import main

pytestmark = pytest.mark.nightly
KILLS = 20
TEACHER = ["--teacher_epochs", "1", "--num_teachers", "2"]


def started(argv, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "train.py"), *argv]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def wait_for(condition, process) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def step_of_newest(out: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in out.glob("checkpoint-*")), default=0)


@pytest.mark.parametrize("more", [[], TEACHER])
def test_runs_that_are_killed_at_random_moments_end_as_if_never_stopped(more, digits, tmp_path):
    argv = ["--data", digits, *RUN, "--augmentation", "digits", "--save_steps", "1", "--save_total_limit", "2"]
    argv += more
    begin = time.perf_counter()
    main([*argv, "--output_dir", str(tmp_path / "whole")])
    step_seconds, moments, ends = (time.perf_counter() - begin) / 24, random.Random(0), Counter()
    for number in range(KILLS):
        out, least = tmp_path / f"run{number}", moments.randrange(24)
        process = started([*argv, "--output_dir", str(out)])

        def reached(out=out, least=least):
            saved = step_of_newest(out)
            return saved >= least and (saved or (out / "teacher.safetensors").exists())

        wait_for(reached, process)
        time.sleep(moments.uniform(0, step_seconds))
        process.kill()
        process.communicate()
        at, half = step_of_newest(out), (out / ".saving").exists()
        main([*argv, "--output_dir", str(out), *RESUME])
        ends[same(weights(tmp_path / "whole"), weights(out)) and damage(out) == []] += 1
        print(f"killed after step {at:2}{', in the middle of a checkpoint' if half else ''}: {dict(ends)}")
        shutil.rmtree(out)
    assert ends == {True: KILLS}


def changes(checkpoint: Path):
    """Each way to damage a checkpoint: its name, and a function that does it."""
    for file in [*FILES, "manifest.json"]:
        for way in WAYS:
            yield f"{file} {way}", lambda file=file, way=way: harm(checkpoint / file, way)
    for file in FILES:
        for way in WAYS:

            def without(file=file, way=way):
                (checkpoint / "manifest.json").unlink()
                harm(checkpoint / file, way)

            yield f"no manifest, {file} {way}", without
    for file in ("model.safetensors", "average.safetensors"):
        for manifest in ("absent", "rewritten"):

            def lacking(file=file, manifest=manifest):
                tensors = load_file(checkpoint / file)
                del tensors[sorted(tensors)[0]]
                save_file(tensors, checkpoint / file)
                (checkpoint / "manifest.json").unlink() if manifest == "absent" else seal_again(checkpoint)

            yield f"manifest {manifest}, {file} lacks a tensor", lacking


def test_every_damage_of_the_newest_checkpoint(digits, tmp_path, capsys):
    argv = ["--data", digits, *RUN]
    main([*argv, "--output_dir", str(tmp_path / "whole")])
    expected, outcomes, out = weights(tmp_path / "whole"), {}, tmp_path / "out"
    for name, _ in list(changes(out)):
        shutil.copytree(tmp_path / "whole", out)
        shutil.rmtree(out / "checkpoint-24")
        for file in ("model.safetensors", "manifest.json"):
            (out / file).unlink()
        dict(changes(out / "checkpoint-20"))[name]()
        capsys.readouterr()
        main([*argv, "--output_dir", str(out), *RESUME])
        errors = capsys.readouterr().err
        named = "checkpoint-20 is damaged" in errors
        noted = "checkpoint-20 has no manifest.json" in errors
        outcomes[name] = (named, noted, same(expected, weights(out)))
        shutil.rmtree(out)
    with capsys.disabled():
        print()
        for name, (named, noted, equal) in outcomes.items():
            said = "named, the one before taken" if named else "noted" if noted else "nothing said"
            print(f"{name:55} {said:28} {'as if never stopped' if equal else 'OTHER WEIGHTS'}")
    for name, (named, noted, equal) in outcomes.items():
        # Without checksums, a changed number of a tensor or text cannot be seen.
        unseen = name.startswith("no manifest") and "flipped" in name and not named
        assert named or noted, name
        assert equal or unseen, name


# ---- launchers


def endless(digits: str, out: Path) -> list[str]:
    """Flags of a run that does not end, logs each step, and saves no checkpoint by itself."""
    steps = ["--max_steps", "100000", "--logging_steps", "1", "--save_strategy", "no"]
    return ["--data", digits, *RUN, *steps, "--output_dir", str(out)]


def launched(launcher: list[str], flags: list[str], **options) -> subprocess.Popen:
    """`train.py`, started by `python -m LAUNCHER`."""
    command = [sys.executable, "-m", *launcher, str(REPOSITORY / "train.py"), *flags]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, **options)


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


@pytest.mark.parametrize("moment", ["importing", "training"])
def test_accelerate_launch_that_gets_sigterm_leaves_no_orphan(moment, digits, tmp_path):
    out = tmp_path / "out"
    accelerate = ["accelerate.commands.accelerate_cli", "launch", "--cpu"]
    with open(tmp_path / "errors", "w") as errors:
        launcher = launched(accelerate, endless(digits, out), stdout=errors, stderr=errors)
        wait_for(lambda: children_of(launcher.pid), launcher)
        (child,) = children_of(launcher.pid)
        time.sleep(0.5)  # it has begun to import
        if moment == "training":
            wait_for(lambda: "'loss'" in (tmp_path / "errors").read_text(), launcher)
        launcher.terminate()
        assert launcher.wait() == -signal.SIGTERM
        while Path(f"/proc/{child}").exists():
            time.sleep(0.1)
    text = (tmp_path / "errors").read_text()
    assert "launcher of this process is gone" in text and "stopped by SIGTERM. To go on from step" in text
    assert "Traceback" not in text and list(out.glob("checkpoint-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_that_is_stopped_saves_one_checkpoint_of_all_processes(number, digits, tmp_path):
    out = tmp_path / "out"
    torchrun = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    with open(tmp_path / "errors", "w") as errors:
        options = {"stdout": errors, "stderr": errors, "start_new_session": True}
        launcher = launched(torchrun, [*endless(digits, out), "--ddp_backend", "gloo"], **options)
        wait_for(lambda: "'loss'" in (tmp_path / "errors").read_text(), launcher)
        if number == signal.SIGINT:
            os.killpg(launcher.pid, number)  # as a terminal does: the launcher passes it on once more
        else:
            launcher.send_signal(number)
        launcher.wait()
    (checkpoint,) = out.glob("checkpoint-*")
    assert damage(checkpoint) == [] and {path.name for path in checkpoint.glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    text = (tmp_path / "errors").read_text()
    assert f"{checkpoint} is saved" in text and "stopped by" in text


def test_ctrl_c_reaches_the_workers_of_a_loader_too_and_the_checkpoint_is_saved(digits, tmp_path):
    out = tmp_path / "out"
    process = started([*endless(digits, out), "--dataloader_num_workers", "2"], start_new_session=True)
    while "'loss'" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    assert "stopped by Ctrl-C. To go on from step" in errors and list(out.glob("checkpoint-*"))


# ---- a disk that is really full


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_fills_up_and_the_run_goes_on_to_its_end(small_disk, digits, tmp_path, capsys):
    argv = ["--data", digits, *RUN]
    main([*argv, "--output_dir", str(tmp_path / "whole")])
    (small_disk / "other").write_bytes(bytes(400_000))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--save_steps", "2", "--output_dir", str(small_disk / "out")])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.count("Warning:") == 1 and "No space left on device" in errors
    assert errors.splitlines()[-1].startswith("train.py: error:") and "To go on from step" in errors
    left = list((small_disk / "out").glob("checkpoint-*"))
    assert left and all(damage(path) == [] for path in left)
    (small_disk / "other").unlink()
    main([*argv, "--save_steps", "2", "--save_total_limit", "1", "--output_dir", str(small_disk / "out"), *RESUME])
    assert same(weights(tmp_path / "whole"), weights(small_disk / "out"))
