import json

from helpers import TINY
from processes import run_ranks

RECORDING = """
import json, os, sys
import torch.distributed
from hf_vit_scratch.training import job, results
from hf_vit_scratch.data.batches import ImageBatches
seen, phase = {"train": [], "evaluated": [], "predicted": [], "saved": []}, "evaluated"
original = ImageBatches.__getitems__
def record(self, indices):
    seen["train" if len(self) == 180 else phase].append(list(map(int, indices)))
    return original(self, indices)
ImageBatches.__getitems__ = record
predict = results.predict_logits
def in_phase(*args):
    global phase
    phase = "predicted"
    return predict(*args)
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
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "1", "--per_device_train_batch_size", "15"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--eval_strategy", "epoch", "--ddp_backend", "gloo"]
    run_ranks(RECORDING, 2, tmp_path / "seen", *arguments, cwd=tmp_path)
    ranks = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    rows = [row for rank in ranks for batch in rank["train"] for row in batch]
    assert sorted(rows) == list(range(180))
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
