"""The logits of a trained model for whole splits."""

import copy
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
from ..device import computes_bf16, fastest_attention
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from .classifier import Classifier

# A class is looked up in fp32 if the two highest logits in bf16 are closer than this many times the largest error.
_MARGIN_OF_ERRORS = 4


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
        only_classes: nothing but the class with the highest logit will be used. If the device multiplies bf16, the
            logits are then those of bf16, and those of fp32 for images whose class could be another one in bf16.
    """
    model, processor = classifier
    images, to_pixel_values = ImageBatches(split, processor), PixelValues(processor).to(model.device)
    state = PartialState()
    with state.split_between_processes(list(range(len(images)))) as rows:
        fast = only_classes and computes_bf16(model.device) and len(rows) > batch_size
        forward = _FirstInBf16(model) if fast else lambda pixel_values: model(pixel_values).logits
        shown, parts = show_progress and state.is_main_process, []
        for start in tqdm(range(0, len(rows), batch_size), desc="Predicting", disable=not shown):
            batch = images.__getitems__(rows[start : start + batch_size])["pixel_values"].to(model.device)
            parts.append(forward(to_pixel_values(batch, change)).float().cpu())
    return torch.cat(gather_object(parts))


class _FirstInBf16:
    """Logits of a model in bf16, and in fp32 for images whose class could differ.

    The first batch is computed in both precisions. The largest difference of a logit is the error that later batches
    are expected to have; larger ones that are found on the way replace it.
    """

    def __init__(self, model: ViTScratchForImageClassification):
        self.model, self.error = model, 0.0
        self.in_bf16 = copy.deepcopy(model).to(torch.bfloat16)
        self.in_bf16.set_attn_implementation(fastest_attention(model.config.num_tokens, model.device, bf16=True))

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits = self.in_bf16(pixel_values).logits.float()
        if self.error:
            first, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
            unsure = ~(first - second > _MARGIN_OF_ERRORS * self.error)  # also where a logit is not a number
        else:
            unsure = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        if unsure.any():
            exact = self.model(pixel_values[unsure]).logits.float()
            self.error = max(self.error, (exact - logits[unsure]).abs().max().item())
            logits[unsure] = exact
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
