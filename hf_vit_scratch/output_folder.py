"""The names of the files in an output folder, and functions that write files atomically."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The model.
CONFIG_NAME, PREPROCESSOR_NAME = "config.json", "preprocessor_config.json"
WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
WEIGHTS_PATTERNS = (WEIGHTS_NAME, "model-*-of-*.safetensors", WEIGHTS_INDEX_NAME)
CODE_NAMES = (
    "configuration_vit_scratch.py",
    "modeling_vit_scratch.py",
    "image_processing_vit_scratch.py",
)
# Card, results, settings and plots.
CARD_NAME, RESULTS_NAME, SETTINGS_NAME = "README.md", "all_results.json", "training_args.json"
CURVES_PLOT, CONFUSION_PLOT, EXAMPLE_NAME = "curves.png", "confusion_matrix.png", "example.png"
EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT = "evaluation.json", "robustness.png", "wrong.png"
SUBMISSION_NAME = "submission.csv"
# Files for resuming a run.
TEACHER_NAME, AVERAGE_NAME = "teacher.safetensors", "average.safetensors"
EMISSIONS_NAME = "emissions.csv"  # written by codecarbon, with --report_to codecarbon

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
        os.replace(partial, file)
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
        raise ValueError(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold a JSON object, got {type(content).__name__}.")
    return content
