"""Sharded data sets that are trained on as a stream: Parquet files, or tar files as WebDataset writes them.

`datasets` reads the shards of the training split as an `IterableDataset`: no image of it is copied to a cache or kept
in memory. Before that, one pass counts its images and collects the names of its classes without reading an image. The
splits validation and test are small beside it, and are loaded as those of any other source.
"""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
from datasets.info import SupervisedKeysData
from datasets.table import embed_table_storage

from ..output_folder import real_path
from .digit_recognizer import KAGGLE, SAMPLE
from .errors import DataError, notice, one_line
from .names import counted, is_split, shown, split_of
from .pixels import cache_images
from .shard_scan import Columns, count_images, rows_of, scan_of, tar_columns
from .sources import check_classes, encode_labels, is_hub_id, usual_columns

# How the two kinds of shards are called by their suffix, and by `datasets`.
KINDS = {".parquet": "parquet", ".tar": "webdataset"}
HOW_TO = "--streaming reads train-*.parquet or train-*.tar in a folder, or a data set on the Hub in Parquet files"
_OTHER = "other"  # the split of shards whose names say none
_ROWS_AT_A_TIME = 16
_ROWS_OF_A_GROUP = 100  # a worker holds the images of one group in memory


class Row(NamedTuple):
    """A row of a shard: an image as its file, `{"bytes", "path"}`, and the number of its class."""

    file: dict
    label: int


@dataclass
class Stream:
    """The training images of a sharded data set. An image has the index that it has if the files are read in order.

    Args:
        files: path or URL of each shard.
        rows: number of images in each shard.
        names: names of the classes.
        columns: where image and label are.
        dataset: the `datasets.IterableDataset` whose shards are `files`.
    """

    files: list[str]
    rows: list[int]
    names: list[str]
    columns: Columns
    dataset: datasets.IterableDataset
    features: datasets.Features = field(init=False)

    def __post_init__(self):
        self.features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=self.names))
        self.first = np.concatenate([[0], np.cumsum(self.rows)])  # index of the first image of each shard
        self._is_code = isinstance(self.dataset.features[self.columns.label], datasets.ClassLabel)
        self._codes = {code if self._is_code else name: code for code, name in enumerate(self.names)}

    def __len__(self) -> int:
        return sum(self.rows)

    def place(self, index: int) -> str:
        """The file and the row, counted from 1, of an image, for error messages."""
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        return f"{self.files[shard]}, row {index - self.first[shard] + 1}"

    def read(self, shard: int, start: int, stop: int) -> Iterator[Row]:
        """The rows `start` to `stop` of a shard. Images are not decoded.

        Raises: DataError if the shard is damaged or has other rows than it had, or an image lacks a label.
        """
        file, row = self.files[shard], 0
        with one_line(f"{file} is damaged"):
            for batch in self.dataset.shard(num_shards=len(self.files), index=shard).iter(_ROWS_AT_A_TIME):
                for image, label in zip(batch[self.columns.image], batch[self.columns.label], strict=True):
                    if start <= row < stop:
                        yield Row(image, self._code(label, int(self.first[shard]) + row))
                    row += 1
                if row >= stop:
                    return
        raise DataError(f"{file} has {row} images, and had {self.rows[shard]} when it was counted. Start again.")

    def _code(self, label, index: int) -> int:
        value = label.get(self.columns.key) if self.columns.key and label is not None else label
        code = None if value is None else self._codes.get(value if self._is_code else str(value))
        if code is None:
            raise DataError(f"{self.place(index)}: label {value!r} is not one of the {len(self.names)} classes.")
        return code


def load_stream(
    source: str | os.PathLike[str],
    image_column: str = "image",
    label_column: str = "label",
    cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.DatasetDict:
    """The splits of a sharded data set: `train` as a [`Stream`], and validation and test as [`load`] has them.

    Args:
        source: a folder with `train-*.parquet` or `train-*.tar` and, if there are such splits, `validation-*` and
            `test-*`; one such file; or the id of a data set on the Hub whose files are Parquet.
        image_column: name of the column with the images in Parquet. In a tar it is the one suffix of an image.
        label_column: name of the column with the labels in Parquet. In a tar the label is the number in the `.cls`
            of a sample, or else the value of this key in its `.json`.
        cache_dir: folder of the cache. Default: the cache of `datasets`.

    Raises:
        DataError: the source holds no shards, or one that is damaged, or labels that are blank or unknown.
    """
    source = os.fspath(source)
    cache_dir = os.path.abspath(os.path.expanduser(cache_dir or datasets.config.HF_DATASETS_CACHE))
    kind, files = _find(source)
    wanted = Columns(image_column, label_column)
    columns = wanted if kind == "parquet" else tar_columns(files["train"][0], label_column)
    rows, classes = count_images(files["train"], columns, cache_dir)
    with one_line(source):
        dataset = _open(kind, files["train"], columns, cache_dir, streaming=True)
    # Up to version 4 of `datasets`, the columns of the last sample of a tar are in another order.
    dataset = dataset.select_columns([columns.image, columns.label])
    dataset = dataset.cast_column(columns.image, datasets.Image(decode=False))
    held_out = [name for name in ("validation", "test") if name in files]
    splits = {name: _held_out(kind, files[name], wanted, name, cache_dir) for name in held_out}
    splits = encode_labels(splits, classes, source)
    splits = cache_images(splits, source, cache_dir)
    train = Stream(files["train"], rows, classes, columns, dataset)
    check_classes(classes, splits, source)
    return datasets.DatasetDict({"train": train, **splits})


def write_shards(splits: datasets.DatasetDict, folder: str | os.PathLike[str], images_per_shard: int = 1000) -> None:
    """Write the splits of [`load`] as Parquet shards, for `train.py --streaming`.

    The images of train are shuffled, since a stream is shuffled among few of them only. The files of the images are
    copied into the shards.

    Args:
        splits: train and, if there are such splits, validation and test.
        folder: a new folder, or one without files.
        images_per_shard: largest number of images in a file.

    Raises: DataError if the folder holds files.
    """
    folder = Path(folder)
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise DataError(
            f"{folder} holds files, which would be read as shards beside the new ones. Choose a new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        rows = split.shuffle(seed=0, keep_in_memory=True) if name == "train" else split
        number = -(-len(rows) // images_per_shard)
        for index in range(number):
            part = rows.shard(number, index, contiguous=True)
            table = embed_table_storage(part.with_format("arrow")[:])
            table = table.replace_schema_metadata(part.features.arrow_schema.metadata)
            pq.write_table(
                table, folder / f"{name}-{index:05d}-of-{number:05d}.parquet", row_group_size=_ROWS_OF_A_GROUP
            )


def _find(source: str) -> tuple[str, dict[str, list[str]]]:
    """The kind of the shards as `datasets` calls it, and their files by split, named train, validation and test."""
    path = real_path(source)
    if source in (SAMPLE, KAGGLE):
        raise DataError(f"{source} is not sharded. {HOW_TO}. Leave out --streaming.")
    if is_hub_id(source):
        return _find_on_the_hub(source)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder. {HOW_TO}.")
    if path.is_file():
        if path.suffix not in KINDS:
            raise DataError(f"{source} is no shard. {HOW_TO}. Leave out --streaming for other data.")
        return KINDS[path.suffix], {"train": [str(path)]}
    there = _files_in(path)
    kinds = {KINDS[file.suffix] for file in there if file.suffix in KINDS}
    if len(kinds) != 1:
        held = "both Parquet and tar files" if kinds else "no Parquet or tar files"
        raise DataError(f"{source} holds {held}. {HOW_TO}: `hf_vit_scratch.data.write_shards` writes them.")
    if others := [str(file.relative_to(path)) for file in there if file.suffix not in KINDS]:
        notice(f"{source}: not read: {shown(others)}.")
    found: dict[str, list[str]] = {}
    for file in there:
        if file.suffix in KINDS:
            said = [split_of(part) for part in reversed(file.relative_to(path).with_suffix("").parts)]
            found.setdefault(next(filter(None, said), _OTHER), []).append(str(file))
    if found.keys() == {_OTHER}:
        found = {"train": found[_OTHER]}
    return kinds.pop(), _with_train(found, source)


def _files_in(folder: Path) -> list[Path]:
    """The files in a folder and in those below it, sorted; hidden ones are passed over.

    Raises: DataError for a shard that is compressed, cannot be read, or is there twice.
    """
    names = sorted(glob.glob(os.path.join(glob.escape(str(folder)), "**", "*"), recursive=True))
    files = [Path(name) for name in names if not os.path.isdir(name)]
    files = [file for file in files if not any(part.startswith("__") for part in file.relative_to(folder).parts)]
    seen: dict[Path, Path] = {}
    for file in files:
        if file.suffix == ".tgz" or ".tar." in file.name:
            raise DataError(f"{file} is compressed, and a stream reads .tar files as they are. Decompress it.")
        if file.suffix in KINDS and not file.is_file():
            raise DataError(f"{file} is no file that can be read, or a broken link.")
        if file.suffix in KINDS and (other := seen.setdefault(real_path(file), file)) != file:
            raise DataError(f"{file} and {other} are one file, through a link. Remove one of them.")
    return files


def _find_on_the_hub(source: str) -> tuple[str, dict[str, list[str]]]:
    verbosity = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()  # offline, it would log each retry
    try:
        with one_line(f"{source}: no such local file or folder, and loading it from the Hub failed"):
            builder = datasets.load_dataset_builder(source)
    finally:
        huggingface_hub.logging.set_verbosity(verbosity)
    if builder.name == "webdataset":
        raise DataError(f"{source}: counting the images of tar files would download all of them. Download them first.")
    if builder.name != "parquet":
        raise DataError(f"{source} is read as {builder.name}, and not as Parquet. {HOW_TO}. Leave out --streaming.")
    found: dict[str, list[str]] = {}
    for name, files in builder.config.data_files.items():
        split = (split_of(str(name)) if is_split(str(name)) else None) or _OTHER
        found.setdefault(_OTHER if split in found else split, []).extend(files)
    return builder.name, _with_train(found, source)


def _with_train(found: dict[str, list[str]], source: str) -> dict[str, list[str]]:
    """Check that there is a split train. Files of other splits are named on stderr."""
    if "train" not in found:
        raise DataError(f"{source} has no training split. Its splits: {', '.join(found)}. {HOW_TO}.")
    if unused := [os.path.basename(file) for file in found.pop(_OTHER, [])]:
        number = counted(unused, "shard")
        notice(f"{source}: {number} not used, since their names say no split of their own: {shown(unused)}.")
    return found


def _literal(file: str) -> str:
    """A path or URL as `data_files` takes it, where it would otherwise be a pattern."""
    return file if "://" in file else glob.escape(file)


def _open(kind: str, files: list[str], columns: Columns, cache_dir: str, streaming: bool):
    """The shards of a split as `datasets` reads them; of Parquet only image and, if there is one, label."""
    options = {"data_files": [_literal(file) for file in files], "split": "train", "cache_dir": cache_dir}
    if kind != "parquet":
        return datasets.load_dataset(kind, streaming=streaming, **options)
    # Shards may store images and integers in other ways than the first one, whose types would be those of all.
    features = datasets.load_dataset(kind, streaming=True, **options).features
    own = {name: features[name] for name in (columns.image, columns.label) if name in features}
    own |= {columns.image: datasets.Image()} if columns.image in own else {}
    label = own.get(columns.label)
    if isinstance(label, datasets.Value) and "int" in label.dtype:
        own[columns.label] = datasets.Value("int64")
    features = datasets.Features(own)
    return datasets.load_dataset(kind, columns=list(own), features=features, streaming=streaming, **options)


def _held_out(kind: str, files: list[str], wanted: Columns, name: str, cache_dir: str) -> datasets.Dataset:
    """The split validation or test, with `image` and, if it is labelled, `label`; a sample of a tar has its `id`."""
    where, columns = f"split {name} of {os.path.dirname(files[0])}", wanted
    if kind != "parquet":
        columns = tar_columns(files[0], wanted.label, labelled=name != "test")
    rows = [rows_of(file) if kind == "parquet" else scan_of(file, columns).rows for file in files]
    if 0 in rows:
        raise DataError(f"{files[rows.index(0)]} holds no images. Delete it.")
    with one_line(where):
        split = _open(kind, files, wanted, cache_dir, streaming=False)
    if len(split) != sum(rows):
        raise DataError(f"{where}: {len(split):,} of {sum(rows):,} images were read. Write its files again.")
    if kind == "parquet":
        return usual_columns(split, where, *wanted[:2], name == "test")
    label = "cls" if "cls" in columns.suffixes else f"json.{wanted.label}"
    keys, split = split["__key__"][:], split.flatten()
    labelled = label in split.column_names
    split = usual_columns(split, where, columns.image, label, name == "test")
    if name == "test" and not labelled:
        split = split.add_column("id", keys)
        split.info.supervised_keys = SupervisedKeysData("key", "label")  # the columns of its submission
    return split
