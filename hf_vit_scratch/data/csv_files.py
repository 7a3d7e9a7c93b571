"""Which CSV files of a folder or a zip hold pixels, which split each of them is, and how they are opened.

A source whose CSV files list images instead of holding their pixels, or that is another kind of archive, is refused
with the way that works.
"""

import csv
import gzip
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from .errors import DataError
from .folders import METADATA_NAMES, RUBBISH
from .names import SPLIT_NAMES, split_of

SUBMISSIONS = ("sample_submission", "samplesubmission", "sample-submission")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm")
ARCHIVE_SUFFIXES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
NO_PIXELS = (".parquet", ".arrow")
FILE_WORDS = {"id", "file", "filename", "image", "img", "path", "filepath", "filepaths", "name"}
LABEL_NAMES = ("label", "labels", "class", "target", "y", "digit", "letter", "character")

LINE_BYTES = 8 * 2**20
MAX_COLUMNS = 2**16 + 16  # the pixels of an image of 256x256, and its label, id and index
LISTED_ROWS = 1000
LISTED_FOLDERS = 100


@dataclass(frozen=True)
class CsvFiles:
    """The CSV files of a source.

    Attributes:
        path: the folder or the zip.
        members: `{"train": file inside of it, ...}`, with the keys train and, where there is such a file,
            validation, test and sample_submission.
    """

    path: str
    members: dict[str, str]

    def name(self, role: str) -> str:
        """Name of the file in error messages."""
        return f"{os.path.basename(self.path)}/{self.members[role]}"

    @property
    def on_disk(self) -> list[str]:
        """The paths of the files that hold the data: the zip, or the CSV files."""
        if not os.path.isdir(self.path):
            return [self.path]
        return [os.path.join(self.path, member) for member in self.members.values()]


def find_csv_files(source: str | os.PathLike[str]) -> CsvFiles | None:
    """The CSV files with pixels in a folder, in a zip, or in one file. None if another reader may know the source.

    Raises: DataError if the source holds no pixels, and no other reader takes it either; if it is damaged; or if
        several files could be one split. The message says what to do.
    """
    path = Path(os.path.expanduser(source)).absolute()  # unlike Path.expanduser, it takes the home of nobody
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file() or path.suffix.lower() in NO_PIXELS:
        return None
    if _is_csv(path.name):
        files = CsvFiles(str(path.parent), {"train": path.name})
        if not looks_like_pixels(files.path, path.name):
            raise _no_pixels(files.path, path.name, _first_rows(files.path, path.name), path.parent)
        return files
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return _in_zip(path)
    if path.suffix.lower() in ARCHIVE_SUFFIXES:
        raise DataError(f"{path.name} is an archive that is not read. Unpack it and pass the folder as --data.")
    expected = "a zip or a folder of CSV files with pixels, a CSV file, an image folder, or a Parquet or Arrow file"
    raise DataError(f"{path.name} is none of the kinds of files that are read. Expected {expected}. Check --data.")


def unread_beside(source: str | os.PathLike[str], files: CsvFiles) -> list[str]:
    """What else lies in a folder or a zip that was found to hold `files`: files and, with a slash, other folders."""
    path, used = Path(files.path), set(files.members.values())
    if path.is_dir() and os.path.isfile(os.path.expanduser(source)):
        return []  # the source is one of the files in the folder
    if path.is_dir():
        places = {"", *(str(PurePosixPath(member).parent) for member in used)} - {"."}
        found = [f"{place}/{name}" if place else name for place in places for name in _entries(path / place)[0]]
        found += [f"{name}/" for name in _entries(path)[1] if name not in places]
    else:
        with zipfile.ZipFile(path) as archive:
            found = [info.filename for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
    return [name for name in found if name not in used and PurePosixPath(name).name.lower() not in RUBBISH]


def has_pixel_csv(source: str | os.PathLike[str]) -> bool:
    """Whether a source is read from CSV files with pixels, or refused as one."""
    try:
        return find_csv_files(source) is not None
    except (DataError, OSError):
        return True


@contextmanager
def open_member(path: str, member: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open a file of a folder or a zip, unpacked. Raises: DataError if it is damaged."""
    try:
        with ExitStack() as stack:
            if os.path.isdir(path):
                stream = stack.enter_context(open(os.path.join(path, member), "rb"))
            else:
                stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(member))
            yield stack.enter_context(gzip.open(stream)) if member.lower().endswith(".gz") else stream
    except DataError:
        raise
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        name = f"{os.path.basename(path)}/{member}"
        raise DataError(f"{name} is damaged or cut off ({error}). Download it again.") from error


def split_line(line: bytes) -> list[str]:
    """The values of one line of a CSV, without a byte order mark and the spaces around them."""
    return [value.strip() for value in next(csv.reader([line.decode("utf-8-sig", "replace")]), [])]


def first_line(path: str, member: str) -> list[str]:
    """The values of the first line of a CSV. Raises: DataError if it is no text with lines, or far too long."""
    with open_member(path, member) as stream:
        line = stream.readline(LINE_BYTES)
    problem = None
    if b"\0" in line:
        problem = "it is no text in UTF-8, but perhaps in UTF-16. Save it as CSV in UTF-8"
    elif b"\r" in line.rstrip(b"\r\n"):
        problem = "its lines end in a carriage return alone. Save it with lines that end in a line feed"
    elif line.count(b",") > MAX_COLUMNS:
        problem = f"more than {MAX_COLUMNS:,} columns, which no image of 256x256 pixels has"
    if not problem:
        try:
            return split_line(line)
        except csv.Error as error:
            problem = str(error)
    raise DataError(f"{os.path.basename(path)}/{member}, line 1: {problem}.")


def looks_like_pixels(path: str, member: str) -> bool:
    """Whether the first line names or holds pixels. A damaged train.csv counts: reading it says what is wrong."""
    try:
        values = first_line(path, member)
    except DataError:
        return _split(member) is not None
    pixels = sum(value[-1:].isdigit() for value in values)
    return 2 * pixels > len(values) and pixels >= 4 if values else _split(member) is not None


def _is_csv(name: str) -> bool:
    return name.lower().endswith((".csv", ".csv.gz"))


def _stem(member: str) -> str:
    return re.sub(r"\.csv(\.gz)?$", "", PurePosixPath(member).name, flags=re.IGNORECASE)


def _split(member: str) -> str | None:
    """The split that the name of a file says, or else the name of its folder."""
    return split_of(_stem(member)) or split_of(PurePosixPath(member).parent.name)


def _choose(path: str, members: list[str]) -> dict[str, str]:
    """The member for each split; none if no CSV holds pixels. Raises: DataError if several could be a split."""
    csvs = [m for m in sorted(members) if _is_csv(m) and not _hidden(m)]
    csvs = [m for m in csvs if not (m.lower().endswith(".gz") and m[:-3] in csvs)]
    others = {m for m in csvs if _stem(m).lower() in SUBMISSIONS}
    tables = [m for m in csvs if m not in others and looks_like_pixels(path, m)]
    if not tables:
        return {}
    found = {role: _only(path, role, [m for m in tables if _split(m) == role]) for role in SPLIT_NAMES}
    unnamed = [m for m in tables if _split(m) is None]
    if found["train"] is None and len(unnamed) == 1:
        found["train"] = unnamed[0]
    if found["train"] is None:
        where, names = os.path.basename(path), ", ".join(tables[:5])
        if len(unnamed) > 1:
            do = "Pass the file to train on as --data" + ("" if os.path.isdir(path) else ", after unzipping it")
            raise DataError(f"{where} has no train.csv, but {len(unnamed)} CSV files with pixels: {names}. {do}.")
        raise DataError(f"{where} has no train.csv, so there is nothing to train on. It holds {names}.")
    for role in ("validation", "test"):  # one without pixels is damaged, and reading it says how
        found[role] = found[role] or _only(path, role, [m for m in csvs if _stem(m).lower() in SPLIT_NAMES[role]])
    found["sample_submission"] = _only(path, "sample submission", sorted(others))
    return {role: member for role, member in found.items() if member}


def _only(path: str, role: str, members: list[str]) -> str | None:
    """The member that is called exactly by the role, or else the only one; of several depths the least deep."""
    exact = [m for m in members if _stem(m).lower() in (*SPLIT_NAMES.get(role, ()), *SUBMISSIONS)]
    members = exact or members
    depth = min((m.count("/") for m in members), default=0)
    members = [m for m in members if m.count("/") == depth]
    if len(members) > 1:
        do = "Keep one of them in the folder" if os.path.isdir(path) else "Unzip it and keep one of them"
        names = ", ".join(members[:5])
        raise DataError(f"{os.path.basename(path)} has {len(members)} {role} files with pixels: {names}. {do}.")
    return members[0] if members else None


def _hidden(member: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(member).parts)


# ---- folders


def _in_folder(path: Path) -> CsvFiles | None:
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    members, folders = _entries(path)
    if found := _choose(str(path), members):
        return CsvFiles(str(path), found)
    below = [f"{folder}/{name}" for folder in folders for name in _entries(path / folder)[0] if _is_csv(name)]
    if below and (found := _choose(str(path), below)):
        return CsvFiles(str(path), found)
    for folder in (path, *([path / folders[0]] if len(folders) == 1 else [])):
        for member in sorted((m for m in _entries(folder)[0] if _is_csv(m)), key=lambda m: _split(m) != "train"):
            _refuse_listing(folder, member)
    return None


def _entries(path: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, without hidden ones; none if it cannot be opened."""
    files: list[str] = []
    folders: list[str] = []
    with suppress(OSError), os.scandir(path) as entries:  # the reader of image folders names what cannot be opened
        for entry in entries:
            if not entry.name.startswith((".", "__")):
                (folders if os.path.isdir(entry.path) else files).append(entry.name)
    return files, sorted(folders)


def _refuse_listing(folder: Path, member: str) -> None:
    """Refuse a CSV that lists the images of a folder, and a train.csv beside which there are no classes of images.

    It is no offence beside folders of the classes that it names, or beside a metadata.csv.
    """
    files, folders = _entries(folder)
    if _stem(member).lower() in ("metadata", *SUBMISSIONS) or {*METADATA_NAMES} & {file.lower() for file in files}:
        return
    rows = _first_rows(str(folder), member)
    splits = [f for f in folders if split_of(f) == "train"]
    classes = {name for split in splits for name in _entries(folder / split)[1]} or set(folders) - set(splits)
    if _listed_image(folder, rows) is not None:
        if classes & {value for row in rows[1:] for value in row}:
            return
    elif _stem(member).lower() not in SPLIT_NAMES["train"] or len(classes) > 1:
        return
    raise _no_pixels(str(folder), member, rows, folder)


def _first_rows(path: str, member: str) -> list[list[str]]:
    """The header and some rows of a CSV that holds no pixels, up to the first line that is no CSV."""
    rows = []
    with open_member(path, member) as stream, suppress(csv.Error):
        while len(rows) <= LISTED_ROWS and (line := stream.readline(LINE_BYTES)):
            if line.count(b",") > MAX_COLUMNS:
                break
            rows.append(split_line(line))
    return [row for row in rows if row]


def _listed_image(folder: Path, rows: list[list[str]]) -> int | None:
    """The place of the column whose values differ and name images in the folder or in a folder of it, or None."""
    places = [folder, *(folder / name for name in _entries(folder)[1][:LISTED_FOLDERS])]
    for place, value in enumerate(rows[1][:10] if len(rows) > 1 else []):
        suffixes = ("",) if value.lower().endswith(IMAGE_SUFFIXES) else (*IMAGE_SUFFIXES, ".JPG", ".JPEG", ".PNG")
        column = [row[place] for row in rows[1:] if place < len(row)]
        if (
            0 < len(value) < 200
            and "\0" not in value
            and len({*column}) == len(column)
            and any((where / f"{value}{suffix}").is_file() for where in places for suffix in suffixes)
        ):
            return place
    return None


def _file_column(rows: list[list[str]], folder: Path | None) -> int | None:
    """The place of the column that names the images, by its values or by its name; None if the CSV lists no images."""
    header = rows[0]
    if folder and (place := _listed_image(folder, rows)) is not None:
        return place
    for place, value in enumerate(rows[1] if len(rows) > 1 else []):
        if value.lower().endswith(IMAGE_SUFFIXES):
            return place
    if not any(column.lower() in LABEL_NAMES for column in header):
        return None
    words = [set(re.split(r"[\W_]+", column.lower())) for column in header]
    return next((place for place, found in enumerate(words) if found <= FILE_WORDS), None)


def _no_pixels(path: str, member: str, rows: list[list[str]], folder: Path | None) -> DataError:
    """The error for a CSV without pixels. `folder`: where the images that it may list would lie; None in a zip."""
    name = f"{os.path.basename(path)}/{member}"
    if not rows:
        return DataError(f"{name} is empty, or its first line is no CSV. Expected a header and one row per image.")
    header = rows[0]
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        return DataError(f"{name}, line 1: expected values separated by commas, found {header[0][:30]!r}.")
    place = _file_column(rows, folder)
    if place is None or place >= len(header):
        problem = f"column 'label' is missing and column {header[0]!r} is unknown"
        expected = "Expected one column for each pixel: label, pixel0 ... pixel783"
        return DataError(f"{name}, header row (line 1): {problem}. {expected}.")
    column, value = header[place], rows[1][place] if len(rows) > 1 else ""
    steps = "Rename it to metadata.csv"
    if column != "file_name":
        steps += f", rename its column {column!r} to 'file_name'"
    if value and not value.lower().endswith(IMAGE_SUFFIXES):
        steps += f", add the suffix to the names ({value[:40]} becomes {value[:40]}.jpg, for example)"
    if not (folder and value and (folder / value).is_file()):  # file names start from the folder of the table
        steps += ", move it into the folder with the images"
    steps += ", and pass that folder as --data"
    if "label" not in header:
        steps += " (with --label_column if the labels are in one column, but not in 'label')"
    columns = ", ".join(header[:5]) + (", ..." if len(header) > 5 else "")
    unzip = "" if folder else "Unzip the archive first. "
    return DataError(f"{name} lists images (columns {columns}) and has no pixels. {unzip}{steps}.")


# ---- zips


def _in_zip(path: Path) -> CsvFiles:
    expected = "Expected a zip of CSV files with one column for each pixel, as the competition's digit-recognizer.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info.filename for info in archive.infolist() if not info.is_dir()]
            names = archive.namelist()
            encrypted = any(info.flag_bits & 1 for info in archive.infolist())
    except Exception as error:  # zipfile raises many types of exceptions for a damaged directory
        raise DataError(f"{path} is not a complete zip ({error}). {expected}. Download it again.") from error
    outside = [m for m in names if m.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", m) or ":" in m]
    if outside or encrypted:
        reason = f"holds {outside[0]!r}, a path outside of the zip" if outside else "is encrypted"
        raise DataError(f"{path} {reason}. {expected}.")
    if found := _choose(str(path), members):
        return CsvFiles(str(path), found)
    members = [m for m in members if not _hidden(m)]
    images = [m for m in members if m.lower().endswith(IMAGE_SUFFIXES)]
    csvs = [m for m in members if _is_csv(m) and _stem(m).lower() != "metadata"]
    train = next((m for m in csvs if _split(m) == "train"), csvs[0] if len(csvs) == 1 else None)
    if train and not (classes := {PurePosixPath(m).parent.name for m in images}) or train and len(classes) == 1:
        raise _no_pixels(str(path), train, _first_rows(str(path), train), None)
    found = ", ".join(sorted(PurePosixPath(m).name for m in members)[:5]) or "nothing"
    do = "Unzip it and pass the folder as --data" if members else "Check --data"
    raise DataError(f"{path.name} has no train.csv with pixels. It holds {found}. {do}.")
