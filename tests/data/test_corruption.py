import numpy as np
import pytest
import torch
from helpers import pictures
from PIL import Image
from scipy import ndimage

from hf_vit_scratch.data.corruption import STRENGTHS, corrupt, shift


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_shift_moves_down_and_to_the_right_and_leaves_black_behind():
    images = torch.rand(2, 1, 5, 6)
    moved = shift(images, 1, -2)
    assert torch.equal(moved[:, :, 1:, :4], images[:, :, :4, 2:])
    assert not moved[:, :, 0].any() and not moved[:, :, :, 4:].any()


def test_each_image_is_shifted_to_one_of_the_four_sides():
    images = torch.rand(40, 1, 8, 8)
    sides = [shift(images, *side) for side in ((3, 0), (-3, 0), (0, 3), (0, -3))]
    found = [
        [torch.equal(image, side[index]) for side in sides]
        for index, image in enumerate(corrupt(images, "shift", 3, seeded()))
    ]
    assert np.sum(found, axis=1).tolist() == [1] * 40
    assert np.all(np.sum(found, axis=0) > 2)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 32)])
def test_rotation_is_by_the_angle_to_either_side(height, width):
    images = pictures(batch=12, height=height, width=width)
    turned, seen = corrupt(images, "rotation", 25, seeded()), set()
    inside = (slice(2, -2), slice(2, -2))  # PIL leaves out samples that reach over the border
    for image, result in zip(images[:, 0].numpy(), turned[:, 0].numpy(), strict=True):
        picture = Image.fromarray(image)
        off = [
            np.abs(np.asarray(picture.rotate(angle, Image.Resampling.BILINEAR))[inside] - result[inside]).mean()
            for angle in (25, -25)
        ]
        assert min(off) < 0.01 < 0.02 < max(off)
        seen.add(int(np.argmin(off)))
    assert seen == {0, 1}


@pytest.mark.parametrize(("channels", "mode"), [(1, "constant"), (3, "nearest")])
def test_blur_is_scipys_gaussian(channels, mode):
    images = torch.rand(3, channels, 12, 15)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, 1.5, 1.5), mode=mode, radius=5)
    np.testing.assert_allclose(corrupt(images, "blur", 1.5, seeded()).numpy(), expected, atol=1e-5)


def test_noise_has_its_standard_deviation_and_stays_in_range():
    grey = torch.full((50, 1, 28, 28), 0.5)
    assert (corrupt(grey, "noise", 0.1, seeded()) - grey).std().item() == pytest.approx(0.1, rel=0.02)
    noisy = corrupt(grey, "noise", 0.4, seeded())
    assert noisy.min() == 0 and noisy.max() == 1


def test_the_border_of_a_photograph_is_repeated():
    """A black edge would be a corruption of its own, which no photograph has."""
    images = torch.rand(4, 3, 6, 9)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="edge")
    np.testing.assert_array_equal(shift(images, 2, -3).numpy(), padded[:, :, 1:7, 6:15])
    bright = torch.ones(4, 3, 16, 16)
    for kind, strength in (("rotation", 30), ("shift", 4), ("blur", 1.5)):
        torch.testing.assert_close(corrupt(bright, kind, strength, seeded()), bright)
        assert corrupt(bright[:, :1], kind, strength, seeded()).min() < 0.8


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_seed_repeats_it(kind):
    images = pictures()
    assert torch.equal(*(corrupt(images, kind, STRENGTHS[kind][1], seeded()) for _ in range(2)))
    assert not torch.equal(images, corrupt(images, kind, STRENGTHS[kind][1], seeded()))
