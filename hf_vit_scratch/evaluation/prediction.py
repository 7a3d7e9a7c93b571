"""Loading a trained model, and its logits for whole splits."""

import os
from collections.abc import Callable
from typing import NamedTuple

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.batches import ImageBatches, PixelValues
from ..device import best_device, fastest_attention
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..model.modeling_vit_scratch import ViTScratchForImageClassification


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
    try:
        config = ViTScratchConfig.from_pretrained(source)
        if config.model_type != ViTScratchConfig.model_type:
            raise ValueError(f"expected a model of type {ViTScratchConfig.model_type}, got {config.model_type}.")
        model, loaded = ViTScratchForImageClassification.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=fastest_attention(config.num_tokens, device),
            output_loading_info=True,
        )
        if loaded["missing_keys"]:  # transformers only warns and initializes them at random
            raise ValueError(f"its weights lack {', '.join(sorted(loaded['missing_keys'])[:3])}.")
        processor = ViTScratchImageProcessor.from_pretrained(source)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot load a model from {source}: {' '.join(str(error).split())}") from error
    return Classifier(model.eval().to(device), processor)


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
    images, to_pixel_values = ImageBatches(split, processor), PixelValues(processor, change).to(model.device)
    state = PartialState()
    with state.split_between_processes(list(range(len(images)))) as rows:
        shown, parts = show_progress and state.is_main_process, []
        for start in tqdm(range(0, len(rows), batch_size), desc="Predicting", disable=not shown):
            batch = images.__getitems__(rows[start : start + batch_size])["pixel_values"].to(model.device)
            parts.append(model(to_pixel_values(batch, augment=True)).logits.float().cpu())
    return torch.cat(gather_object(parts))
