"""Image files from outside: opened, checked, and named in the one line of an error."""

import os
from collections.abc import Callable
from typing import TypeVar

import PIL.Image

MAX_ASPECT = 200  # of the sides of a picture
_Made = TypeVar("_Made")


def process_file(file: str | os.PathLike, function: Callable[[PIL.Image.Image], _Made]) -> _Made:
    """What `function` makes of an image file.

    Raises: ValueError, with the name of the file, if it is no image that can be read, or too large or narrow.
    """
    try:
        with PIL.Image.open(file) as image:
            check_size(image)
            return function(image)
    except Exception as error:  # Pillow raises many types of exceptions for a damaged file
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def check_size(image: PIL.Image.Image) -> None:
    """Raises: ValueError for a picture so large or so narrow that resizing it could take all memory."""
    width, height = image.size
    most = PIL.Image.MAX_IMAGE_PIXELS
    if most and width * height > most:
        raise ValueError(f"it has {width}x{height} pixels, expected at most {most:,} in all: make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"it has {width}x{height} pixels, expected sides that differ {MAX_ASPECT}-fold at most")
