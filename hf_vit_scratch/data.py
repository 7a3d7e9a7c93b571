"""Images and labels from wherever they lie, as a `datasets.DatasetDict`.

`load` reads Kaggle's Digit Recognizer (zip, folder of CSVs, or Kaggle's own download), an image folder, Parquet
or Arrow on disk, a dataset of the Hub, or the sample of real digits that comes with the install. `datasets` caches
all of it and maps it into memory: a second start parses and decodes nothing.

Small images that all have one size are cached uncompressed, as binary PGM or PPM: a short header and the raw
pixels. That is still a valid value of an `Image()` column, and as every value has the same length, all pixels of a
split are one strided view of the memory-mapped column (`pixel_array`): training has no image to decode.
"""

import glob
import io
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
from datasets.fingerprint import Hasher
from sklearn.model_selection import StratifiedKFold, train_test_split

from .competition import (
    COMPETITION,
    KAGGLE,
    SAMPLE,
    DataError,
    download_from_kaggle,
    is_competition,
    load_digits,
    one_line,
)

PNM = re.compile(rb"P([56])\n(\d+) (\d+)\n255\n")
# Images up to 64 x 64 RGB are cached decoded, as long as a split of them fits into memory with ease.
MAX_DECODED_IMAGE_BYTES = 64 * 64 * 3
MAX_DECODED_SPLIT_BYTES = 2**30

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
FILE_SUFFIXES = (".zip", ".csv", ".gz", ".parquet", ".arrow")


def load(
    source: str | os.PathLike = SAMPLE,
    *,
    image_column: str = "image",
    label_column: str = "label",
    validation_size: float = 0.1,
    seed: int = 42,
    fold: int | None = None,
    num_folds: int = 5,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.DatasetDict:
    """Load images and labels.

    Args:
        source: `"sample"` (5,000 digits of MNIST); `"kaggle"` (downloads the competition with `kagglehub`); the path
            of the competition's zip, of a folder with its `train.csv`, `test.csv` and `sample_submission.csv`
            (plain or `.gz`; the last two may be absent), of an image folder (`folder/class/image` or
            `folder/split/class/image`), of a Parquet or Arrow file or folder; or the id of a dataset on the Hub.
        image_column, label_column: the columns to use, where the source calls them otherwise.
        validation_size: fraction of the training rows that becomes the validation split, drawn stratified by
            label, where the source has no validation split of its own. With 0 there is no validation split.
        seed: decides which rows these are; the same seed takes the same rows.
        fold: hold out this part, counted from 1, of `num_folds` equal parts that are stratified by label and have no
            row in common, instead of a fraction: each row of train is held out by exactly one of them.
        cache_dir: where the cache is kept; by default where `datasets` keeps it (`HF_DATASETS_CACHE`).

    Returns:
        The splits `train`, `validation` and, where the source has one, `test`, with the features `image: Image()`
        and `label: ClassLabel(names)`. A test split without labels, as the competition's, has no column `label`;
        its rows keep their order. Images keep their mode: whoever decodes palette, alpha or 16 bit converts them.
        `datasets` applies the EXIF orientation when it decodes.

    Raises:
        DataError: the source is absent, damaged, or not what it should be. Rows of a CSV count from 1 under the
            header, as ImageId does.
    """
    source = os.fspath(source)
    cache_dir = os.path.abspath(os.path.expanduser(cache_dir or datasets.config.HF_DATASETS_CACHE))
    if not 0 <= validation_size < 1:
        raise DataError(f"validation_size is a fraction from 0 to below 1, got {validation_size}.")
    if source == SAMPLE:
        splits = load_digits(SAMPLE, cache_dir)
    elif source == KAGGLE:
        splits = load_digits(download_from_kaggle(), cache_dir)
    elif is_competition(source):
        splits = load_digits(os.path.abspath(os.path.expanduser(source)), cache_dir)
    else:
        loaded = _load_with_datasets(source, cache_dir)
        splits = _encode_labels(_select_columns(loaded, source, image_column, label_column), source)
        splits = {name: _prepare_images(splits[name], f"{source}, split {name}", cache_dir) for name in splits}
    if fold is not None:
        if "validation" in splits:
            raise DataError(f"{source} has a validation split of its own, so fold {fold} cannot be held out.")
        splits["train"], splits["validation"] = _stratified_fold(splits["train"], fold, num_folds, seed)
    elif "validation" not in splits and validation_size > 0:
        splits["train"], splits["validation"] = _stratified_split(splits["train"], validation_size, seed)
    return datasets.DatasetDict({name: splits[name] for name in SPLIT_NAMES if name in splits})


def source_name(source: str | os.PathLike) -> str:
    """What a model was trained on: `"sample"`, `"digit-recognizer"`, a Hub id, or the last part of a local path.

    It ends up in public model cards, so it never holds a full path.
    """
    source = os.fspath(source)
    if source == KAGGLE or is_competition(source):
        return COMPETITION
    path = Path(source).expanduser()
    return source if source == SAMPLE or _is_hub_id(source) else path.resolve().name


def image_shape(dataset: datasets.Dataset) -> tuple[int, int, int] | None:
    """`(height, width, channels)` that all images of the split share, or None where they differ.

    Channels are 1 for the grey modes and 3 for all others; alpha does not count. Reads headers only, and stops at
    the first image that differs.
    """
    if (views := _pixel_views(dataset)) is not None:
        return views[0].shape[1:]
    raw = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    shapes = (_header_shape(row["image"]) for row in raw)
    first = next(shapes, None)
    return first if all(shape == first for shape in shapes) else None


def pixel_array(dataset: datasets.Dataset) -> np.ndarray | None:
    """All images of a split as one read-only uint8 array `(num_images, height, width, channels)`.

    For the competition, the sample, and every other source whose images are small (at most 64 x 64 RGB), of one size
    and all of mode L or all of RGB; None for anything else. For a whole split of the competition or the sample the
    array is a view of the memory-mapped cache; for a selection of rows, as train and validation are, it is a copy.
    """
    if (views := _pixel_views(dataset)) is None:
        return None
    pixels = views[0] if len(views) == 1 else np.concatenate(views)
    if dataset._indices is not None:
        pixels = pixels[dataset._indices.column(0).to_numpy()]
    pixels.flags.writeable = False
    return pixels


def label_array(dataset: datasets.Dataset) -> np.ndarray | None:
    """The labels of a split, `(num_images,)`, or None where it has none: straight from Arrow, not value by value."""
    if "label" not in dataset.column_names:
        return None
    labels = dataset.data.column("label").to_numpy()
    return labels if dataset._indices is None else labels[dataset._indices.column(0).to_numpy()]


def row_numbers(dataset: datasets.Dataset) -> np.ndarray:
    """Which rows of the source's split these are, from 0, `(num_images,)`."""
    return np.arange(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()


def _pixel_views(dataset: datasets.Dataset) -> list[np.ndarray] | None:
    """Views `(rows, height, width, channels)` of the image column's chunks, if all images are PNM of one shape."""
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


def _open_image(value: dict) -> PIL.Image.Image:
    return PIL.Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))


def _header_shape(value: dict) -> tuple[int, int, int]:
    with _open_image(value) as image:
        width, height = image.size
        # Pillow decodes a whole PNG to look for EXIF, which may stand at its end; cameras write no PNG.
        exif = {} if image.format == "PNG" else image.getexif()
        if exif.get(PIL.Image.ExifTags.Base.Orientation, 1) >= 5:  # these four turn the image by a quarter
            width, height = height, width
        return height, width, 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode[0] == "I" else 3


def _is_hub_id(source: str) -> bool:
    exists = Path(source).expanduser().exists()
    return not exists and HUB_ID.fullmatch(source) is not None and not source.endswith(FILE_SUFFIXES)


def _load_with_datasets(source: str, cache_dir: str) -> datasets.DatasetDict:
    """All splits as `datasets` hands them out, with the columns that the source has."""
    path = Path(source).expanduser().resolve()
    if _is_hub_id(source):
        verbosity = huggingface_hub.logging.get_verbosity()
        huggingface_hub.logging.set_verbosity_error()  # without network it reports each of its retries
        try:
            with one_line(f"{source}: no such file or folder here, and it cannot be read as a dataset of the Hub"):
                return datasets.load_dataset(source, cache_dir=cache_dir)
        finally:
            huggingface_hub.logging.set_verbosity(verbosity)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder.")
    with one_line(source):
        if path.is_file():
            files = glob.escape(str(path))
            return datasets.load_dataset(path.suffix[1:], data_files=files, cache_dir=cache_dir)
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))
        if (path / "state.json").is_file():
            return datasets.DatasetDict(train=datasets.load_from_disk(str(path)))
        if any(next(path.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow")):
            return datasets.load_dataset(str(path), cache_dir=cache_dir)
        return _load_image_folder(path, cache_dir)


def _load_image_folder(path: Path, cache_dir: str) -> datasets.DatasetDict:
    """`path/class/image` or `path/split/class/image`; images of a test split may lie there without classes."""
    folders = {folder.name.lower(): folder for folder in path.iterdir() if folder.is_dir()}
    parts = {split: folders[n] for split, names in SPLIT_NAMES.items() for n in reversed(names) if n in folders}
    # A folder "train" that holds only images is a class, beside "bus" and "tram".
    if "train" not in parts or not any(f.is_dir() or f.stem == "metadata" for f in parts["train"].iterdir()):
        parts = {"train": path}
    suffixes = PIL.Image.registered_extensions()
    if not any(file.suffix.lower() in suffixes for file in path.rglob("*")):
        raise DataError(f"{path} holds neither images nor train.csv, Parquet or Arrow files.")

    def read(parts: dict[str, Path]) -> datasets.DatasetDict:
        # Left to itself, `datasets` also takes a class "dev-board" or a file "test 1.jpg" for a split.
        patterns = {split: f"{glob.escape(str(folder))}/**" for split, folder in parts.items()}
        return datasets.load_dataset("imagefolder", data_files=patterns, cache_dir=cache_dir)

    if "test" in parts and any(file.suffix.lower() in suffixes for file in parts["test"].iterdir()):
        test = parts.pop("test")
        return datasets.DatasetDict({**read(parts), **read({"test": test})})
    return read(parts)


def _select_columns(
    loaded: datasets.DatasetDict, source: str, image_column: str, label_column: str
) -> dict[str, datasets.Dataset]:
    """The splits under their usual names, with the columns `image` and `label`."""
    present = [name for name, split in loaded.items() if len(split)]
    splits = {usual: loaded[n] for usual, names in SPLIT_NAMES.items() for n in reversed(names) if n in present}
    if "train" not in splits:
        raise DataError(f"{source} has no images to train on; its splits: {', '.join(loaded) or 'none'}.")
    for name, split in splits.items():
        columns = {image_column: "image", label_column: "label"}
        if name == "test" and label_column not in split.column_names:
            del columns[label_column]
        for column, usual in columns.items():
            if column not in split.column_names:
                hint = f"name the right one with --{usual}_column"
                if split.column_names == ["image"]:
                    hint = "an image folder holds two or more folders, one for each class, all at one depth"
                found = ", ".join(split.column_names)
                raise DataError(f"{source}, split {name}: no column {column!r}. Columns: {found}; {hint}.")
        split = split.select_columns(list(columns)).rename_columns({k: v for k, v in columns.items() if k != v})
        with one_line(f"{source}: column {image_column!r} holds no images"):
            splits[name] = split.cast_column("image", datasets.Image())
    return splits


def _encode_labels(splits: dict[str, datasets.Dataset], source: str) -> dict[str, datasets.Dataset]:
    """Turns labels of all kinds into one ClassLabel, that of train; drops the column where a test split hides it."""
    feature, column = splits["train"].features["label"], splits["train"].data.column("label")
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    elif any(is_type(column.type) for is_type in LABEL_TYPES):
        names = [str(value) for value in sorted(set(splits["train"].unique("label")) - {None})]
    else:
        raise DataError(f"{source}: labels are of type {column.type}; expected classes, strings or integers.")
    index = {name: code for code, name in enumerate(names)}
    label = datasets.ClassLabel(names=names)
    for name, split in splits.items():
        if "label" not in split.column_names:
            continue
        feature, values = split.features["label"], split["label"][:]
        if name == "test" and all(value in (None, -1) for value in values):
            splits[name] = split.remove_columns("label")
            continue
        own_names = dict(enumerate(getattr(feature, "names", ())))
        codes = [index.get(own_names.get(v) if own_names else str(v), -1) if v is not None else -1 for v in values]
        if -1 in codes:
            row = codes.index(-1)
            problem = f"label {values[row]!r} is none of the {len(names)} classes of train"
            raise DataError(f"{source}, split {name}, row {row + 1}: {problem}.")
        if feature != label:
            splits[name] = split.remove_columns("label").add_column("label", codes, feature=label)
    return splits


class _Unlike(Exception):
    """An image that has not the size and mode of the first."""


def _prepare_images(split: datasets.Dataset, where: str, cache_dir: str) -> datasets.Dataset:
    """Caches small images of one size as their pixels; reads other image files once, to find damaged ones."""
    raw = split.cast_column("image", datasets.Image(decode=False))
    first = raw[0]["image"]
    image = _in_threads(_decode, [first], [0], where)[0]
    mode, (width, height) = image.mode, image.size

    def decode(batch: dict, rows: list[int]) -> dict:
        images = _in_threads(_decode, batch["image"], rows, where)
        if any(image.mode != mode or image.size != (width, height) for image in images):
            raise _Unlike
        return {"image": [{"bytes": header + image.tobytes(), "path": None} for image in images]}

    def check(batch: dict, rows: list[int]) -> dict:
        _in_threads(_read_to_the_end, batch["image"], rows, where)
        return {"row": rows}

    def cached(step: str, function: Callable, **options) -> datasets.Dataset:
        # In our own folder, as that of the source may be read-only. `map` writes a file whole or not at all.
        options["new_fingerprint"] = fingerprint = Hasher.hash((split._fingerprint, step))
        options["cache_file_name"] = os.path.join(cache_dir, "vit_scratch", f"{fingerprint}.arrow")
        return raw.map(function, batched=True, with_indices=True, desc="Reading images", **options)

    os.makedirs(os.path.join(cache_dir, "vit_scratch"), exist_ok=True)
    size = width * height * (1 if mode == "L" else 3)
    small = size <= MAX_DECODED_IMAGE_BYTES and size * len(split) <= MAX_DECODED_SPLIT_BYTES
    if mode in ("L", "RGB") and small:
        header = b"P%d\n%d %d\n255\n" % (5 if mode == "L" else 6, width, height)
        try:
            return cached("pixels-1", decode, features=split.features)
        except _Unlike:
            pass
    cached("check-1", check, remove_columns=raw.column_names)
    return split


def _in_threads(function: Callable, values: list[dict], rows: list[int], where: str) -> list:
    """`function` of each stored image; one that cannot be read is named."""

    def call(value: dict | None, row: int):
        try:
            return function(value)
        except Exception as error:  # a damaged file makes Pillow raise nearly anything, and so does a missing one
            file = (value or {}).get("path") or f"{where}, row {row + 1}"
            raise DataError(f"{file} is no image that can be read ({type(error).__name__}: {error}).") from error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(call, values, rows))


def _decode(value: dict | None) -> PIL.Image.Image:
    if value is None:
        raise ValueError("there is none")
    return datasets.Image().decode_example(value)


def _read_to_the_end(value: dict) -> None:
    """`verify` would be cheaper, but does not notice that a JPEG is cut off."""
    with _open_image(value) as image:
        image.draft("L", (1, 1))  # a JPEG is then decoded at an eighth of its size, several times faster
        image.load()


def _stratified_split(train: datasets.Dataset, size: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    names, labels = train.features["label"].names, np.asarray(train.data.column("label"))
    counts = np.bincount(labels, minlength=len(names))
    if (counts == 1).any():
        name = names[int(np.argmax(counts == 1))]
        raise DataError(f"Class {name!r} has one image only: a stratified validation split needs two of each class.")
    held_out, classes = int(np.ceil(size * len(train))), np.count_nonzero(counts)
    if not classes <= held_out <= len(train) - classes:
        problem = f"validation_size {size} of {len(train)} images takes {held_out}, leaving {len(train) - held_out}"
        raise DataError(f"{problem}: both parts need an image of each of the {classes} classes.")
    # The `train_test_split` of `datasets` writes its indices beside the data, which may be the user's folder.
    kept, drawn = train_test_split(np.arange(len(train)), test_size=size, stratify=labels, random_state=seed)
    return train.select(kept, keep_in_memory=True), train.select(drawn, keep_in_memory=True)


def _stratified_fold(
    train: datasets.Dataset, fold: int, num_folds: int, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    names, labels = train.features["label"].names, label_array(train)
    if num_folds < 2 or not 1 <= fold <= num_folds:
        raise DataError(f"fold is one of 1 to num_folds, which is at least 2; got fold {fold} of {num_folds}.")
    counts = np.bincount(labels, minlength=len(names))
    if (rare := (counts > 0) & (counts < num_folds)).any():
        name, count = names[int(np.argmax(rare))], counts[rare][0]
        raise DataError(f"Class {name!r} has {count} images: {num_folds} folds need as many of each class.")
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels)
    kept, held_out = list(folds)[fold - 1]
    return train.select(kept, keep_in_memory=True), train.select(held_out, keep_in_memory=True)
