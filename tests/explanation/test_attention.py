"""Rollout, maps and distances against closed forms, loops, and the attentions of transformers' and timm's own ViT."""

import math

import numpy as np
import pytest
import timm
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.conversion import from_timm, from_transformers
from hf_vit_scratch.explanation import (
    attention_distance,
    attention_rollout,
    output_map,
    record_attentions,
    rollout_map,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
VARIANTS = {
    "cls": {},
    "mean": {"pooling": "mean"},
    "not_square": {"image_size": [8, 24]},
    "conv": {"stem": "conv", "pooling": "mean", "position_embedding": "sincos2d"},
    "grey": {"num_channels": 1, "position_embedding": "none"},
    "five_channels": {"num_channels": 5},
}


def config_of(**fields) -> ViTScratchConfig:
    return ViTScratchConfig(**{**TINY, "image_size": 16, "patch_size": 4, "num_labels": 3, **fields})


def randomized(model):
    """A model with random weights that are large enough for its attention to be far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


def images(config, number=2):
    shape = (number, config.num_channels, *config.image_height_width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def random_attention(*shape):
    weights = np.random.default_rng(0).random(shape) ** 4
    return weights / weights.sum(axis=-1, keepdims=True)


def test_the_rollout_of_identities_is_the_identity():
    identity = np.broadcast_to(np.eye(5), (2, 3, 5, 5))
    np.testing.assert_array_equal(attention_rollout([identity] * 4), np.broadcast_to(np.eye(5), (2, 5, 5)))


def test_the_rollout_of_two_layers_by_hand():
    """Means of the heads [[.5, .5], [0, 1]], then [[1, 0], [1, 0]]; with half of the residual [[.75, .25], [0, 1]] and
    [[1, 0], [.5, .5]]; their product, the second layer on the left."""
    first = np.array([[[[1, 0], [0, 1]], [[0, 1], [0, 1]]]], dtype=float)
    second = np.array([[[[1, 0], [1, 0]], [[1, 0], [1, 0]]]], dtype=float)
    np.testing.assert_allclose(attention_rollout([first, second]), [[[0.75, 0.25], [0.375, 0.625]]])
    np.testing.assert_allclose(attention_rollout([first, second], residual=0), [[[0.5, 0.5], [0.5, 0.5]]])


def test_the_rows_of_a_rollout_sum_to_one_and_uniform_attention_rolls_out_to_its_power():
    rollout = attention_rollout([random_attention(2, 3, 6, 6), random_attention(2, 3, 6, 6) ** 1])
    np.testing.assert_allclose(rollout.sum(axis=-1), 1, rtol=1e-6)
    uniform = attention_rollout([np.full((1, 2, 6, 6), 1 / 6)] * 3)
    np.testing.assert_allclose(uniform[0], (1 - 0.5**3) / 6 + 0.5**3 * np.eye(6), rtol=1e-6)


def test_the_map_starts_at_the_class_token_or_with_mean_pooling_at_all_tokens():
    grid = {"image_size": [8, 12]}  # 2 rows of 3 patches
    weights = random_attention(4, 7, 7)
    of_class = output_map(weights, config_of(**grid))
    assert of_class.shape == (4, 2, 3)
    np.testing.assert_allclose(of_class[1].ravel(), weights[1, 0, 1:] / weights[1, 0, 1:].sum())
    weights = random_attention(6, 6)
    of_mean = output_map(weights, config_of(**grid, pooling="mean"))
    np.testing.assert_allclose(of_mean.ravel(), sum(weights) / 6)  # there is no class token whose row to take
    only_itself = np.zeros((7, 7))
    only_itself[0, 0] = 1
    np.testing.assert_array_equal(output_map(only_itself, config_of(**grid)), np.zeros((2, 3)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_uniform_attention_has_the_mean_distance_of_all_pairs(pooling):
    config = config_of(image_size=[8, 20], pooling=pooling)
    tokens, places = config.num_tokens, [(4 * row, 4 * column) for row in range(2) for column in range(5)]
    total = sum(math.dist(one, other) for one in places for other in places)
    found = attention_distance([np.full((2, 3, tokens, tokens), 1 / tokens)] * 2, config)
    assert found.shape == (2, 2, 3)
    np.testing.assert_allclose(found, total / len(places) ** 2, rtol=1e-6)


def test_distances_of_any_attention_by_loops_and_of_each_patch_to_itself():
    config = config_of(image_size=[8, 12])
    weights = random_attention(1, 2, 7, 7)
    by_hand = np.zeros(2)
    for head in range(2):
        for query in range(6):
            shares = weights[0, head, 1 + query, 1:] / weights[0, head, 1 + query, 1:].sum()
            for key in range(6):
                rows, columns = query // 3 - key // 3, query % 3 - key % 3
                by_hand[head] += shares[key] * 4 * math.sqrt(rows**2 + columns**2) / 6
    np.testing.assert_allclose(attention_distance([weights], config)[0, 0], by_hand, rtol=1e-6)
    itself = np.broadcast_to(np.eye(7), (1, 2, 7, 7))
    np.testing.assert_array_equal(attention_distance([itself], config), np.zeros((1, 1, 2)))


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rollout_map_of_any_model(fields, attention):
    config = config_of(**fields)
    model = randomized(ViTScratchForImageClassification(config))
    model.set_attn_implementation(attention)
    pixel_values = images(config)
    maps = rollout_map(model, pixel_values)
    assert maps.shape == (2, *config.grid_size)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(rollout_map(model.vit, pixel_values), maps, rtol=1e-5)  # without a head
    assert np.abs(maps[0] - maps[1]).max() > 1e-3
    assert [weights.shape for weights in record_attentions(model, pixel_values)] == [
        (2, 2, config.num_tokens, config.num_tokens)
    ] * 3


def test_attentions_of_a_converted_vit_are_those_of_transformers():
    config = ViTConfig(**TINY, image_size=16, patch_size=4, attn_implementation="eager")
    theirs = randomized(ViTForImageClassification(config))
    pixel_values = images(config_of())
    with torch.no_grad():
        expected = theirs(pixel_values, output_attentions=True).attentions
    found = record_attentions(from_transformers(theirs).eval(), pixel_values)
    assert len(found) == len(expected) == 3
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)


def test_attentions_of_a_converted_vit_are_those_of_timm():
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    theirs = randomized(timm.models.vision_transformer.VisionTransformer(**sizes))
    expected = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, inputs: expected.append(inputs[0]))
    pixel_values = images(config_of())
    with torch.no_grad():
        theirs(pixel_values)
    found = record_attentions(from_timm(theirs).eval(), pixel_values)
    assert len(found) == len(expected) == 2
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected images of 16x16 pixels"):
        rollout_map(ViTScratchForImageClassification(config_of()), torch.zeros(1, 3, 8, 8))
