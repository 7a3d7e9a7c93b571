"""Read the digits of a picture, and draw the steps from the picture to what the model is given."""

import os
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from ..model.digits_vit_scratch import Digit, find_digits
from ..model.image_processing_vit_scratch import convert_image
from .classifier import Classifier, class_scores

_HEIGHT = 168  # of a drawn step, in pixels: 6 for each of 28


class DigitReading(NamedTuple):
    """The digits of a picture from left to right.

    Args:
        picture: RGB, upright.
        digits: each with its box `(left, top, right, bottom)` in pixels of `picture`, how clear it is, and
            `pixels`, uint8 `(side, side)`, which the model is given.
        scores: of the classes, `(num_digits, num_labels)`, as transformers' pipeline computes them.
    """

    picture: PIL.Image.Image
    digits: list[Digit]
    scores: torch.Tensor


def read_digits(image: PIL.Image.Image, classifier: Classifier) -> DigitReading:
    """Find the digits of a picture and classify each. A blank page or a texture has none.

    Args:
        image: of any mode and size; it is turned upright by its EXIF data.
        classifier: of [`load_model`], a model of digits whose processor has `do_center_digit`.
    """
    model, processor = classifier
    picture = convert_image(image, 3)
    digits = find_digits(picture, processor.size["height"])
    scores = torch.empty(0, model.config.num_labels)
    if digits:
        grey = [PIL.Image.fromarray(digit.pixels) for digit in digits]
        inputs = processor(grey, do_center_digit=False, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            scores = class_scores(model(**inputs).logits, model.config).cpu()
    return DigitReading(picture, digits, scores)


def _steps(image: PIL.Image.Image, digits: list[Digit]) -> list[tuple[str, PIL.Image.Image]]:
    """Title and RGB picture: the picture with its boxes, then ink and `pixels` of each digit."""
    picture = image.resize((max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT))
    draw, scale = PIL.ImageDraw.Draw(picture), _HEIGHT / image.height
    for digit in digits:
        draw.rectangle([round(side * scale) for side in digit.box], outline=(255, 0, 0))
    steps = [("picture", picture)]
    for number, digit in enumerate(digits, start=1):
        for title, pixels in (("ink", digit.ink), ("what the model is given", digit.pixels)):
            width = max(1, round(pixels.shape[1] * _HEIGHT / pixels.shape[0]))
            drawn = PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
            steps.append((f"digit {number}: {title}", drawn.resize((width, _HEIGHT), PIL.Image.Resampling.NEAREST)))
    return steps


def draw_steps(reading: DigitReading, file: str | os.PathLike) -> None:
    """Draw the steps from a picture to what the model is given beside each other, each under its title, as a PNG."""
    steps, gap, title_height = _steps(reading.picture, reading.digits), 8, 16
    widths = [max(picture.width, 6 * len(title)) + gap for title, picture in steps]
    page = PIL.Image.new("RGB", (sum(widths) + gap, _HEIGHT + title_height + 2 * gap), "lightgrey")
    draw, left = PIL.ImageDraw.Draw(page), gap
    for (title, picture), width in zip(steps, widths, strict=True):
        draw.text((left, gap // 2), title, fill="black")
        page.paste(picture, (left, title_height + gap))
        left += width
    page.save(file, "PNG")
