"""The map by gradients sums to what it explains, and loses its similarity when the weights are replaced."""

import sys

import numpy as np
import pytest
import torch

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.evaluation.classifier import load_model
from hf_vit_scratch.explanation import gradient_map, gradients, randomization_check, rollout_map
from hf_vit_scratch.explanation.gradients import parts_from_the_top, rank_correlation

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def trained(run_folder):
    """The model of a run, and digits of two classes as it takes them."""
    from helpers import blocks

    model, processor = load_model(run_folder, torch.device("cpu"))
    return model, processor(list(blocks(np.array([7, 2, 4, 5]), seed=5)), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("fields", [{}, {"pooling": "mean", "stem": "conv"}, {"image_size": [8, 20]}], ids=str)
def test_the_map_sums_to_the_difference_of_the_logits(fields, monkeypatch):
    torch.manual_seed(0)
    model = ViTScratchForImageClassification(
        ViTScratchConfig(**{**TINY, "image_size": 8, "patch_size": 4, "num_labels": 3, **fields})
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    pixel_values = torch.randn(3, 3, *model.config.image_height_width)
    baseline, targets = torch.full_like(pixel_values[0], -1.0), torch.tensor([2, 0, 1])
    found = gradient_map(model, pixel_values, targets, baseline, steps=64)
    assert found.shape == (3, *model.config.grid_size)
    with torch.no_grad():
        difference = (model(pixel_values).logits - model(baseline[None]).logits)[range(3), targets]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), difference.numpy(), atol=2e-3)
    monkeypatch.setattr(gradients, "_images_with_gradients", lambda config: 1)  # as of a model that is too large
    np.testing.assert_allclose(gradient_map(model, pixel_values, targets, baseline, steps=64), found, atol=1e-5)


def test_a_patch_that_is_as_the_baseline_adds_nothing_and_another_class_has_another_map(trained):
    model, pixel_values = trained
    pixel_values = pixel_values.clone()
    pixel_values[:, :, :7, :7] = -1
    black = torch.full_like(pixel_values[0], -1)
    found = gradient_map(model, pixel_values, baseline=black)
    assert (found[:, 0, 0] == 0).all() and (found[:, 1:] != 0).all()
    predicted = model(pixel_values).logits.argmax(dim=-1)
    np.testing.assert_allclose(gradient_map(model, pixel_values, predicted, black), found, rtol=1e-5)
    assert rank_correlation(found, gradient_map(model, pixel_values, (predicted + 1) % 10, black)).max() < 0.9


def test_the_bright_block_that_says_the_class_speaks_for_it(trained):
    model, pixel_values = trained
    found = gradient_map(model, pixel_values, torch.tensor([7, 2, 4, 5]), torch.full_like(pixel_values[0], -1))
    places = [divmod(int(each.argmax()), 4) for each in found]
    assert places == [divmod(label, 4) for label in (7, 2, 4, 5)]  # helpers.blocks


def test_maps_change_when_the_weights_are_replaced_and_one_that_is_blind_to_them_does_not(trained):
    model, pixel_values = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = torch.tensor([7, 2, 4, 5])

    def edges(model, images):
        return images.mean(dim=1).unflatten(1, (4, 7)).unflatten(3, (4, 7)).std(dim=(2, 4)).numpy()

    blind = randomization_check(model, pixel_values, edges)
    np.testing.assert_allclose(blind, np.ones(5), rtol=1e-6)  # none, head, 2 blocks, embeddings
    seen = randomization_check(model, pixel_values, lambda changed, images: gradient_map(changed, images, targets))
    assert seen[0] == 1 and np.abs(seen[1:]).max() < 0.7 and abs(seen[-1]) < 0.5
    rollout = randomization_check(model, pixel_values, rollout_map)
    np.testing.assert_allclose(rollout[:2], 1, rtol=1e-6)  # the head has no part in it
    assert abs(rollout[-1]) < 0.7
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_parts_are_all_of_the_model(trained):
    model, _ = trained
    parts = [
        parameter
        for modules in parts_from_the_top(model).values()
        for each in modules
        for parameter in each.parameters()
    ]
    assert {id(parameter) for parameter in parts} == {id(parameter) for parameter in model.parameters()}


def test_rank_correlation_by_hand():
    one = np.array([[[1, 2], [3, 4]]] * 3)
    other = np.array([[[10, 20], [30, 99]], [[4, 3], [2, 1]], [[5, 5], [5, 5]]])
    np.testing.assert_allclose(rank_correlation(one, other), [1, -1, 0])


def test_without_captum_it_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setattr(gradients, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "hf-vit-scratch\[explain\]"'):
        gradient_map(*trained)
