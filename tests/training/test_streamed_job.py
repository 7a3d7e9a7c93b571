import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import TINY, numbered_image, numbered_shards, refused_by_train, refused_by_vit_scratch, same, weights
from processes import run_ranks

from hf_vit_scratch.training import main

RECORDING = """
import json, os, sys
import torch.distributed
from hf_vit_scratch.training import job, trainer
seen = []
step = trainer.ViTScratchTrainer.training_step
def record(self, model, inputs, *args, **kwargs):
    if inputs["weight"]:
        seen.append([self.state.global_step, inputs["pixel_values"][:, 0, 0, 0].tolist()])
    return step(self, model, inputs, *args, **kwargs)
trainer.ViTScratchTrainer.training_step = record
job.main(sys.argv[2:])
with open(f"{sys.argv[1]}-{os.environ['RANK']}.json", "w") as file:
    json.dump({"world": torch.distributed.get_world_size(), "seen": seen}, file)
"""
STREAM = [*TINY, "--streaming", "--image_size", "8", "--patch_size", "4", "--num_channels", "1"]
STREAM += ["--augmentation", "none", "--bf16", "false", "--per_device_train_batch_size", "4"]


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_two_ranks_with_two_workers_train_on_each_image_once_an_epoch(sharded, tmp_path, monkeypatch):
    if sharded:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
    sizes = [9, 20, 5]
    numbered_shards(tmp_path / "shards", "parquet", {"train": sizes, "validation": [6], "test": [5]})
    arguments = ["--data", str(tmp_path / "shards"), *STREAM, "--dataloader_num_workers", "2", "--ddp_backend", "gloo"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--eval_strategy", "epoch", "--shuffle_buffer", "5"]
    run_ranks(RECORDING, 2, tmp_path / "seen", *arguments, cwd=tmp_path)
    ranks = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    steps = -(-sum(sizes) // 8)
    orders = [
        [number for rank in ranks for step, part in rank["seen"] if step // steps == epoch for number in part]
        for epoch in (0, 1)
    ]
    for order in orders:
        assert sorted(order) == list(range(sum(sizes)))
    assert orders[0] != orders[1]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 * steps and state["epoch"] == 2.0
    assert [row["eval_num_images"] for row in state["log_history"] if "eval_num_images" in row] == [6, 6]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["train_images"] == sum(sizes) and results["validation_num_images"] == 6

    from hf_vit_scratch.cli import main as vit_scratch

    model, source = ["--model", str(tmp_path / "out")], ["--data", str(tmp_path / "shards")]
    monkeypatch.undo()
    vit_scratch(["submit", *model, *source, "--streaming", "--output_file", str(tmp_path / "alone.csv")])
    assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "out" / "submission.csv").read_bytes()
    vit_scratch(["evaluate", *model, *source, "--output_dir", str(tmp_path / "evaluated")])
    assert json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["num_images"] == 6


@pytest.mark.parametrize(
    ("workers", "more"),
    [("0", []), ("2", []), pytest.param("0", ["--teacher_epochs", "1"], marks=pytest.mark.nightly)],
)
def test_a_stream_is_resumed_in_the_middle_of_an_epoch_as_if_never_stopped(workers, more, tmp_path, capsys):
    numbered_shards(tmp_path / "shards", "tar", {"train": [9, 20, 4], "validation": [6]})
    arguments = ["--data", str(tmp_path / "shards"), *STREAM, "--dataloader_num_workers", workers, *more]
    arguments += ["--per_device_train_batch_size", "8", "--eval_strategy", "no", "--shuffle_buffer", "5"]
    arguments += ["--hidden_dropout_prob", "0.1", "--augmentation", "photos", "--save_steps", "7"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main([*arguments, "--output_dir", str(whole)])
    # An epoch has 5 steps, so that step 7 is in the middle of the second.
    for name in ("checkpoint-7", "training_args.json", "teacher.safetensors"):
        if (whole / name).is_dir():
            shutil.copytree(whole / name, stopped / name)
        elif (whole / name).exists():
            shutil.copy(whole / name, stopped / name)
    resume = [*arguments, "--output_dir", str(stopped), "--resume_from_checkpoint", "true"]
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    for changes, words in (
        (["--dataloader_num_workers", "3"], f"dataloader_num_workers {max(1, int(workers))}, but this run has 3"),
        (["--shuffle_buffer", "6"], "shuffle_buffer 5, but this run has 6"),
        (["--data_seed", "9"], "data_seed 42, but this run has 9"),
    ):
        message = refused_by_train(capsys, *resume, *changes)
        assert words in message and "in the middle of an epoch" in message
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    main(resume)
    assert json.loads((stopped / "all_results.json").read_text())["resumed_from_step"] == 7
    assert same(weights(whole), weights(stopped))


def test_settings_that_a_stream_cannot_have_are_refused(tmp_path, capsys):
    numbered_shards(tmp_path / "shards", "tar", {"train": [9], "validation": [6]})
    numbered_shards(tmp_path / "alone", "tar", {"train": [9]})
    output = ["--output_dir", str(tmp_path / "out")]
    stream = ["--data", str(tmp_path / "shards"), *TINY, "--streaming", *output]
    sized = ["--image_size", "28"]
    assert "pass --image_size" in refused_by_train(capsys, *stream)
    assert "fold 1 cannot be held out of a stream" in refused_by_train(capsys, *stream, *sized, "--fold", "1")
    assert "shuffle_buffer must be at least 1" in refused_by_train(capsys, *stream, *sized, "--shuffle_buffer", "0")
    message = refused_by_train(capsys, *stream, *sized, "--data", str(tmp_path / "alone"))
    assert "no validation split" in message and "--validation_size 0" in message
    assert "sample is not sharded" in refused_by_train(capsys, *stream, "--data", "sample")
    assert "streaming: explore" in refused_by_vit_scratch(capsys, "explore", "--streaming", *output)
    sequential = ["--train_sampling_strategy", "sequential"]
    assert "a stream is read at random only" in refused_by_train(capsys, *stream, *sized, *sequential)


def test_an_image_that_a_worker_cannot_decode_ends_the_run_with_its_name(tmp_path, capfd):
    images = [{"bytes": numbered_image(number), "path": None} for number in range(20)]
    images[13]["bytes"] = b"no image"
    table = pa.table({"image": images, "label": [number % 2 for number in range(20)]})
    (tmp_path / "shards").mkdir()
    pq.write_table(table, tmp_path / "shards" / "train-0.parquet")
    arguments = [
        "--data",
        str(tmp_path / "shards"),
        *STREAM,
        "--dataloader_num_workers",
        "2",
        "--validation_size",
        "0",
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert stopped.value.code == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"train.py: error: {tmp_path}/shards/train-0.parquet, row 14 cannot be used as an image")
