"""Images and labels from many kinds of sources, as a `datasets.DatasetDict`.

`load` reads Kaggle's Digit Recognizer (zip, folder of CSVs, or download from Kaggle), other CSV files with pixels, an
image folder, Parquet or Arrow files, a dataset on the Hub, or the sample of real digits that is installed with the
package. `datasets` caches the data and maps them into memory, so that they are parsed and decoded only once.
"""

import glob
import json
import os
import re
import unicodedata
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa

from ..output_folder import real_path
from .csv_files import find_csv_files, unread_beside
from .digit_recognizer import COMPETITION, KAGGLE, SAMPLE, download_from_kaggle, is_competition, load_sample
from .errors import DataError, notice, one_line
from .image_folder import load_image_folder
from .names import SPLIT_NAMES, is_split, plain_name, shown, split_of
from .pixel_csv import load_pixel_csv
from .pixels import cache_images, known_labels
from .splits import hold_out_fold, hold_out_fraction

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
              `sample_submission.csv` (plain or `.gz`; the last two are optional), or of other CSV files with pixels,
              such as `fashion-mnist_train.csv` and `fashion-mnist_test.csv` (`pixel_csv.py` has the forms);
            - the path of an image folder, `folder/class/image`, `folder/split/class/image`, or with a `metadata.csv`
              ([what is read and what is refused](README.md));
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
        rows keep their order; for an image folder this is the natural order of the file names (1, 2, 10). It has a
        column `id` if the submission needs other ids than row numbers. Images keep
        their mode (palette, alpha and 16 bits too), and `datasets` applies the EXIF orientation when it decodes them.

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

    Model cards show it, so it never contains a full path. Files are called `"digit-recognizer"` only if their content
    is the competition's. Where a path only borrows a public name, `"local "` stands before it.
    """
    source = os.fspath(source)
    if source == KAGGLE or is_competition(source):
        return COMPETITION
    if source == SAMPLE or is_hub_id(source):
        return source
    name = real_path(source).name
    # Images of a data set called by one of these names would be published in cards.
    return f"local {name}" if name in (SAMPLE, KAGGLE, COMPETITION) else name


def _read(source: str, image_column: str, label_column: str, cache_dir: str) -> dict[str, datasets.Dataset]:
    """The splits of the source, named train, validation and test, with the columns `image` and `label`."""
    if source == SAMPLE:
        return load_sample(cache_dir)
    path = download_from_kaggle() if source == KAGGLE else source
    files = find_csv_files(path)
    if files is None and source == KAGGLE:
        raise DataError(
            f"The download of {COMPETITION} from Kaggle holds no CSV files with pixels. Download it again."
        )
    if files is not None:
        splits = load_pixel_csv(files, label_column, cache_dir)
        if unread := unread_beside(path, files):
            notice(f"{source}: read from {', '.join(files.members.values())}; not read: {shown(unread)}.")
    else:
        splits = _select_columns(_load_with_datasets(source, cache_dir), source, image_column, label_column)
        splits = cache_images(_encode_labels(splits, source), source, cache_dir)
    check_classes(splits["train"].features["label"].names, splits, source)
    return splits


def is_hub_id(source: str) -> bool:
    exists = real_path(source).exists()
    return not exists and HUB_ID.fullmatch(source) is not None and not source.endswith(FILE_SUFFIXES)


def _load_with_datasets(source: str, cache_dir: str) -> datasets.DatasetDict:
    """All splits as `datasets` loads them, with all columns of the source."""
    path = real_path(source)
    if is_hub_id(source):
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
            names = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            return datasets.DatasetDict({name: _saved(path / name) for name in names})
        if (path / "state.json").is_file():
            return datasets.DatasetDict(train=_saved(path))
        patterns = ("*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow")
        if any(file.name != "metadata.parquet" for pattern in patterns for file in path.glob(pattern)):
            builder = datasets.load_dataset_builder(str(path), cache_dir=cache_dir)
            if builder.name != "imagefolder":  # which it is if images are more numerous than Parquet files
                return datasets.load_dataset(str(path), cache_dir=cache_dir)
        if any(path.glob("*.tar")) and not any(file.is_dir() for file in path.iterdir()):
            raise DataError(f"{source} holds tar files. If they are shards of samples, pass --streaming.")
        return load_image_folder(path)


def _saved(path: Path) -> datasets.Dataset:
    """A data set that was saved to disk, without the format (columns, type) that it had when it was saved.

    `load_from_disk` would need the library of the format to be installed.
    """
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    files = [str(path / file["filename"]) for file in state["_data_files"]]
    table = datasets.table.concat_tables([datasets.table.MemoryMappedTable.from_file(file) for file in files])
    info = datasets.DatasetInfo.from_directory(str(path))
    return datasets.Dataset(table, info=info, fingerprint=state["_fingerprint"])


def _select_columns(
    loaded: datasets.DatasetDict, source: str, image_column: str, label_column: str
) -> dict[str, datasets.Dataset]:
    """Rename the splits to train, validation and test, and the columns to `image` and `label`."""
    present = [name for name, split in loaded.items() if len(split)]
    usual = [name for names in SPLIT_NAMES.values() for name in names if name in present]
    splits: dict[str, datasets.Dataset] = {}
    for name in usual + [name for name in present if is_split(name) and name not in usual]:
        splits.setdefault(split_of(name) or name, loaded[name])
    used = {id(split) for split in splits.values()}
    if "train" not in splits:
        raise DataError(f"{source} has no training split with images. Its splits: {', '.join(loaded) or 'none'}.")
    if unused := [f"{name} ({len(loaded[name]):,} rows)" for name in present if id(loaded[name]) not in used]:
        notice(f"{source}: splits that are not used: {', '.join(unused)}.")
    return {
        name: usual_columns(split, f"{source}, split {name}", image_column, label_column, name == "test")
        for name, split in splits.items()
    }


def usual_columns(
    split: datasets.Dataset, where: str, image_column: str, label_column: str, may_lack_labels: bool = False
) -> datasets.Dataset:
    """The two columns of a split, as `image` and `label`. `where` is the name of the split in error messages.

    Raises: DataError if a column is missing or holds no images.
    """
    columns = {image_column: "image", label_column: "label"}
    if may_lack_labels and label_column not in split.column_names:
        del columns[label_column]
    for column, usual in columns.items():
        if column not in split.column_names:
            hint = f"Name the right column with --{usual}_column"
            names = ", ".join(split.column_names)
            raise DataError(f"{where}: no column {column!r}. Its columns: {names}. {hint}.")
    split = split.select_columns(list(columns)).rename_columns({k: v for k, v in columns.items() if k != v})
    with one_line(f"{where}: column {image_column!r} does not hold images"):
        return split.cast_column("image", datasets.Image())


def _encode_labels(splits: dict[str, datasets.Dataset], source: str) -> dict[str, datasets.Dataset]:
    """Convert the labels of all splits to the ClassLabel of train; drop the column of an unlabelled test split."""
    feature, column = splits["train"].features["label"], splits["train"].data.column("label")
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    elif any(is_type(column.type) for is_type in LABEL_TYPES):
        names = [str(value) for value in sorted(set(splits["train"].unique("label")) - {None})]
        names = [name for name in names if name.strip()]
    else:
        raise DataError(f"{source}: labels must be classes, strings, integers or booleans, got {column.type}.")
    return encode_labels(splits, names, source)


def encode_labels(splits: dict[str, datasets.Dataset], names: list[str], source: str) -> dict[str, datasets.Dataset]:
    """Convert the labels of all splits to a ClassLabel with the classes `names` of train.

    The column of an unlabelled test split is dropped. Raises: DataError for a blank label or an unknown class.
    """
    splits, label = dict(splits), datasets.ClassLabel(names=names)
    for name, split in splits.items():
        if "label" not in split.column_names:
            continue
        feature, values = split.features["label"], split["label"][:]
        if name == "test" and all(value in (None, -1) or not str(value).strip() for value in values):
            splits[name] = split.remove_columns("label")
            continue
        codes = _codes(split, values, names, f"{source}, split {name}")
        if feature != label:
            splits[name] = split.remove_columns("label").add_column("label", codes, feature=label)
    return splits


def check_classes(names: list[str], splits: dict[str, datasets.Dataset], source: str) -> None:
    """A line on stderr each for classes that are probably one ("cat" and "cat "), and that a split lacks.

    Raises: DataError if there is one class alone.
    """
    alike: dict[str, list[str]] = {}
    if len(names) < 2:
        one = f"all images of train have the label {names[0]!r}" if names else "no image of train has a label"
        raise DataError(f"{source}: {one}. A classifier needs two classes or more.")
    for name in names:
        alike.setdefault(plain_name(name), []).append(name)
    if pairs := [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]:
        notice(f"{source}: labels that differ in spaces or case are different classes: {', '.join(pairs[:3])}.")
    for split, rows in splits.items():
        if split != "train" and "label" in rows.column_names:
            present = set(known_labels(rows).tolist())
            if lacking := [name for code, name in enumerate(names) if code not in present]:
                few = ", ".join(lacking[:3])
                problem = f"has no image of {len(lacking)} of the {len(names)} classes"
                notice(f"{source}: split {split} {problem}: {few}.")


def _codes(split: datasets.Dataset, values: list, names: list[str], where: str) -> list[int]:
    """The number of each label. Raises: DataError for a blank label, or one that is no class of train."""
    own_names = dict(enumerate(getattr(split.features["label"], "names", ())))
    index = {name: code for code, name in enumerate(names) if name.strip()}
    texts = [None if value is None else own_names.get(value) if own_names else str(value) for value in values]
    codes = [-1 if text is None else index.get(text, -1) for text in texts]
    if -1 in codes:
        row = codes.index(-1)
        value = values[row] if texts[row] is None else texts[row]
        path = split.cast_column("image", datasets.Image(decode=False))[row]["image"]
        where = f"{where}, row {row + 1}" + (f" ({path['path']})" if path and path["path"] else "")
        if value is None or isinstance(value, str) and not value.strip():
            raise DataError(f"{where}: the label is blank. Give each image of the split a label, or leave it out.")
        alike = [name for name in names if plain_name(name) == plain_name(str(value))]
        # Only their codes tell two forms of one letter apart.
        same = alike and unicodedata.normalize("NFC", alike[0]) == unicodedata.normalize("NFC", str(value))
        show = ascii if same else repr
        hint = f", which has {show(alike[0])}" if alike else ""
        raise DataError(f"{where}: label {show(value)} is not one of the {len(names)} classes of train{hint}.")
    return codes
