"""What the page shows of a picture: what the model was given, its probabilities, and where it looked.

Pictures come from anybody, so they are read from their bytes alone: no path, no URL, no pickle.
"""

import base64
import io
import os
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..data.pixel_csv import DIGITS
from ..evaluation.classifier import Classifier, class_scores, load_model
from ..explanation import rollout_map
from ..image_files import check_size
from ..model.digits_vit_scratch import find_digits
from ..model.image_processing_vit_scratch import convert_image

MAX_UPLOAD_BYTES = 10 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow hands other formats to other programs
FORMAT_NAMES = "PNG, JPEG, WebP, GIF or BMP"
MAX_BARS = 10
_HEAT = (255, 120, 0)  # RGB
_HEAT_ALPHA = 190  # of 255, where the model looked most
# One picture at a time: two would wait for the same cores, and large ones would take their memory together.
_one_at_a_time = Lock()


class Prepared(NamedTuple):
    """A picture as a model takes it: `pixel_values` `(1, num_channels, height, width)`, and as one can look at it."""

    pixel_values: torch.Tensor
    given: Image.Image


class ShownModel:
    """A model on the page.

    Args:
        source: output folder of a run, or id of a repository on the Hub. Code in it is not run.

    Raises:
        ValueError: in one line, if it cannot be loaded or has no probabilities.
    """

    def __init__(self, source: str | os.PathLike):
        self.name = os.fspath(source)
        self.classifier = load_model(source)
        config = self.classifier.model.config
        if config.problem_type == "regression":
            raise ValueError(f"{self.name} was trained for regression, and the page shows probabilities of classes.")
        self.reads_digits = list(config.id2label.values()) == DIGITS
        height, width = config.image_height_width
        # The first picture takes longer, and nobody should wait for it.
        self._look(torch.zeros(1, config.num_channels, height, width, device=self.classifier.model.device))

    def answer(self, picture: Image.Image, drawn: bool = False) -> dict:
        """What the page shows of a picture. Of an upload, a model of digits is given the clearest digit.

        Args:
            drawn: whether it is a drawing on the page, which a model of digits is given as [`centred`].

        Returns:
            `label` and `score` of the class with the highest score; `bars`, a list of `[label, score]` of all classes
            in their order, or of the ten highest scores if there are more; `given` and `looked` as data URIs; `note`,
            a sentence if the picture has more digits than this one.

        Raises:
            ValueError: in one sentence, if the image processor refuses the picture or finds no digit in it.
        """
        config, note = self.classifier.model.config, ""
        with _one_at_a_time:
            if self.reads_digits:
                picture, note = self._digit(picture, drawn)
            prepared = prepare(picture, self.classifier)
            scores, looked = self._look(prepared.pixel_values)
        best = int(scores.argmax())
        shown = range(len(scores)) if len(scores) <= MAX_BARS else scores.topk(MAX_BARS).indices.tolist()
        return {
            "label": config.id2label[best],
            "score": float(scores[best]),
            "bars": [[config.id2label[index], float(scores[index])] for index in shown],
            "given": data_uri(prepared.given),
            "looked": data_uri(heat(looked)),
            "note": note,
        }

    def _digit(self, picture: Image.Image, drawn: bool) -> tuple[Image.Image, str]:
        """What a model of digits is given of a picture, and a note. Raises: ValueError if the picture has no digit."""
        side = min(self.classifier.model.config.image_height_width)
        if drawn:
            digits = [centred(picture, side)] if picture.convert("L").getbbox() else []
        else:
            try:
                upright = convert_image(picture, 3)
            except Exception as error:  # Pillow raises many types of exceptions
                raise ValueError(f"This picture cannot be used: {error}.") from error
            found = sorted(find_digits(upright, side), key=lambda digit: -digit.clarity)
            digits = [Image.fromarray(digit.pixels) for digit in found]
        if not digits:
            raise ValueError("No digit was found in this picture.")
        return digits[0], f"{len(digits)} digits were found: this is the clearest." if len(digits) > 1 else ""

    @torch.inference_mode()
    def _look(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
        """The scores `(num_labels,)` and the rollout `(rows, columns)` of one picture."""
        model = self.classifier.model
        scores = class_scores(model(pixel_values).logits[0].float(), model.config)
        return scores.cpu(), rollout_map(model, pixel_values)[0]


def centred(drawing: Image.Image, side: int) -> Image.Image:
    """A drawing, light ink on black, as MNIST has digits (http://yann.lecun.com/exdb/mnist/), `side` x `side` pixels.

    The ink fills a box of 20 of 28 pixels, and its centre of mass is in the middle. An empty drawing stays black.
    """
    grey, layout = drawing.convert("L"), Image.new("L", (side, side))
    if (box := grey.getbbox()) is None:
        return layout
    ink = grey.crop(box)
    scale = side * 20 / 28 / max(ink.size)
    ink = ink.resize([max(1, round(length * scale)) for length in ink.size], Image.Resampling.BICUBIC)
    pixels = np.asarray(ink, np.float64)
    down, across = (np.indices(pixels.shape) * pixels).sum(axis=(1, 2)) / pixels.sum()
    left, top = (round((side - 1) / 2 - centre) for centre in (across, down))
    layout.paste(ink, (min(max(left, 0), side - ink.width), min(max(top, 0), side - ink.height)))
    return layout


def prepare(picture: Image.Image, classifier: Classifier) -> Prepared:
    """The picture as the image processor of the model makes it. Raises: ValueError if the processor refuses it."""
    model, processor = classifier
    try:
        pixel_values = processor(picture, do_center_digit=False, return_tensors="pt")["pixel_values"]
    except Exception as error:  # Pillow raises many types of exceptions
        raise ValueError(f"This picture cannot be used: {error}.") from error
    pixels = pixel_values[0].numpy()  # (num_channels, height, width)
    if processor.do_normalize:
        mean, std = (np.reshape(each, (-1, 1, 1)) for each in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / (255 * processor.rescale_factor)
    pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    given = Image.fromarray(pixels[..., 0] if pixels.shape[2] != 3 else pixels)
    return Prepared(pixel_values.to(model.device), given)


def heat(looked: np.ndarray) -> Image.Image:
    """A map `(rows, columns)` as a transparent layer with a pixel for each patch, to be laid on the picture."""
    layer = np.empty((*looked.shape, 4), np.uint8)
    layer[..., :3] = _HEAT
    layer[..., 3] = np.rint(_HEAT_ALPHA * looked / max(looked.max(), 1e-9))
    return Image.fromarray(layer)


def data_uri(picture: Image.Image) -> str:
    """The picture as a PNG in the text that a page takes for its address."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def read_picture(sent: object) -> Image.Image:
    """The picture that the page has sent, as a data URI in base64.

    Raises:
        ValueError: in one sentence, if it is anything else, too large, or no picture in one of the formats.
    """
    if not isinstance(sent, str) or not sent.startswith("data:"):
        raise ValueError("The page takes pictures only, not paths or addresses.")
    try:
        content = base64.b64decode(sent.partition(";base64,")[2], validate=True)
    except ValueError as error:
        raise ValueError("This file did not arrive whole: send it again.") from error
    if len(content) > MAX_UPLOAD_BYTES:
        raise ValueError(f"This file has more than {MAX_UPLOAD_BYTES >> 20} MB: choose a smaller one.")
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = picture.size
        if width * height > MAX_UPLOAD_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels, and the most are {MAX_UPLOAD_PIXELS // 10**6} million")
        check_size(picture)
        picture.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"This file is not a picture in the format {FORMAT_NAMES}.") from error
    except Exception as error:  # Pillow raises many types of exceptions for damaged files
        raise ValueError(f"This picture cannot be used: {error}.") from error
    return picture
