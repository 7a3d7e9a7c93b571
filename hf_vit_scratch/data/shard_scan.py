"""One pass over shards before the training: how many images each holds, and their classes, without reading an image.

A shard that is damaged, or has a label that is blank or of no class, is found here and not hours later.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import datasets
import fsspec
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.fingerprint import Hasher

from ..output_folder import read_json, write_json
from .errors import DataError, one_line
from .sources import LABEL_TYPES

# The members of a sample have one name and several suffixes, and `datasets` makes each suffix a column.
_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
# A tar consists of such blocks, and ends with two or more that are empty. In bytes.
_BLOCK, _READ_BEHIND_THE_END = 512, 2**20
_MOST_OF_A_LABEL = 2**20  # bytes


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


def tar_columns(file: str, label_key: str, labelled: bool = True) -> Columns:
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


def count_images(files: list[str], columns: Columns, cache_dir: str) -> tuple[list[int], list[str]]:
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
                if member.size > _MOST_OF_A_LABEL:
                    raise DataError(f"{file}: {member.name} has {member.size:,} bytes, which is no label.")
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


def rows_of(file: str) -> int:
    """The number of rows of a Parquet file."""
    with one_line(f"{file} is damaged, or no shard"), fsspec.open(file, "rb") as stream:
        return pq.read_metadata(stream).num_rows
