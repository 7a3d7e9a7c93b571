"""Image corruptions of fixed strength, with which the robustness of a model is measured."""

import math

import torch
from torch.nn import functional as F

# Three strengths of each kind of corruption, and their units.
STRENGTHS = {"rotation": (10, 20, 30), "shift": (2, 4, 6), "noise": (0.1, 0.2, 0.4), "blur": (0.5, 1.0, 1.5)}
UNITS = {"rotation": "degrees", "shift": "pixels", "noise": "of the value range", "blur": "pixels"}
SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0))  # shifts by one pixel right, left, down and up, as (rows, columns)


def corrupt(images: torch.Tensor, kind: str, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Corrupt each image with the same strength; the direction is drawn for each image.

    Args:
        images: `(batch_size, num_channels, height, width)`, floats from 0 to 1, on the CPU.
        kind: a key of `STRENGTHS`. `rotation`: by plus or minus `strength` degrees. `shift`: by `strength` whole
            pixels to the right, left, down or up. `noise`: Gaussian, with standard deviation `strength`, clipped to
            [0, 1]. `blur`: Gaussian, with standard deviation `strength` in pixels.
        strength: see `kind`.
        generator: draws the directions and the noise.

    Returns:
        Images of the same shape and range. Pixels from outside of a grey image are black (0), as around a digit, and
        those from outside of an RGB image repeat its border, since a black edge is no part of a photograph.

    Raises:
        ValueError: the strength of a shift is not a whole number.
    """
    batch, _, height, width = images.shape
    if kind == "noise":
        return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    if kind == "blur":
        return _blur(images, strength)
    if kind == "shift":
        if (pixels := int(strength)) != strength:
            raise ValueError(f"shift: expected a whole number of pixels, got {strength}.")
        shifted = torch.stack([shift(images, pixels * rows, pixels * columns) for rows, columns in SIDES])
        return shifted[torch.randint(4, (batch,), generator=generator), torch.arange(batch)]
    angle = (torch.randint(2, (batch,), generator=generator) * 2 - 1) * math.radians(strength)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros(batch)
    # Coordinates of affine_grid run from -1 to 1 along each side, independent of its length in pixels.
    theta = torch.stack((cos, -sin * height / width, none, sin * width / height, cos, none), dim=1).view(batch, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    padding = "zeros" if images.shape[1] == 1 else "border"
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def shift(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Shift images `(batch_size, num_channels, height, width)` down and right by whole pixels.

    Grey images are filled with black, and RGB images by repeating their border.
    """
    _, channels, height, width = images.shape
    if channels == 1:
        return F.pad(images, (columns, -columns, rows, -rows))
    row = (torch.arange(height, device=images.device) - rows).clamp(0, height - 1)
    column = (torch.arange(width, device=images.device) - columns).clamp(0, width - 1)
    return images[:, :, row[:, None], column]


def _blur(images: torch.Tensor, std: float) -> torch.Tensor:
    reach = math.ceil(3 * std)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
    weights = (weights / weights.sum()).view(1, 1, -1, 1)
    single = images.flatten(0, 1)[:, None]  # (B, C, height, width) -> (B * C, 1, height, width)
    grey = images.shape[1] == 1
    single = F.pad(single, [reach] * 4) if grey else F.pad(single, [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(single, weights), weights.mT).view_as(images)
