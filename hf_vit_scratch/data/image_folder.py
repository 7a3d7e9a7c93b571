"""Image folders: which split and which class the files of a folder have.

Everything that is on disk is either read, refused, or named on stderr, and no folder of test images becomes a class.
`folders.py` finds the files, and `metadata.py` reads the tables that list them.
"""

import csv
import hashlib
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import datasets
import pyarrow as pa

from ..output_folder import written_whole
from .errors import DataError, notice
from .folders import File, Folder, scan
from .metadata import read_metadata, splits_of_rows
from .names import SPLIT_NAMES, counted, is_plain, is_split, natural, plain_name, shown, split_of, words

if TYPE_CHECKING:  # so that reading a folder does not wait for torch
    import torch

# Words in the names of folders of images without labels.
_UNLABELLED_WORDS = {"unlabeled", "unlabelled", "extra", "pred", "predict", "prediction", "predictions", "submission"}
_BUILDER = "vit_scratch_image_folder"
_LAYOUTS = (
    "Expected folder/class/image, or folder/train/class/image with val and test beside train, or a metadata.csv with "
    "the columns file_name and label beside the images"
)


class _Part(NamedTuple):
    """A split: its images, the values of its columns for each of them, and the folder that file names start from."""

    root: str
    files: list[File]
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
    root = scan(os.path.abspath(path))
    if not root.num_images:
        others = [name for folder in root.walk() for name in folder.others]
        found = f"Pillow opens none of its files: {shown(others)}" if others else "it holds no file"
        problem = f"{root.path} holds neither images nor train.csv with pixels, Parquet or Arrow files ({found})"
        raise DataError(f"{problem}. Check --data.")
    inner = _unwrap(root)
    if inner.metadata:
        parts = _parts_of_metadata(inner)
    elif splits := _splits(inner):
        parts = _parts_of_splits(splits)
    else:
        parts = {"train": _part_of_classes(inner, _classes(inner))}
        if not is_plain(inner.name) and inner is not root:
            names = shown(parts["train"].classes or ())
            notice(f"{inner.path} is taken for a folder around the classes, which are the folders in it: {names}.")
    if (classes := parts["train"].classes) is not None and len(classes) < 2:
        found = f"{parts['train'].root} has {classes[0] + ' alone' if classes else 'none'}"
        problem = f"an image folder needs two or more folders of images, one for each class, but {found}"
        raise DataError(f"{problem}. {_LAYOUTS}.")
    _check_links(root, parts)
    _say_what_is_not_read(root, parts)
    return datasets.DatasetDict({name: _dataset(part, in_order=name == "test") for name, part in parts.items()})


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


# ---- splits and classes


def _unwrap(folder: Folder) -> Folder:
    """The folder that holds splits, classes or metadata, which archives put into one or more folders of their own."""
    while not folder.metadata and len(folder.holding) == 1 and not _splits(folder):
        (inner,) = folder.holding
        if split_of(inner.name) not in (None, "train") or not (inner.holding or inner.metadata):
            break
        folder = inner
    return folder


def _splits(folder: Folder) -> dict[str, Folder]:
    """The folders of train, validation and test inside a folder; empty if its folders are classes."""
    chosen: dict[str, list[Folder]] = {}
    for split in SPLIT_NAMES:
        named = [inner for inner in folder.folders if split_of(inner.name) == split]
        named = [inner for inner in named if inner.num_images or inner.metadata]
        chosen[split] = [inner for inner in named if is_split(inner.name)] or named
    trains, beside = chosen["train"], chosen["validation"] + chosen["test"]
    # A folder named "train" that holds only images is a class, as in a data set of vehicles.
    if not any(inner.holding or inner.metadata for inner in trains) or not (is_split(trains[0].name) or beside):
        return {}
    for split, folders in chosen.items():
        if len(folders) > 1:
            names = " and ".join(inner.name for inner in folders)
            raise DataError(f"{folder.path} holds {names}: both could be the {split} split. Move one of them away.")
    for inner in folder.folders:
        if is_split(inner.name):
            _refuse_without_images(inner)
    others = [inner.name for inner in folder.holding if not split_of(inner.name) and not _is_unlabelled(inner.name)]
    if others and not beside:
        problem = f"{folder.path} holds train beside {shown(others)}, so train could be a split or a class"
        raise DataError(f"{problem}. Rename train, or move the others away. {_LAYOUTS}.")
    return {split: folders[0] for split, folders in chosen.items() if folders}


def _is_unlabelled(name: str) -> bool:
    return bool(_UNLABELLED_WORDS & words(name))


def _classes(root: Folder) -> list[Folder]:
    """The class folders of a data set without splits. Raises: DataError if images of a test split could be in them."""
    splits = {folder.name: split for folder in root.holding if (split := split_of(folder.name))}
    if splits and all(folder.name in splits or _is_unlabelled(folder.name) for folder in root.holding):
        lack = "train holds no folders of classes" if "train" in splits.values() else "there is no train"
        raise DataError(f"{root.path} holds {shown([f.name for f in root.holding])}, but {lack}. {_LAYOUTS}.")
    train = "train" in splits.values()
    for folder in root.holding:
        if folder.name in splits and (folder.holding or (is_split(folder.name) and not train)):
            problem = f"{folder.path} has the name of a {splits[folder.name]} split, but no train with classes"
            do = "Rename it if it is a class, or move the classes into train"
            raise DataError(f"{problem} is beside it. {do}. {_LAYOUTS}.")
    if train and len({*splits.values()}) > 1:
        notice(f"{root.path}: {shown(splits)} hold images without folders, so they are read as classes.")
    return _class_folders(root)


def _class_folders(root: Folder) -> list[Folder]:
    """The folders of the first level that hold images.

    Raises: DataError if one holds only other files, or splits, which would all be read as one.
    """
    for folder in root.folders:
        _refuse_without_images(folder)
        for inner in folder.walk():
            within = [below.name for below in inner.holding if is_split(below.name)]
            if within or (inner.holding and _splits(inner)):
                found = shown(within or [below.name for below in inner.holding])
                problem = f"{inner.path} holds splits ({found}), but lies where a class is expected"
                raise DataError(f"{problem}. {_LAYOUTS}. Pass --data {inner.path} if this is the data set.")
    if deep := {below.name for folder in root.holding for below in folder.holding}:
        names = shown([folder.name for folder in root.holding])
        notice(f"{root.path}: the classes are its own folders ({names}), not the folders in them ({shown(deep)}).")
    return root.holding


def _refuse_without_images(folder: Folder) -> None:
    """Raises: DataError if a folder of a class or split holds files, but no image: it would be missing."""
    if not folder.num_images and folder.num_others and not folder.metadata:
        found = shown([name for inner in folder.walk() for name in inner.others])
        problem = f"{folder.path} holds files, but no image that Pillow opens: {found}"
        raise DataError(f"{problem}. Convert them to PNG or JPEG, or move the folder away.")


def _part_of_classes(root: Folder, folders: list[Folder]) -> _Part:
    files = [(file, code) for code, folder in enumerate(folders) for file in folder.below()]
    labels = [code for _, code in files]
    return _Part(root.path, [file for file, _ in files], {"label": labels}, [folder.name for folder in folders])


def _parts_of_splits(splits: dict[str, Folder]) -> dict[str, _Part]:
    train = _inside(splits["train"])
    classes = None if train.metadata else [folder.name for folder in _class_folders(train)]
    parts = {}
    for split, folder in splits.items():
        folder = train if split == "train" else _inside(folder, classes or ())
        if folder.metadata:
            parts[split] = _Part(folder.path, *read_metadata(folder))
        elif split == "test" and (unlabelled := _without_classes(folder, classes or ())):
            parts[split] = _Part(unlabelled.path, unlabelled.below(), {})
        elif not folder.holding:
            raise DataError(f"{folder.path} holds images without folders of classes. {_LAYOUTS}.")
        else:
            folders = folder.holding if split == "train" else _class_folders(folder)
            parts[split] = _part_of_classes(folder, folders)
    return parts


def _inside(folder: Folder, classes: Collection[str] = ()) -> Folder:
    """The innermost folder of seg_train/seg_train or train/images. `classes`: names that are classes in train."""
    split = split_of(folder.name)
    while not folder.metadata and not folder.images and len(folder.holding) == 1:
        (inner,) = folder.holding
        same = inner.name == folder.name or split_of(inner.name) == split
        if inner.name in classes or not (same or inner.metadata or is_plain(inner.name)):
            break
        folder = inner
    return folder


def _without_classes(test: Folder, classes: Collection[str]) -> Folder | None:
    """The folder of unlabelled test images: the test folder, or the one folder in it that is no class of train."""
    if not test.holding:
        return test
    names = [folder.name for folder in test.holding]
    if test.images:
        raise DataError(f"{test.path} holds images beside folders ({shown(names)}). Move either of them away.")
    if len(names) > 1 or plain_name(names[0]) in map(plain_name, classes):
        return None
    if not _is_unlabelled(names[0]):
        notice(f"{test.path}: {names[0]} is no class of train, so the test images are read without labels.")
    return test.holding[0]


def _parts_of_metadata(folder: Folder) -> dict[str, _Part]:
    """The splits that the metadata file of a folder names."""
    files, columns = read_metadata(folder)
    splits, parts = splits_of_rows(folder, files, columns), {}
    for split in SPLIT_NAMES:
        if rows := [row for row, other in enumerate(splits) if other == split]:
            values = {name: [column[row] for row in rows] for name, column in columns.items()}
            parts[split] = _Part(folder.path, [files[row] for row in rows], values)
    return parts


# ---- what is read


def _check_links(root: Folder, parts: dict[str, _Part]) -> None:
    """One line on stderr for files that a split holds twice, through links. Raises: DataError if two splits do."""
    seen: dict[tuple[int, int], str] = {}
    for part in parts.values():
        own, again = {}, []
        for file in part.files:
            if file.identity[1] and (other := own.setdefault(file.identity, file.path)) != file.path:
                again.append(f"{file.path} is the same file as {other}")
        if again:
            notice(f"{root.path}: {counted(again, 'image')} read twice in a split, through links: {min(again)}.")
        if both := seen.keys() & own.keys():
            one = min(both)
            problem = f"{own[one]} is the same file as {seen[one]}, in another split ({len(both):,} files are in two)"
            raise DataError(f"{problem}. Keep each image in one split.")
        seen |= own


def _say_what_is_not_read(root: Folder, parts: dict[str, _Part]) -> None:
    """A line on stderr for each kind of what is on disk and not read."""
    read, roots = {file.path for part in parts.values() for file in part.files}, {part.root for part in parts.values()}
    folders = list(root.walk())
    by_metadata = any(folder.metadata for folder in folders if folder.path in roots)
    where = " that the metadata does not list" if by_metadata else " outside of the folders of splits and classes"
    others = [os.path.join(folder.path, name) for folder in folders for name in folder.others]
    hidden = [os.path.join(folder.path, name) for folder in folders for name in folder.hidden]
    tables = [os.path.join(f.path, name) for f in folders if f.path not in roots for name in f.metadata]
    empty = [inner.path for folder in folders if not folder.is_empty for inner in folder.folders if inner.is_empty]
    for paths, what, why in (
        ([file.path for file in root.below() if file.path not in read], "image", where),
        (others, "file", " that Pillow does not open"),
        (tables, "metadata file", " outside of the folders of splits"),
        (hidden, "hidden folder", ""),
        (empty, "empty folder", ""),
    ):
        if paths:
            names = [os.path.relpath(path, root.path) for path in paths]
            notice(f"{root.path}: not read: {counted(names, what)}{why}: {shown(names)}.")


def _dataset(part: _Part, in_order: bool) -> datasets.Dataset:
    """The split as a data set of paths, in memory. Its fingerprint says the names, sizes and times of its files."""
    key = (lambda row: natural(part.files[row].path)) if in_order else (lambda row: part.files[row].path)
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
