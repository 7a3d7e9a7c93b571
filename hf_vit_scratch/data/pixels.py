"""Pixels, labels and row numbers of a split as arrays, and the image cache behind them.

Small images of one size are cached uncompressed, as binary PGM or PPM: a short header and the raw pixels. This is a
valid value of an `Image()` column. Since all values have the same length, all pixels of a split are one strided view
of the memory-mapped column (`pixel_array`), and training decodes no image.
"""

import io
import math
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Lock

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets.fingerprint import Hasher

from ..image_files import check_size
from ..model.image_processing_vit_scratch import convert_image
from .errors import DataError, notice
from .names import counted

PNM = re.compile(rb"P([56])\n(\d+) (\d+)\n255\n")
# Images of up to 64x64 pixels in RGB are cached decoded if all images of the split take at most 1 GiB.
MAX_DECODED_IMAGE_BYTES = 64 * 64 * 3
MAX_DECODED_SPLIT_BYTES = 2**30
# 16-bit images without a value of this size have 12 bits or less, and at most 16 shades of grey when they are scaled.
DIM = 4096
# Larger images are decoded one at a time, whatever the number of threads.
LARGE_IMAGE_PIXELS = 2**24
_one_large_image = Lock()


def image_shape(dataset: datasets.Dataset) -> tuple[int, int, int] | None:
    """The shape `(height, width, channels)` of all images of the split, or None if they differ in size.

    Grey modes have 1 channel and all other modes 3; alpha is ignored, and a split with both has 3. Only headers are
    read, and reading stops at the first image that differs in size.
    """
    if (views := _pixel_views(dataset)) is not None:
        return views[0].shape[1:]
    raw = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    shape = None
    for height, width, channels in (_header_shape(row["image"]) for row in raw):
        if shape is not None and shape[:2] != (height, width):
            return None
        shape = (height, width, max(channels, shape[2] if shape else 0))
    return shape


def image_sizes(dataset: datasets.Dataset, at_most: int = 500) -> np.ndarray:
    """Height and width of at most this number of images, evenly spaced over the split, `(num_images, 2)`.

    Only headers are read.
    """
    rows = np.linspace(0, len(dataset) - 1, min(at_most, len(dataset))).round().astype(int)
    raw = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    return np.array([_header_shape(raw[int(row)]["image"])[:2] for row in rows])


def pixel_array(dataset: datasets.Dataset) -> np.ndarray | None:
    """All images of a split as one read-only uint8 array `(num_images, height, width, channels)`, or None.

    It is None unless all images are small (at most 64x64 pixels in RGB), have one size, and are all of mode L or all
    of mode RGB, as in the competition and the sample. For a whole split of the competition or the sample the array is
    a view of the memory-mapped cache. For a selection of rows, such as train and validation, it is a copy.
    """
    if (views := _pixel_views(dataset)) is None:
        return None
    pixels = views[0] if len(views) == 1 else np.concatenate(views)
    if dataset._indices is not None:
        pixels = pixels[dataset._indices.column(0).to_numpy()]
    pixels.flags.writeable = False
    return pixels


def label_array(dataset: datasets.Dataset) -> np.ndarray | None:
    """The labels of a split, `(num_images,)`, or None if it is unlabelled."""
    return known_labels(dataset) if "label" in dataset.column_names else None


def known_labels(dataset: datasets.Dataset) -> np.ndarray:
    """The labels of a labelled split, `(num_images,)`, read from Arrow without a loop in Python."""
    labels = dataset.data.column("label").to_numpy()
    return labels if dataset._indices is None else labels[dataset._indices.column(0).to_numpy()]


def row_numbers(dataset: datasets.Dataset) -> np.ndarray:
    """The row numbers, `(num_images,)`, that the images have in the split of the source; counted from 0."""
    return np.arange(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()


def _pixel_views(dataset: datasets.Dataset) -> list[np.ndarray] | None:
    """Views `(rows, height, width, channels)` of the chunks of images; None if not all are PNM of one shape."""
    views = []
    for chunk in dataset.data.column("image").chunks:
        values = chunk.field("bytes")
        header = PNM.match(values[0].as_py() or b"") if len(values) else None
        if header is None or values.null_count:
            return None
        kind, width, height = (int(group) for group in header.groups())
        shape = (height, width, 1 if kind == 5 else 3)
        start, stride = header.end(), header.end() + int(np.prod(shape))
        _, offsets, content = values.buffers()
        offsets = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
        if (np.diff(offsets) != stride).any():
            return None
        rows = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]].reshape(-1, stride)
        if (rows[:, :start] != np.frombuffer(header[0], np.uint8)).any():
            return None
        views.append(rows[:, start:].reshape(-1, *shape))
        if views[-1].shape[1:] != views[0].shape[1:]:
            return None
    return views or None


def _open_image(value: dict | None) -> PIL.Image.Image:
    if value is None or value["bytes"] is None and value["path"] is None:
        raise ValueError("the value is empty")
    return PIL.Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))


def _header_shape(value: dict) -> tuple[int, int, int]:
    with _open_image(value) as image:
        width, height = image.size
        # EXIF may be at the end of a PNG, so Pillow would decode all of it; and cameras do not write PNG.
        exif = {} if image.format == "PNG" else image.getexif()
        if exif.get(PIL.Image.ExifTags.Base.Orientation, 1) >= 5:  # orientations 5 to 8 swap height and width
            width, height = height, width
        return height, width, 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode[0] == "I" else 3


class _DifferentShape(Exception):
    """An image differs from the first in size or mode."""


def cache_images(splits: dict[str, datasets.Dataset], source: str, cache_dir: str) -> dict[str, datasets.Dataset]:
    """Cache small images of one size as raw pixels; read other images once, so that damaged ones are found now.

    Args:
        source: name of the splits in error messages.

    Raises: DataError for an image that cannot be read, or 32-bit pixels with an unknown range.
    """
    names, cached, found = {split: f"{source}, split {split}" for split in splits}, {}, {}
    for split, rows in splits.items():
        cached[split], content = _cache_split(rows, names[split], cache_dir)
        if content is not None:
            found[split] = {name: content.data.column(name).to_numpy() for name in content.column_names}
            if paged := np.flatnonzero(found[split]["pages"]).tolist():
                problem = f"only the first frame or page is read of {counted(paged, 'image')} with more than one"
                notice(f"{names[split]}: {problem}: {_place(rows, paged[0], names[split])}.")
    _check_ranges(found, splits, names)
    return cached


def _cache_split(
    split: datasets.Dataset, where: str, cache_dir: str
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The split, as raw pixels if they are small. Otherwise it is as it was, and with it comes what is known of each
    image: its mode, whether it has several pages, and its range."""
    raw = split.cast_column("image", datasets.Image(decode=False))
    first = raw[0]["image"]
    _for_each(_read_to_the_end, [first], [0], where)
    image = _for_each(decode_stored, [first], [0], where)[0]
    mode, (width, height) = image.mode, image.size

    def decode(batch: dict, rows: list[int]) -> dict:
        read = partial(decode_stored, sides=(width, height))
        images = _for_each(read, batch["image"], rows, where, threads=1)
        if any(image.mode != mode or image.size != (width, height) for image in images):
            raise _DifferentShape
        if any(i.has_transparency_data or _has_pages(i) for i in images):  # a PNG can declare a colour transparent
            raise _DifferentShape
        paths = [value.get("path") for value in batch["image"]]
        return {"image": [{"bytes": header + i.tobytes(), "path": p} for i, p in zip(images, paths, strict=True)]}

    def check(batch: dict, rows: list[int]) -> dict:
        found = _for_each(_read_to_the_end, batch["image"], rows, where)
        return dict(zip(types, map(list, zip(*found, strict=True)), strict=True))

    def cached(step: str, function: Callable, **options) -> datasets.Dataset:
        # In the cache folder, since the folder of the source may be read-only. `map` writes a file atomically.
        options["new_fingerprint"] = fingerprint = Hasher.hash((split._fingerprint, step))
        options["cache_file_name"] = os.path.join(cache_dir, "vit_scratch", f"{fingerprint}.arrow")
        return raw.map(function, batched=True, with_indices=True, desc="Reading images", **options)

    os.makedirs(os.path.join(cache_dir, "vit_scratch"), exist_ok=True)
    types = {"mode": datasets.Value("string"), "pages": datasets.Value("bool")}
    types |= dict.fromkeys(("low", "high"), datasets.Value("float64"))
    size = width * height * (1 if mode == "L" else 3)
    small = size <= MAX_DECODED_IMAGE_BYTES and size * len(split) <= MAX_DECODED_SPLIT_BYTES
    if mode in ("L", "RGB") and small:
        header = b"P%d\n%d %d\n255\n" % (5 if mode == "L" else 6, width, height)
        try:
            return cached("pixels-3", decode, features=split.features), None
        except _DifferentShape:
            pass
    return split, cached("check-4", check, remove_columns=raw.column_names, features=datasets.Features(types))


def _check_ranges(
    found: dict[str, dict[str, np.ndarray]], splits: dict[str, datasets.Dataset], names: dict[str, str]
) -> None:
    """Raises: DataError for 32-bit images that are neither all from 0 to 255 nor all from 0 to 65535.

    The processor scales an image with a value above 255 as one of 16 bits. A darker image beside it, or in another
    split, would be taken for one of 8 bits.
    """
    highest = max((np.fmax.reduce(content["high"], initial=0) for content in found.values()), default=0)
    short = any(np.char.startswith(content["mode"].astype(str), "I;16").any() for content in found.values())
    for split, content in found.items():
        mode, low, high = content["mode"], content["low"], content["high"]
        deep, real = np.isin(mode, ("I", "F")), mode == "F"
        wrong = deep & ~((low >= 0) & (high <= 65535) & ~(real & (high > 0) & (high <= 1)))
        dark = deep & (high > 0) & (high <= 255) & (highest > 255)
        if not (wrong | dark).any():
            continue
        row = int(np.argmax(wrong if wrong.any() else dark))
        problem = f"{_place(splits[split], row, names[split])} has 32-bit pixels"
        if wrong.any():
            problem += f" from {low[row]:g} to {high[row]:g}, expected 0 to 255 or 0 to 65535"
        else:
            problem += f" up to {high[row]:g} and others have up to {highest:g}, so it may be of 8 or of 16 bits"
        raise DataError(f"{problem}. Save the images with 8 or 16 bits, scaled alike.")
    if (short or highest > 255) and 0 < highest < DIM:
        where = next(iter(names.values())).rpartition(", split ")[0]
        problem = f"the images of 16 bits have values up to {highest:g} of 65535, so all of them are nearly black"
        notice(f"{where}: {problem}. Scale them to 0..65535 or to 8 bits if they are not meant to be.")


def _place(split: datasets.Dataset, row: int, where: str) -> str:
    """The file of an image, or the number of its row."""
    value = split.select([row]).cast_column("image", datasets.Image(decode=False))[0]["image"]
    return (value or {}).get("path") or f"{where}, row {row + 1}"


def _for_each(function: Callable, values: list[dict], rows: list[int], where: str, threads: int | None = None) -> list:
    """Apply `function` to each stored image. Raises: DataError with the file or row of an unreadable image.

    Args:
        threads: number of threads. None: as many as there are cores, and some more. 1 is faster for small images, at
            which threads mostly wait for the interpreter's lock.
    """

    def call(value: dict | None, row: int):
        try:
            return function(value)
        except _DifferentShape:
            raise
        except Exception as error:  # Pillow raises many types of exceptions for damaged or missing files
            file = (value or {}).get("path") or f"{where}, row {row + 1}"
            raise DataError(f"{file} cannot be read as an image ({type(error).__name__}: {error}).") from error

    if threads == 1:
        return [call(*one) for one in zip(values, rows, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, values, rows))


def decode_stored(value: dict | None, sides: tuple[int, int] | None = None) -> PIL.Image.Image:
    """Decode an image as `datasets` stores it, `{"bytes", "path"}`, and turn it by its EXIF orientation.

    With `sides`, an image that has others is not decoded, and raises [`_DifferentShape`].

    Raises: ValueError if it is empty or too large. Pillow raises many types of exceptions for a damaged file.
    """
    image = _open_image(value)
    check_size(image)
    if sides is not None and sorted(image.size) != sorted(sides):  # EXIF data may say that they are swapped
        raise _DifferentShape
    image.load()
    if image.getexif().get(PIL.Image.ExifTags.Base.Orientation) is not None:
        image = PIL.ImageOps.exif_transpose(image)
    return image


def _has_pages(image: PIL.Image.Image) -> bool:
    """Whether the file has several frames or pages. In MPO and PSD, these are previews and layers of one picture."""
    return getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD")


def _read_to_the_end(value: dict | None) -> tuple[str, bool, float | None, float | None]:
    """Decode the image. Its mode, whether it has several pages and, above 8 bits, its least and largest value.

    Training's conversions are tried too. `verify` would be faster, but detects neither a truncated JPEG nor pixels
    that have no conversion to RGB.
    """
    with _open_image(value) as image:
        pages = _has_pages(image)
        check_size(image)
        image.draft("L", (1, 1))  # decodes a JPEG at an eighth of its size, which is several times faster
        with _one_large_image if math.prod(image.size) > LARGE_IMAGE_PIXELS else nullcontext():
            image.load()
            if image.getexif().get(PIL.Image.ExifTags.Base.Orientation) is not None:
                PIL.ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":
                pixels = np.asarray(image)
                return image.mode, pages, float(pixels.min()), float(pixels.max())
            pixel = image.crop((0, 0, 1, 1))
            pixel.info = {name: value for name, value in image.info.items() if name == "transparency"}
            for channels in (1, 3):
                convert_image(pixel, channels)
        return image.mode, pages, None, None
