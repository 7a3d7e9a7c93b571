"""FSDP2 on two gloo ranks: the same training, the same files, on half of the memory."""

import json

import pytest
import torch
from helpers import TINY, assert_close, same, weights
from processes import run_ranks
from safetensors.torch import load_file

from hf_vit_scratch import ViTScratchForImageClassification
from hf_vit_scratch.training import main

FSDP = {
    **{"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
    **{"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
}
# Runs one after the other, in each of the ranks, with the environment of each. The last word is where it says what of
# each parameter a rank has held.
RUNS = """
import json, os, sys
import torch.distributed
from accelerate.state import AcceleratorState
from hf_vit_scratch.training import job, trainer
job.write_results = lambda *args: None  # plots and card
held, train = [], trainer.ViTScratchTrainer.train
def record(self, *args, **kwargs):
    found = train(self, *args, **kwargs)
    parts = {name: getattr(p, "to_local", lambda p=p: p)().numel() for name, p in self.model.named_parameters()}
    held.append([type(self.model).__name__, torch.distributed.get_world_size(), parts])
    return found
trainer.ViTScratchTrainer.train = record
before = {}
for environment, argv in json.loads(sys.argv[1]):
    if environment != before:
        AcceleratorState._reset_state()
    before = environment
    os.environ.update(environment)
    job.main(argv)
with open(f"{sys.argv[2]}-{os.environ['RANK']}.json", "w") as file:
    json.dump(held, file)
"""


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    """Folders of two ranks without and with FSDP2, and what a rank held after each training."""
    folder = tmp_path_factory.mktemp("sharding")
    common = ["--data", digits, *TINY, "--max_steps", "6", "--eval_steps", "2", "--save_steps", "2", "--bf16", "false"]
    common += ["--eval_strategy", "no", "--save_total_limit", "9", "--augmentation", "none"]
    common += ["--gradient_accumulation_steps", "2"]
    muon = ["--muon_learning_rate", "3e-3", "--muon_stem", "true", "--teacher_epochs", "1"]
    muon += ["--patch_size", "4", "--stem", "conv"]
    each = ["--per_device_train_batch_size", "15"]

    def run(name, *flags):
        return [*common, *each, *flags, "--output_dir", str(folder / name)]

    checkpoint = str(folder / "sharded-teacher" / "checkpoint-2")
    todo = [
        ({}, run("replicated-teacher", *muon)),
        (FSDP, run("sharded-teacher", *muon)),
        (FSDP, run("resumed", *muon, "--resume_from_checkpoint", checkpoint)),
        (FSDP, run("sharded", "--gradient_checkpointing", "true", "--eval_strategy", "steps")),
    ]
    run_ranks(RUNS, 2, json.dumps(todo), folder / "held", cwd=folder)
    one = [*common, "--per_device_train_batch_size", "30"]
    main([*one, "--output_dir", str(folder / "one")])
    checkpoint = str(folder / "sharded" / "checkpoint-2")
    main([*one, "--output_dir", str(folder / "goes-on"), "--resume_from_checkpoint", checkpoint])
    return folder, [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]


def test_each_rank_holds_its_share_of_the_vit_and_the_whole_teacher(runs):
    folder, held = runs
    kinds = [kind for kind, _, _ in held[0]]
    vit = "ViTScratchForImageClassification"
    assert kinds == ["StridedConvNet", vit, "StridedConvNet", f"FSDP{vit}", f"FSDP{vit}", f"FSDP{vit}"]
    names = ["", "replicated-teacher", "", "sharded-teacher", "resumed", "sharded"]
    for name, ranks in zip(names, zip(*held, strict=True), strict=True):
        (kind, world, first), (_, _, second) = ranks
        assert world == 2
        if kind.startswith("FSDP"):
            total = sum(tensor.numel() for tensor in weights(folder / name).values())
            assert sum(first.values()) + sum(second.values()) == total
            assert 0.4 * total < sum(second.values()) <= sum(first.values()) < 0.6 * total
        else:
            assert first == second


@pytest.mark.parametrize("folder", ["", "checkpoint-2", "checkpoint-6"])
def test_it_trains_what_one_process_trains(runs, folder):
    """Averaged and evaluated on the way, accumulated, clipped, with checkpointed activations."""
    sharded, one = (runs[0] / name / folder for name in ("sharded", "one"))
    if folder:
        files = {file.name for file in sharded.iterdir()} ^ {file.name for file in one.iterdir()}
        assert files == {"rng_state.pth", "rng_state_0.pth", "rng_state_1.pth"}
    for name in ("config.json", "modeling_vit_scratch.py"):
        assert (sharded / name).read_bytes() == (one / name).read_bytes()
    assert_close(weights(sharded), weights(one))
    if folder:
        assert not same(weights(sharded), load_file(sharded / "average.safetensors"))
        assert_close(load_file(sharded / "average.safetensors"), load_file(one / "average.safetensors"))
        first, second = (torch.load(each / "optimizer.pt", weights_only=True) for each in (sharded, one))
        assert first["param_groups"] == second["param_groups"]
        for index, state in second["state"].items():
            torch.testing.assert_close(first["state"][index], state, atol=1e-5, rtol=1e-2)
    else:
        assert ViTScratchForImageClassification.from_pretrained(sharded).num_parameters() > 0


def test_muon_and_a_teacher_are_what_two_replicas_train(runs):
    replicated, sharded = (runs[0] / f"{name}-teacher" for name in ("replicated", "sharded"))
    assert same(*(load_file(folder / "teacher.safetensors") for folder in (replicated, sharded)))
    first, second = weights(sharded), weights(replicated)
    for name, tensor in second.items():
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(first[name], tensor, atol=2e-4, rtol=1e-3)  # Muon multiplies in bf16


def test_a_resumed_run_ends_as_if_never_stopped(runs):
    folder, _ = runs
    assert same(weights(folder / "sharded-teacher"), weights(folder / "resumed"))
    assert_close(weights(folder / "goes-on"), weights(folder / "one"))
