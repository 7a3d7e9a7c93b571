"""Images and labels from many kinds of sources, as a `datasets.DatasetDict`.

`load` reads Kaggle's Digit Recognizer (zip, folder of CSVs, or download from Kaggle), an image folder, Parquet or
Arrow files, a dataset on the Hub, or the sample of real digits that is installed with the package. `datasets` caches
the data and maps them into memory, so that they are parsed and decoded only once.
"""

import glob
import os
import re
from pathlib import Path

import datasets
import huggingface_hub
import PIL.Image
import pyarrow as pa

from .digit_recognizer import COMPETITION, KAGGLE, SAMPLE, download_from_kaggle, is_competition, load_digits
from .errors import DataError, one_line
from .pixels import cache_images
from .splits import hold_out_fold, hold_out_fraction

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
FILE_SUFFIXES = (".zip", ".csv", ".gz", ".parquet", ".arrow")


def load(
    source: str | os.PathLike[str] = SAMPLE,
    *,
    image_column: str = "image",
    label_column: str = "label",
    validation_size: float = 0.1,
    seed: int = 42,
    fold: int | None = None,
    num_folds: int = 5,
    cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.DatasetDict:
    """Load images and labels.

    Args:
        source: one of
            - `"sample"`: 5,000 digits of MNIST, installed with the package;
            - `"kaggle"`: downloads the competition with `kagglehub`;
            - the path of the competition's zip, or of a folder with its `train.csv`, `test.csv` and
              `sample_submission.csv` (plain or `.gz`; the last two are optional);
            - the path of an image folder, `folder/class/image` or `folder/split/class/image`;
            - the path of a Parquet or Arrow file or folder;
            - the id of a dataset on the Hub.
        image_column, label_column: names of the two columns in the source.
        validation_size: fraction of the training rows, stratified by label, that becomes the validation split if the
            source has none. 0: no validation split.
        seed: determines which rows are held out.
        fold: hold out this fold, counted from 1, instead of a fraction. The `num_folds` folds have equal size, are
            stratified by label and disjoint, and contain each row of train once.
        num_folds: number of folds, at least 2.
        cache_dir: folder of the cache. Default: the cache of `datasets` (`HF_DATASETS_CACHE`).

    Returns:
        The splits `train`, `validation` and, if the source has one, `test`, with the features `image: Image()` and
        `label: ClassLabel(names)`. An unlabelled test split, such as the competition's, has no column `label`, and its
        rows keep their order. Images keep their mode (palette, alpha and 16 bits too), and `datasets` applies the EXIF
        orientation when it decodes them.

    Raises:
        DataError: the source is missing, damaged, or has an unexpected format. The message counts rows of a CSV from
            1, without the header, like ImageId.
    """
    source = os.fspath(source)
    cache_dir = os.path.abspath(os.path.expanduser(cache_dir or datasets.config.HF_DATASETS_CACHE))
    if not 0 <= validation_size < 1:
        raise DataError(f"validation_size must be at least 0 and below 1, got {validation_size}.")
    splits = _read(source, image_column, label_column, cache_dir)
    if fold is not None:
        if "validation" in splits:
            raise DataError(f"{source} has its own validation split, so leave out fold {fold}.")
        splits["train"], splits["validation"] = hold_out_fold(splits["train"], fold, num_folds, seed)
    elif "validation" not in splits and validation_size > 0:
        splits["train"], splits["validation"] = hold_out_fraction(splits["train"], validation_size, seed)
    return datasets.DatasetDict({name: splits[name] for name in SPLIT_NAMES if name in splits})


def source_name(source: str | os.PathLike[str]) -> str:
    """Public name of a data source: `"sample"`, `"digit-recognizer"`, an id on the Hub, or the last part of a path.

    Model cards show it, so it never contains a full path.
    """
    source = os.fspath(source)
    if source == KAGGLE or is_competition(source):
        return COMPETITION
    path = Path(source).expanduser()
    return source if source == SAMPLE or _is_hub_id(source) else path.resolve().name


def _read(source: str, image_column: str, label_column: str, cache_dir: str) -> dict[str, datasets.Dataset]:
    """The splits of the source, named train, validation and test, with the columns `image` and `label`."""
    if source == SAMPLE:
        return load_digits(SAMPLE, cache_dir)
    if source == KAGGLE:
        return load_digits(download_from_kaggle(), cache_dir)
    if is_competition(source):
        return load_digits(os.path.abspath(os.path.expanduser(source)), cache_dir)
    loaded = _load_with_datasets(source, cache_dir)
    splits = _encode_labels(_select_columns(loaded, source, image_column, label_column), source)
    return {name: cache_images(split, f"{source}, split {name}", cache_dir) for name, split in splits.items()}


def _is_hub_id(source: str) -> bool:
    exists = Path(source).expanduser().exists()
    return not exists and HUB_ID.fullmatch(source) is not None and not source.endswith(FILE_SUFFIXES)


def _load_with_datasets(source: str, cache_dir: str) -> datasets.DatasetDict:
    """All splits as `datasets` loads them, with all columns of the source."""
    path = Path(source).expanduser().resolve()
    if _is_hub_id(source):
        verbosity = huggingface_hub.logging.get_verbosity()
        huggingface_hub.logging.set_verbosity_error()  # offline, it would log each retry
        try:
            with one_line(f"{source}: no such local file or folder, and loading it from the Hub failed"):
                return datasets.load_dataset(source, cache_dir=cache_dir)
        finally:
            huggingface_hub.logging.set_verbosity(verbosity)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder. Check --data.")
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
    """Load `path/class/image` or `path/split/class/image`. A test split may hold images without class folders."""
    folders = {folder.name.lower(): folder for folder in path.iterdir() if folder.is_dir()}
    parts = {split: folders[n] for split, names in SPLIT_NAMES.items() for n in reversed(names) if n in folders}
    # A folder named "train" that holds only images is a class, as in a data set of vehicles.
    if "train" not in parts or not any(f.is_dir() or f.stem == "metadata" for f in parts["train"].iterdir()):
        parts = {"train": path}
    suffixes = PIL.Image.registered_extensions()
    if not any(file.suffix.lower() in suffixes for file in path.rglob("*")):
        raise DataError(f"{path} holds neither images nor train.csv, Parquet or Arrow files. Check --data.")

    def read(parts: dict[str, Path]) -> datasets.DatasetDict:
        # Without patterns, `datasets` would take a class named "dev-board" or a file named "test 1.jpg" for a split.
        patterns = {split: f"{glob.escape(str(folder))}/**" for split, folder in parts.items()}
        return datasets.load_dataset("imagefolder", data_files=patterns, cache_dir=cache_dir)

    if "test" in parts and any(file.suffix.lower() in suffixes for file in parts["test"].iterdir()):
        test = parts.pop("test")
        return datasets.DatasetDict({**read(parts), **read({"test": test})})
    return read(parts)


def _select_columns(
    loaded: datasets.DatasetDict, source: str, image_column: str, label_column: str
) -> dict[str, datasets.Dataset]:
    """Rename the splits to train, validation and test, and the columns to `image` and `label`."""
    present = [name for name, split in loaded.items() if len(split)]
    splits = {usual: loaded[n] for usual, names in SPLIT_NAMES.items() for n in reversed(names) if n in present}
    if "train" not in splits:
        raise DataError(f"{source} has no training split with images. Its splits: {', '.join(loaded) or 'none'}.")
    for name, split in splits.items():
        columns = {image_column: "image", label_column: "label"}
        if name == "test" and label_column not in split.column_names:
            del columns[label_column]
        for column, usual in columns.items():
            if column not in split.column_names:
                hint = f"Name the right column with --{usual}_column"
                if split.column_names == ["image"]:
                    hint = "An image folder needs two or more folders of images, one for each class, at one depth"
                names = ", ".join(split.column_names)
                raise DataError(f"{source}, split {name}: no column {column!r}. Its columns: {names}. {hint}.")
        split = split.select_columns(list(columns)).rename_columns({k: v for k, v in columns.items() if k != v})
        with one_line(f"{source}: column {image_column!r} does not hold images"):
            splits[name] = split.cast_column("image", datasets.Image())
    return splits


def _encode_labels(splits: dict[str, datasets.Dataset], source: str) -> dict[str, datasets.Dataset]:
    """Convert the labels of all splits to the ClassLabel of train; drop the column of an unlabelled test split."""
    feature, column = splits["train"].features["label"], splits["train"].data.column("label")
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    elif any(is_type(column.type) for is_type in LABEL_TYPES):
        names = [str(value) for value in sorted(set(splits["train"].unique("label")) - {None})]
    else:
        raise DataError(f"{source}: labels must be classes, strings, integers or booleans, got {column.type}.")
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
            problem = f"label {values[row]!r} is not one of the {len(names)} classes of train"
            raise DataError(f"{source}, split {name}, row {row + 1}: {problem}.")
        if feature != label:
            splits[name] = split.remove_columns("label").add_column("label", codes, feature=label)
    return splits
