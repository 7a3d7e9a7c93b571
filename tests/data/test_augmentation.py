import math

import numpy as np
import pytest
import torch
from helpers import pictures
from PIL import Image

from hf_vit_scratch.data.augmentation import DigitAugmentation, RandomFlip, crop_numbers, random_resized_crop
from hf_vit_scratch.data.random_numbers import image_keys, uniform

NOTHING = {"rotation_degrees": 0, "scale_range": 0, "shear_degrees": 0, "shift_pixels": 0, "elastic_pixels": 0}


def pil_affine(image: torch.Tensor, matrix) -> np.ndarray:
    """PIL's own affine transform, with the matrix (from output to input, about the middle of the image) in pixels."""
    height, width = image.shape
    (a, b, c), (d, e, f) = matrix
    x, y = width / 2, height / 2
    about_middle = (a, b, x - a * x - b * y + c, d, e, y - d * x - e * y + f)
    picture = Image.fromarray(image.numpy())
    return np.asarray(
        picture.transform((width, height), Image.Transform.AFFINE, about_middle, Image.Resampling.BILINEAR)
    )


def keys(number: int, epoch: int = 0) -> torch.Tensor:
    return image_keys(0, epoch, torch.arange(number))


def test_no_amounts_change_nothing():
    images = pictures()
    torch.testing.assert_close(DigitAugmentation(**NOTHING)(images, keys(4)), images)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 32)])
@pytest.mark.parametrize("name", ["rotation_degrees", "scale_range", "shear_degrees", "shift_pixels"])
def test_each_amount_agrees_with_pil(name, height, width):
    amount = {"rotation_degrees": 30, "scale_range": 0.2, "shear_degrees": 25, "shift_pixels": 3}[name]
    images, drawn = pictures(height=height, width=width), uniform(keys(4), 6).T * 2 - 1
    changed = DigitAugmentation(**{**NOTHING, name: amount})(images, keys(4))
    for index in range(4):
        angle = math.radians(float(drawn[0, index]) * 30)
        shear = math.tan(math.radians(25)) * float(drawn[1, index])
        matrix = {
            "rotation_degrees": ((math.cos(angle), -math.sin(angle), 0), (math.sin(angle), math.cos(angle), 0)),
            "scale_range": ((1 + 0.2 * float(drawn[2, index]), 0, 0), (0, 1 + 0.2 * float(drawn[3, index]), 0)),
            "shear_degrees": ((1, shear, 0), (0, 1, 0)),
            "shift_pixels": ((1, 0, 3 * float(drawn[4, index])), (0, 1, 3 * float(drawn[5, index]))),
        }[name]
        expected = pil_affine(images[index, 0], matrix)
        inside = (slice(2, -2), slice(2, -2))  # PIL leaves out samples that reach over the border
        assert np.abs(changed[index, 0].numpy()[inside] - expected[inside]).mean() < 0.01
    assert (changed - images).abs().mean() > 0.02


def test_elastic_displaces_by_its_standard_deviation_in_pixels():
    """On a ramp the value is the place, so what is read there is the displacement."""
    ramp = (torch.arange(64.0) + 0.5).expand(256, 1, 64, 64)
    augment = DigitAugmentation(**{**NOTHING, "elastic_pixels": 1.5})
    displacement = (augment(ramp, keys(256)) - ramp)[:, 0, 16:48, 16:48]
    at_grid_points = displacement[:, [15, 16]][:, :, [15, 16]]  # the middle of the coarse grid: no interpolation there
    assert at_grid_points.std().item() == pytest.approx(1.5, rel=0.12)
    assert displacement.mean().item() == pytest.approx(0, abs=0.1)
    assert (displacement[:, :, 1:] - displacement[:, :, :-1]).abs().max() < 1.0  # bends, does not scatter


def test_strength_is_a_factor_of_all_amounts():
    images, amounts = pictures(), {"rotation_degrees": 20, "scale_range": 0.2, "shift_pixels": 2, "elastic_pixels": 1}

    def changed(strength, factor):
        augment = DigitAugmentation(shear_degrees=0, **{name: amount * factor for name, amount in amounts.items()})
        augment.strength = strength
        return augment(images, keys(4))

    torch.testing.assert_close(changed(0.5, 1), changed(1, 0.5))
    torch.testing.assert_close(changed(0, 1), images)
    assert (changed(1, 1) - images).abs().mean() > 2 * (changed(0.2, 1) - images).abs().mean()


@pytest.mark.parametrize("augment", [DigitAugmentation(15, 0.15, 10, 2, 0.8), RandomFlip()], ids=["digits", "flip"])
def test_an_image_is_changed_by_its_key_alone_and_in_each_epoch_anew(augment):
    images = pictures(1).expand(200, -1, -1, -1)
    first = augment(images, keys(200))
    torch.manual_seed(1)
    assert torch.equal(first, augment(images, keys(200)))  # and not by the global generator
    order = torch.arange(199, -1, -1)
    parts = [augment(images[rows], keys(200)[rows]) for rows in order.split(70)]
    torch.testing.assert_close(torch.cat(parts), first[order])
    changed = {tensor.numpy().tobytes() for tensor in first}
    assert len(changed) == (2 if isinstance(augment, RandomFlip) else 200)
    assert not torch.equal(first, augment(images, keys(200, epoch=1)))


def test_flip_mirrors_about_half_of_a_batch():
    images = torch.rand(400, 3, 2, 5)
    flipped = RandomFlip()(images, keys(400))
    mirrored = np.array(
        [np.array_equal(new, old[:, :, ::-1]) for new, old in zip(flipped.numpy(), images.numpy(), strict=True)]
    )
    kept = (flipped == images).flatten(1).all(dim=1).numpy()
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1000, 20), (20, 1000), (1, 1)])
def test_crops_lie_within_the_picture_and_have_the_size(size):
    for numbers in crop_numbers(keys(20)):
        assert random_resized_crop(Image.new("RGB", size), (24, 32), 0.35, numbers).size == (32, 24)


def test_crops_cover_the_asked_share_of_the_area():
    """A picture that says where it was cut from: red is the column, green the row."""
    rows, columns = np.mgrid[0:256, 0:256].astype(np.uint8)
    picture = Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1))
    areas = []
    for numbers in crop_numbers(keys(300)):
        crop = np.asarray(random_resized_crop(picture, (64, 64), 0.35, numbers)).astype(float)
        width, height = (np.ptp(crop[..., channel]) * 64 / 63 for channel in (0, 1))
        areas.append(width * height / 256**2)
    assert 0.3 < min(areas) < 0.45
    assert 0.9 < max(areas) < 1.1
    assert 0.6 < np.mean(areas) < 0.72
