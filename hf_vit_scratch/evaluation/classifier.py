"""Load a trained model with its image processor. Imports nothing that reads data sets, so that it starts quickly."""

import os
import textwrap
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
import transformers
from transformers import PreTrainedModel

from ..device import best_device, fastest_attention
from ..hub.model_folder import check_model
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from ..output_folder import CONFIG_NAME, PREPROCESSOR_NAME


class Classifier(NamedTuple):
    """A model in evaluation mode, called like [`ViTScratchForImageClassification`], and its image processor."""

    model: PreTrainedModel
    processor: ViTScratchImageProcessor


def load_model(source: str | os.PathLike, device: torch.device | None = None) -> Classifier:
    """Load a model in fp32 and its image processor from an output folder or a repository on the Hub.

    The weights are read from safetensors and run with the code of this package, never with code from the folder.

    Args:
        source: output folder of a run, or id of a repository on the Hub.
        device: device for the model. Default: the accelerator if there is one, else the CPU.

    Raises:
        ValueError: in one line, if there is no such model, or its weights do not fit its config.
    """
    source, device = os.fspath(source), device or best_device()
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        config = check_model(source, has_head=True)
        processor = ViTScratchImageProcessor.from_pretrained(source)
        _check_processor(processor, config)
        model = ViTScratchForImageClassification.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=fastest_attention(config.num_tokens, device),
        )
    except Exception as error:  # what damaged files raise in transformers has no common base class
        line = textwrap.shorten(str(error), 500, placeholder=" ...")
        line = line if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {line}"
        raise ValueError(f"cannot load a model from {source}: {line}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    return Classifier(model.eval().to(device), processor)


def _check_processor(processor: ViTScratchImageProcessor, config: ViTScratchConfig) -> None:
    """Raises: ValueError if the processor does not make what the model takes, tried on a grey image."""
    expected = (config.num_channels, *config.image_height_width)
    try:
        pixels = processor(PIL.Image.new("L", (8, 8), 128), return_tensors="np")["pixel_values"][0]
    except Exception as error:
        raise ValueError(f"its {PREPROCESSOR_NAME} cannot be used: {type(error).__name__}: {error}") from error
    if pixels.shape != expected or not np.isfinite(pixels).all():
        found = f"{pixels.shape}, " + ("finite" if np.isfinite(pixels).all() else "not finite")
        raise ValueError(f"its {PREPROCESSOR_NAME} makes pixels of {found}, but its {CONFIG_NAME} takes {expected}.")


def class_scores(logits: torch.Tensor, config: ViTScratchConfig) -> torch.Tensor:
    """The scores `(..., num_labels)` that transformers' image-classification pipeline computes from logits.

    Sigmoid for multi-label models and for models with one class, the logits themselves for regression, and softmax
    otherwise.
    """
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()
    return logits.softmax(dim=-1)
