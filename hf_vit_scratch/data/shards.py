"""Sharded data sets that are trained on as a stream: Parquet files, or tar files as WebDataset writes them.

`datasets` reads the shards of the training split as an `IterableDataset`: no image of it is copied to a cache or kept
in memory. Before that, one pass counts its images and collects the names of its classes without reading an image. The
splits validation and test are small beside it, and are loaded as those of any other source.
"""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import fsspec
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.fingerprint import Hasher
from datasets.info import SupervisedKeysData
from datasets.table import embed_table_storage

from ..output_folder import read_json, real_path, write_json
from .digit_recognizer import KAGGLE, SAMPLE
from .errors import DataError, notice, one_line
from .names import counted, is_split, shown, split_of
from .pixels import cache_images
from .sources import LABEL_TYPES, check_classes, encode_labels, is_hub_id, usual_columns

# How the two kinds of shards are called by their suffix, and by `datasets`.
KINDS = {".parquet": "parquet", ".tar": "webdataset"}
HOW_TO = "--streaming reads train-*.parquet or train-*.tar in a folder, or a data set on the Hub in Parquet files"
# The members of a sample have one name and several suffixes, and `datasets` makes each suffix a column.
_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_OTHER = "other"  # the split of shards whose names say none
# A tar consists of such blocks, and ends with two or more that are empty. In bytes.
_BLOCK, _READ_BEHIND_THE_END = 512, 2**20
_ROWS_AT_A_TIME = 16
_ROWS_OF_A_GROUP = 100  # a worker holds the images of one group in memory


class Columns(NamedTuple):
    """Where image and label of a row are: two columns, and the key in a column with JSON, if the label is in one.

    Of a tar these are suffixes, and `suffixes` are all that a sample has. An unlabelled one has the label "".
    """

    image: str
    label: str
    key: str | None = None
    suffixes: tuple[str, ...] = ()


class Scan(NamedTuple):
    """What is known of a shard before it is read: the number of images and, in any order, its labels.

    `names` are its classes, in their order, if the shard declares them.
    """

    rows: int
    labels: set
    names: list[str] | None = None


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
    columns = wanted if kind == "parquet" else _tar_columns(files["train"][0], label_column)
    rows, classes = _count(files["train"], columns, cache_dir)
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


def _tar_columns(file: str, label_key: str, labelled: bool = True) -> Columns:
    """Where image and label of a sample are, by the suffixes of the first sample."""
    with one_line(f"{file} is damaged, compressed, or no shard"), tarfile.open(file, "r:") as tar:
        suffixes = list(next(_samples(tar), ("", {}))[1])
    images = [name for name in suffixes if f".{name.lower()}" in PIL.Image.registered_extensions()]
    found = f"{file}: its first sample has {_listed(suffixes)}"
    if len(images) != 1:
        raise DataError(f"{found}, but a sample needs one image.")
    label = next((name for name in ("cls", "json") if name in suffixes), "") if labelled else ""
    if labelled and not label:
        hint = f"a .cls with the number of its class, or a .json with the key {label_key!r} (--label_column)"
        raise DataError(f"{found}, but a sample needs {hint}.")
    return Columns(images[0], label, label_key if label == "json" else None, tuple(sorted(suffixes)))


def _count(files: list[str], columns: Columns, cache_dir: str) -> tuple[list[int], list[str]]:
    """The number of images of each shard, and the names of the classes. They are kept for the next time."""
    stamps = [os.stat(file) if os.path.exists(file) else None for file in files]  # the URL of a file has its commit
    known = Hasher.hash(
        ("shards-1", columns, files, [stamp and (stamp.st_size, stamp.st_mtime_ns) for stamp in stamps])
    )
    record = Path(cache_dir) / "vit_scratch" / f"{known}.json"
    if record.is_file():
        return tuple(read_json(record).values())
    with ThreadPoolExecutor() as pool:
        scans = list(pool.map(lambda file: scan_of(file, columns), files))
    for file, scan in zip(files, scans, strict=True):
        if not scan.rows:
            raise DataError(f"{file} holds no images. Delete it.")
        if scan.names != scans[0].names:
            raise DataError(f"{file} declares other classes than {files[0]}. Write both with the same ClassLabel.")
    names = scans[0].names
    if names is None:
        labels = set().union(*(scan.labels for scan in scans))
        if len(kinds := sorted({type(label).__name__ for label in labels})) > 1:
            raise DataError(
                f"{os.path.dirname(files[0])}: the labels of the shards are of several types: {', '.join(kinds)}."
            )
        names = [str(label) for label in sorted(labels)]
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, {"rows": [scan.rows for scan in scans], "names": names})
    return [scan.rows for scan in scans], names


def scan_of(file: str, columns: Columns) -> Scan:
    """Count the images of a shard and check all its labels. Raises: DataError for a damaged shard or a blank label."""
    with one_line(f"{file} is damaged, compressed, or no shard"):
        return _scan_tar(file, columns) if file.endswith(".tar") else _scan_parquet(file, columns)


def _scan_parquet(file: str, columns: Columns) -> Scan:
    with fsspec.open(file, "rb") as stream:
        parquet = pq.ParquetFile(stream)
        features, rows = datasets.Features.from_arrow_schema(parquet.schema_arrow), parquet.metadata.num_rows
        for column, kind in ((columns.image, "image"), (columns.label, "label")):
            if column not in features:
                has = ", ".join(features)
                raise DataError(
                    f"{file}: no column {column!r}. Its columns: {has}. Name the right one with --{kind}_column."
                )
        with one_line(f"{file}: column {columns.image!r} does not hold images"):
            datasets.Image().cast_storage(pa.array([], parquet.schema_arrow.field(columns.image).type))
        names = getattr(features[columns.label], "names", None)
        if names is not None and "://" in file:
            return Scan(rows, set(), names)  # to check the labels of all files would take a long time over a network
        labels = parquet.read(columns=[columns.label]).column(0)
    if rows and not any(is_type(labels.type) for is_type in LABEL_TYPES):
        raise DataError(f"{file}: labels must be classes, strings, integers or booleans, got {labels.type}.")
    distinct = set(labels.unique().to_pylist())
    known = distinct if names is None else range(len(names))
    if bad := [label for label in distinct if label is None or not str(label).strip() or label not in known]:
        row = labels.to_pylist().index(bad[0]) + 1
        raise DataError(
            f"{file}, row {row}: label {bad[0]!r} is not a class. Give each image a label, or leave it out."
        )
    return Scan(rows, distinct, names)


def _scan_tar(file: str, columns: Columns) -> Scan:
    """Read the headers of a tar, and its labels; the images are passed over."""
    rows, labels = 0, set()
    with tarfile.open(file, "r:") as tar:
        for key, sample in _samples(tar):
            rows += 1
            if tuple(sorted(sample)) != columns.suffixes:
                problem = f"sample {key!r} has {_listed(sample)}, and the first sample of all has"
                hint = "Give all samples the same files, and write those of a sample side by side"
                raise DataError(f"{file}: {problem} {_listed(columns.suffixes)}. {hint}.")
            if columns.label:
                member = sample[columns.label]
                content = tar.extractfile(member).read()  # pyrefly: ignore[missing-attribute]  # it is a regular file
                labels.add(_tar_label(content, f"{file}: {member.name}", columns.key))
        end = tar.offset
    with open(file, "rb") as stream:
        stream.seek(end)
        rest = stream.read(_READ_BEHIND_THE_END)
    if rest[:_BLOCK] != bytes(_BLOCK):  # tarfile takes a damaged header for the end
        size = os.path.getsize(file)
        raise DataError(f"{file} is damaged, or cut off at byte {end:,} of {size:,}. Copy it again.")
    if any(rest):
        raise DataError(f"{file} goes on behind its end at byte {end:,}, and no reader would see it. Pack it again.")
    return Scan(rows, labels)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The samples of a tar as `datasets` reads them: their name, and their files by suffix."""
    key, sample = "", {}
    while (member := tar.next()) is not None:
        tar.members = []  # pyrefly: ignore[missing-attribute]  # or else a list of all members would grow
        name = _MEMBER.fullmatch(member.name)
        if not member.isreg() or name is None or os.path.basename(member.name).startswith((".", "__")):
            continue
        if name[1] != key and sample:
            yield key, sample
            sample = {}
        key = name[1]
        if name[2] in sample:
            raise DataError(f"{tar.name}: {member.name} is there twice. Pack each file once.")
        sample[name[2]] = member
    if sample:
        yield key, sample


def _listed(suffixes: Iterable[str]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes) or "no files"


def _tar_label(content: bytes, where: str, key: str | None) -> int | str | bool:
    try:
        value = int(content) if key is None else json.loads(content)[key]
    except (ValueError, KeyError, TypeError) as error:
        what = "an integer" if key is None else f"JSON with the key {key!r}"
        raise DataError(f"{where} must hold {what}: {type(error).__name__}: {error}") from error
    if not isinstance(value, int | str) or not str(value).strip():
        raise DataError(f"{where}: label {value!r} is not a class: labels are strings, integers or booleans.")
    return value


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
        columns = _tar_columns(files[0], wanted.label, labelled=name != "test")
    rows = [_rows_of(file) if kind == "parquet" else scan_of(file, columns).rows for file in files]
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


def _rows_of(file: str) -> int:
    """The number of rows of a Parquet file."""
    with one_line(f"{file} is damaged, or no shard"), fsspec.open(file, "rb") as stream:
        return pq.read_metadata(stream).num_rows
