"""Batches of tensors from a split of a data set."""

from collections.abc import Callable
from functools import partial

import datasets
import numpy as np
import PIL.Image
import torch
from torch import nn

from ..model.digits_vit_scratch import is_light_on_black
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor, convert_image
from .augmentation import crop_boxes, crop_numbers
from .errors import DataError
from .pixels import label_array, pixel_array
from .random_numbers import image_keys
from .sampling import Drawn


class ImageBatches(torch.utils.data.Dataset):
    """A split that returns whole batches of uint8 images and labels.

    If all images have the size and the channels of the model, a batch is indexed from one array in memory. Otherwise
    each image is decoded and then resized by the processor, or cropped at random for training.

    Args:
        split (`datasets.Dataset`): has a column `image` and optionally a column `label`.
        processor (`ViTScratchImageProcessor`): determines size, crop and channels.
        min_crop_area (`float`, *optional*): for training: random crops of at least this fraction of the image area,
            instead of the resize and crop of the processor. Images that have the size of the model are returned whole,
            since [`PhotoAugmentation`] crops whole batches of them.

    The attribute `is_decoded` is whether all images are in memory, in the size of the model.
    """

    def __init__(
        self, split: datasets.Dataset, processor: ViTScratchImageProcessor, min_crop_area: float | None = None
    ):
        self.images, self.processor, self.min_crop_area = split.select_columns("image"), processor, min_crop_area
        size = processor.crop_size if processor.do_center_crop else processor.size
        self.height, self.width = size["height"], size["width"]
        self.labels = label_array(split)
        # The centre crop of the processor changes images even if they already have the size of the model.
        whole = not processor.do_center_crop or min_crop_area is not None
        self.pixels = pixel_array(split) if whole else None
        if self.pixels is not None and self.pixels.shape[1:] != (self.height, self.width, processor.num_channels):
            self.pixels = None
        # Rows that are drawn as MNIST's are what the processor would make of them. Other pictures go through it.
        if self.pixels is not None and processor.do_center_digit and not _all_light_on_black(self.pixels):
            self.pixels = None

    @property
    def is_decoded(self) -> bool:
        return self.pixels is not None

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, wanted: list[int] | Drawn) -> dict:
        """A batch of the images with these indices, or of a [`Drawn`] batch of the training.

        Random crops are those of the keys. Without keys, an image always has the same crop.

        Returns:
            `pixel_values` `(batch_size, num_channels, height, width)`, uint8, and, if known, `labels` `(batch_size,)`.
            A drawn batch also has its `keys` and its `weight`.

        Raises: DataError for an image that cannot be decoded.
        """
        if isinstance(wanted, Drawn):
            drawn = wanted
        else:
            drawn = Drawn(wanted, image_keys(0, 0, torch.tensor(wanted)).numpy(), 1.0)
        keys = torch.from_numpy(drawn.keys)
        if self.pixels is not None:
            images = torch.from_numpy(self.pixels[drawn.indices]).permute(0, 3, 1, 2)
        else:
            numbers = crop_numbers(keys).numpy()
            images = torch.from_numpy(
                np.stack([self._decode(*one) for one in zip(drawn.indices, numbers, strict=True)])
            )
        batch: dict = {"pixel_values": images}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[drawn.indices])
        return {**batch, "keys": keys, "weight": drawn.weight} if wanted is drawn else batch

    def _decode(self, index: int, numbers: np.ndarray) -> np.ndarray:
        try:
            image = self.images[index]["image"]
            return fit_image(image, self.processor, self.min_crop_area, numbers)
        except Exception as error:  # Pillow raises many types of exceptions for a damaged file
            stored = self.images.cast_column("image", datasets.Image(decode=False))[index]["image"]
            file = (stored or {}).get("path") or f"image {index} of the split"
            raise DataError(f"{file} cannot be decoded: {error}") from error


def fit_image(
    image: PIL.Image.Image,
    processor: ViTScratchImageProcessor,
    min_crop_area: float | None,
    numbers: np.ndarray,
) -> np.ndarray:
    """An image in the size of the model, uint8 `(num_channels, height, width)`.

    `processor` determines the size; with `min_crop_area` it is cropped by its random `numbers`, an array
    `(CROP_TRIES, 4)` of [`crop_numbers`].
    """
    if min_crop_area is None:
        array = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        return np.asarray(array, np.uint8)
    size = processor.crop_size if processor.do_center_crop else processor.size
    image = convert_image(image, processor.num_channels)
    sides = crop_boxes(numbers[None], image.height, image.width, min_crop_area)
    left, top, right, bottom = (float(side[0]) for side in sides)
    shape = (size["width"], size["height"])
    image = image.resize(shape, PIL.Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=2.0)
    return np.asarray(image).reshape(*image.size[::-1], -1).transpose(2, 0, 1)


def _all_light_on_black(pixels: np.ndarray, at_once: int = 10_000) -> bool:
    """Whether all images `(num_images, height, width, 1)` are light ink on black, so that the processor keeps them."""
    parts = (pixels[start : start + at_once, ..., 0] for start in range(0, len(pixels), at_once))
    return all(is_light_on_black(part).all() for part in parts)


def keep_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collate function for [`ImageBatches`], which returns batches already."""
    return batch


class PixelValues(nn.Module):
    """Scale a batch of uint8 images to [0, 1], and normalize it as the processor does, on any device.

    Args:
        processor: determines the normalization.
        augmentation: called with images from 0 to 1 and their `keys`.
    """

    def __init__(
        self,
        processor: ViTScratchImageProcessor,
        augmentation: Callable[..., torch.Tensor] | None = None,
    ):
        super().__init__()
        self.augmentation = augmentation
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.image_std).view(-1, 1, 1), persistent=False)

    def forward(
        self, images: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """uint8 images `(batch_size, num_channels, height, width)` as normalized floats of the same shape.

        `change` is applied to the images from 0 to 1, before they are normalized.
        """
        pixel_values = images.float() / 255
        return ((change(pixel_values) if change else pixel_values) - self.mean) / self.std

    def augmented(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Like `forward`, but augmented by the keys `(batch_size,)`."""
        return self.forward(images, partial(self.augmentation, keys=keys) if self.augmentation is not None else None)
