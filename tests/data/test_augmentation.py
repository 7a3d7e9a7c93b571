import math

import numpy as np
import pytest
import torch
from helpers import pictures
from PIL import Image

from hf_vit_scratch.data.augmentation import DigitAugmentation, PhotoAugmentation, crop_boxes, crop_numbers
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


@pytest.mark.parametrize(
    "augment",
    [DigitAugmentation(15, 0.15, 10, 2, 0.8), PhotoAugmentation(), PhotoAugmentation(0.35, 2, 8)],
    ids=["digits", "flip", "photos"],
)
def test_an_image_is_changed_by_its_key_alone_and_in_each_epoch_anew(augment):
    images = pictures(1).expand(200, -1, -1, -1)
    first = augment(images, keys(200))
    torch.manual_seed(1)
    assert torch.equal(first, augment(images, keys(200)))  # and not by the global generator
    order = torch.arange(199, -1, -1)
    parts = [augment(images[rows], keys(200)[rows]) for rows in order.split(70)]
    torch.testing.assert_close(torch.cat(parts), first[order])
    changed = {tensor.numpy().tobytes() for tensor in first}
    only_flips = isinstance(augment, PhotoAugmentation) and augment.min_crop_area == 1
    assert len(changed) == (2 if only_flips else 200)
    assert not torch.equal(first, augment(images, keys(200, epoch=1)))


def flipped(images: torch.Tensor, augmented: torch.Tensor) -> np.ndarray:
    """Which of the images have been mirrored; all others must be as they were."""
    mirrored = (augmented == images.flip(-1)).flatten(1).all(dim=1).numpy()
    assert (mirrored ^ (augmented == images).flatten(1).all(dim=1).numpy()).all()
    return mirrored


def test_photographs_are_flipped_about_half_of_the_time_and_otherwise_kept():
    images = torch.rand(400, 3, 2, 5)
    assert 150 < flipped(images, PhotoAugmentation()(images, keys(400))).sum() < 250


def test_photographs_are_shifted_by_whole_pixels_and_filled_with_their_reflection():
    """The windows of numpy's symmetric padding are what an image can be shifted to."""
    images = torch.rand(500, 3, 6, 9)
    mirrored = flipped(images, PhotoAugmentation()(images, keys(500)))
    seen = set()
    for index, shifted in enumerate(PhotoAugmentation(shift_pixels=2)(images, keys(500))):
        image = images[index].flip(-1) if mirrored[index] else images[index]
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="symmetric")
        places = [(y, x) for y in range(5) for x in range(5)]
        fitting = [(y, x) for y, x in places if np.allclose(padded[:, y : y + 6, x : x + 9], shifted, atol=1e-5)]
        assert len(fitting) == 1
        seen.add(fitting[0])
    assert len(seen) == 25


def test_crops_of_a_batch_are_the_parts_that_pil_cuts_out():
    """Away from the rim of a crop, where PIL does not look beyond the crop and a shift has pixels to show."""
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(40, 3, 5, 6), (32, 36), mode="bicubic").clamp(0, 1)
    mirrored = flipped(smooth, PhotoAugmentation()(smooth, keys(40)))
    cropped = PhotoAugmentation(min_crop_area=0.3)(smooth, keys(40))
    boxes = torch.stack(crop_boxes(crop_numbers(keys(40)), 32, 36, 0.3), dim=1)
    for index in range(40):
        picture = Image.fromarray((smooth[index] * 255).round().byte().permute(1, 2, 0).numpy())
        expected = picture.resize((36, 32), Image.Resampling.BILINEAR, box=tuple(boxes[index].tolist()))
        expected = np.asarray(expected)[:, ::-1] if mirrored[index] else np.asarray(expected)
        found = cropped[index].permute(1, 2, 0).numpy() * 255
        assert np.abs(found - expected)[2:-2, 2:-2].max() < 1.5
    assert not torch.allclose(cropped, smooth)


def test_cutout_greys_one_square_with_its_centre_in_the_image():
    images = torch.full((300, 3, 20, 30), 0.1)
    cut = PhotoAugmentation(cutout_pixels=8)(images, keys(300))
    assert set(cut.unique().tolist()) == set(torch.tensor([0.1, 0.5]).tolist())
    grey = cut[:, 0] == 0.5
    assert torch.equal(cut == 0.5, grey[:, None].expand(-1, 3, -1, -1))
    rows, columns = grey.any(dim=2).sum(dim=1), grey.any(dim=1).sum(dim=1)
    assert torch.equal(grey.sum(dim=(1, 2)), rows * columns)  # a rectangle: a square, cut off at the border
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 8, 4, 8)  # cut off at most by half
    often = grey.float().mean(dim=0)
    assert often[10, 15].item() == pytest.approx(64 / 600, abs=0.06)
    assert often[0, 0].item() == pytest.approx(16 / 600, abs=0.03)


def test_all_changes_of_photographs_together_are_one_map_from_output_to_input():
    """A picture that says where each pixel was read: flipped, scaled to the crop, then shifted."""
    side = 24
    place = (torch.arange(side) + 0.5).expand(200, 1, side, side)
    ramps = torch.cat((place, place.mT), dim=1)
    augment = PhotoAugmentation(min_crop_area=0.3, shift_pixels=3, cutout_pixels=6)
    found = augment(ramps, keys(200))
    left, top, right, bottom = crop_boxes(crop_numbers(keys(200)), side, side, 0.3)
    mirrored = flipped(ramps, PhotoAugmentation()(ramps, keys(200)))
    shifts = set()
    for index in range(200):
        grey = (found[index] == 0.5).all(dim=0)
        columns, rows = found[index]
        columns = columns.flip(-1) if mirrored[index] else columns
        grey_there = grey.flip(-1) if mirrored[index] else grey
        amounts = []
        for read, hidden, start, end in (
            (columns, grey_there, left[index], right[index]),
            (rows.mT, grey.mT, top[index], bottom[index]),
        ):
            scale = (end - start) / side
            expected = start + (torch.arange(side) + 0.5) * scale
            inside = ~hidden & (read > 0.5 + scale) & (read < side - 0.5 - scale)  # where nothing is reflected
            off = ((read - expected) / scale)[inside & (torch.arange(side) > 6) & (torch.arange(side) < 17)]
            amounts.append(off.median().item())
            assert (off - off.median()).abs().max() < 0.05
        assert all(abs(amount - round(amount)) < 0.05 and abs(amount) < 3.05 for amount in amounts)
        shifts.add(tuple(map(round, amounts)))
    assert len(shifts) > 40  # of 49: rows and columns are drawn independently


def test_crop_shift_and_cutout_are_drawn_independently():
    left, *_ = crop_boxes(crop_numbers(keys(2000)), 1000, 1000, 0.3)
    blank = torch.zeros(2000, 1, 20, 20)
    grey = PhotoAugmentation(cutout_pixels=4)(blank, keys(2000))[:, 0] == 0.5
    cut_x = (grey.any(dim=1) * torch.arange(20.0)).sum(dim=1) / grey.any(dim=1).sum(dim=1)
    ramp = (torch.arange(20.0) + 0.5).expand(2000, 1, 20, 20)
    shifted = PhotoAugmentation(shift_pixels=5)(ramp, keys(2000))[:, 0, :, 10]
    correlated = np.corrcoef(torch.stack((left, cut_x, shifted[:, 10])).numpy())
    assert np.abs(correlated - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1000, 20), (20, 1000), (1, 1), (31, 33)])
def test_crops_lie_within_the_picture_and_are_the_same_for_a_batch_and_for_one_image(size):
    width, height = size
    numbers = crop_numbers(keys(50))
    left, top, right, bottom = crop_boxes(numbers, height, width, 0.35)
    assert ((left >= 0) & (left < right) & (right <= width)).all()
    assert ((top >= 0) & (top < bottom) & (bottom <= height)).all()
    ratio = (right - left) / (bottom - top)
    if min(size) > 10:
        assert ((ratio > 0.7) & (ratio < 1.43)).all()
    alone = [[side[0] for side in crop_boxes(one[None], height, width, 0.35)] for one in numbers.numpy()]
    np.testing.assert_array_equal(np.array(alone), torch.stack((left, top, right, bottom), dim=1).numpy())


def test_crops_cover_the_asked_share_of_the_area():
    left, top, right, bottom = crop_boxes(crop_numbers(keys(300)), 256, 256, 0.35)
    areas = ((right - left) * (bottom - top) / 256**2).numpy()
    assert 0.34 < min(areas) < 0.4
    assert 0.9 < max(areas) <= 1
    assert 0.6 < np.mean(areas) < 0.72


def test_a_smallest_crop_of_the_whole_area_is_no_crop():
    assert [side.tolist() for side in crop_boxes(crop_numbers(keys(1)), 30, 20, 1)] == [[0], [0], [20], [30]]
