"""Filters and positions against weights that were made for the purpose, and against numpy."""

import numpy as np
import pytest
import torch

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.explanation import patch_filters, position_similarity

TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def model_of(**fields) -> ViTScratchForImageClassification:
    return ViTScratchForImageClassification(ViTScratchConfig(**{**TINY, "image_size": 8, "patch_size": 4, **fields}))


def test_the_filters_are_the_principal_components_of_those_the_weights_were_made_of():
    """Weights that vary along three known filters, most along the first: the mean of all filters is no component."""
    random, model = np.random.default_rng(0), model_of(num_channels=2)
    known = np.linalg.qr(random.normal(size=(32, 3)))[0].T  # (3, 4 * 4 * 2)
    amounts = random.normal(size=(24, 3))
    amounts = np.linalg.qr(amounts - amounts.mean(axis=0))[0] * [9, 3, 1]
    filters = (amounts @ known + random.normal(size=32)).reshape(24, 4, 4, 2)
    stem = model.vit.embeddings.patch_embeddings
    stem.weight.data.copy_(torch.from_numpy(filters.transpose(0, 3, 1, 2)))
    found = patch_filters(model, number=3)
    assert found.shape == (3, 4, 4, 2)
    assert (np.abs(found).max(axis=(1, 2, 3)) == found.max(axis=(1, 2, 3))).all()
    np.testing.assert_allclose(np.abs((found.reshape(3, -1) * known).sum(axis=1)), 1, rtol=1e-4)
    assert len(patch_filters(model)) == 24  # not more than there are


def test_a_conv_stem_shows_the_kernels_of_its_first_convolution():
    model = model_of(stem="conv", num_channels=1)
    first = model.vit.embeddings.patch_embeddings[0].weight
    found = patch_filters(model, number=5)
    assert found.shape == (5, 3, 3, 1)
    np.testing.assert_array_equal(found[2, :, :, 0], first[2, 0].detach().numpy())


def test_similarity_of_sincos_positions_by_numpy():
    found = position_similarity(model_of(image_size=[8, 12], position_embedding="sincos2d"))
    waves = 10000 ** -(np.arange(6) / 6)
    places = [(row, column) for row in range(2) for column in range(3)]
    vectors = np.array(
        [[wave(place * waves) for place in (column, row) for wave in (np.sin, np.cos)] for row, column in places]
    ).reshape(6, 24)
    cosine = vectors @ vectors.T / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]
    assert found.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(found.reshape(6, 6), cosine, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_similarity_of_learned_positions_leaves_out_the_class_token(pooling):
    model = model_of(pooling=pooling)
    positions = model.vit.embeddings.position_embeddings
    positions.data.zero_()
    first = int(pooling == "cls")
    for token, (one, two) in enumerate([(1, 0), (0, 2), (3, 3), (-4, 0)], start=first):
        positions.data[0, token, :2] = torch.tensor([one, two])
    half = 0.5**0.5
    expected = [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]]
    np.testing.assert_allclose(position_similarity(model).reshape(4, 4), expected, atol=1e-6)


def test_a_model_without_positions_is_refused():
    with pytest.raises(ValueError, match="got none"):
        position_similarity(model_of(position_embedding="none"))
