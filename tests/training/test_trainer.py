import copy
import pickle

import datasets
import numpy as np
import pytest
import torch
from helpers import blocks
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.data.batches import ImageBatches, PixelValues
from hf_vit_scratch.training.trainer import ViTScratchTrainer, metrics_during_training


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_weight_decay_leaves_out_biases_norms_and_embeddings(stem):
    config = ViTScratchConfig.from_size("digits-tiny", num_hidden_layers=1, stem=stem)
    model = ViTScratchForImageClassification(config)
    decayed = set(ViTScratchTrainer.get_decay_parameter_names(None, model))
    shapes = dict(model.named_parameters())
    assert decayed <= shapes.keys()
    left_out = shapes.keys() - decayed
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} <= left_out
    assert all(shapes[name].dim() in (2, 4) for name in decayed)
    assert all(shapes[name].dim() == 1 or "embeddings" in name for name in left_out)
    assert "vit.layers.0.attention.qkv.weight" in decayed


def digit_batches(number: int, seed: int, **fields) -> ImageBatches:
    """A split of this many blocks."""
    labels = np.arange(number) % 10
    rows = {"image": [Image.fromarray(pixels) for pixels in blocks(labels, seed=seed)], "label": labels.tolist()}
    names = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    split = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "label": names}))
    return ImageBatches(split, ViTScratchImageProcessor(size={"height": 28, "width": 28}, num_channels=1), **fields)


def make_trainer(tmp_path, model=None, ema_decay=0.5, muon=None, eval_dataset=None, **arguments) -> ViTScratchTrainer:
    """A trainer for 64 blocks, as a user of the class calls it."""
    torch.manual_seed(0)
    fields = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 7}
    model = model or ViTScratchForImageClassification(
        ViTScratchConfig.from_size("digits-tiny", num_labels=10, **fields)
    )
    arguments = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 1e-2, **arguments}
    arguments |= {"use_cpu": True, "disable_tqdm": True, "report_to": [], "remove_unused_columns": False}
    train = digit_batches(64, seed=1)
    return ViTScratchTrainer(
        model,
        TrainingArguments(output_dir=str(tmp_path / "out"), **{"save_strategy": "no", **arguments}),
        train_dataset=train,
        eval_dataset=eval_dataset,
        processing_class=train.processor,
        compute_metrics=metrics_during_training,
        to_pixel_values=PixelValues(train.processor),
        ema_decay=ema_decay,
        muon_learning_rate=muon,
    )


@pytest.mark.parametrize("stem, muon_stem", [("conv", True), ("conv", False), ("patch", True)])
def test_muon_takes_the_filters_of_a_convolutional_stem_where_told(tmp_path, stem, muon_stem):
    fields = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 4, "stem": stem}
    config = ViTScratchConfig.from_size("digits-tiny", num_labels=10, **fields)
    trainer = make_trainer(tmp_path, ViTScratchForImageClassification(config), muon=1e-3)
    trainer.muon_stem = muon_stem
    muon = {id(weight) for weight in trainer.create_optimizer().param_groups[-1]["params"]}
    filters = [weight for weight in trainer.model.parameters() if weight.dim() == 4]
    assert len(filters) == (3 if stem == "conv" else 1)
    assert sum(id(weight) in muon for weight in filters) == (len(filters) if muon_stem and stem == "conv" else 0)
    assert len(muon) == 2 * 4 + (3 if muon_stem and stem == "conv" else 0)


def test_several_sets_to_evaluate_on_have_metrics_each(tmp_path):
    sets = {"easy": digit_batches(30, seed=2), "other": digit_batches(20, seed=3)}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "other_accuracy"}
    trainer = make_trainer(tmp_path, eval_dataset=sets, eval_strategy="epoch", **{**best, "save_strategy": "epoch"})
    trainer.train()
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert (logged["eval_easy_num_images"], logged["eval_other_num_images"]) == (30, 20)
    for name, batches in sets.items():
        alone = trainer.evaluate(batches)
        assert alone["eval_loss"] == pytest.approx(logged[f"eval_{name}_loss"], rel=1e-4)
        assert alone["eval_accuracy"] == logged[f"eval_{name}_accuracy"]


@pytest.mark.parametrize("muon", [None, 1e-3])
def test_a_batch_size_that_fits_is_found(tmp_path, muon):
    trainer, tried = make_trainer(tmp_path, muon=muon, auto_find_batch_size=True), []
    compute_loss = trainer.compute_loss

    def out_of_memory_above_ten(model, inputs, *args, **kwargs):
        tried.append(len(inputs["labels"]))
        if tried[-1] > 10:
            raise RuntimeError("CUDA out of memory.")
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = out_of_memory_above_ten
    trainer.train()
    fitting = next(size for size in tried if size <= 10)
    assert tried[0] == 16 and trainer.state.global_step == -(-64 // fitting)


@pytest.mark.parametrize("muon", [None, 1e-3])
@pytest.mark.parametrize("frozen", ["vit", "vit.embeddings", "vit.layers.0"])
def test_what_is_frozen_stays_as_it_was_also_in_the_average(tmp_path, frozen, muon):
    trainer = make_trainer(tmp_path, muon=muon)
    trainer.model.get_submodule(frozen).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    trainer.save_model()
    saved = ViTScratchForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    for state in (trainer.model.state_dict(), saved):
        same = {name for name, tensor in state.items() if torch.equal(tensor, before[name])}
        assert same == {name for name in before if name.startswith(f"{frozen}.")}


@pytest.mark.parametrize("fields", [{}, {"min_crop_area": 0.5}], ids=str)
def test_batches_reach_a_worker_that_is_spawned(fields):
    """A spawned worker of a DataLoader gets the data set as a pickle."""
    batches = digit_batches(20, seed=4, **fields)
    found, expected = [], []
    for each, results in ((pickle.loads(pickle.dumps(batches)), found), (batches, expected)):
        torch.manual_seed(0)
        results.append(each.__getitems__([3, 1, 19]))
    torch.testing.assert_close(found, expected)


class Copies(TorchDispatchMode):
    """Counts the calls of `.item()`, `float()` or `if` on a tensor, which would wait for an accelerator."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


def test_no_step_between_logs_reads_a_value_from_the_device(tmp_path):
    counts = []
    for steps in (1, 4):  # of one epoch, whose DataLoader draws a seed on the host
        # AdamW would read its counters of steps, which are on the host.
        run = {"max_steps": steps, "logging_steps": steps, "optim": "sgd", "logging_nan_inf_filter": False}
        trainer = make_trainer(tmp_path / str(steps), muon=1e-3, **run)
        trainer.learn_from(copy.deepcopy(trainer.model), 0.5, 2.0)
        with Copies() as copies:
            trainer.train()
        assert len(trainer.state.log_history) == 2  # one of the steps, and the summary
        counts.append(copies.count)
    assert counts[0] == counts[1] > 0
