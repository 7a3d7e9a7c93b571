"""What the weights of the embeddings hold: the filters of the patches, and the similarity of the positions."""

import numpy as np
from transformers import PreTrainedModel

from ..model.configuration_vit_scratch import ViTScratchConfig


def patch_filters(model: PreTrainedModel, number: int = 28) -> np.ndarray:
    """Filters of the patch embedding.

    Of the "patch" stem, the first principal components of the `hidden_size` filters, as in figure 7 (left) of the ViT
    paper; each has length 1, and its largest value is positive. The "conv" stem has no filter of a whole patch: the
    kernels of its first convolution are returned as they are.

    Args:
        model: a [`ViTScratchModel`] or a [`ViTScratchForImageClassification`].
        number: most filters to return.

    Returns:
        `(filters, height, width, num_channels)`, with a height and width of `patch_size`, or of 3 for the "conv" stem.
    """
    stem = model.base_model.embeddings.patch_embeddings
    weight = (stem if model.config.stem == "patch" else stem[0]).weight.detach().float().cpu().numpy()
    filters = weight.transpose(0, 2, 3, 1)  # (D, C, P, P) -> (D, P, P, C)
    if model.config.stem == "patch":
        flat = filters.reshape(len(filters), -1)
        _, _, components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
        filters = (components * np.sign(largest)[:, None]).reshape(-1, *filters.shape[1:])
    return filters[:number]


def has_position_similarity(config: ViTScratchConfig) -> bool:
    """Whether a model has position embeddings, and so few that all pairs fit into memory (64 MB)."""
    return config.position_embedding != "none" and config.num_tokens <= 4097


def position_similarity(model: PreTrainedModel) -> np.ndarray:
    """Cosine similarity of the position embeddings of each two patches, as in figure 7 (centre) of the ViT paper.

    Args:
        model: a [`ViTScratchModel`] or a [`ViTScratchForImageClassification`].

    Returns:
        `(rows, columns, rows, columns)`, from -1 to 1.

    Raises:
        ValueError: the model has no position embeddings, or more than 4,096 patches.
    """
    config = model.config
    if not has_position_similarity(config):
        raise ValueError(f"expected position embeddings of at most 4,096 patches, got {config.position_embedding}.")
    positions = model.base_model.embeddings.position_embeddings.detach()[0].float().cpu().numpy()
    positions = positions[config.num_tokens - np.prod(config.grid_size) :]
    unit = positions / np.maximum(np.linalg.norm(positions, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return (unit @ unit.T).reshape(*config.grid_size, *config.grid_size)
