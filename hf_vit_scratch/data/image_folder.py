"""Folders of images: which files are images, and what their folders say of splits and classes.

Everything that is on disk is either read, refused, or named on stderr. Only what the operating system, archives and
notebooks leave behind, and text files beside an image of the same name, is passed over without a word. The reader
follows links, takes any file that Pillow opens, and never makes a class of a folder of test images.
"""

import csv
import hashlib
import json
import os
import posixpath
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import datasets
import PIL.Image
import PIL.ImageFile
import pyarrow as pa
import pyarrow.parquet

from ..output_folder import written_whole
from .errors import DataError, notice, one_line

if TYPE_CHECKING:  # so that reading a folder does not wait for torch
    import torch

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# Words in the names of folders, such as seg_train or test_set, that say what archives put there.
_SPLIT_WORDS = {
    "train": {*SPLIT_NAMES["train"], "trainset", "trainingset"},
    "validation": {*SPLIT_NAMES["validation"], "valset", "validationset", "eval", "evaluation"},
    "test": {*SPLIT_NAMES["test"], "testset", "testingset", "holdout"},
}
# Words that say nothing beside one of those, and names of folders of images without labels.
_PLAIN_WORDS = {"set", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "files", "split"}
_UNLABELLED_WORDS = {"unlabeled", "unlabelled", "extra", "pred", "predict", "prediction", "predictions", "submission"}
_SPLIT_COLUMNS = ("split", "set", "subset", "partition")
_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_RUBBISH = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".ipynb_checkpoints", "__macosx"}
_SIDECAR_SUFFIXES = (".json", ".txt", ".xml", ".xmp", ".yaml", ".yml")
# Formats that Pillow recognizes, but cannot decode by itself.
_STUBS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_BUILDER = "vit_scratch_image_folder"
_LAYOUTS = "Expected folder/class/image, or folder/train/class/image with val and test beside train"
_SHOWN = 3  # names in a message


class _File(NamedTuple):
    path: str
    size: int
    changed: int
    identity: tuple[int, int]


@dataclass
class _Folder:
    """A folder as it is on disk. `images`: files that Pillow opens; `others`: the names of all other files."""

    path: str
    images: list[_File] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    folders: "list[_Folder]" = field(default_factory=list)
    num_images: int = 0  # with those of its folders
    num_others: int = 0

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def holding(self) -> "list[_Folder]":
        """Its folders that hold images."""
        return [folder for folder in self.folders if folder.num_images]

    def walk(self) -> "Iterator[_Folder]":
        """The folder and all below it."""
        waiting = [self]
        while waiting:
            yield (folder := waiting.pop())
            waiting += folder.folders

    def below(self) -> list[_File]:
        """The images of the folder and of all below it."""
        return [file for folder in self.walk() for file in folder.images]


class _Part(NamedTuple):
    """A split: its images, the values of its columns for each of them, and the folder that file names start from."""

    root: str
    files: list[_File]
    columns: dict[str, list]
    classes: list[str] | None = None  # the names of the integers in the column `label`


def load_image_folder(path: str | os.PathLike[str]) -> datasets.DatasetDict:
    """Read a folder of images.

    The layout is one of `folder/class/image`, `folder/train/class/image` with `val` and `test` beside `train`, or
    images with a `metadata.csv` (or .jsonl, .parquet) that has a column `file_name` and one row for each image. All of
    it may lie in one more folder, as archives have it. Classes are the folders of the first level. A test split may
    hold images without classes.

    Args:
        path: the folder.

    Returns:
        The splits of the folder, of `train`, `validation` and `test`. Train and validation are in the order of the
        paths as strings; test is in natural order (1, 2, 10). Each has a column `image`, and a column `label` or the
        columns of the metadata. Unchanged files have an unchanged fingerprint.

    Raises:
        DataError: the layout is not one of these, or a folder, a file or a row of the metadata cannot be used.
    """
    root = _scan(os.path.abspath(path))
    if not root.num_images:
        found = f"none of its {root.num_others:,} files is one that Pillow opens" if root.num_others else "no file"
        problem = f"{root.path} holds neither images nor train.csv, Parquet or Arrow files ({found})"
        raise DataError(f"{problem}. Check --data.")
    inner = _unwrap(root)
    if inner.metadata:
        parts = _parts_of_metadata(inner)
    elif splits := _splits(inner):
        parts = _parts_of_splits(splits)
    else:
        parts = {"train": _part_of_classes(inner.path, _classes(inner))}
    if (classes := parts["train"].classes) is not None and len(classes) < 2:
        found = f"{parts['train'].root} has {classes[0] + ' alone' if classes else 'none'}"
        problem = f"an image folder needs two or more folders of images, one for each class, but {found}"
        raise DataError(f"{problem}. {_LAYOUTS}.")
    _check_apart(parts)
    _say_what_is_not_read(root, parts, bool(inner.metadata))
    return datasets.DatasetDict({name: _dataset(part, natural=name == "test") for name, part in parts.items()})


def file_names(split: datasets.Dataset) -> list[str] | None:
    """The names of the files of a split of an image folder, relative to the folder of the split; None for other data.

    With a `metadata.csv`, the names are relative to its folder.
    """
    if split.info.builder_name != _BUILDER:
        return None
    paths = [path for chunk in split.data.column("image").chunks for path in chunk.field("path").to_pylist()]
    start = len(os.path.join(split.info.description, ""))
    names = [path[start:].replace(os.sep, "/") for path in paths]
    return names if split._indices is None else [names[row] for row in split._indices.column(0).to_pylist()]


def write_file_predictions(
    logits: "torch.Tensor", id2label: dict[int, str], names: list[str], file: str | os.PathLike
) -> None:
    """Write a CSV with the columns `file_name` and `label`, the predicted class, and one row for each file.

    Args:
        logits: `(num_images, num_labels)`.
        id2label: name of each class.
        names: name of each file, in the order of `logits`.
        file: CSV file to write.
    """
    with written_whole(file) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["file_name", "label"])
        rows.writerows(zip(names, (id2label[label] for label in logits.argmax(dim=-1).tolist()), strict=True))


def plain_name(name: str) -> str:
    """A class name without what is easily mistyped: case, spaces around it, forms of one character in Unicode."""
    return unicodedata.normalize("NFKC", " ".join(name.split())).casefold()


# ---- what is on disk


def _scan(path: str) -> _Folder:
    """The folder with everything below it, without rubbish. Links are followed, but no folder is entered twice."""
    root, entered = _Folder(path), {}
    waiting, order = [root], []
    while waiting:
        folder = waiting.pop()
        order.append(folder)
        try:
            status = os.stat(folder.path)
            entries = sorted(os.scandir(folder.path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"the folder {folder.path!r} cannot be opened: {error.strerror}.") from error
        identity = (status.st_dev, status.st_ino)
        if identity in entered and status.st_ino:
            problem = f"{folder.path} is the same folder as {entered[identity]}, through a link"
            raise DataError(
                f"{problem}: its images would be read twice. Remove the link, or pass a folder with one of them."
            )
        entered[identity] = folder.path
        _sort_entries(folder, entries)
        waiting += reversed(folder.folders)
    for folder in reversed(order):  # from the leaves to the root
        folder.num_images = len(folder.images) + sum(inner.num_images for inner in folder.folders)
        folder.num_others = len(folder.others) + sum(inner.num_others for inner in folder.folders)
    return root


def _sort_entries(folder: _Folder, entries: list[os.DirEntry]) -> None:
    """Tell images, other files, metadata and folders apart."""
    files = []
    for entry in entries:
        name = entry.name
        if name.lower() in _RUBBISH or name.startswith("._"):
            continue
        try:
            name.encode()
            status = entry.stat()
        except UnicodeEncodeError as error:
            raise DataError(f"the name {entry.path!r} is not valid UTF-8. Rename it.") from error
        except OSError as error:  # a link to nothing, or to itself
            raise DataError(f"{entry.path!r} cannot be read: {error.strerror}. Repair or remove it.") from error
        if stat.S_ISDIR(status.st_mode):
            if name.startswith("."):
                folder.others.append(name + os.sep)  # such as .git
            else:
                folder.folders.append(_Folder(entry.path))
        elif not stat.S_ISREG(status.st_mode):  # to open a pipe could take for ever
            folder.others.append(name)
        else:
            files.append(_File(entry.path, status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino)))
    suffixes, unsure = _image_suffixes(), []
    for file in files:
        (folder.images if _suffix(file.path) in suffixes else unsure).append(file)
    names = {os.path.basename(file.path) for file in folder.images}
    names |= {os.path.splitext(name)[0] for name in names}
    for file in unsure:
        name = os.path.basename(file.path)
        if name in _METADATA_NAMES:
            folder.metadata.append(name)
        elif _suffix(name) in _SIDECAR_SUFFIXES and os.path.splitext(name)[0] in names:
            continue
        elif _opens(file.path):
            folder.images.append(file)
        else:
            folder.others.append(name)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


@cache
def _image_suffixes() -> frozenset[str]:
    """Suffixes of the formats that Pillow decodes here. Files with another one are opened to see what they are."""
    registered = PIL.Image.registered_extensions().items()  # it loads all formats
    formats = {*PIL.Image.OPEN, "MPO"} - {*_STUBS}
    return frozenset(suffix for suffix, name in registered if name in formats)


def _opens(path: str) -> bool:
    """Whether Pillow recognizes a file as an image that it can decode."""
    try:
        with PIL.Image.open(path) as image:
            return not isinstance(image, PIL.ImageFile.StubImageFile) and image.format not in _STUBS
    except PIL.UnidentifiedImageError:
        return False
    except OSError as error:
        raise DataError(f"{path!r} cannot be opened: {error.strerror or error}.") from error
    except Exception:  # it is an image, but damaged or too large: reading it says so
        return True


# ---- splits and classes


def _role(name: str) -> tuple[str, bool] | None:
    """The split that the name of a folder says, and whether it says nothing else: `("train", False)` for seg_train."""
    words = set(re.findall("[a-z]+", name.lower()))
    found = [split for split, names in _SPLIT_WORDS.items() if words & names]
    return (found[0], words <= _SPLIT_WORDS[found[0]] | _PLAIN_WORDS) if len(found) == 1 else None


def _unwrap(folder: _Folder) -> _Folder:
    """The folder that holds splits, classes or metadata, which archives put into one or more folders of their own."""
    while not folder.metadata and len(folder.holding) == 1 and not _splits(folder):
        (inner,) = folder.holding
        role = _role(inner.name)
        if (role and role[0] != "train") or not (inner.holding or inner.metadata):
            break
        folder = inner
    return folder


def _splits(folder: _Folder) -> dict[str, _Folder]:
    """The folders of train, validation and test inside a folder; empty if its folders are classes."""
    named: dict[tuple[str, bool], list[_Folder]] = {}
    for inner in folder.folders:
        if (role := _role(inner.name)) and (inner.num_images or inner.metadata):
            named.setdefault(role, []).append(inner)
    chosen = {split: named.get((split, True)) or named.get((split, False), []) for split in SPLIT_NAMES}
    beside = chosen["validation"] + chosen["test"]
    # A folder named "train" that holds only images is a class, as in a data set of vehicles.
    trains = [inner for inner in chosen["train"] if inner.holding or inner.metadata]
    if not trains or not (("train", True) in named or beside):
        return {}
    for split, folders in chosen.items():
        if len(folders) > 1:
            names = " and ".join(inner.name for inner in folders)
            raise DataError(f"{folder.path} holds {names}: both could be the {split} split. Move one of them away.")
    for inner in folder.folders:
        if (_role(inner.name) or ("", False))[1]:
            _refuse_without_images(inner)
    others = [inner.name for inner in folder.holding if not _role(inner.name) and not _is_unlabelled(inner.name)]
    if others and not beside:
        problem = f"{folder.path} holds train beside {_shown(others)}, so train could be a split or a class"
        raise DataError(f"{problem}. Rename train, or move the others away. {_LAYOUTS}.")
    return {split: folders[0] for split, folders in chosen.items() if folders}


def _is_unlabelled(name: str) -> bool:
    return bool(_UNLABELLED_WORDS & set(re.findall("[a-z]+", name.lower())))


def _classes(root: _Folder) -> list[_Folder]:
    """The class folders of a data set without splits. Raises: DataError if images of a test split could be in them."""
    roles = {folder.name: _role(folder.name) for folder in root.holding}
    said = {role[0] for role in roles.values() if role}
    names = _shown(list(roles))
    if said and all(role or _is_unlabelled(name) for name, role in roles.items()):
        lack = "train holds no folders of classes" if "train" in said else "there is no train"
        raise DataError(f"{root.path} holds {names}, but {lack}. {_LAYOUTS}.")
    for folder in root.holding:
        role = roles[folder.name]
        if role and "train" not in said and role[1] or role and folder.holding:
            problem = f"{folder.path} has the name of a {role[0]} split, but no train with classes is beside it"
            raise DataError(f"{problem}. Rename it if it is a class, or move the classes into train. {_LAYOUTS}.")
    if "train" in said and len(said) > 1:
        taken = [name for name, role in roles.items() if role]
        notice(f"{root.path}: {_shown(taken)} hold images without folders, so they are read as classes.")
    return _class_folders(root)


def _class_folders(root: _Folder) -> list[_Folder]:
    """The folders of the first level that hold images.

    Raises: DataError if one holds only other files, or splits, which would all be read as one.
    """
    for folder in root.folders:
        _refuse_without_images(folder)
        for inner in folder.walk():
            within = [below.name for below in inner.holding if (_role(below.name) or ("", False))[1]]
            if within or (inner.holding and _splits(inner)):
                found = _shown(within or [below.name for below in inner.holding])
                problem = f"{inner.path} holds splits ({found}), but lies where a class is expected"
                raise DataError(f"{problem}. {_LAYOUTS}. Pass --data {inner.path} if this is the data set.")
    if empty := [folder.name for folder in root.folders if not folder.num_images]:
        notice(f"{root.path}: no class, because the folder is empty: {_shown(empty)}.")
    if deep := sorted({below.name for folder in root.holding for below in folder.holding}):
        names = _shown([folder.name for folder in root.holding])
        notice(f"{root.path}: the classes are its own folders ({names}), not the folders in them ({_shown(deep)}).")
    return root.holding


def _refuse_without_images(folder: _Folder) -> None:
    """Raises: DataError if a folder of a class or split holds files, but no image: it would be missing."""
    if not folder.num_images and folder.num_others and not folder.metadata:
        found = _shown([name for inner in folder.walk() for name in inner.others])
        problem = f"{folder.path} holds files, but no image that Pillow opens: {found}"
        raise DataError(f"{problem}. Convert them to PNG or JPEG, or move the folder away.")


def _part_of_classes(root: str, folders: list[_Folder]) -> _Part:
    files = [(file, code) for code, folder in enumerate(folders) for file in folder.below()]
    labels = [code for _, code in files]
    return _Part(root, [file for file, _ in files], {"label": labels}, [folder.name for folder in folders])


def _parts_of_splits(splits: dict[str, _Folder]) -> dict[str, _Part]:
    splits = {split: _inside(folder) for split, folder in splits.items()}
    train, parts = splits["train"], {}
    classes = None if train.metadata else [folder.name for folder in _class_folders(train)]
    for split, folder in splits.items():
        if folder.metadata:
            parts[split] = _Part(folder.path, *_read_metadata(folder))
        elif split == "test" and (unlabelled := _without_classes(folder, classes)):
            parts[split] = _Part(unlabelled.path, unlabelled.below(), {})
        elif not folder.holding:
            raise DataError(f"{folder.path} holds images without folders of classes. {_LAYOUTS}.")
        else:
            folders = folder.holding if split == "train" else _class_folders(folder)
            parts[split] = _part_of_classes(folder.path, folders)
    return parts


def _inside(folder: _Folder) -> _Folder:
    """The innermost folder of seg_train/seg_train, as archives have it."""
    while not folder.metadata and not folder.images and len(folder.holding) == 1:
        (inner,) = folder.holding
        if inner.name != folder.name and (_role(inner.name) or ("",))[0] != (_role(folder.name) or (None,))[0]:
            break
        folder = inner
    return folder


def _without_classes(test: _Folder, classes: list[str] | None) -> _Folder | None:
    """The folder of unlabelled test images: the test folder, or the one folder in it that is no class of train."""
    if not test.holding:
        return test
    names = [folder.name for folder in test.holding]
    if test.images:
        raise DataError(f"{test.path} holds images beside folders ({_shown(names)}). Move either of them away.")
    known = {plain_name(name) for name in classes or ()}
    return test.holding[0] if len(names) == 1 and plain_name(names[0]) not in known else None


# ---- metadata


def _read_metadata(folder: _Folder) -> tuple[list[_File], dict[str, list]]:
    """The images that a metadata file lists, and its other columns. Raises: DataError for a row without its image."""
    if len(folder.metadata) > 1:
        raise DataError(f"{folder.path} holds {' and '.join(folder.metadata)}. Keep one of them.")
    path = os.path.join(folder.path, folder.metadata[0])
    columns = _read_table(path)
    keys = [name for name in columns if name == "file_name"] or [n for n in columns if n.endswith("_file_name")]
    if len(keys) != 1:
        raise DataError(f"{path} has no column 'file_name'. Its columns: {', '.join(map(str, columns)) or 'none'}.")
    known = {os.path.relpath(file.path, folder.path).replace(os.sep, "/"): file for file in folder.below()}
    names = [str(name or "") for name in columns.pop(keys[0])]
    names = [name if name in known else posixpath.normpath(name.replace("\\", "/")) for name in names]
    if missing := [name for name in names if name not in known]:
        problem = f"{path} lists {_number(missing, 'file')} not found as an image: {_shown(missing)}"
        raise DataError(f"{problem}. File names start from the folder of {folder.metadata[0]}.")
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise DataError(
            f"{path} lists {_number(twice, 'file')} more than once: {_shown(twice)}. Keep one row for each."
        )
    columns.pop("image", None)
    return [known[name] for name in names], columns


def _read_table(path: str) -> dict[str, list]:
    """The columns of a metadata file. Blank cells of a CSV are None, and columns of integers are integers."""
    if path.endswith(".parquet"):
        with one_line(path):
            return pyarrow.parquet.read_table(path).to_pydict()
    with one_line(path), open(path, newline="", encoding="utf-8-sig") as stream:
        if path.endswith(".jsonl"):
            rows = [json.loads(line) for line in stream if line.strip()]
        else:
            rows = list(csv.DictReader(stream))  # more cells than columns come under None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or None in row:
            raise DataError(f"{path}, row {number}: expected one value for each column.")
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return {name: _typed(values) for name, values in columns.items()} if path.endswith(".csv") else columns


def _typed(values: list[str | None]) -> list:
    """The cells of a column, as integers if all are; "007" is none, and a blank cell is None."""
    cells = [value or None for value in values]
    if all(cell is None or re.fullmatch("-?(0|[1-9][0-9]{0,17})", cell) for cell in cells):
        return [cell if cell is None else int(cell) for cell in cells]
    return cells


def _parts_of_metadata(folder: _Folder) -> dict[str, _Part]:
    """The splits that a metadata file names, by its column `split` or by the folders in its file names."""
    files, columns = _read_metadata(folder)
    where = os.path.join(folder.path, folder.metadata[0])
    by_column, by_folder = _roles_of_column(where, columns), _roles_of_folders(where, folder, files)
    roles = by_column or by_folder or ["train"] * len(files)
    for file, role, other in zip(files, roles, by_folder or roles, strict=True):
        if role != other:
            raise DataError(f"{where} says that {file.path} is of {role}, but its folder says {other}.")
    parts = {}
    for split in SPLIT_NAMES:
        if rows := [row for row, role in enumerate(roles) if role == split]:
            values = {name: [column[row] for row in rows] for name, column in columns.items()}
            parts[split] = _Part(folder.path, [files[row] for row in rows], values)
    if "train" not in parts:
        raise DataError(f"{where} names the splits {', '.join(parts) or 'none'}, but no image of train.")
    return parts


def _roles_of_column(where: str, columns: dict[str, list]) -> list[str] | None:
    """The split of each row by a column that names splits, or None if there is none."""
    for name in (name for name in columns if name.lower() in _SPLIT_COLUMNS):
        roles = [_role(str(value)) for value in columns[name]]
        splits = [role[0] for role in roles if role and role[1]]
        if splits and len(splits) < len(roles):
            odd = next(v for v, role in zip(columns[name], roles, strict=True) if not role or not role[1])
            expected = "expected train, validation or test in each row"
            raise DataError(f"{where}, column {name!r}: {expected}, found {odd!r}.")
        if splits:
            return splits
    return None


def _roles_of_folders(where: str, folder: _Folder, files: list[_File]) -> list[str] | None:
    """The split of each row by the folders of its file, or None if they name no other split than train."""
    folders = [os.path.relpath(os.path.dirname(file.path), folder.path) for file in files]
    found: dict[str, tuple[str, bool] | None] = {}
    for name in set(folders):
        roles = [role for part in name.split(os.sep) if (role := _role(part))]
        found[name] = next((role for role in roles if role[1]), roles[0] if roles else None)
    said = {role[0] for role in found.values() if role}
    if not said - {"train"}:
        return None
    if not all(found.values()) or "train" not in said:
        if not any(role and role[1] and role[0] != "train" for role in found.values()):
            return None  # such as a class named dev-board
        other = next((name for name, role in found.items() if not role), "none of train")
        problem = f"{where} lists images of {', '.join(sorted(said))}, but of no train split, or also of {other}"
        raise DataError(f"{problem}. Add a column split with train, validation or test in each row.")
    return [role[0] for name in folders if (role := found[name])]


# ---- what is read


def _check_apart(parts: dict[str, _Part]) -> None:
    """Raises: DataError if a file is in two splits, through links."""
    seen: dict[tuple[int, int], str] = {}
    for part in parts.values():
        own = {file.identity: file.path for file in part.files if file.identity[1]}
        if both := seen.keys() & own.keys():
            one = min(both)
            problem = f"{own[one]} is the same file as {seen[one]}, in another split ({len(both):,} files are in two)"
            raise DataError(f"{problem}. Keep each image in one split.")
        seen |= own


def _say_what_is_not_read(root: _Folder, parts: dict[str, _Part], by_metadata: bool) -> None:
    """A line on stderr each for images that are in no split, files that are no images, and hidden folders."""
    read, start = {file.path for part in parts.values() for file in part.files}, len(os.path.join(root.path, ""))
    left = [file.path[start:] for file in root.below() if file.path not in read]
    others = [os.path.join(folder.path, name)[start:] for folder in root.walk() for name in folder.others]
    hidden = [name for name in others if name.endswith(os.sep)]
    files = [name for name in others if not name.endswith(os.sep)]
    where = " that the metadata does not list" if by_metadata else " outside of the folders of splits and classes"
    kinds = ((left, "image", where), (files, "file", " that Pillow does not open"), (hidden, "hidden folder", ""))
    for names, what, why in kinds:
        if names:
            notice(f"{root.path}: not read: {_number(names, what)}{why}: {_shown(names)}.")


def _number(names: list[str], what: str) -> str:
    return f"{len(names):,} {what}" + ("s" if len(names) > 1 else "")


def _dataset(part: _Part, natural: bool) -> datasets.Dataset:
    """The split as a data set of paths, in memory. Its fingerprint says the names, sizes and times of its files."""
    key = (lambda row: _natural(part.files[row].path)) if natural else (lambda row: part.files[row].path)
    rows = sorted(range(len(part.files)), key=key)
    files = [part.files[row] for row in rows]
    columns = {name: [values[row] for row in rows] for name, values in part.columns.items()}
    paths = pa.array([file.path for file in files], pa.string())
    image = pa.StructArray.from_arrays([pa.nulls(len(files), pa.binary()), paths], ["bytes", "path"])
    table = pa.table({"image": image, **{name: pa.array(values) for name, values in columns.items()}})
    features = datasets.Features.from_arrow_schema(table.schema) | {"image": datasets.Image()}
    if part.classes is not None:
        features["label"] = datasets.ClassLabel(names=part.classes)
    content = (part.root, [file[:3] for file in files], columns, part.classes)
    info = datasets.DatasetInfo(
        description=part.root, features=datasets.Features(features), builder_name=_BUILDER, dataset_name=_BUILDER
    )
    fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()[:32]
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=info, fingerprint=fingerprint)


def _natural(path: str) -> tuple[list[list], str]:
    """Key that sorts 2 before 10, folder by folder."""
    parts = [re.split("([0-9]+)", part) for part in path.split(os.sep)]  # text and digits take turns
    return [[int(w) if at % 2 else w.casefold() for at, w in enumerate(words)] for words in parts], path


def _shown(names: Iterable[str]) -> str:
    """The first names, in natural order, and the number of the others."""
    ordered = sorted(names, key=_natural)
    more = f" and {len(ordered) - _SHOWN:,} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more
