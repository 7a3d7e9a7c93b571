"""The metadata file of a folder of images: which images it lists, with which values, and in which split."""

import csv
import json
import os
import posixpath
import re
from collections import Counter

import pyarrow.parquet

from .errors import DataError, one_line
from .folders import File, Folder
from .names import counted, is_split, shown, split_of, words

_SPLIT_COLUMNS = ("split", "set", "subset", "partition")


def read_metadata(folder: Folder) -> tuple[list[File], dict[str, list]]:
    """The images that the metadata file of a folder lists, and its other columns.

    Raises: DataError for a row without its image, an image with two rows, or a damaged file.
    """
    if len(folder.metadata) > 1:
        raise DataError(f"{folder.path} holds {' and '.join(folder.metadata)}. Keep one of them.")
    path = os.path.join(folder.path, folder.metadata[0])
    columns = _read_table(path)
    keys = [name for name in columns if name == "file_name"] or [n for n in columns if n.endswith("_file_name")]
    if len(keys) != 1:
        expected = "one column 'file_name', separated from the others by commas"
        raise DataError(f"{path}: expected {expected}. Its columns: {', '.join(map(str, columns)) or 'none'}.")
    known = {os.path.relpath(file.path, folder.path).replace(os.sep, "/"): file for file in folder.below()}
    names = [str(name or "") for name in columns.pop(keys[0])]
    names = [name if name in known else posixpath.normpath(name.replace("\\", "/")) for name in names]
    if missing := [name for name in names if name not in known]:
        problem = f"{path} lists {counted(missing, 'file')} not found as an image: {shown(missing)}"
        raise DataError(f"{problem}. File names start from the folder of {folder.metadata[0]}.")
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        problem = f"{path} lists {counted(twice, 'file')} more than once: {shown(twice)}"
        raise DataError(f"{problem}. Keep one row for each.")
    columns.pop("image", None)
    return [known[name] for name in names], columns


def _read_table(path: str) -> dict[str, list]:
    """The columns of a metadata file. Blank cells of a CSV are None, and columns of integers are integers."""
    if path.lower().endswith(".parquet"):
        with one_line(path):
            return pyarrow.parquet.read_table(path).to_pydict()
    is_csv = path.lower().endswith(".csv")
    with one_line(path), open(path, newline="", encoding="utf-8-sig") as stream:
        if is_csv:
            rows = list(csv.DictReader(stream))  # more cells than columns come under None
        else:
            rows = [json.loads(line) for line in stream if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or None in row:
            raise DataError(f"{path}, row {number}: expected one value for each column.")
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return {name: _typed(values) for name, values in columns.items()} if is_csv else columns


def _typed(values: list[str | None]) -> list:
    """The cells of a column, as integers if all are; "007" is none, and a blank cell is None."""
    cells = [value or None for value in values]
    if all(cell is None or re.fullmatch("-?(0|[1-9][0-9]{0,17})", cell) for cell in cells):
        return [cell if cell is None else int(cell) for cell in cells]
    return cells


def splits_of_rows(folder: Folder, files: list[File], columns: dict[str, list]) -> list[str]:
    """The split of each row: by a column `split`, or by the folders of the files, or else train.

    Raises: DataError if only some rows say a split, if column and folder differ, or if no row is of train.
    """
    where = os.path.join(folder.path, folder.metadata[0])
    by_folder = _splits_by_folder(where, folder, files)
    splits = _splits_by_column(where, columns) or by_folder or ["train"] * len(files)
    for file, split, other in zip(files, splits, by_folder or splits, strict=True):
        if split != other:
            raise DataError(f"{where} says that {file.path} is of {split}, but its folder says {other}.")
    if "train" not in splits:
        raise DataError(f"{where} names the splits {', '.join(sorted({*splits})) or 'none'}, but no image of train.")
    return splits


def _splits_by_column(where: str, columns: dict[str, list]) -> list[str] | None:
    """The split of each row by a column that names splits, or None if there is none."""
    for name in (name for name in columns if name.lower() in _SPLIT_COLUMNS):
        splits = [split_of(str(value)) if is_split(str(value)) else None for value in columns[name]]
        if any(splits) and not all(splits):
            expected = "expected train, validation or test in each row"
            raise DataError(f"{where}, column {name!r}: {expected}, found {columns[name][splits.index(None)]!r}.")
        if any(splits):
            return [split for split in splits if split]
    for name in columns:
        if split_of(name) and "is" in words(name) and len(words(name)) == 2:  # is_valid, is_test
            do = "Replace it by a column 'split' with train, validation or test in each row"
            raise DataError(f"{where}: column {name!r} says the splits in a way that is not read. {do}.")
    return None


def _splits_by_folder(where: str, folder: Folder, files: list[File]) -> list[str] | None:
    """The split of each row by the folders of its file, or None if they name no other split than train."""
    folders = [os.path.relpath(os.path.dirname(file.path), folder.path) for file in files]
    says: dict[str, str | None] = {}  # the part of a path that says a split, if possible one that says nothing else
    for name in set(folders):
        parts = [part for part in name.split(os.sep) if split_of(part)]
        says[name] = next(filter(is_split, parts), parts[0] if parts else None)
    splits = {name: split_of(part) if part else None for name, part in says.items()}
    said = {split for split in splits.values() if split}
    if not said - {"train"}:
        return None
    if None in splits.values() or "train" not in said:
        if not any(is_split(part) and splits[name] != "train" for name, part in says.items() if part):
            return None  # such as a class named dev-board
        other = next((name for name, split in splits.items() if not split), "none of train")
        problem = f"{where} lists images of {', '.join(sorted(said))}, but of no train split, or also of {other}"
        raise DataError(f"{problem}. Add a column split with train, validation or test in each row.")
    return [split for name in folders if (split := splits[name])]
