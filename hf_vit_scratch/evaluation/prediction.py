"""The logits of a trained model for whole splits."""

import copy
import os
from collections.abc import Callable
from functools import partial

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.batches import ImageBatches, PixelValues
from ..data.digit_recognizer import write_submission
from ..data.image_folder import file_names, write_file_predictions
from ..device import computes_bf16, fastest_attention
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from .classifier import Classifier

# An image is computed in fp32 if its two highest logits in bf16 are closer than this many times the largest error,
# which is measured on at least this many images. A class can change if the errors of two logits add up to the margin.
_MARGIN_OF_ERRORS, _COMPARED = 4, 64


@torch.inference_mode()
def predict_logits(
    classifier: Classifier,
    split: datasets.Dataset,
    batch_size: int = 500,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    show_progress: bool = True,
    only_classes: bool = False,
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
        only_classes: nothing but the class with the highest logit will be used. If the device multiplies bf16 and
            there is no `change`, the logits are then those of bf16, and those of fp32 for images whose class could be
            another one in bf16.
    """
    model, processor = classifier
    images, to_pixel_values = ImageBatches(split, processor), PixelValues(processor).to(model.device)
    state = PartialState()

    def logits_of(model: ViTScratchForImageClassification, rows: list[int]) -> torch.Tensor:
        batch = images.__getitems__(rows)["pixel_values"].to(model.device)
        return model(to_pixel_values(batch, change)).logits.float().cpu()

    with state.split_between_processes(list(range(len(images)))) as rows:
        fast = only_classes and change is None and _is_worth_bf16(model, len(rows))
        first = _in_bf16(model) if fast else model
        shown, parts = show_progress and state.is_main_process, []
        for start in tqdm(range(0, len(rows), batch_size), desc="Predicting", disable=not shown):
            parts.append(logits_of(first, rows[start : start + batch_size]))
        if fast:
            exact = partial(logits_of, model)
            parts = [_with_sure_classes(torch.cat(parts), lambda places: exact([rows[i] for i in places]), batch_size)]
    return torch.cat(gather_object(parts))


def _is_worth_bf16(model: ViTScratchForImageClassification, num_images: int) -> bool:
    return computes_bf16(model.device) and model.config.num_labels > 1 and num_images > 4 * _COMPARED


def _in_bf16(model: ViTScratchForImageClassification) -> ViTScratchForImageClassification:
    in_bf16 = copy.deepcopy(model).to(torch.bfloat16)
    in_bf16.set_attn_implementation(fastest_attention(model.config.num_tokens, model.device, bf16=True))
    return in_bf16


def _with_sure_classes(
    logits: torch.Tensor, exact: Callable[[list[int]], torch.Tensor], batch_size: int
) -> torch.Tensor:
    """Logits `(num_images, num_labels)` of bf16, with those of fp32 for images whose class could differ.

    Images from all over the split are computed in both precisions. The largest difference of a logit is the error
    that the others are expected to have, and an image whose two highest logits are closer than a multiple of it is
    computed in fp32. If that finds a larger error, the images are gone through again.

    Args:
        exact: returns the logits of fp32 of images, by their places in `logits`.
        batch_size: number of images that `exact` takes.
    """
    done, error = torch.zeros(len(logits), dtype=torch.bool), 0.0
    unsure = torch.linspace(0, len(logits) - 1, _COMPARED).long().tolist()
    while unsure:
        for start in range(0, len(unsure), batch_size):
            places = unsure[start : start + batch_size]
            exact_logits = exact(places)
            differences = exact_logits - logits[places]
            error = max(error, differences.abs().nan_to_num(nan=0.0, posinf=0.0).max().item())
            logits[places], done[places] = exact_logits, True
        highest, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
        sure = (highest - second > _MARGIN_OF_ERRORS * error) & logits.isfinite().all(dim=-1)
        unsure = (~sure & ~done).nonzero().flatten().tolist()
    return logits


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
