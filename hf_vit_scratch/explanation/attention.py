"""Attention as arrays: rollout from the output to the patches, maps of single heads, and mean attention distance.

Symbols in the shapes: B images, T tokens (the patches, and before them the class token of a model that has one), rows
and columns of the grid of patches.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ..model.configuration_vit_scratch import ViTScratchConfig


@torch.no_grad()
def record_attentions(model: PreTrainedModel, pixel_values: torch.Tensor) -> list[np.ndarray]:
    """The attention weights of all layers, each `(B, heads, T, T)`, float32. Each row sums to 1.

    Args:
        model: a [`ViTScratchModel`] or a [`ViTScratchForImageClassification`] in evaluation mode, with any attention
            implementation: the weights are computed with eager attention.
        pixel_values: normalized images `(B, num_channels, height, width)`.

    Raises:
        ValueError: size or number of channels of the images differ from the config's.
    """
    outputs = model.base_model(pixel_values.to(model.device), output_attentions=True)
    return [weights.float().cpu().numpy() for weights in outputs.attentions]


def attention_rollout(attentions: Sequence[np.ndarray], residual: float = 0.5) -> np.ndarray:
    """How much each token after the last of these layers comes from each token before the first.

    Abnar and Zuidema 2020 (arXiv 2005.00928, section 3): the heads of a layer are averaged, the residual connection is
    counted as attention of each token to itself, and the matrices of the layers are multiplied. The ViT paper draws
    its figure 6 in this way (appendix D.8).

    Args:
        attentions: weights of successive layers, the first layer first, each `(B, heads, T, T)`, with rows that sum
            to 1.
        residual: share of the residual connection, from 0 to 1. The paper has 0.5.

    Returns:
        `(B, T, T)`; rows are outputs, columns are inputs, and each row sums to 1.
    """
    rollout = np.eye(attentions[0].shape[-1], dtype=np.float32)
    for weights in attentions:
        mixed = (1 - residual) * np.mean(weights, axis=1)
        rollout = mixed @ rollout + residual * rollout
    return rollout


def output_map(weights: np.ndarray, config: ViTScratchConfig) -> np.ndarray:
    """The share of each patch in what the output of a model takes from its tokens.

    The output is the class token, or without one (mean pooling) the mean of all tokens, so the map is the row of the
    class token or the mean of all rows. What the class token takes from itself is left out.

    Args:
        weights: attention or rollout `(..., T, T)`.
        config: of the model, for images of its `image_size`.

    Returns:
        `(..., rows, columns)`; each map sums to 1.
    """
    rows = weights[..., 0, :] if config.pooling == "cls" else weights.mean(axis=-2)
    patches = rows[..., config.num_tokens - math.prod(config.grid_size) :]
    # A head that attends to the class token alone has no share to divide: its map is 0.
    shares = patches / np.maximum(patches.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    return shares.reshape(*shares.shape[:-1], *config.grid_size)


def rollout_map(model: PreTrainedModel, pixel_values: torch.Tensor) -> np.ndarray:
    """The share of each patch in the output of the model, by attention rollout through all layers.

    The arguments are those of [`record_attentions`]. The map does not depend on the head, and so not on a class.

    Returns:
        `(B, rows, columns)`; each map sums to 1.
    """
    return output_map(attention_rollout(record_attentions(model, pixel_values)), model.config)


def attention_distance(attentions: Sequence[np.ndarray], config: ViTScratchConfig) -> np.ndarray:
    """Mean distance between a patch and the patches that it attends to, by image, layer and head, in pixels.

    Figure 7 and appendix D.7 of the ViT paper: the distances between the centres of the patches, weighted by the
    attention. The class token has no place, so it is left out, and the weights of the patches are scaled to sum to 1.

    Args:
        attentions: as for [`attention_rollout`].
        config: of the model, for images of its `image_size`.

    Returns:
        `(B, layers, heads)`.
    """
    distances, first = patch_distances(config), config.num_tokens - math.prod(config.grid_size)
    means = []
    for weights in attentions:
        patches = weights[..., first:, first:]
        total = np.maximum(patches.sum(axis=-1), np.finfo(np.float32).tiny)
        means.append((np.einsum("bhqk,qk->bhq", patches, distances) / total).mean(axis=-1))
    return np.stack(means, axis=1)


def patch_distances(config: ViTScratchConfig) -> np.ndarray:
    """The distance between the centres of each two patches `(rows * columns, rows * columns)`, in pixels.

    Its mean is the mean attention distance of a head that attends to all patches alike.
    """
    grid = np.indices(config.grid_size, dtype=np.float32).reshape(2, -1) * config.patch_size
    return np.hypot(*(axis[:, None] - axis for axis in grid))
