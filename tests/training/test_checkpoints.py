"""Checkpoints that are damaged, cannot be written, or are the last of a run; and what a machine does to a run."""

import itertools
import json
import resource
import shutil
import signal

import pytest
import torch
from damaging import FILES, RESUME, RUN, STATES, WAYS, harm, seal_again
from helpers import TINY, refused_by_train, refused_by_vit_scratch, same, weights
from processes import Python
from safetensors.torch import load_file, save_file

from hf_vit_scratch.cli import main as vit_scratch
from hf_vit_scratch.output_folder import damage
from hf_vit_scratch.training import main
from hf_vit_scratch.training.checkpoints import faults
from hf_vit_scratch.training.trainer import ViTScratchTrainer


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run that ended well."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    main(["--data", digits, *RUN, "--output_dir", str(folder)])
    return folder


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
@pytest.mark.parametrize("way", WAYS)
def test_every_damage_of_a_checkpoint_is_named(file, way, whole, tmp_path):
    checkpoint = shutil.copytree(whole / "checkpoint-20", tmp_path / "checkpoint-20")
    assert faults(checkpoint) == []
    harm(checkpoint / file, way)
    if (file, way) == ("manifest.json", "missing"):
        assert faults(checkpoint) == []  # as older versions wrote checkpoints
        return
    (found,) = faults(checkpoint)
    assert file in found or file == "manifest.json", found


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("way", WAYS)
def test_without_a_manifest_what_can_be_read_is_checked(file, way, whole, tmp_path):
    checkpoint = shutil.copytree(whole / "checkpoint-20", tmp_path / "checkpoint-20")
    (checkpoint / "manifest.json").unlink()
    harm(checkpoint / file, way)
    found = faults(checkpoint)
    if way == "flipped" and file in STATES and not found:  # a bit between the contents of the zip
        states = [torch.load(folder / file, weights_only=False) for folder in (checkpoint, whole / "checkpoint-20")]
        assert str(states[0]) == str(states[1])
        return
    if way == "flipped" and file not in STATES:  # a number of a tensor, or of a text, has become another
        return
    assert len(found) == 1 and file.split(".")[0] in found[0], found


@pytest.mark.parametrize("file", ["model.safetensors", "average.safetensors"])
def test_a_tensor_that_is_missing_is_named_whatever_the_manifest_says(file, whole, tmp_path):
    checkpoint = shutil.copytree(whole / "checkpoint-20", tmp_path / "checkpoint-20")
    tensors = load_file(checkpoint / file)
    name = sorted(tensors)[3]
    shape = (2, *tensors[name].shape)
    for changed, words in (({}, f"{file} lacks {name}"), ({name: torch.zeros(shape)}, f"{name} of shape {shape}")):
        others = {other: tensor for other, tensor in tensors.items() if other != name}
        save_file({**others, **changed}, checkpoint / file)
        seal_again(checkpoint)
        assert len(faults(checkpoint)) == 1 and words in faults(checkpoint)[0]


def test_the_newest_sound_checkpoint_is_taken_and_the_damaged_ones_are_named(whole, digits, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    argv = ["--data", digits, *RUN, "--output_dir", str(out)]
    harm(out / "model.safetensors", "missing")
    harm(out / "checkpoint-24" / "optimizer.pt", "flipped")
    harm(out / "checkpoint-20" / "model.safetensors", "cut")
    harm(out / "checkpoint-5" / "trainer_state.json", "cut")  # an old one does not matter
    (out / "checkpoint-best").mkdir()
    explicit = refused_by_train(capsys, *argv, "--resume_from_checkpoint", str(out / "checkpoint-24"))
    assert (
        "optimizer.pt has changed since it was written" in explicit
        and "pass --resume_from_checkpoint true" in explicit
    )
    (out / ".saving" / "checkpoint-99").mkdir(parents=True)
    (out / "config.json.1.partial").write_text("half")
    main([*argv, *RESUME])
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]
    assert "checkpoint-24 is damaged: optimizer.pt has changed" in warning
    assert "checkpoint-20 is damaged: model.safetensors has" in warning and "resumed from" in warning
    assert "checkpoint-15" in warning and "checkpoint-5 " not in warning
    assert same(weights(whole), weights(out))
    assert not (out / ".saving").exists() and not (out / "config.json.1.partial").exists()
    assert faults(out / "checkpoint-24") == faults(out / "checkpoint-20") == []

    for checkpoint in out.glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-best":
            harm(checkpoint / "scheduler.pt", "missing")
    line = refused_by_train(capsys, *argv, *RESUME)
    assert "no complete checkpoint" in line and line.count("scheduler.pt is missing") == 5


def test_a_checkpoint_of_an_older_version_is_resumed_with_a_note(whole, digits, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    for checkpoint in out.glob("checkpoint-*"):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        del state["stateful_callbacks"]["RunTime"]
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        (checkpoint / "manifest.json").unlink()
    shutil.rmtree(out / "checkpoint-24")
    for name in ("manifest.json", "model.safetensors"):
        (out / name).unlink()
    main(["--data", digits, *RUN, "--output_dir", str(out), *RESUME])
    assert "checkpoint-20 has no manifest.json, as older versions" in capsys.readouterr().err
    assert same(weights(whole), weights(out)) and damage(out / "checkpoint-24") == []
    assert "minutes since it was resumed at step 20" in (out / "README.md").read_text()


@pytest.mark.parametrize("end", [["--max_steps", "8"], ["--num_train_epochs", "1.3"]])
def test_a_run_that_is_resumed_from_its_last_step_trains_nothing(end, digits, tmp_path, capsys):
    """Six steps are an epoch: the end is in the middle of the second."""
    out = tmp_path / "out"
    argv = ["--data", digits, *RUN, *end, "--output_dir", str(out)]
    main(argv)
    expected = weights(out)
    for name in ("model.safetensors", "manifest.json"):  # as if killed after the last checkpoint
        (out / name).unlink()
    main([*argv, *RESUME])
    assert same(expected, weights(out)) and all(faults(path) == [] for path in out.glob("checkpoint-*"))
    results = json.loads((out / "all_results.json").read_text())
    assert results["train_loss"] > 1 and results["train_runtime"] >= results["earlier_runtime"] > 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    for _ in range(2):
        main([*argv, *RESUME])
        assert f"The run in {out} is finished, and nothing is changed." in capsys.readouterr().out
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    assert {path: after[path] for path in after if path.name != ".lock"} == {
        path: before[path] for path in before if path.name != ".lock"
    }
    shorter = ["--max_steps", "3"] if end[0] == "--max_steps" else ["--num_train_epochs", "1"]
    assert "past the end of this run" in refused_by_train(capsys, *argv, *shorter, *RESUME)
    longer = ["--max_steps", "10"] if end[0] == "--max_steps" else ["--num_train_epochs", "1.7"]
    main([*argv, *longer, *RESUME])
    assert not same(expected, weights(out)) and damage(out) == []


def test_a_process_killed_in_the_middle_of_a_checkpoint_leaves_the_one_before(whole, digits, tmp_path, capsys):
    code = """
import os, sys
from hf_vit_scratch import output_folder
from hf_vit_scratch.training import main
original = output_folder.write_manifest
def killed(folder, files):
    if folder.name == "checkpoint-15":
        os.kill(os.getpid(), 9)
    original(folder, files)
output_folder.write_manifest = killed
main(sys.argv[1:])
"""
    out = tmp_path / "out"
    argv = ["--data", digits, *RUN, "--output_dir", str(out)]
    process = Python(code, *argv)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-10"}
    assert (out / ".saving" / "checkpoint-15" / "optimizer.pt").is_file()
    main([*argv, *RESUME])
    assert "damaged" not in capsys.readouterr().err
    assert same(weights(whole), weights(out)) and not (out / ".saving").exists()


# ---- a teacher


def test_a_bit_of_a_teacher_that_has_changed_is_seen(digits, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--data", digits, *TINY, "--teacher_epochs", "1", "--max_steps", "4", "--output_dir", str(out)]
    main(argv)
    results = json.loads((out / "all_results.json").read_text())
    (out / "manifest.json").unlink()
    main([*argv, *RESUME])
    assert json.loads((out / "all_results.json").read_text())["teacher_runtime"] == results["teacher_runtime"] > 0
    harm(out / "teacher.safetensors", "flipped")
    assert "teacher.safetensors is damaged" in refused_by_train(capsys, *argv, *RESUME)


# ---- a full disk


def with_limits(patch: pytest.MonkeyPatch, limits: dict[int, int]) -> None:
    """Let no file be larger than this many bytes from these steps on, counted from 1, as on a full disk."""
    steps, original = itertools.count(1), ViTScratchTrainer.training_step
    highest = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def step(self, *args, **kwargs):
        if (now := next(steps)) in limits:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits[now], highest))
        return original(self, *args, **kwargs)

    patch.setattr(ViTScratchTrainer, "training_step", step)


@pytest.fixture
def unlimited():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [4_000, 30_000])  # the weights, or only the optimizer's state, do not fit
def test_a_full_disk_at_a_checkpoint_does_not_end_the_run(
    limit, unlimited, whole, digits, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    with_limits(monkeypatch, {7: limit, 17: unlimited})
    main(["--data", digits, *RUN, "--output_dir", str(out)])
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]
    assert "checkpoint-10 was not saved, and training continues" in warning
    assert "MiB are free" in warning and "The last whole checkpoint is checkpoint-5." in warning
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (5, 20, 24)}
    assert same(weights(whole), weights(out)) and not (out / ".saving").exists()


def test_a_disk_that_is_full_at_the_end_leaves_the_last_whole_checkpoint(
    unlimited, whole, digits, tmp_path, monkeypatch, capsys
):
    argv = ["--data", digits, *RUN, "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        with_limits(patch, {7: 4_000})
        main(argv)
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: error:")]
    assert "File too large" in line and "To go on from step 5, pass --resume_from_checkpoint true." in line
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-5"]
    main([*argv, *RESUME])
    assert same(weights(whole), weights(tmp_path / "out")) and damage(tmp_path / "out") == []


# ---- memory


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")),
        lambda: bytearray(2**60),
    ],
)
def test_insufficient_memory_is_one_line_with_the_ways_out(fail, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ViTScratchTrainer, "training_step", lambda *args, **kwargs: fail())
    line = refused_by_train(capsys, "--data", digits, *RUN, "--output_dir", str(tmp_path / "out"))
    assert "out of memory" in line and "per_device_train_batch_size below 32" in line
    assert "bf16 true" in line and "gradient_checkpointing true" in line and "--overwrite_output_dir" in line


def test_a_worker_that_the_system_has_killed_is_one_line(digits, tmp_path, monkeypatch, capsys):
    import multiprocessing

    def step(*args, **kwargs):
        (worker,) = multiprocessing.active_children()
        worker.kill()
        signal.pause()  # until the system reports the end of the worker

    monkeypatch.setattr(ViTScratchTrainer, "training_step", step)
    flags = ["--dataloader_num_workers", "1", "--output_dir", str(tmp_path / "out")]
    line = refused_by_train(capsys, "--data", digits, *RUN, *flags)
    assert "killed by signal" in line and "dataloader_num_workers below 1" in line


# ---- vit-scratch verify


def test_a_finished_run_is_verified(whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "README.md").write_text("A card may be edited.")
    vit_scratch(["verify", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all("are as written" in line for line in lines)
    files = {path for path in out.iterdir() if path.is_file()} - {
        out / name for name in ("README.md", "manifest.json")
    }
    assert f"{len(files) - 1} files" in lines[0]  # and not the lock
    harm(out / "model.safetensors", "flipped")
    harm(out / "all_results.json", "missing")
    harm(out / "checkpoint-10" / "rng_state.pth", "cut")
    line = refused_by_vit_scratch(capsys, "verify", str(out))
    assert "model.safetensors has changed" in line and "all_results.json is missing" in line
    assert "checkpoint-10: rng_state.pth has" in line and "bytes, and" in line
    vit_scratch(["verify", str(out / "checkpoint-5")])
    (out / "manifest.json").unlink()
    (out / "checkpoint-5" / "manifest.json").unlink()
    assert "out has no manifest.json: its run is not finished" in refused_by_vit_scratch(capsys, "verify", str(out))
    assert "is not a folder" in refused_by_vit_scratch(capsys, "verify", str(out / "nowhere"))
