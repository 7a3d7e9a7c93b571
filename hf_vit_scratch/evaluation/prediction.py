"""Loading a trained model, and its logits for whole splits."""

import os
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedModel

from ..data.batches import ImageBatches, PixelValues
from ..data.digit_recognizer import write_submission
from ..data.image_folder import file_names, write_file_predictions
from ..data.pixels import check_size
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


def process_file(file: str | os.PathLike, processor: ViTScratchImageProcessor, **options) -> BatchFeature:
    """What an image processor makes of an image file, called with `options`.

    Raises: ValueError, with the name of the file, if it is no image that can be read, or too large or narrow.
    """
    try:
        with PIL.Image.open(file) as image:
            check_size(image)
            return processor(image, **options)
    except Exception as error:  # Pillow raises many types of exceptions for a damaged file
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


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


@torch.inference_mode()
def predict_logits(
    classifier: Classifier,
    split: datasets.Dataset,
    batch_size: int = 500,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    show_progress: bool = True,
) -> torch.Tensor:
    """Predict a split. Returns logits `(num_images, num_labels)`, float32 on the CPU, in the order of the split.

    In a launch of several processes, each predicts a part of the images, and all return the logits of all images.

    Args:
        classifier: of [`load_model`].
        split: has a column `image`.
        batch_size: number of images.
        change: function that is applied to each batch `(batch_size, num_channels, height, width)`, with values from 0
            to 1, before it is normalized.
        show_progress: show a progress bar.
    """
    model, processor = classifier
    images, to_pixel_values = ImageBatches(split, processor), PixelValues(processor).to(model.device)
    state = PartialState()
    with state.split_between_processes(list(range(len(images)))) as rows:
        shown, parts = show_progress and state.is_main_process, []
        for start in tqdm(range(0, len(rows), batch_size), desc="Predicting", disable=not shown):
            batch = images.__getitems__(rows[start : start + batch_size])["pixel_values"].to(model.device)
            parts.append(model(to_pixel_values(batch, change)).logits.float().cpu())
    return torch.cat(gather_object(parts))


def write_predictions(
    logits: torch.Tensor, split: datasets.Dataset, id2label: dict[int, str], file: str | os.PathLike
) -> None:
    """Write the predicted class of each image of a split, in its order, as a CSV.

    For an image folder the columns are `file_name` and `label`. For other data the format is Kaggle's, as
    [`write_submission`] has it.
    """
    if (names := file_names(split)) is not None:
        write_file_predictions(logits, id2label, names, file)
    else:
        write_submission(logits, id2label, file, split)
