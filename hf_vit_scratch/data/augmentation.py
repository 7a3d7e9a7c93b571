"""Augmentation: random changes of training images that keep their class.

Images of one size are changed a whole batch at a time, on the training device. Photographs of all sizes have to be
cropped one by one before they can be a batch; the rest is done on the batch.
"""

import math
from functools import lru_cache

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

# Along each side of the coarse grid that the elastic displacement is drawn on.
ELASTIC_POINTS = 5


class DigitAugmentation(nn.Module):
    """Rotate, scale, shear, shift and bend each image of a batch by random amounts, in one bilinear gather.

    Digits are never flipped. Affine amounts are drawn uniformly from minus to plus the argument; the elastic
    displacement (Simard et al. 2003) is normal noise on a coarse grid, interpolated smoothly. What comes in from
    outside of the image is black (0).

    Args:
        rotation_degrees (`float`): largest rotation, in degrees.
        scale_range (`float`): 0.1 draws factors from 0.9 to 1.1, for height and width by themselves.
        shear_degrees (`float`): largest shear, in degrees.
        shift_pixels (`float`): largest shift along each axis, in pixels.
        elastic_pixels (`float`): standard deviation of the elastic displacement along each axis, in pixels.

    `strength`, an attribute, is a factor of all amounts, 1 at first.
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
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_channels, height, width)` with values from 0, as floats, to the same shape and range."""
        batch, _, height, width = images.shape
        device = images.device
        uniform = (torch.rand(6, batch, device=device) * 2 - 1) * self.strength
        angle, shear = uniform[0] * self.rotation, uniform[1] * self.shear
        scale_x, scale_y = 1 + uniform[2] * self.scale, 1 + uniform[3] * self.scale
        # From a point of the output to the point of the input that it shows: rotation @ shear @ scale, and a shift.
        # grid_sample's coordinates run from -1 to 1 along each side: a pixel is 2 / side, and the turn of an image
        # that is not square has to allow for it.
        cos, sin = angle.cos(), angle.sin()
        shift_x, shift_y = uniform[4] * self.shift_pixels * 2 / width, uniform[5] * self.shift_pixels * 2 / height
        x_of = (cos * scale_x, (cos * shear - sin) * scale_y * height / width, shift_x)
        y_of = (sin * scale_x * width / height, (sin * shear + cos) * scale_y, shift_y)
        amounts = torch.stack(x_of + y_of, dim=1).view(batch, 2, 3)
        points = ELASTIC_POINTS if self.elastic_pixels else 0
        if points:
            pixels = torch.tensor([[2 / width], [2 / height]], device=device) * self.elastic_pixels * self.strength
            amounts = torch.cat((amounts, torch.randn(batch, 2, points**2, device=device) * pixels), dim=2)
        grid = (amounts @ _fields(height, width, points, device)).view(batch, 2, height, width).permute(0, 2, 3, 1)
        return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


@lru_cache(maxsize=8)
def _fields(height: int, width: int, points: int, device: torch.device) -> torch.Tensor:
    """What every displacement is a sum of, (3 + points**2, height * width): x, y, 1, and a bump for each point."""
    y, x = ((torch.arange(side) * 2 + 1) / side - 1 for side in (height, width))  # the pixels' centres
    y, x = torch.meshgrid(y, x, indexing="ij")
    fields = torch.stack((x, y, torch.ones_like(x)))
    if points:
        bumps = torch.eye(points**2).view(-1, 1, points, points)
        bumps = F.interpolate(bumps, size=(height, width), mode="bicubic", align_corners=True)
        fields = torch.cat((fields, bumps[:, 0]))
    return fields.flatten(1).to(device)


class RandomFlip(nn.Module):
    """Mirror each image of a batch left to right with a probability of one half."""

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_channels, height, width)` to the same shape."""
        flipped = torch.rand(images.shape[0], 1, 1, 1, device=images.device) < 0.5
        return torch.where(flipped, images.flip(-1), images)


def random_resized_crop(
    image: Image.Image, size: tuple[int, int], min_area: float, generator: torch.Generator | None = None
) -> Image.Image:
    """A random part of a photograph, `min_area` to 1 of its area and 3:4 to 4:3 in shape, as `size` (height, width).

    As in "Going Deeper with Convolutions" (arXiv 1409.4842); torch's random numbers, so that a seed repeats it.
    """
    width, height = image.size
    for _ in range(10):
        area, ratio, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = (min_area + area * (1 - min_area)) * width * height
        aspect = math.exp(math.log(3 / 4) + ratio * 2 * math.log(4 / 3))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(x * (width - crop_width + 1)), int(y * (height - crop_height + 1))
            break
    else:  # a very long or very high picture: its middle
        crop_width, crop_height = min(width, height * 4 // 3), min(height, width * 4 // 3)
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    box = (left, top, left + max(1, crop_width), top + max(1, crop_height))
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
