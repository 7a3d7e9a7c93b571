"""The mode of the image processor that draws a digit of a picture as MNIST has it."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from processes import run_python

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.model.digits_vit_scratch import find_digits


def picture(size=(400, 300), place=(150, 80), paper="white", ink="black", height=120) -> Image.Image:
    """A 4, drawn by three lines: a tall stroke on the right, a slanted one, and a bar."""
    image = Image.new("RGB", size, paper)
    (left, top), width = place, height // 10
    stroke = [(0.55, 0), (0, 0.65), (0.9, 0.65)]
    draw = ImageDraw.Draw(image)
    draw.line([(left + x * height, top + y * height) for x, y in stroke], ink, width, joint="curve")
    draw.line([(left + 0.65 * height, top + 0.3 * height), (left + 0.65 * height, top + height)], ink, width)
    return image


def drawn(image: Image.Image, **options) -> np.ndarray:
    """What the model is given, 0 to 255."""
    processor = ViTScratchImageProcessor(size={"height": 28, "width": 28}, num_channels=1, do_center_digit=True)
    values = processor(image, return_tensors="np", **options).pixel_values
    assert values.shape == (1, 1, 28, 28)
    return (values[0, 0] + 1) * 127.5


def same_digit(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two drawings of a digit differ by no more than soft edges."""
    return abs(one - other).mean() < 12


def test_a_digit_is_20_pixels_long_around_its_centre_of_mass():
    pixels = drawn(picture())
    rows, columns = (np.flatnonzero(pixels.max(axis=axis) > 60) for axis in (1, 0))
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21
    centre = [pixels.sum(axis=1 - axis) @ (np.arange(28) + 0.5) / pixels.sum() for axis in (0, 1)]
    np.testing.assert_allclose(centre, 14, atol=0.6)
    assert pixels[0].max() == 0 and pixels.max() > 250  # light on black


@pytest.mark.parametrize(
    "image",
    [
        picture(paper="black", ink="white"),
        picture(paper=(190, 60, 60), ink=(60, 60, 190)),
        picture(place=(270, 170)),
        picture(size=(2400, 1800), place=(900, 500), height=720),
        picture().convert("CMYK"),
        picture().convert("P"),
        ImageOps.expand(picture(), 40, (70, 50, 40)),
    ],
    ids=["light", "coloured", "off centre", "large", "CMYK", "palette", "on a table"],
)
def test_the_same_digit_in_another_setting_is_the_same_to_the_model(image):
    assert same_digit(drawn(image), drawn(picture()))


def test_transparent_ink_and_exif_and_16_bits_are_the_same_digit():
    alpha = ImageOps.invert(picture().convert("L"))
    for colour in (0, 255):
        transparent = Image.merge("LA", [Image.new("L", alpha.size, colour), alpha])
        assert same_digit(drawn(transparent), drawn(picture()))
    turned = picture().transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert same_digit(drawn(turned), drawn(picture()))
    deep = Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)
    assert same_digit(drawn(deep), drawn(picture()))


def test_light_on_black_of_the_size_of_the_model_stays_as_it_is_bit_for_bit():
    random = np.random.default_rng(0)
    for _ in range(5):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[4:24, 4:24] = random.integers(0, 256, (20, 20))
        for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("RGB")):
            on, off = (
                ViTScratchImageProcessor(size={"height": 28, "width": 28}, num_channels=1, do_center_digit=mode)
                for mode in (True, False)
            )
            one, other = (each(image, return_tensors="np").pixel_values for each in (on, off))
            np.testing.assert_array_equal(one, other)
            (digit,) = find_digits(image.convert("RGB"), 28)
            np.testing.assert_array_equal(digit.pixels, pixels)


def test_dark_on_light_of_the_size_of_the_model_is_turned_to_light_on_black():
    small = picture((28, 28), (5, 4), height=20)
    assert np.corrcoef(drawn(small).ravel(), drawn(picture()).ravel())[0, 1] > 0.8
    assert drawn(small, do_center_digit=False)[0, 0] > 250


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
@pytest.mark.parametrize("size", [(1, 1), (200, 1), (8, 8), (28, 28), (300, 200)])
def test_a_blank_picture_has_no_digit_and_is_black_to_the_model(mode, size):
    for colour in ("white", "black"):
        blank = Image.new(mode, size, colour)
        assert find_digits(blank.convert("RGB"), 28) == []
        assert drawn(blank).max() == 0


def test_noise_and_shade_and_squared_paper_have_no_digit():
    random = np.random.default_rng(0)
    rows, columns = np.indices((200, 300))
    shade = 230 - 0.4 * rows - 60 / (1 + np.exp(-(columns - 150) / 8))
    squares = np.where((rows % 20 < 2) | (columns % 20 < 2), 170, 240)
    for page in (
        shade,
        squares,
        random.normal(128, 40, rows.shape),
        128 + 90 * np.sin(rows / 3) * np.sin(columns / 4),
    ):
        pixels = np.clip(page + random.normal(0, 3, page.shape), 0, 255).astype(np.uint8)
        assert find_digits(Image.fromarray(pixels).convert("RGB"), 28) == []


def test_thick_ink_that_fills_its_picture_is_the_digit_and_its_ground_is_not():
    thick = ImageOps.expand(picture(), 40, "white").filter(ImageFilter.MinFilter(21))
    left, top, right, bottom = ImageOps.invert(thick.convert("L")).getbbox()
    filled = thick.crop((left - 4, top - 4, right + 4, bottom + 4))
    assert np.mean(np.asarray(filled.convert("L")) < 128) > 0.4
    for image in (filled, ImageOps.invert(filled)):
        assert same_digit(drawn(image), drawn(ImageOps.expand(thick, 200, "white")))


def test_ruled_lines_and_the_edge_of_a_sheet_on_a_table_are_no_ink():
    ruled = picture()
    pixels = np.asarray(ruled).copy()
    for row in range(25, 300, 50):
        pixels[row : row + 4] = np.minimum(pixels[row : row + 4], (90, 110, 180))
    assert same_digit(drawn(Image.fromarray(pixels)), drawn(ruled))
    for sheet, number in ((picture(), 1), (Image.new("RGB", (400, 300), "white"), 0)):
        table = Image.new("RGB", (700, 600), (40, 40, 45))
        table.paste(sheet, (150, 150))
        assert len(find_digits(table, 28)) == number
    turned = {"expand": True, "resample": Image.Resampling.BICUBIC}
    table.paste(picture().rotate(7, fillcolor=(40, 40, 45), **turned), (120, 120))
    assert same_digit(drawn(table), drawn(picture().rotate(7, fillcolor="white", **turned)))


def test_the_first_digit_is_the_one_on_the_left_though_another_is_clearer():
    image = Image.new("RGB", (400, 200), "white")
    for left, ink in ((40, (90, 90, 90)), (220, "black")):
        image.paste(picture((160, 160), (20, 20), ink=ink), (left, 20))
    first, second = find_digits(image, 28)
    assert first.box[0] < 200 < second.box[0] and first.clarity < second.clarity


def test_several_digits_come_from_left_to_right_each_with_its_box():
    image = Image.new("RGB", (700, 300), "white")
    places = [(480, 90), (60, 40), (270, 120)]
    for left, top in places:
        image.paste(picture((160, 160), (20, 20)), (left, top))
    digits = find_digits(image, 28)
    for digit, (left, top) in zip(digits, sorted(places), strict=True):
        np.testing.assert_allclose(digit.box, (left + 20, top + 20, left + 128, top + 140), atol=12)
        assert same_digit(digit.pixels.astype(float), drawn(picture()))


def test_a_bar_that_is_written_apart_belongs_to_its_digit():
    image = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(image)
    draw.line([(110, 100), (110, 150), (180, 160), (180, 210), (110, 220)], 0, 14, joint="curve")
    (alone,) = find_digits(image.convert("RGB"), 28)
    draw.line([(118, 85), (190, 80)], 0, 14)
    (whole,) = find_digits(image.convert("RGB"), 28)
    assert whole.box[1] < alone.box[1] - 10


# Arguments: the folder of a model, pictures. Prints the scores of each.
WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["hf_vit_scratch"] = None
from transformers import pipeline

classify = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)
print(json.dumps([{one["label"]: one["score"] for one in classify(file, top_k=10)} for file in sys.argv[2:]]))
"""


def test_a_checkpoint_without_the_package_draws_the_digit_too(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTScratchForImageClassification(
        ViTScratchConfig.from_size("digits-tiny", num_labels=10, initializer_range=0.5, **sizes)
    ).save_pretrained(tmp_path / "model")
    processor = ViTScratchImageProcessor(size={"height": 28, "width": 28}, num_channels=1, do_center_digit=True)
    processor.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())["do_center_digit"] is True
    picture().save(tmp_path / "photo.png")
    Image.fromarray(drawn(picture()).round().astype(np.uint8)).save(tmp_path / "drawn.png")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    files = [tmp_path / "photo.png", tmp_path / "drawn.png"]
    printed = run_python(WITHOUT_THE_PACKAGE, tmp_path / "model", *files, environment=environment, cwd=tmp_path)
    photo, as_drawn = json.loads(printed.splitlines()[-1])
    assert photo == pytest.approx(as_drawn, abs=1e-6) and np.ptp(list(photo.values())) > 1e-3
