"""The logits of a trained model for whole splits."""

import os
from collections.abc import Callable

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.batches import ImageBatches, PixelValues
from ..data.digit_recognizer import write_submission
from ..data.image_folder import file_names, write_file_predictions
from .classifier import Classifier


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
