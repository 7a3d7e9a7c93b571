"""A map by gradients, which depends on the class, and the check whether a map depends on the weights at all."""

import copy
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn
from transformers import PreTrainedModel

from ..model.configuration_vit_scratch import ViTScratchConfig

INSTALL = 'pip install "hf-vit-scratch[explain]"'
Explain = Callable[[PreTrainedModel, torch.Tensor], np.ndarray]


def has_captum() -> bool:
    """Whether Captum, of the extra `explain`, is installed."""
    return find_spec("captum") is not None


def gradient_map(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    targets: torch.Tensor | None = None,
    baseline: torch.Tensor | None = None,
    steps: int = 8,
) -> np.ndarray:
    """How much each patch adds to the logit of a class, by integrated gradients (Sundararajan et al. 2017).

    The gradient of the logit is averaged on the way from a baseline to the image, and multiplied by the difference of
    the two (arXiv 1703.01365, section 3), by Captum. The pixels of a patch are summed up. With many steps, a map sums
    to the logit of the image minus that of the baseline.

    Args:
        model: a [`ViTScratchForImageClassification`] in evaluation mode.
        pixel_values: normalized images `(B, num_channels, height, width)`.
        targets: the output to explain of each image, `(B,)`. Default: that with the highest logit.
        baseline: the normalized image that stands for nothing, such as a black one, `(num_channels, height, width)`.
            Default: zeros, which is the mean colour.
        steps: number of points on the way.

    Returns:
        `(B, rows, columns)`. Values below 0 speak against the class.

    Raises:
        ValueError: Captum is not installed.
    """
    if not has_captum():
        raise ValueError(f"the map by gradients needs captum: {INSTALL}.")
    from captum.attr import IntegratedGradients

    pixel_values = pixel_values.detach().to(model.device)
    nothing = torch.zeros_like(pixel_values[:1]) if baseline is None else baseline.to(model.device)[None]
    if targets is None:
        with torch.no_grad():
            targets = model(pixel_values).logits.argmax(dim=-1)
    method = IntegratedGradients(lambda images: model(images).logits)
    most = _images_with_gradients(model.config)
    each, parts = max(1, most // steps), []
    for start in range(0, len(pixel_values), each):
        images = pixel_values[start : start + each]
        options = {"n_steps": steps, "internal_batch_size": max(most, len(images))}
        with torch.enable_grad():
            parts.append(method.attribute(images, nothing, targets[start : start + each].to(model.device), **options))
    patch = model.config.patch_size
    sums = torch.cat(parts).detach().float().sum(dim=1)  # (B, height, width)
    return sums.unflatten(1, (-1, patch)).unflatten(3, (-1, patch)).sum(dim=(2, 4)).cpu().numpy()


def _images_with_gradients(config: ViTScratchConfig) -> int:
    """Number of images whose activations, as a backward pass needs them, take about 1 GiB."""
    per_token = 4 * (8 * config.hidden_size + 2 * config.intermediate_size)
    attention = 4 * 3 * config.num_attention_heads * config.num_tokens
    return max(1, 2**30 // (config.num_hidden_layers * config.num_tokens * (per_token + attention)))


def parts_from_the_top(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """The parts of a [`ViTScratchForImageClassification`], the head first, by name."""
    encoder = model.base_model
    blocks = {f"block {n}": [layer] for n, layer in reversed([*enumerate(encoder.layers, start=1)])}
    return {"head": [model.classifier, encoder.layernorm], **blocks, "embeddings": [encoder.embeddings]}


def randomization_check(
    model: PreTrainedModel, pixel_values: torch.Tensor, explain: Explain, seed: int = 0
) -> np.ndarray:
    """How similar a map remains while the weights are replaced by new, untrained ones, from the head downwards.

    Adebayo et al. 2018 (arXiv 1810.03292, section 3.1): a map that stays as it was does not show what the model has
    learned. The similarity is Spearman's rank correlation of the patches, averaged over the images.

    Args:
        model: a [`ViTScratchForImageClassification`]; it is not changed.
        pixel_values: normalized images `(B, num_channels, height, width)`.
        explain: returns maps `(B, rows, columns)` of a model and images. Maps of a class must be those of one class
            throughout, whatever the changed model predicts.
        seed: of the new weights.

    Returns:
        The similarity to the maps of the model as it is, `(1 + parts,)`: of the model itself, which is 1, then after
        each of [`parts_from_the_top`]. A map without contrast has a similarity of 0 to any other.
    """
    changed = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = type(model)(model.config).to(model.device)
    original = explain(model, pixel_values)
    similarities = [1.0]
    for own, new in zip(parts_from_the_top(changed).values(), parts_from_the_top(untrained).values(), strict=True):
        for module, fresh in zip(own, new, strict=True):
            module.load_state_dict(fresh.state_dict())
        similarities.append(float(rank_correlation(original, explain(changed, pixel_values)).mean()))
    return np.array(similarities)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of maps `(B, rows, columns)`, image by image: `(B,)`. 0 if a map is constant."""
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, other)]
    centred = [each - each.mean(axis=1, keepdims=True) for each in ranks]
    products = (centred[0] * centred[1]).sum(axis=1)
    lengths = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
