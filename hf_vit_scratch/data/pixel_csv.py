"""Images as rows of pixels in CSV files: the competition's format and its relatives.

| columns | as in |
| --- | --- |
| `label, pixel0 ... pixel783`, or from `pixel1`, `pixel_0`, `1x1` or `0` on; images of any square size | Kaggle |
| the label last, or under another name | `--label_column` |
| an index (`Unnamed: 0`, no name), which is dropped | `DataFrame.to_csv` |
| ids in the test file, which the submission keeps | Kannada-MNIST |
| no header: the label first, then the pixels | MNIST in CSV |

Images are written into the cache of `datasets` as binary PGM, a short header and the raw pixels. This is a valid value
of an `Image()` column that needs neither encoding nor decoding.
"""

import csv
import hashlib
import io
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
from datasets.info import SupervisedKeysData

from .csv_files import LABEL_NAMES, CsvFiles, first_line, open_member
from .errors import DataError, one_line

DIGITS = [str(digit) for digit in range(10)]
PIXELS = [f"pixel{index}" for index in range(784)]
PIXEL_VALUES = {str(value) for value in range(256)}
COMPETITION_HEADER = ["label", *PIXELS]

# The competition's train.csv has 77 MB, so a file of more than 1 GiB is something else, for example a zip bomb. The
# limit also keeps the pixels of a split below the 2 GiB that the 32-bit offsets of one Arrow array can address.
MAX_CSV_BYTES = 2**30
CSV_BLOCK_BYTES = 8 * 2**20
# Each thread holds a block, its pixels and its columns: more threads take more memory, and wait for the unpacking.
MOST_THREADS = 4

INTEGER = re.compile(r"-?[0-9]{1,9}")
NUMBERED = re.compile(r"(.*?)([0-9]+)")
GRID = re.compile(r"(\D*)([0-9]+)(\D+)([0-9]+)")
HEXADECIMAL = re.compile(rb'(^|[\n,"])\s*0[xX]')
FEWEST_PIXELS = 4
# Where no more than this fraction of the labels is of another kind than all others, they are taken for damage.
DAMAGED_FRACTION = 0.02


@dataclass(frozen=True)
class Layout:
    """What the columns of a CSV are.

    Attributes:
        columns: their names; the ones of a file without a header are made up.
        has_header: whether the first line holds the names.
        first: place of the first pixel; the others follow it, row by row of the image.
        height, width: size of the images in pixels.
        label, id, index: places of these columns, or None.
    """

    columns: tuple[str, ...]
    has_header: bool
    first: int
    height: int
    width: int
    label: int | None = None
    id: int | None = None
    index: int | None = None

    @property
    def pixels(self) -> range:
        """Places of the pixels."""
        return range(self.first, self.first + self.height * self.width)


@dataclass
class Table:
    """The content of a CSV: pixels `(rows, height * width)` as uint8, and the texts of its labels and ids."""

    layout: Layout
    pixels: np.ndarray
    labels: pa.Array | None
    ids: pa.Array | None
    sha256: str


# ---- the header


def read_layout(files: CsvFiles, role: str, label_column: str = "label", train: Layout | None = None) -> Layout:
    """What the columns of a CSV are, by its first line.

    Args:
        role: key of `files.members`. Training and validation files have labels.
        label_column: name of the column with the labels, tried before the usual names.
        train: the layout of the training file, to which a file without a header must conform.

    Raises: DataError with the column that is missing, unknown or out of order.
    """
    file = files.name(role)
    names = first_line(files.path, files.members[role])
    if not "".join(names):
        raise DataError(f"{file} is empty. Expected a header and one row per image.")
    unnamed = next((i for i, name in enumerate(names) if name == "" or name.lower().startswith("unnamed:")), None)
    rest = names if unnamed is None else names[:unnamed] + names[unnamed + 1 :]
    if unnamed in (None, 0) and all(INTEGER.fullmatch(name) for name in rest):
        layout = _by_place(file, names, 1 if unnamed == 0 else 0, train)
    else:
        layout = _by_name(file, names, role, label_column)
    if layout.label is None and role != "test":
        found = f"Found {len(names)} columns of pixels alone, expected a label for each image"
        raise DataError(f"{file}, line 1: column {label_column!r} is missing. {found}.")
    if train and (layout.height, layout.width) != (train.height, train.width):
        sizes = f"images of {layout.height}x{layout.width} pixels, but train has {train.height}x{train.width}"
        raise DataError(f"{file}, line 1: it has {sizes}. All files must have images of one size.")
    return layout


def _by_place(file: str, names: list[str], skip: int, train: Layout | None) -> Layout:
    """The layout of a file without names: pixels alone, after a label, or after an index and a label."""
    numbers = [int(name) for name in names[skip:]]
    has_header = numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    counts = [len(numbers) - extra for extra in range(3)]
    extra = next(
        (i for i, count in enumerate(counts) if math.isqrt(max(count, 0)) ** 2 == count >= FEWEST_PIXELS), None
    )
    if extra is None:
        expected = "Expected a label and the pixels of a square image, such as 1 + 784 columns"
        raise DataError(f"{file}, line 1: found {len(names)} columns without names. {expected}.")
    side, first = math.isqrt(counts[extra]), skip + extra
    index = 0 if extra == 2 or skip else None
    label = first - 1 if extra else None
    if extra == 1 and not skip and train and train.index == 0 and not train.has_header:
        index, label = 0, None  # train has an index and a label, and this file has no label
    columns = [f"pixel{place - first}" for place in range(first + side * side)]
    for place, name in ((index, "index"), (label, "label")):
        if place is not None:
            columns[place] = name
    return Layout(tuple(columns), has_header or bool(skip), first, side, side, label, None, index)


def _by_name(file: str, names: list[str], role: str, label_column: str) -> Layout:
    """The layout of a file with a header."""
    if len(set(names)) < 0.9 * len(names) and sum(map(_is_number, names)) > 0.9 * len(names):
        place = next(i for i, name in enumerate(names) if not INTEGER.fullmatch(name))
        problem = f"expected an integer from 0 to 255, found {names[place][:20]!r}"
        raise DataError(f"{file}, row 1 (line 1), column {place + 1}: {problem}.")
    pixels, shape = _pixel_names(file, names)
    lower = [name.lower() for name in names]
    label = names.index(label_column) if label_column in names else None
    if label is None and label_column == "label":
        label = next((lower.index(name) for name in LABEL_NAMES if name in lower), None)
    index = next((i for i, n in enumerate(lower) if n in ("", "index") or n.startswith("unnamed:")), None)
    id_ = next((i for i, name in enumerate(lower) if i not in (label, index) and _is_id(name)), None)
    known = {place for place in (label, index, id_) if place is not None}
    known_pixels = set(pixels)
    place = next((i for i, name in enumerate(names) if name in known_pixels), len(names))
    expected = [names[i] for i in range(place) if i in known] + pixels
    expected += [names[i] for i in range(place, len(names)) if i in known]
    if label is None and role != "test":
        expected = [label_column, *expected]
    _check_header(file, names, expected)
    return Layout(tuple(names), True, names.index(pixels[0]), *shape, label, id_, index)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9.]+(e[+-]?[0-9]+)?", text, re.IGNORECASE) is not None


def _is_id(name: str) -> bool:
    return bool(re.fullmatch(r"(.*[\W_])?id|imageid|image|filename|(image|file)[\W_]name|name|key", name))


def _pixel_names(file: str, names: list[str]) -> tuple[list[str], tuple[int, int]]:
    """The names that the pixels should have, in order, and height and width, from the names that are there."""
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for name in names:
        if match := GRID.fullmatch(name):
            groups.setdefault(("grid", match[1], match[3]), []).append((match[2], match[4]))
        elif match := NUMBERED.fullmatch(name):
            groups.setdefault(("number", match[1]), []).append((match[2],))
    kind, found = max(groups.items(), key=lambda group: len(group[1]), default=((), []))
    if len(found) < FEWEST_PIXELS:
        return PIXELS, (28, 28)
    digits = [min(len(number[i]) for number in found) for i in range(len(found[0]))]  # pixel0000 has four
    if kind[0] == "grid":
        ends = [(min(values), max(values)) for values in (sorted({int(n[i]) for n in found}) for i in range(2))]
        (top, bottom), (left, right) = ends
        if bottom > top and right > left and (bottom - top + 1) * (right - left + 1) <= 2 * len(names):
            rows = [f"{kind[1]}{str(i).zfill(digits[0])}{kind[2]}" for i in range(top, bottom + 1)]
            columns = [str(i).zfill(digits[1]) for i in range(left, right + 1)]
            return [row + column for row in rows for column in columns], (len(rows), len(columns))
    numbers = {int(number[-1]) for number in found}
    prefix = kind[1] if kind[0] == "number" else f"{kind[1]}{found[0][0]}{kind[2]}"
    last = max(numbers)
    start = next((i for i in (0, 1) if math.isqrt(last - i + 1) ** 2 == last - i + 1), min(min(numbers), 1))
    count = last - start + 1
    side = math.isqrt(count)
    after = f"{prefix}{str(last + 1).zfill(digits[-1])}"
    if start == 0 and 0 not in numbers:
        zero = f"{prefix}{'0'.zfill(digits[-1])}"
        problem = f"{zero!r} is missing if the pixels count from 0, and column {after!r} if they count from 1"
        raise DataError(f"{file}, header row (line 1): column {problem}.")
    if side * side != count:
        where = f"{file}, header row (line 1): {count} pixel columns"
        if 3 * math.isqrt(count // 3) ** 2 == count:
            side = math.isqrt(count // 3)
            do = "Colour images are not read from CSV. Save them as an image folder or as Parquet"
            raise DataError(f"{where} are {side}x{side} pixels of 3 colours. {do}.")
        raise DataError(f"{where} are no square image; column {after!r} is missing for {side + 1}x{side + 1} pixels.")
    return [f"{prefix}{str(i).zfill(digits[-1])}" for i in range(start, last + 1)], (side, side)


def _check_header(file: str, header: list[str], columns: list[str]) -> None:
    if header == columns:
        return
    present, wanted = set(header), set(columns)
    missing = [name for name in columns if name not in present]
    extra = [name for name in header if name not in wanted]
    if missing:
        problem = f"column {missing[0]!r} is missing" + (f" and column {extra[0]!r} is unknown" if extra else "")
    elif extra:
        problem = f"column {extra[0]!r} is unknown"
    else:
        place = next(i for i, name in enumerate(header) if i >= len(columns) or name != columns[i])
        how = "there a second time" if header[place] in header[:place] else "out of order"
        problem = f"column {header[place]!r} is {how}, at place {place + 1}"
    expected = f"Expected {columns[0]}, {columns[1]}" + (f" ... {columns[-1]}" if len(columns) > 2 else "")
    hint = "; name the column of the labels with --label_column" if missing and extra and missing[0] == "label" else ""
    raise DataError(f"{file}, header row (line 1): {problem}. {expected}{hint}.")


# ---- the rows


def _csv_blocks(files: CsvFiles, role: str, has_header: bool, digest=None) -> Iterator[bytes]:
    """The rows of a CSV in blocks of whole lines, without the header. `digest` sees all bytes of the file."""
    file, total, rest = files.name(role), 0, b""
    with open_member(files.path, files.members[role]) as stream:
        if has_header:
            header = stream.readline(CSV_BLOCK_BYTES)
            if digest:
                digest.update(header)
        while chunk := stream.read(CSV_BLOCK_BYTES):
            if digest:
                digest.update(chunk)
            if not has_header and total == 0:
                chunk = chunk.removeprefix(b"\xef\xbb\xbf")
            total += len(chunk)
            if total > MAX_CSV_BYTES:
                do = "more than this reader takes. Save the images as an image folder or as Parquet"
                raise DataError(f"{file} unpacks to more than {MAX_CSV_BYTES} bytes, {do}.")
            block, newline, rest = (rest + chunk).rpartition(b"\n")
            if len(rest) > CSV_BLOCK_BYTES:
                raise DataError(f"{file} has a line of more than {CSV_BLOCK_BYTES} bytes: it is not a pixel table.")
            if block.strip():
                yield block + newline
        if rest.strip():
            yield rest


class _Block(NamedTuple):
    """The rows of a block: their pixels `(rows, height * width)`, the columns, and whether a number is hexadecimal."""

    pixels: np.ndarray
    table: pa.Table
    suspect: bool


def _parse_block(block: bytes, names: list[str], num_pixels: int, convert: pa.csv.ConvertOptions) -> _Block:
    # On one thread, since the blocks are read beside each other.
    options = pa.csv.ReadOptions(column_names=names, block_size=len(block) + 1, use_threads=False)
    table = pa.csv.read_csv(pa.BufferReader(block), options, convert_options=convert)
    pixels = np.stack([column.to_numpy() for column in table.columns[:num_pixels]], axis=1)
    # pyarrow accepts hexadecimal integers
    suspect = (b"x" in block or b"X" in block) and HEXADECIMAL.search(block) is not None
    return _Block(pixels, table.select(range(num_pixels, table.num_columns)), suspect)


def _in_order(function: Callable[[bytes], _Block], blocks: Iterator[bytes]) -> Iterator[_Block]:
    """The blocks, parsed in threads while the next ones are unpacked. A few are in memory at a time."""
    workers, pending, damage = min(MOST_THREADS, os.cpu_count() or 1), deque(), None
    with ThreadPoolExecutor(workers) as pool:
        try:
            for block in blocks:
                pending.append(pool.submit(function, block))
                if len(pending) > workers:
                    yield pending.popleft().result()
        except DataError as error:  # later in the file than what is being parsed, whose errors come first
            damage = error
        while pending:
            yield pending.popleft().result()
    if damage:
        raise damage


def read_table(files: CsvFiles, role: str, layout: Layout) -> Table:
    """The content of a CSV, read with pyarrow; Python only searches for the cause of a failure.

    Raises: DataError with row and column of the first value that is no pixel.
    """
    names = [str(place) for place in range(len(layout.columns))]
    pixels = [names[place] for place in layout.pixels]
    texts = [names[place] for place in (layout.label, layout.id) if place is not None]
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(pixels, pa.uint8()) | dict.fromkeys(texts, pa.string()),
        include_columns=[*pixels, *texts],
        null_values=[],
    )
    convert_block = partial(_parse_block, names=names, num_pixels=len(pixels), convert=convert)
    parts, columns, digest, suspect = [], {name: [] for name in texts}, hashlib.sha256(), False
    try:
        for part in _in_order(convert_block, _csv_blocks(files, role, layout.has_header, digest)):
            parts.append(part.pixels)
            suspect = suspect or part.suspect
            for name in texts:
                columns[name].extend(part.table.column(name).chunks)
    except pa.ArrowInvalid as error:
        raise first_offence(files, role, layout) or DataError(f"{files.name(role)}: {str(error)[:200]}.") from error
    if suspect and (offence := first_offence(files, role, layout)):
        raise offence
    if not parts:
        raise DataError(f"{files.name(role)} has a header, but no rows.")
    labels, ids = (
        None if place is None else pa.concat_arrays(columns[names[place]]) for place in (layout.label, layout.id)
    )
    return Table(layout, np.concatenate(parts), labels, ids, digest.hexdigest())


def first_offence(files: CsvFiles, role: str, layout: Layout, labels: Sequence[str] | None = None) -> DataError | None:
    """The error that names row and column of the first invalid value, or None. `labels`: the only valid labels."""
    file, number, allowed, names = files.name(role), 0, set(labels or ()), layout.columns
    start, stop = layout.pixels.start, layout.pixels.stop
    with open_member(files.path, files.members[role]) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "replace", newline=""))
        if layout.has_header:
            next(reader)
        try:
            for row in filter(None, reader):
                number += 1
                where = f"{file}, row {number} (line {reader.line_num})"
                if layout.label is not None and layout.label < len(row):
                    label = row[layout.label]
                    if not (label_text(label) in allowed if labels else label.strip()):
                        expected = f"expected {_described(labels)}, found {label[:20]!r}"
                        return DataError(f"{where}, column {names[layout.label]!r}: {expected}.")
                if len(row) == len(names) and PIXEL_VALUES.issuperset(row[start:stop]):
                    continue
                for name, value in zip(names[start:stop], row[start:stop], strict=False):
                    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", value) or int(value) > 255:
                        expected = f"expected an integer from 0 to 255, found {value[:20]!r}"
                        return DataError(f"{where}, column {name!r}: {expected}.")
                if len(row) != len(names):
                    place = repr(names[len(row)]) if len(row) < len(names) else len(names) + 1
                    return DataError(f"{where}, column {place}: expected {len(names)} values, found {len(row)}.")
        except csv.Error as error:
            return DataError(f"{file}: line {reader.line_num}: {error}.")
    return None


def label_text(value: str) -> str:
    """The name of the class of a label: integers without leading zeros, other texts without the spaces around them."""
    value = value.strip()
    return str(int(value)) if INTEGER.fullmatch(value) else value


def _described(labels: Sequence[str] | None) -> str:
    if not labels:
        return "a label"
    if list(labels) == [str(number) for number in range(len(labels))]:
        return f"an integer from 0 to {len(labels) - 1}"
    few = ", ".join(labels) if len(labels) <= 4 else f"{', '.join(labels[:3])} ... {labels[-1]}"
    return f"one of the {len(labels)} labels of train ({few})"


# ---- labels and ids


def _label_order(name: str) -> list:
    """Sort key: integers by their value, and numbers inside of names too."""
    if INTEGER.fullmatch(name):
        return [(0, int(name), "")]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part]


def _classes(files: CsvFiles, table: Table) -> list[str]:
    """The distinct labels of train, in natural order. Raises: DataError with the row of a label that is damaged."""
    assert table.labels is not None
    rows: dict[str, int] = {}
    for entry in table.labels.value_counts().to_pylist():
        name = label_text(entry["values"])
        rows[name] = rows.get(name, 0) + entry["counts"]
    names, layout = sorted(rows, key=_label_order), table.layout
    kinds = [[name for name in names if INTEGER.fullmatch(name)], [name for name in names if name]]
    if [*layout.columns] == COMPETITION_HEADER:
        kinds = [DIGITS, *kinds]
    for kind in kinds:
        others = sum(rows[name] for name in names if name not in kind)
        if 0 < others <= max(1, DAMAGED_FRACTION * len(table.pixels)):
            raise first_offence(files, "train", layout, kind) or DataError(f"{files.name('train')}: damaged labels.")
    if "" in rows:
        raise first_offence(files, "train", layout) or DataError(f"{files.name('train')}: empty labels.")
    if not layout.has_header:
        _check_place_of_labels(files, table, len(names))
    return names


def _check_place_of_labels(files: CsvFiles, table: Table, classes: int) -> None:
    """Whether the first column without a name can be the labels. Raises: DataError if the last one rather is."""
    last, rows = len(np.unique(table.pixels[:, -1])), len(table.pixels)
    if classes == 1 or (classes > 100 and last < classes / 2) or classes == rows > 256:
        problem = f"the first column, which should be the labels, has {classes} different values in {rows} rows"
        raise DataError(
            f"{files.name('train')} has no header, and {problem}. Add a header: label, pixel0, pixel1, ..."
        )


def _codes(files: CsvFiles, role: str, table: Table, names: list[str]) -> np.ndarray | None:
    """The class of each row as int64; None for a test file whose labels are all empty or -1.

    Raises: DataError with the row of a label that train lacks.
    """
    assert table.labels is not None
    encoded = table.labels.dictionary_encode()
    texts = [label_text(value) for value in encoded.dictionary.to_pylist()]
    if role == "test" and set(texts) <= {"", "-1"} and not set(texts) & set(names):
        return None
    index = {name: code for code, name in enumerate(names)}
    codes = np.array([index.get(text, -1) for text in texts], np.int64)
    if (codes < 0).any():
        raise first_offence(files, role, table.layout, names) or DataError(f"{files.name(role)}: unknown labels.")
    return codes[encoded.indices.to_numpy()]


def _submission_ids(files: CsvFiles, test: Table) -> tuple[tuple[str, str], list[str]] | None:
    """The two column names and the ids of a submission; None for `ImageId,Label`, counted from 1.

    Raises: DataError if an id stands twice, or test and sample submission have unlike numbers of rows.
    """
    header, ids = None, None
    if "sample_submission" in files.members:
        file = files.name("sample_submission")
        lines = [
            row
            for block in _csv_blocks(files, "sample_submission", False)
            for row in _rows(block.decode(errors="replace"))
        ]
        header = [name.strip() for name in lines[0]] if lines else []
        if len(header) != 2:
            raise DataError(f"{file}, header row (line 1): expected two columns, ImageId and Label, found {header}.")
        ids = [row[0].strip() for row in lines[1:]]
        if len(ids) != len(test.pixels):
            counts = f"{files.name('test')} has {len(test.pixels)} rows, but sample_submission.csv has {len(ids)}"
            raise DataError(f"{counts}, so one of the two is incomplete. Download them again.")
    label = header[1] if header else "label"
    if test.ids is not None and test.layout.id is not None:
        sample, ids = ids, [value.strip() for value in test.ids.to_pylist()]
        name = test.layout.columns[test.layout.id]
        first: dict[str, int] = {}
        for row, value in enumerate(ids, start=1):
            if not value or first.setdefault(value, row) != row:
                problem = f"{value!r} is also the id of row {first[value]}" if value else "expected an id, found ''"
                raise DataError(f"{files.name('test')}, row {row}, column {name!r}: {problem}.")
        if sample and (other := set(sample) - first.keys()):
            problem = f"{files.name('sample_submission')} has the id {min(other)!r}, which {files.name('test')} lacks"
            raise DataError(f"{problem}. Download them again, or move the sample submission away.")
    elif header and ids is not None:
        name = header[0]
    else:
        return None
    usual = (name, label) == ("ImageId", "Label") and ids == [str(row) for row in range(1, len(ids) + 1)]
    return None if usual else ((name, label), ids)


def _rows(text: str) -> Iterator[list[str]]:
    return filter(None, csv.reader(io.StringIO(text.removeprefix("\ufeff"))))


# ---- the cache


def image_table(pixels: np.ndarray, height: int, width: int, columns: dict[str, pa.Array]) -> pa.Table:
    """A table with the column `image` of grey images, each a binary PGM, and other columns.

    Args:
        pixels: `(rows, height * width)`, uint8.
    """
    header = b"P5\n%d %d\n255\n" % (width, height)
    rows, start = len(pixels), len(header)
    pgm = np.empty((rows, start + height * width), np.uint8)
    pgm[:, :start] = np.frombuffer(header, np.uint8)
    pgm[:, start:] = pixels
    offsets = np.arange(rows + 1, dtype=np.int32) * pgm.shape[1]
    content = pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(pgm)])
    image = pa.StructArray.from_arrays([content, pa.nulls(rows, pa.string())], ["bytes", "path"])
    return pa.table({"image": image, **columns})


@dataclass
class _PixelCsvConfig(datasets.BuilderConfig):
    files: CsvFiles | None = None
    label_column: str = "label"
    identity: tuple = ()  # part of the cache folder's name, by its hash: a changed file is read again


class _PixelCsv(datasets.ArrowBasedBuilder):
    """Writes each CSV as one Arrow file into the cache of `datasets`, atomically and under its lock.

    The info has the SHA-256 of the unpacked files (`download_checksums`) and, where the submission is not
    `ImageId,Label` counted from 1, the names of its two columns (`supervised_keys`).
    """

    VERSION = "1.0.0"
    BUILDER_CONFIG_CLASS = _PixelCsvConfig
    DEFAULT_WRITER_BATCH_SIZE = 2**30  # one batch per split, so that its pixels are contiguous

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()  # the features have the classes, which are known when train has been read

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        self.info.download_checksums = {}
        splits = [role for role in ("train", "validation", "test") if role in self.config.files.members]
        return [datasets.SplitGenerator(role, gen_kwargs={"role": role}) for role in splits]

    def _generate_tables(self, role: str) -> Iterator[tuple[int, pa.Table]]:
        files = self.config.files
        train = None if role == "train" else self._layout
        layout = read_layout(files, role, self.config.label_column, train)
        table = read_table(files, role, layout)
        self.info.download_checksums[role] = {"checksum": table.sha256}
        if role == "train":
            self._layout, self._names = layout, _classes(files, table)
        codes = None if table.labels is None else _codes(files, role, table, self._names)
        rows = len(table.pixels)
        columns = {"label": pa.nulls(rows, pa.int64()) if codes is None else pa.array(codes)}
        submission = _submission_ids(files, table) if role == "test" else None
        if submission and codes is None:
            self.info.supervised_keys = SupervisedKeysData(*submission[0])
        columns["id"] = pa.array(submission[1]) if submission else pa.nulls(rows, pa.string())
        label = datasets.ClassLabel(names=self._names)
        features = datasets.Features({"image": datasets.Image(), "label": label, "id": datasets.Value("string")})
        content = image_table(table.pixels, layout.height, layout.width, columns)
        yield 0, content.replace_schema_metadata(features.arrow_schema.metadata)


def _builder(files: CsvFiles, label_column: str, cache_dir: str) -> _PixelCsv:
    stats = [os.stat(file) for file in files.on_disk]
    identity = tuple((file, s.st_size, s.st_mtime_ns) for file, s in zip(files.on_disk, stats, strict=True))
    options = {"files": files, "label_column": label_column, "identity": identity}
    return _PixelCsv(cache_dir=cache_dir, dataset_name="pixel_csv", **options)


def load_pixel_csv(files: CsvFiles, label_column: str, cache_dir: str) -> dict[str, datasets.Dataset]:
    """The splits of CSV files with pixels.

    An unlabelled test split has no column `label`. If the submission needs other ids than the row numbers, counted
    from 1, the split has them in the column `id`.

    Args:
        files: what [`find_csv_files`] has found.
        label_column: name of the column with the labels. Files without this column may use another usual name.
        cache_dir: folder of the cache of `datasets`.

    Raises: DataError with the file, row and column if a file is damaged, is no table of pixels, or does not fit train.
    """
    builder = _builder(files, label_column, cache_dir)
    with one_line(files.path):
        builder.download_and_prepare()
    splits = dict(builder.as_dataset())
    for name, split in splits.items():
        labelled = name != "test" or split.data.column("label").null_count == 0
        unused = (["id"] if labelled or builder.info.supervised_keys is None else []) + ([] if labelled else ["label"])
        splits[name] = split.remove_columns(unused) if unused else split
    return splits


def cached_info(files: CsvFiles, label_column: str, cache_dir: str) -> datasets.DatasetInfo | None:
    """What the cache knows of CSV files that were loaded: SHA-256 and number of rows. None if they were not."""
    info = _builder(files, label_column, cache_dir).info
    return info if info.splits else None


def file_sha256(files: CsvFiles, role: str) -> str:
    """SHA-256 of a CSV, unpacked."""
    digest = hashlib.sha256()
    for _ in _csv_blocks(files, role, False, digest):
        pass
    return digest.hexdigest()


def count_rows(files: CsvFiles, role: str) -> int:
    """Number of rows of a CSV that has a header."""
    return sum(bool(line.strip()) for block in _csv_blocks(files, role, True) for line in block.splitlines())
