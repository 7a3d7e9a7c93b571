"""Augmentation: random changes of training images that keep their class.

Whole batches of images are augmented on the training device. Only the random crop of photographs, which differ in
size, is done image by image on the CPU, before a batch is formed. The random numbers of an image come from its key
(see [`image_keys`]), and not from the state of a generator.
"""

import math
from functools import lru_cache

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from .random_numbers import normal, uniform

# The streams from which the random numbers of an image are drawn.
_AFFINE, _ELASTIC, _FLIP, _CROP = range(4)
CROP_TRIES = 10
# Points along each side of the coarse grid on which the elastic displacement is drawn.
ELASTIC_POINTS = 5


class DigitAugmentation(nn.Module):
    """Rotate, scale, shear, shift and elastically deform each image of a batch at random, in one resampling.

    Images are never flipped. Affine amounts are drawn uniformly from minus to plus the argument. The elastic
    displacement (Simard et al. 2003) is normal noise on a coarse grid, interpolated smoothly. Resampling is bilinear,
    and pixels from outside of the image are black (0).

    Args:
        rotation_degrees (`float`): largest rotation, in degrees.
        scale_range (`float`): largest change of scale; 0.1 draws factors from 0.9 to 1.1, for height and width
            independently.
        shear_degrees (`float`): largest shear, in degrees.
        shift_pixels (`float`): largest shift along each axis, in pixels.
        elastic_pixels (`float`): standard deviation of the elastic displacement along each axis, in pixels.

    The attribute `strength`, initially 1, multiplies all amounts.
    """

    def __init__(
        self,
        rotation_degrees: float,
        scale_range: float,
        shear_degrees: float,
        shift_pixels: float,
        elastic_pixels: float,
    ):
        super().__init__()
        self.strength = 1.0
        self.rotation = math.radians(rotation_degrees)
        self.scale = scale_range
        self.shear = math.tan(math.radians(shear_degrees))
        self.shift_pixels = shift_pixels
        self.elastic_pixels = elastic_pixels

    @torch.no_grad()
    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Augment float images `(batch_size, num_channels, height, width)`, 0 is black; same shape and range.

        `keys`: int64 `(batch_size,)`, of [`image_keys`], on the device of the images.
        """
        batch, _, height, width = images.shape
        device = images.device
        amount = (uniform(keys, 6, _AFFINE).T * 2 - 1) * self.strength
        angle, shear = amount[0] * self.rotation, amount[1] * self.shear
        scale_x, scale_y = 1 + amount[2] * self.scale, 1 + amount[3] * self.scale
        # Maps each output point to the input point that is sampled there: rotation @ shear @ scale, plus a shift.
        # Coordinates of grid_sample run from -1 to 1 along each side. So a pixel is 2 / side, and the factors
        # height / width and width / height keep the rotation of an image that is not square free of distortion.
        cos, sin = angle.cos(), angle.sin()
        shift_x, shift_y = amount[4] * self.shift_pixels * 2 / width, amount[5] * self.shift_pixels * 2 / height
        x_of = (cos * scale_x, (cos * shear - sin) * scale_y * height / width, shift_x)
        y_of = (sin * scale_x * width / height, (sin * shear + cos) * scale_y, shift_y)
        amounts = torch.stack(x_of + y_of, dim=1).view(batch, 2, 3)
        points = ELASTIC_POINTS if self.elastic_pixels else 0
        if points:
            pixels = torch.tensor([[2 / width], [2 / height]], device=device) * self.elastic_pixels * self.strength
            amounts = torch.cat((amounts, normal(keys, 2 * points**2, _ELASTIC).view(batch, 2, -1) * pixels), dim=2)
        grid = (amounts @ _fields(height, width, points, device)).view(batch, 2, height, width).permute(0, 2, 3, 1)
        return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


@lru_cache(maxsize=8)
def _fields(height: int, width: int, points: int, device: torch.device) -> torch.Tensor:
    """Basis of all displacement fields, (3 + points**2, height * width): x, y, 1, and a bump for each grid point."""
    y, x = ((torch.arange(side) * 2 + 1) / side - 1 for side in (height, width))  # centres of the pixels
    y, x = torch.meshgrid(y, x, indexing="ij")
    fields = torch.stack((x, y, torch.ones_like(x)))
    if points:
        bumps = torch.eye(points**2).view(-1, 1, points, points)
        bumps = F.interpolate(bumps, size=(height, width), mode="bicubic", align_corners=True)
        fields = torch.cat((fields, bumps[:, 0]))
    return fields.flatten(1).to(device)


class RandomFlip(nn.Module):
    """Flip each image of a batch horizontally with probability 0.5."""

    @torch.no_grad()
    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Flip images `(batch_size, num_channels, height, width)` by their keys `(batch_size,)`; same shape."""
        flipped = uniform(keys, 1, _FLIP).view(-1, 1, 1, 1) < 0.5
        return torch.where(flipped, images.flip(-1), images)


def crop_numbers(keys: torch.Tensor) -> torch.Tensor:
    """The random numbers for [`random_resized_crop`] of images with these keys, `(batch_size, CROP_TRIES, 4)`."""
    return uniform(keys, CROP_TRIES * 4, _CROP).view(-1, CROP_TRIES, 4)


def random_resized_crop(
    image: Image.Image, size: tuple[int, int], min_area: float, numbers: torch.Tensor
) -> Image.Image:
    """Crop a random part of a photograph and resize it to `size` (height, width), in pixels.

    The crop has `min_area` to 1 of the area of the image and an aspect ratio from 3:4 to 4:3, as in "Going Deeper with
    Convolutions" (arXiv 1409.4842). `numbers` are random numbers of [`crop_numbers`], `(CROP_TRIES, 4)`: area,
    aspect ratio and place of each try.
    """
    width, height = image.size
    for area, ratio, x, y in numbers.tolist():
        area = (min_area + area * (1 - min_area)) * width * height
        aspect = math.exp(math.log(3 / 4) + ratio * 2 * math.log(4 / 3))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(x * (width - crop_width + 1)), int(y * (height - crop_height + 1))
            break
    else:  # no crop fits into a very wide or very high image: take its centre
        crop_width, crop_height = min(width, height * 4 // 3), min(height, width * 4 // 3)
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    box = (left, top, left + max(1, crop_width), top + max(1, crop_height))
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
