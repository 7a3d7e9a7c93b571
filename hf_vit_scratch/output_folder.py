"""The output folder: names of its files, files and folders that are whole or not there, and who may write."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# The model.
CONFIG_NAME, PREPROCESSOR_NAME = "config.json", "preprocessor_config.json"
WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
WEIGHTS_PATTERNS = (WEIGHTS_NAME, "model-*-of-*.safetensors", WEIGHTS_INDEX_NAME)
CODE_NAMES = (
    "configuration_vit_scratch.py",
    "modeling_vit_scratch.py",
    "image_processing_vit_scratch.py",
    "digits_vit_scratch.py",
)
# Card, results, settings and plots.
CARD_NAME, RESULTS_NAME, SETTINGS_NAME = "README.md", "all_results.json", "training_args.json"
CURVES_PLOT, CONFUSION_PLOT, EXAMPLE_NAME = "curves.png", "confusion_matrix.png", "example.png"
EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT = "evaluation.json", "robustness.png", "wrong.png"
SUBMISSION_NAME = "submission.csv"
# Files for resuming a run.
TEACHER_NAME, AVERAGE_NAME = "teacher.safetensors", "average.safetensors"
EMISSIONS_NAME = "emissions.csv"  # written by codecarbon, with --report_to codecarbon
MANIFEST_NAME, LOCK_NAME = "manifest.json", ".lock"

MAX_JSON_BYTES = 2**26  # of a file that is read; the config of a million classes has 50 MB


@contextmanager
def written_whole(file: str | os.PathLike) -> Iterator[Path]:
    """Write a file atomically: a context with a temporary path, which is renamed to `file` when the block ends.

    If the block fails, the temporary file is removed and `file` is unchanged. Several processes may write the same
    file; the last one wins.
    """
    partial = Path(f"{file}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, file)
        _sync(partial.parent)
    finally:
        partial.unlink(missing_ok=True)


def real_path(path: str | os.PathLike) -> Path:
    """A path without links and `~`. Of a link to itself, which `Path.resolve` cannot follow, the path of the link."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with written_whole(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: str | os.PathLike, content: dict) -> None:
    """Write a JSON file, atomically."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_json(file: str | os.PathLike) -> dict:
    """Read a JSON file that holds an object. Raises: OSError, or ValueError if it is another file, in one line."""
    path = Path(file)
    if path.exists() and not path.is_file():  # to open a pipe could take for ever
        raise ValueError(f"{path.name} is not a file.")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has {size:,} bytes, expected at most {MAX_JSON_BYTES:,}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged: it is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold a JSON object, got {type(content).__name__}.")
    return content


def _sync(path: Path) -> None:
    """Have the disk write a file, or the names in a folder, so that they outlive a power failure."""
    if os.name != "posix":  # Windows opens no folders, and syncs only what is open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- manifests


def write_manifest(folder: Path, files: Iterable[Path]) -> None:
    """Write manifest.json: the size and the SHA-256 of these files in a folder. They are synced to the disk first."""
    entries = {}
    for file in sorted(files):
        _sync(file)
        entries[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    write_json(folder / MANIFEST_NAME, {"files": entries})


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(folder: Path) -> list[str] | None:
    """Compare a folder with its manifest. Returns: one phrase for each file that differs; None without a manifest."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        files = read_json(folder / MANIFEST_NAME)["files"]
        return [phrase for name, entry in files.items() if (phrase := _difference(folder, name, entry))]
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        return [f"{MANIFEST_NAME} cannot be read"]


def _difference(folder: Path, name: str, entry: dict) -> str:
    file, size = folder / name, entry["size"]
    try:
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, and {size:,} were written"
        return "" if _sha256(file) == entry["sha256"] else f"{name} has changed since it was written"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def move_into_place(folder: Path, target: Path) -> None:
    """Give a folder its name when all of it is on the disk: write its manifest, then rename it.

    A folder that has the name already is replaced. `folder` must be in a folder of its own, beside `target`, since the
    replaced folder is moved there.
    """
    write_manifest(folder, [path for path in folder.rglob("*") if path.is_file()])
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _sync(path)
    if target.exists():
        os.replace(target, folder.parent / "replaced")
    os.replace(folder, target)
    _sync(target.parent)
    shutil.rmtree(folder.parent)


# ---- one writer


class Lock:
    """Keeps a second process from writing into a folder, until it is released or this process ends, however it ends.

    On a file system without locks, and on Windows, it does nothing.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / LOCK_NAME
        self._stream = None

    def acquire(self) -> None:
        """Lock the folder, which must exist. Raises: ValueError if another process holds the lock."""
        if fcntl is None or self._stream is not None:
            return
        self._stream = open(self.file, "a+", encoding="utf-8")
        try:
            # Not flock, which the workers of a DataLoader would inherit, and hold for seconds after a crash.
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # locks are not supported here
                return
            self._stream.seek(0)
            owner = self._stream.read().strip() or "another process"
            self.release()
            raise ValueError(
                f"{self.folder} is in use: {owner} is training there. Wait until it has ended, stop it, or choose "
                "another --output_dir."
            ) from error
        self._stream.truncate(0)
        self._stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._stream.flush()

    def release(self) -> None:
        """Let other processes write into the folder."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None
