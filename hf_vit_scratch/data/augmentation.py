"""Augmentation: random changes of training images that keep their class.

Whole batches of images are augmented on the training device. Only photographs that are not in memory in the size of
the model are cropped image by image on the CPU, before a batch is formed. The random numbers of an image come from its
key (see [`image_keys`]), and not from the state of a generator.
"""

import math
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from .random_numbers import normal, uniform

# The streams from which the random numbers of an image are drawn.
_AFFINE, _ELASTIC, _FLIP, _CROP, _SHIFT, _CUTOUT = range(6)
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


class PhotoAugmentation(nn.Module):
    """Flip, crop and resize, and shift each image of a batch at random, in one resampling, then cut out a square.

    An image is flipped horizontally with probability 0.5. Crops are those of [`crop_boxes`], enlarged to the size of
    the image. A shift is a whole number of pixels of the result along each axis, as in "Deep Residual Learning" (arXiv
    1512.03385, section 4.2), but pixels from outside of the image are its reflection, and not black. Resampling is
    bilinear, so that an image which is not cropped keeps its pixel values. Cutout (arXiv 1708.04552) sets a square at
    a random place to grey (0.5).

    Args:
        min_crop_area (`float`): smallest crop, as a fraction of the image area. 1: no crop.
        shift_pixels (`float`): largest shift along each axis, in pixels.
        cutout_pixels (`float`): side of the square, in pixels. 0: no cutout. Its centre is in the image, and the rest
            of it may be outside.
    """

    def __init__(self, min_crop_area: float = 1.0, shift_pixels: float = 0.0, cutout_pixels: float = 0.0):
        super().__init__()
        self.min_crop_area, self.shift_pixels, self.cutout_pixels = min_crop_area, shift_pixels, cutout_pixels

    @torch.no_grad()
    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Augment float images `(batch_size, num_channels, height, width)` from 0 to 1; same shape and range.

        `keys`: int64 `(batch_size,)`, of [`image_keys`], on the device of the images.
        """
        batch, _, height, width = images.shape
        flip = torch.where(uniform(keys, 1, _FLIP)[:, 0] < 0.5, -1.0, 1.0)
        if self.min_crop_area == 1 and self.shift_pixels == 0:
            images = torch.where(flip.view(-1, 1, 1, 1) < 0, images.flip(-1), images)
        else:
            left, top, right, bottom = crop_boxes(crop_numbers(keys), height, width, self.min_crop_area)
            shift = (uniform(keys, 2, _SHIFT).T * 2 - 1) * (int(self.shift_pixels) + 0.5)
            shift_x, shift_y = shift.round() * 2
            # Maps each output point to the input point that is sampled there, in the coordinates of grid_sample, which
            # run from -1 to 1 along each side. A pixel of the result is scale_x pixels of the image wide.
            scale_x, scale_y = (right - left) / width, (bottom - top) / height
            none = torch.zeros_like(flip)
            x_of = (flip * scale_x, none, (left + right + shift_x * scale_x) / width - 1)
            y_of = (none, scale_y, (top + bottom + shift_y * scale_y) / height - 1)
            amounts = torch.stack(x_of + y_of, dim=1).view(batch, 2, 3)
            grid = (amounts @ _fields(height, width, 0, images.device)).view(batch, 2, height, width)
            grid = grid.permute(0, 2, 3, 1).to(images.dtype)
            images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        if self.cutout_pixels:
            x, y = uniform(keys, 2, _CUTOUT).T
            hidden_x, hidden_y = (
                (torch.arange(side, device=images.device) + 0.5 - place[:, None] * side).abs() < self.cutout_pixels / 2
                for side, place in ((width, x), (height, y))
            )
            images = images.masked_fill((hidden_y[:, :, None] & hidden_x[:, None, :])[:, None], 0.5)
        return images


def crop_numbers(keys: torch.Tensor) -> torch.Tensor:
    """The random numbers for [`crop_boxes`] of images with these keys, `(batch_size, CROP_TRIES, 4)`."""
    return uniform(keys, CROP_TRIES * 4, _CROP).view(-1, CROP_TRIES, 4)


def crop_boxes(numbers, height: int, width: int, min_area: float):
    """Random parts of photographs, as in "Going Deeper with Convolutions" (arXiv 1409.4842).

    A crop has `min_area` to 1 of the area of the image and an aspect ratio from 3:4 to 4:3. The first try that fits
    into the image is taken, and if none does, the largest part in the centre with such a ratio.

    Args:
        numbers: of [`crop_numbers`], `(batch_size, CROP_TRIES, 4)`: area, aspect ratio and place of each try. A tensor
            or, for a single image, which numpy is faster with, an array.
        height, width: size of the images, in pixels.
        min_area: smallest crop, as a fraction of the area of the image, above 0 and at most 1. 1: the whole image.

    Returns:
        left, top, right and bottom of the crops, in whole pixels, `(batch_size,)` each.
    """
    if min_area == 1:
        start = 0 * numbers[:, 0, 0]
        return start, start, start + width, start + height
    area, ratio, x, y = (numbers[..., column] for column in range(4))
    area = (min_area + area * (1 - min_area)) * (width * height)
    aspect = (4 / 3) ** (2 * ratio - 1)
    crop_width, crop_height = ((area * aspect) ** 0.5).round(), ((area / aspect) ** 0.5).round()
    fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
    first, found = fits & (fits.cumsum(-1) == 1), fits.any(-1)

    def chosen(tried, centre):
        # No try fits into a very wide or very high image. A sum, since an index would make a GPU wait for the CPU.
        return (tried * first).sum(-1) + centre * ~found

    crop_width = chosen(crop_width, max(1, min(width, height * 4 // 3)))
    crop_height = chosen(crop_height, max(1, min(height, width * 4 // 3)))
    left = chosen(x, 0.5) * (width - crop_width + 1) // 1
    top = chosen(y, 0.5) * (height - crop_height + 1) // 1
    return left, top, left + crop_width, top + crop_height
