"""What is on disk in a folder of images: images, metadata files, other files, and folders.

Links are followed, and Pillow decides what an image is. Only what operating systems, archives and notebooks leave
behind, and text files beside an image of the same name, is passed over without a word.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import PIL.Image
import PIL.ImageFile

from .errors import DataError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
RUBBISH = {
    *(".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", ".ipynb_checkpoints", "__pycache__"),
    *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
}
_SIDECAR_SUFFIXES = (".json", ".txt", ".xml", ".xmp", ".yaml", ".yml")
# Formats that Pillow recognizes, but cannot decode by itself.
_STUBS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


class File(NamedTuple):
    """An image: path, size in bytes, time of the last change in ns, and what a hard link shares with it."""

    path: str
    size: int
    changed: int
    identity: tuple[int, int]


@dataclass
class Folder:
    """A folder as it is on disk, without rubbish.

    Attributes:
        images: files that Pillow opens.
        metadata, others, hidden: names of the metadata files, of all other files, and of hidden folders.
        folders: its other folders.
        num_images, num_others: numbers of images and of other files in it and in all folders below it.
        is_empty: whether nothing lies in it or in any folder below it.
    """

    path: str
    images: list[File] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    folders: "list[Folder]" = field(default_factory=list)
    num_images: int = 0
    num_others: int = 0
    is_empty: bool = False

    @property
    def name(self) -> str:
        """Its own name, without the path."""
        return os.path.basename(self.path)

    @property
    def holding(self) -> "list[Folder]":
        """Its folders that hold images."""
        return [folder for folder in self.folders if folder.num_images]

    def walk(self) -> "Iterator[Folder]":
        """The folder and all below it."""
        waiting = [self]
        while waiting:
            yield (folder := waiting.pop())
            waiting += folder.folders

    def below(self) -> list[File]:
        """The images of the folder and of all below it."""
        return [file for folder in self.walk() for file in folder.images]


def scan(path: str) -> Folder:
    """The folder with everything below it. No folder is entered twice.

    Raises: DataError for a folder or a link that cannot be opened, a folder that is reached twice, or a name that is
        not UTF-8.
    """
    root, entered = Folder(path), {}
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
        _sort_files(folder, _regular_files(folder, entries))
        waiting += reversed(folder.folders)
    for folder in reversed(order):  # from the leaves to the root
        folder.num_images = len(folder.images) + sum(inner.num_images for inner in folder.folders)
        folder.num_others = len(folder.others) + sum(inner.num_others for inner in folder.folders)
        own = folder.images or folder.metadata or folder.others or folder.hidden
        folder.is_empty = not own and all(inner.is_empty for inner in folder.folders)
    return root


def _regular_files(folder: Folder, entries: list[os.DirEntry]) -> list[File]:
    """The files among the entries of a folder. All other entries are added to the folder."""
    files = []
    for entry in entries:
        name = entry.name
        if name.lower() in RUBBISH or name.startswith("._"):
            continue
        try:
            name.encode()
            status = entry.stat()
        except UnicodeEncodeError as error:
            raise DataError(f"the name {entry.path!r} is not valid UTF-8. Rename it.") from error
        except OSError as error:  # a link to nothing, or to itself
            raise DataError(f"{entry.path!r} cannot be read: {error.strerror}. Repair or remove it.") from error
        if stat.S_ISREG(status.st_mode):
            files.append(File(entry.path, status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino)))
        elif not stat.S_ISDIR(status.st_mode):  # to open a pipe could take for ever
            folder.others.append(name)
        elif name.startswith("."):  # such as .git
            folder.hidden.append(name)
        else:
            folder.folders.append(Folder(entry.path))
    return files


def _sort_files(folder: Folder, files: list[File]) -> None:
    """Tell images, metadata, text files beside an image and other files of a folder apart."""
    suffixes, unsure = _image_suffixes(), []
    for file in files:
        (folder.images if _suffix(file.path) in suffixes else unsure).append(file)
    names = {os.path.basename(file.path) for file in folder.images}
    names |= {os.path.splitext(name)[0] for name in names}
    for file in unsure:
        name = os.path.basename(file.path)
        if name.lower() in METADATA_NAMES:
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
