"""Build config, processor, augmentation and trainer from the settings of a run."""

import math

import datasets
import numpy as np
from torch import nn

from ..conversion.pretrained import Pretrained
from ..data.augmentation import DigitAugmentation, PhotoAugmentation
from ..data.batches import ImageBatches, PixelValues
from ..data.digit_recognizer import COMPETITION, SAMPLE
from ..data.errors import notice
from ..data.pixels import image_shape, image_sizes
from ..data.shards import Stream
from ..data.sources import source_name
from ..data.streaming import StreamedImages
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..settings.flags import AugmentationArguments, Settings, given_fields
from .callbacks import MildEnd, ResumedStream
from .trainer import ViTScratchTrainer, metrics_during_training


def build_config(
    settings: Settings, splits: datasets.DatasetDict, pretrained: Pretrained | None = None
) -> ViTScratchConfig:
    """The config of the named size and the given fields. Image size, channels and classes come from the data.

    For fine-tuning, size, image size and channels come from the pre-trained model.

    Raises: ValueError if fields contradict each other or the pre-trained model, or the image size is unknown.
    """
    fields, training_data = given_fields(settings.model), source_name(settings.data.data)
    names = splits["train"].features["label"].names
    if pretrained is not None:
        frozen = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
        fields |= dict.fromkeys(frozen, 0.0) if settings.run.freeze_encoder else {}
        return pretrained.config_for(fields, names, training_data)
    streamed = isinstance(splits["train"], Stream)
    shape = None if streamed else image_shape(splits["train"])
    if "image_size" not in fields:
        if streamed:
            raise ValueError(
                "the images of a stream are not measured: pass --image_size, or --recipe photos-small for "
                "photographs, and --num_channels 1 for grey images."
            )
        if shape is None:
            raise ValueError("the images differ in size: pass --image_size, or --recipe photos-small for photographs.")
        fields["image_size"] = shape[0] if shape[0] == shape[1] else list(shape[:2])
    fields.setdefault("num_channels", 3 if shape is None else shape[2])
    config = ViTScratchConfig.from_size(
        settings.run.size,  # pyrefly: ignore[bad-argument-type]  # only a pre-trained model has none
        **fields,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        training_data=[training_data],
    )
    if not streamed:
        _notice_enlarged(splits["train"], config)
    return config


def _notice_enlarged(train: datasets.Dataset, config: ViTScratchConfig) -> None:
    """Say so if most images are enlarged to the size of the model, which costs time and shows nothing more."""
    sizes, size = image_sizes(train), config.image_height_width
    smaller = (sizes < size).all(axis=1)
    if smaller.mean() > 0.5:
        small = ", or for photographs of 32x32 pixels --recipe photos-tiny" if config.num_channels == 3 else ""
        height, width = np.median(sizes[smaller], axis=0).astype(int)
        notice(
            f"Most images are enlarged, from about {height}x{width} to {size[0]}x{size[1]} pixels, which makes the "
            f"model slower and shows it nothing more. Choose a smaller --image_size{small}."
        )


def build_processor(
    config: ViTScratchConfig, crop_fraction: float | None = None, pretrained: Pretrained | None = None
) -> ViTScratchImageProcessor:
    """The image processor for a config. It resizes to `image_size`, or resizes the shorter side and crops the centre.

    Args:
        config: determines size and channels.
        crop_fraction: side of the centre crop as a fraction of the shorter side, above 0 and at most 1. None: the
            value of the pre-trained model, or no crop.
        pretrained: model to fine-tune; it determines the normalization.

    Raises: ValueError if `crop_fraction` is out of range.
    """
    height, width = config.image_height_width
    size, others = {"height": height, "width": width}, {"num_channels": config.num_channels}
    if pretrained is not None:
        others |= pretrained.preprocessing
        crop_fraction = pretrained.crop_fraction if crop_fraction is None else crop_fraction
    if crop_fraction is None:
        return ViTScratchImageProcessor(size=size, do_center_digit=_reads_digits(config), **others)
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction must be above 0 and at most 1, got {crop_fraction}.")
    shorter = {"shortest_edge": round(max(height, width) / crop_fraction)}
    return ViTScratchImageProcessor(
        size=shorter, do_center_crop=True, crop_size=size, default_to_square=False, **others
    )


def _reads_digits(config: ViTScratchConfig) -> bool:
    """Whether all data that the model has seen are MNIST's digits as they are: the competition or the sample.

    Other data in the same layout, such as Fashion-MNIST or Kannada-MNIST, are not known to be light ink on black.
    """
    seen = set(config.training_data or ())
    return bool(seen) and seen <= {COMPETITION, SAMPLE} and (config.image_size, config.num_channels) == (28, 1)


def build_augmentation(arguments: AugmentationArguments, crop: bool = True) -> nn.Module | None:
    """The module that augments a training batch on the device, or None.

    Args:
        arguments: kind of augmentation, and amounts.
        crop: whether photographs are still to be cropped.

    Raises: ValueError for invalid arguments.
    """
    if arguments.augmentation not in ("none", "digits", "photos"):
        raise ValueError(f"augmentation must be none, digits or photos, got {arguments.augmentation!r:.80}.")
    for name in ("mild_strength", "shift_pixels", "cutout_pixels"):
        if not 0 <= (value := getattr(arguments, name)) < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}.")
    if not 0 <= arguments.mild_fraction <= 1:
        raise ValueError(f"mild_fraction must be from 0 to 1, got {arguments.mild_fraction}.")
    if not 0 < arguments.min_crop_area <= 1:
        raise ValueError(f"min_crop_area must be above 0 and at most 1, got {arguments.min_crop_area}.")
    shift_pixels = arguments.shift_pixels or 0.0
    if arguments.augmentation == "digits":
        return DigitAugmentation(
            arguments.rotation_degrees,
            arguments.scale_range,
            arguments.shear_degrees,
            shift_pixels,
            arguments.elastic_pixels,
        )
    if arguments.augmentation == "photos":
        area = arguments.min_crop_area if crop else 1.0
        return PhotoAugmentation(area, shift_pixels, arguments.cutout_pixels)
    return None


def build_trainer(
    model: nn.Module, processor: ViTScratchImageProcessor, splits: datasets.DatasetDict, settings: Settings
) -> ViTScratchTrainer:
    """The trainer of a model on the split train, with evaluation on the split validation if there is one."""
    augmentation, run = settings.augmentation, settings.run
    cropped = augmentation.augmentation == "photos" and augmentation.min_crop_area < 1
    min_crop_area = augmentation.min_crop_area if cropped else None
    streamed = isinstance(splits["train"], Stream)
    if streamed:
        train = StreamedImages(splits["train"], processor, min_crop_area, settings.data.shuffle_buffer)
    else:
        train = ImageBatches(splits["train"], processor, min_crop_area)
    on_device = build_augmentation(augmentation, crop=isinstance(train, ImageBatches) and train.is_decoded)
    trainer = ViTScratchTrainer(
        model,
        settings.training,
        train_dataset=train,
        eval_dataset=ImageBatches(splits["validation"], processor) if "validation" in splits else None,
        processing_class=processor,
        compute_metrics=metrics_during_training,
        to_pixel_values=PixelValues(processor, on_device),
        ema_decay=run.ema_decay,
        muon_learning_rate=run.muon_learning_rate,
    )
    trainer.muon_stem = run.muon_stem
    if isinstance(on_device, DigitAugmentation) and augmentation.mild_fraction:
        trainer.add_callback(MildEnd(on_device, augmentation.mild_fraction, augmentation.mild_strength))
    if streamed:
        trainer.add_callback(ResumedStream())
    return trainer
