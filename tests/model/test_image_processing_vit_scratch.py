"""The image processor: every kind of picture, against arithmetic on its pixels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
# Luma of ITU-R 601-2, which PIL's documentation names for its conversion of colours to grey.
LUMA = COLOURS @ np.array([299, 587, 114]) / 1000


def process(image, num_channels: int = 1, **kwargs) -> np.ndarray:
    """`pixel_values` of one image that is 8x8 already, or is not resized."""
    processor = ViTScratchImageProcessor(size={"height": 8, "width": 8}, num_channels=num_channels)
    values = processor(image, return_tensors="np", **kwargs).pixel_values
    assert values.shape[:2] == (1, num_channels)
    return values[0]


def scaled(pixels: np.ndarray) -> np.ndarray:
    """0 to 255 as -1 to 1."""
    return pixels / 127.5 - 1


def test_grey_and_colour_pictures_give_grey_and_colour_values():
    grey, colour = Image.fromarray(PIXELS), Image.fromarray(COLOURS)
    np.testing.assert_allclose(process(grey, 1)[0], scaled(PIXELS), atol=1e-6)
    np.testing.assert_allclose(process(grey, 3), np.stack([scaled(PIXELS)] * 3), atol=1e-6)
    np.testing.assert_allclose(process(colour, 3), scaled(COLOURS.transpose(2, 0, 1)), atol=1e-6)
    np.testing.assert_allclose(process(colour, 1)[0], scaled(LUMA), atol=1.01 / 127.5)
    processor = ViTScratchImageProcessor(size={"height": 8, "width": 8}, num_channels=1)
    as_colour = processor(colour, num_channels=3, return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(as_colour, process(colour, 3))


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "LA", "PA", "CMYK", "I", "F"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_grey_picture_in_another_mode_is_the_same_picture(mode, num_channels):
    grey = Image.fromarray(PIXELS)
    via = {"PA": "LA", "CMYK": "RGB"}.get(mode, "L")
    picture = grey.convert(via).convert(mode)
    np.testing.assert_allclose(process(picture, num_channels), process(grey, num_channels), atol=1.01 / 127.5)


def test_black_and_white_and_16_bits_take_the_whole_range():
    bits = Image.fromarray(PIXELS > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(process(bits)[0], np.where(PIXELS > 127, 1, -1))
    values = np.random.default_rng(3).integers(0, 65536, (8, 8), dtype=np.uint16)
    deep = Image.fromarray(values)
    assert deep.mode.startswith("I;16")
    np.testing.assert_allclose(process(deep)[0], values / 32767.5 - 1, atol=1.01 / 127.5)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[2:5], alpha[5:] = 255, 51  # seen whole, and by a fifth
    blended = scaled(PIXELS * (alpha / 255) + 255 * (1 - alpha / 255))
    rgba = Image.fromarray(np.dstack([PIXELS] * 3 + [alpha]))
    for picture in (rgba, rgba.convert("LA"), rgba.convert("RGBa")):
        np.testing.assert_allclose(process(picture)[0], blended, atol=5.01 / 127.5)
    np.testing.assert_allclose(process(rgba, 3), np.stack([blended] * 3), atol=1.01 / 127.5)

    # One colour of a palette or one value of grey may be the transparent one.
    palette = Image.fromarray((PIXELS > 127).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    grey = Image.fromarray((PIXELS > 127).astype(np.uint8))
    grey.save(tmp_path / "grey.png", transparency=0)
    for name, seen in (("palette.png", -1.0), ("grey.png", scaled(np.array(1)))):
        with Image.open(tmp_path / name) as picture:
            np.testing.assert_allclose(process(picture)[0], np.where(PIXELS > 127, seen, 1), atol=1e-6)


def test_a_photo_is_turned_as_its_exif_data_says(tmp_path):
    upright = np.zeros((8, 4), dtype=np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to see it upright"
    Image.fromarray(np.rot90(upright)).save(tmp_path / "photo.jpg", quality=100, exif=exif)
    for picture in (Image.open(tmp_path / "photo.jpg"), str(tmp_path / "photo.jpg")):
        np.testing.assert_allclose(process(picture, do_resize=False)[0], scaled(upright), atol=0.05)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_arrays_and_tensors(kind):
    expected = scaled(PIXELS)
    for shape in ((8, 8), (1, 8, 8), (8, 8, 1)):
        image = kind(PIXELS).reshape(shape)
        np.testing.assert_allclose(process(image)[0], expected, atol=1e-6)
        np.testing.assert_allclose(process([image])[0], expected, atol=1e-6)
        np.testing.assert_allclose(process(image, 3), np.stack([expected] * 3), atol=1e-6)
    for image in (COLOURS, COLOURS.transpose(2, 0, 1).copy()):
        np.testing.assert_allclose(process(kind(image), 3), scaled(COLOURS.transpose(2, 0, 1)), atol=1e-6)
    with pytest.raises(ValueError, match="expected an image with 1 channels, got 3") as error:
        process(kind(COLOURS), 1)
    assert "\n" not in str(error.value)


def test_a_picture_does_not_become_what_it_cannot():
    with pytest.raises(ValueError, match="expected an image with 4 channels, got 3"):
        process(Image.fromarray(COLOURS), 4)


def test_a_batch_of_different_pictures():
    processor = ViTScratchImageProcessor(size={"height": 4, "width": 6}, num_channels=3)
    batch = [Image.new("L", (9, 5), 255), Image.new("RGB", (3, 8), (255, 0, 0)), np.zeros((8, 8), dtype=np.uint8)]
    values = processor(batch, return_tensors="pt").pixel_values
    assert values.dtype == torch.float32
    expected = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, -1, -1]]).float()
    torch.testing.assert_close(values, expected[:, :, None, None].expand(3, 3, 4, 6))


def test_resizing_is_pils():
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 256, (30, 20), dtype=np.uint8))
    processor = ViTScratchImageProcessor(size={"height": 6, "width": 9}, num_channels=1)
    for resample in (Image.Resampling.BICUBIC, Image.Resampling.NEAREST):
        values = processor(photo, return_tensors="np", resample=resample).pixel_values[0, 0]
        np.testing.assert_allclose(values, scaled(np.asarray(photo.resize((9, 6), resample))), atol=1e-6)
    default = processor(photo, return_tensors="np").pixel_values[0, 0]
    np.testing.assert_allclose(default, scaled(np.asarray(photo.resize((9, 6), Image.Resampling.BICUBIC))), atol=1e-6)


def test_transformers_arguments_do_what_they_say():
    np.testing.assert_allclose(process(PIXELS, do_normalize=False)[0], PIXELS / 255, atol=1e-6)
    np.testing.assert_allclose(process(PIXELS, do_normalize=False, do_rescale=False)[0], PIXELS)
    np.testing.assert_allclose(
        process(PIXELS, image_mean=0.25, image_std=2.0)[0], (PIXELS / 255 - 0.25) / 2, atol=1e-6
    )
    cropped = process(PIXELS, do_center_crop=True, crop_size={"height": 4, "width": 2})[0]
    np.testing.assert_allclose(cropped, scaled(PIXELS[2:6, 3:5]), atol=1e-6)


def test_a_processor_survives_its_file_and_feeds_the_model(tmp_path):
    processor = ViTScratchImageProcessor(
        size={"height": 8, "width": 12}, num_channels=1, image_mean=0.1, image_std=0.4
    )
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    module, name = saved["auto_map"]["AutoImageProcessor"].split(".")
    assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()
    loaded = ViTScratchImageProcessor.from_pretrained(tmp_path)
    by_auto = AutoImageProcessor.from_pretrained(tmp_path)
    changed = ViTScratchImageProcessor.from_pretrained(tmp_path, num_channels=3)
    assert type(by_auto) is ViTScratchImageProcessor
    picture = Image.fromarray(COLOURS)
    expected = processor(picture, return_tensors="pt").pixel_values
    for same in (loaded, by_auto):
        torch.testing.assert_close(same(picture, return_tensors="pt").pixel_values, expected)
    assert changed(picture, return_tensors="pt").pixel_values.shape == (1, 3, 8, 12)
    config = ViTScratchConfig.from_size("digits-tiny", image_size=[8, 12], num_labels=2)
    assert ViTScratchForImageClassification(config)(**processor([picture] * 3, return_tensors="pt")).logits.shape == (
        3,
        2,
    )


def test_32_bits_are_scaled_as_16_bits_are(tmp_path):
    values = np.random.default_rng(4).integers(0, 65536, (8, 8), dtype=np.int32)
    values[0, 0] = 65535
    for array in (values, values.astype(np.float32)):
        Image.fromarray(array).save(tmp_path / "deep.tif")
        with Image.open(tmp_path / "deep.tif") as picture:
            assert picture.mode == {"i": "I", "f": "F"}[array.dtype.kind]
            np.testing.assert_allclose(process(picture)[0], values / 32767.5 - 1, atol=1.01 / 127.5)
            np.testing.assert_array_equal(process(picture), process(Image.fromarray(values.astype(np.uint16))))


@pytest.mark.parametrize(
    "array",
    [
        np.array([[-1, 5]], np.int32),
        np.array([[0, 65536]], np.int32),
        np.array([[0, 0.75]], np.float32),
        np.array([[0, np.nan]], np.float32),
    ],
)
def test_other_ranges_of_32_bits_are_refused_with_the_range(array):
    with pytest.raises(ValueError, match="0 to 255 or to 65535") as error:
        process(Image.fromarray(array), do_resize=False)
    assert f"got {array.min()} to {array.max()}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("ink", [255, 246])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_white_ink_on_transparent_is_seen(ink, num_channels):
    alpha = np.where(PIXELS > 127, 255, 0).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([np.full_like(alpha, ink)] * 3 + [alpha]))
    expected = np.where(PIXELS > 127, scaled(np.array(ink)), -1)
    for picture in (rgba, rgba.convert("LA")):
        np.testing.assert_allclose(process(picture, num_channels), np.stack([expected] * num_channels), atol=1e-6)
    palette = Image.fromarray((PIXELS > 127).astype(np.uint8), mode="P")
    palette.putpalette([255, 255, 255] * 2)
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(process(palette)[0], np.where(PIXELS > 127, 1, -1))


@pytest.mark.parametrize("specks", [1, 3])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_white_ink_is_seen_in_spite_of_dark_specks(specks, num_channels):
    alpha = np.kron(np.where(PIXELS > 127, 255, 0), np.ones((2, 2))).astype(np.uint8)
    grey = np.full_like(alpha, 255)
    rows, columns = np.nonzero(alpha)
    grey[rows[:specks], columns[:specks]] = 0
    picture = Image.fromarray(np.dstack([grey] * 3 + [alpha]))
    expected = np.where((alpha > 0) & (grey > 0), 1, -1)
    found = process(picture, num_channels, do_resize=False)
    np.testing.assert_allclose(found, np.stack([expected] * num_channels), atol=1e-6)


def test_other_transparent_pictures_stay_on_white():
    """Faint black ink, a picture that is transparent everywhere, and an opaque one without contrast."""
    for value, alpha in ((0, PIXELS // 32), (0, PIXELS * 0), (PIXELS // 32 + 247, PIXELS * 0 + 255), (7, PIXELS)):
        bands = [np.broadcast_to(np.uint8(value), PIXELS.shape)] * 3 + [alpha]
        blended = value * (alpha / 255) + 255 * (1 - alpha / 255)
        picture = Image.fromarray(np.dstack(bands).astype(np.uint8))
        np.testing.assert_allclose(process(picture)[0], scaled(blended), atol=1.01 / 127.5)


@pytest.mark.parametrize(
    "array",
    [
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS > 127,
        (PIXELS > 127).astype(np.int64),
        PIXELS / 127.5 - 1,
    ]
    + [PIXELS.astype(np.int32) * 257],
)
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_arrays_that_are_not_from_0_to_255_are_refused_in_one_line(array, kind):
    with pytest.raises(ValueError, match="values from 0 to 255") as error:
        process(kind(array))
    assert f"got {array.min()} to {array.max()}" in str(error.value) and "do_rescale=False" in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_of_floats_are_read_as_they_say():
    expected = scaled(PIXELS)
    np.testing.assert_allclose(process(PIXELS / 255, do_rescale=False)[0], expected, atol=1e-6)
    np.testing.assert_allclose(process((PIXELS / 255).astype(np.float32), do_rescale=False)[0], expected, atol=1e-6)
    np.testing.assert_allclose(process(PIXELS.astype(np.float32))[0], expected, atol=1e-6)
    np.testing.assert_allclose(process(PIXELS.astype(np.int64))[0], expected, atol=1e-6)
    np.testing.assert_array_equal(process(np.zeros((8, 8), np.float32))[0], np.full((8, 8), -1))
    np.testing.assert_array_equal(process(np.ones((8, 8), np.uint8))[0], np.float32(scaled(np.ones((8, 8)))))
