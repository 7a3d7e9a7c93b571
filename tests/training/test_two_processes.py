import json
import sys

import pytest
from helpers import TINY, assert_close, competition_zip, photo_folder, refused_by_train, weights
from processes import run_ranks

from hf_vit_scratch.training import job, main

RECORDING = """
import json, os, sys
import torch.distributed
from hf_vit_scratch.training import job, results
from hf_vit_scratch.data.batches import ImageBatches
seen, phase = {"train": [], "evaluated": [], "predicted": [], "saved": []}, "evaluated"
original = ImageBatches.__getitems__
def record(self, indices):
    rows = getattr(indices, "indices", indices)
    seen["train" if len(self) == 180 else phase].append(list(map(int, rows)))
    return original(self, indices)
ImageBatches.__getitems__ = record
predict = results.predict_logits
def in_phase(*args, **options):
    global phase
    phase = "predicted"
    return predict(*args, **options)
results.predict_logits = in_phase
save = job.ViTScratchForImageClassification.save_pretrained
def record_save(self, folder, *args, **kwargs):
    seen["saved"].append(str(folder))
    return save(self, folder, *args, **kwargs)
job.ViTScratchForImageClassification.save_pretrained = record_save
job.main(sys.argv[2:])
world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
with open(f"{sys.argv[1]}-{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump({"world": world, **seen}, file)
"""


def test_two_processes_see_every_image_once_and_write_once(digits, tmp_path):
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "1", "--per_device_train_batch_size", "16"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--eval_strategy", "epoch", "--ddp_backend", "gloo"]
    run_ranks(RECORDING, 2, tmp_path / "seen", *arguments, cwd=tmp_path)
    ranks = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    rows = [row for rank in ranks for batch in rank["train"] for row in batch]
    assert sorted(rows) == list(range(180))  # also in the last step, which has 20 instead of 32
    # Validation has 20 rows and test 50, and each was predicted by one of the two. The Trainer's own evaluation pads
    # its one batch to give both something to do, and must not count that.
    predicted = [row for rank in ranks for batch in rank["predicted"] for row in batch]
    assert sorted(predicted) == sorted([*range(20), *range(50)])
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [row["eval_num_images"] for row in history if "eval_num_images" in row] == [20]
    assert all(rank["predicted"] for rank in ranks)
    assert ranks[0]["saved"].count(str(tmp_path / "out")) == 1
    assert ranks[1]["saved"] == []

    from hf_vit_scratch.cli import main as vit_scratch

    alone = tmp_path / "alone.csv"
    vit_scratch(["submit", "--model", str(tmp_path / "out"), "--data", digits, "--output_file", str(alone)])
    assert alone.read_bytes() == (tmp_path / "out" / "submission.csv").read_bytes()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["validation_num_images"] == 20


# Several runs in one process or in each rank of one launch. The teacher, if there is one, is the same network for all.
RUNS = """
import json, sys
import torch
from hf_vit_scratch.training import job
def teacher(config, *_):
    torch.manual_seed(7)
    return job.ViTScratchForImageClassification(config).eval().requires_grad_(False), {}
job.get_teacher = teacher
for argv in json.loads(sys.argv[1]):
    job.main(argv)
"""


def test_one_process_and_two_ranks_compute_the_same(tmp_path, monkeypatch, capsys):
    """Augmentation, distillation, accumulation, and a last step of one image, of which one of two ranks has none."""
    competition_zip(tmp_path / "digits.zip", num_train=110)  # 99 to train on, and 11 held out
    photo_folder(tmp_path / "photos")  # 16 to train on
    tiny = [*TINY, "--bf16", "false", "--num_train_epochs", "4", "--logging_steps", "1", "--eval_strategy", "no"]
    digits = [*tiny, "--data", str(tmp_path / "digits.zip"), "--augmentation", "digits", "--teacher_epochs", "1"]
    digits += ["--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "9", "--ema_decay", "0.5"]
    digits += ["--warmup_steps", "0", "--label_smoothing_factor", "0.1"]
    digits += ["--eval_strategy", "epoch", "--per_device_eval_batch_size", "4"]  # two ranks have 8 and 3 of the 11
    photos = [*tiny, "--data", str(tmp_path / "photos"), "--recipe", "photos-small", "--image_size", "28"]
    photos += ["--drop_path_rate", "0", "--save_strategy", "no", "--ema_decay", "0", "--warmup_steps", "0"]

    def runs(folder: str, digits_batch: int, photos_batch: int, accumulated: int, *more: str) -> list[list[str]]:
        sizes = "--per_device_train_batch_size", "--gradient_accumulation_steps", "--output_dir"
        return [
            [*digits, sizes[0], str(digits_batch), sizes[2], str(tmp_path / folder / "digits"), *more],
            [*photos, sizes[0], str(photos_batch), sizes[1], str(accumulated)]
            + [sizes[2], str(tmp_path / folder / "photos"), "--dataloader_num_workers", str(accumulated - 1), *more],
        ]

    monkeypatch.setattr(job, "get_teacher", job.get_teacher)  # to be as it was after the test
    monkeypatch.setattr(sys, "argv", ["-c", json.dumps(runs("one", 98, 12, 1))])
    exec(compile(RUNS, "<string>", "exec"), {"__name__": "runs"})
    run_ranks(RUNS, 2, json.dumps(runs("two", 49, 3, 2, "--ddp_backend", "gloo")))
    resume = ["--resume_from_checkpoint", str(tmp_path / "two" / "digits" / "checkpoint-3")]  # amid an epoch
    (tmp_path / "two" / "digits" / "teacher.safetensors").touch()  # a checkpoint without its teacher is refused
    half, _ = runs("half", 49, 12, 1)
    words = "per_device_train_batch_size 49, gradient_accumulation_steps 1, num_processes 2, but this run has 49, 1, 1"
    assert words in refused_by_train(capsys, *half, *resume)
    continued, _ = runs("continued", 98, 12, 1)
    main([*continued, *resume])
    for alone, other in (("digits", "two"), ("photos", "two"), ("digits", "continued")):
        expected, found = (tmp_path / name / alone for name in ("one", other))
        assert_close(weights(found), weights(expected))
        states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (expected, found)]
        losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
        assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], rel=1e-3)
        held_out = [[row["eval_loss"] for row in state["log_history"] if "eval_loss" in row] for state in states]
        assert len(held_out[0]) == (4 if alone == "digits" else 0)
        assert held_out[0] == pytest.approx(held_out[1], rel=1e-4)
