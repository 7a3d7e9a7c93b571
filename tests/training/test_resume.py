import json
import shutil
from pathlib import Path

import pytest
from helpers import TINY, photo_folder, same, weights
from helpers import refused_by_train as error_of

from hf_vit_scratch.training import main

MUON_IN_ALL = ["--muon_learning_rate", "1e-3", "--muon_stem", "true", "--patch_size", "4", "--stem", "conv"]


@pytest.mark.parametrize("more", [[], MUON_IN_ALL, ["--teacher_epochs", "2", "--num_teachers", "2"]])
def test_a_seed_repeats_a_run_and_a_resumed_run_ends_as_if_never_stopped(more, digits, tmp_path):
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "4", "--save_steps", "5", "--eval_strategy", "no"]
    arguments += ["--hidden_dropout_prob", "0.1", "--drop_path_rate", "0.1", "--save_total_limit", "9"]
    arguments += ["--augmentation", "digits", "--mild_fraction", "0.3", *more]
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    main([*arguments, "--output_dir", str(tmp_path / "other"), "--seed", "7"])
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "other"))

    main([*arguments, "--output_dir", str(tmp_path / "again")])
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "again"))
    # As if killed while it wrote checkpoint 15: what came after 10 is gone or incomplete.
    stopped = tmp_path / "again"
    for path in [*stopped.glob("checkpoint-2*"), stopped / "checkpoint-15" / "trainer_state.json"]:
        for file in path.iterdir() if path.is_dir() else [path]:
            file.unlink()
    (stopped / "model.safetensors").unlink()
    main([*arguments, "--output_dir", str(stopped), "--resume_from_checkpoint", "true"])
    assert same(weights(tmp_path / "whole"), weights(stopped))


def test_a_resumed_run_with_workers_crops_as_the_uninterrupted_run_without(tmp_path):
    photo_folder(tmp_path / "photos")  # 16 to train on
    arguments = ["--data", str(tmp_path / "photos"), *TINY, "--recipe", "photos-small", "--image_size", "28"]
    arguments += ["--num_train_epochs", "3", "--per_device_train_batch_size", "4", "--save_steps", "3"]
    arguments += ["--eval_strategy", "no", "--save_total_limit", "9", "--drop_path_rate", "0.1"]
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    # In the middle of the second epoch, when the workers have read ahead.
    more = ["--dataloader_num_workers", "2", "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-6")]
    main([*arguments, "--output_dir", str(tmp_path / "resumed"), *more])
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))


def test_a_run_is_not_overwritten_and_another_model_is_not_resumed(digits, tmp_path, capsys):
    arguments = ["--data", digits, *TINY, "--output_dir", str(tmp_path / "out")]
    main(arguments)
    (tmp_path / "out" / "checkpoint-999").mkdir()
    (tmp_path / "out" / "checkpoint-final").mkdir()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "holds a run already" in error_of(capsys, *arguments)
    resume = ["--resume_from_checkpoint", "true"]
    assert "hidden_size 16, but this run has 32" in error_of(capsys, *arguments, *resume, "--hidden_size", "32")
    assert "split_seed 42, but this run has 1" in error_of(capsys, *arguments, *resume, "--split_seed", "1")
    assert "fold None, but this run has 1" in error_of(capsys, *arguments, *resume, "--fold", "1")
    muon = ["--muon_learning_rate", "1e-3"]
    assert "muon_learning_rate None, but this run has 0.001" in error_of(capsys, *arguments, *resume, *muon)
    stem = ["--muon_stem", "true"]
    assert "muon_stem False, but this run has True" in error_of(capsys, *arguments, *resume, *stem)
    network = ["--teacher_network", "pooled"]
    assert "teacher_network 'strided', but this run has 'pooled'" in error_of(capsys, *arguments, *resume, *network)
    batch = ["--per_device_train_batch_size", "16"]
    words = "per_device_train_batch_size 32, gradient_accumulation_steps 1, num_processes 1, but this run has 16, 1, 1"
    assert words in error_of(capsys, *arguments, *resume, *batch)
    settings = tmp_path / "out" / "training_args.json"
    as_it_was = settings.read_text()
    written = json.loads(as_it_was)
    del written["data"]["fold"]  # as a version without this flag wrote it
    settings.write_text(json.dumps(written))
    assert "fold None, but this run has 1" in error_of(capsys, *arguments, *resume, "--fold", "1")
    settings.write_text(as_it_was)
    # Neither is a finished run by going on with a checkpoint of another, nor a folder that is no run.
    (checkpoint, *_) = (tmp_path / "out").glob("checkpoint-1*")
    shutil.copytree(checkpoint, tmp_path / "other" / checkpoint.name)
    other = ["--resume_from_checkpoint", str(tmp_path / "other" / checkpoint.name)]
    assert "holds a run already" in error_of(capsys, *arguments, *other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    mine = ["--output_dir", str(tmp_path / "mine")]
    assert "README.md that does not belong to a run" in error_of(capsys, *arguments, *mine, "--overwrite_output_dir")
    # What is refused is refused before anything is removed.
    wrong = ["--overwrite_output_dir", "--augmentation", "flip"]
    assert "augmentation must be" in error_of(capsys, *arguments, *wrong)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for more in ([], other):
        main([*arguments, "--overwrite_output_dir", *more])
        assert not (tmp_path / "out" / "checkpoint-999").exists()
        (tmp_path / "out" / "checkpoint-999").mkdir()


def test_a_run_is_resumed_with_as_many_images_a_step_as_before_and_no_others(digits, tmp_path, capsys):
    """The Trainer takes the steps that were done for another number of epochs, and ends early or starts over."""
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "4", "--save_strategy", "epoch"]
    arguments += ["--eval_strategy", "no", "--save_total_limit", "9"]
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    checkpoint = str(tmp_path / "whole" / "checkpoint-12")
    resume = [*arguments, "--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", checkpoint]
    refused = (("64", "1"), ("8", "1"), ("32", "2"), ("64", "2"))
    for size, times in (*refused, ("16", "2")):
        flags = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", times]
        if (size, times) in refused:
            line = error_of(capsys, *resume, *flags)
            words = (
                f"batch_size 32, gradient_accumulation_steps 1, num_processes 1, but this run has {size}, {times}, 1"
            )
            assert words in line
            assert not (tmp_path / "resumed").exists()
        else:
            main([*resume, *flags])
    whole, resumed = (
        json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("whole", "resumed")
    )
    assert (resumed["global_step"], resumed["epoch"]) == (whole["global_step"], whole["epoch"]) == (24, 4)
    rates = [
        [entry["learning_rate"] for entry in state["log_history"] if "loss" in entry] for state in (whole, resumed)
    ]
    assert rates[0] == rates[1]
    # A checkpoint of two processes, as an older version wrote it.
    folder, settings = Path(checkpoint), tmp_path / "whole" / "training_args.json"
    written = json.loads(settings.read_text())
    del written["training"]["num_processes"]
    settings.write_text(json.dumps(written))
    (folder / "manifest.json").unlink()
    shutil.copy(folder / "rng_state.pth", folder / "rng_state_1.pth")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    line = error_of(capsys, *resume)
    assert "gradient_accumulation_steps 1, num_processes 2, but this run has 32, 1, 1" in line


def test_a_run_that_is_written_over_leaves_nothing_that_the_new_one_is_taken_for(digits, tmp_path, monkeypatch):
    arguments = ["--data", digits, *TINY, "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    main([*arguments, "--fold", "3"])

    def stop(*_, **__):
        raise RuntimeError("the machine has failed")

    monkeypatch.setattr("hf_vit_scratch.training.trainer.ViTScratchTrainer.train", stop)
    with pytest.raises(RuntimeError, match="failed"):
        main([*arguments, "--fold", "4", "--overwrite_output_dir"])
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {"config.json", "model.safetensors", "all_results.json", "README.md", "curves.png"}
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert '"fold": 4' in (tmp_path / "out" / "training_args.json").read_text()
