"""Small data that a small model can learn: each class is a bright block in a place of its own."""

import csv
import gc
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may need the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

REPOSITORY = Path(__file__).parent.parent
# The flags of a model and a run that take a second.
TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--intermediate_size", "32"),
    *(
        "--patch_size",
        "7",
        "--num_train_epochs",
        "2",
        "--per_device_train_batch_size",
        "32",
        "--torch_compile",
        "false",
    ),
    *("--learning_rate", "3e-3", "--use_cpu", "true", "--disable_tqdm", "true"),
]


@pytest.fixture(scope="module", autouse=True)
def fast_collection_of_garbage():
    """A Trainer collects garbage at each start, which takes 0.3 s with all that the libraries hold: it is left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """Caches of the Hugging Face libraries that the tests do not share with the user's."""
    import datasets

    folder = tmp_path_factory.mktemp("cache")
    os.environ["HF_HOME"] = os.environ["HF_DATASETS_CACHE"] = str(folder)
    datasets.config.HF_DATASETS_CACHE = str(folder)


def blocks(labels: np.ndarray, seed: int = 0, side: int = 28) -> np.ndarray:
    """uint8 images `(num_images, side, side)`: noise, and a bright block whose place says the class."""
    pixels = np.random.default_rng(seed).integers(0, 60, (len(labels), side, side), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[row * side // 4 + 1 :, column * side // 4 + 1 :][: side // 5, : side // 5] = 250
    return pixels


def competition_zip(path: Path, num_train: int = 200, num_test: int = 50) -> np.ndarray:
    """A zip with the three files of the competition, by csv alone. Returns the labels of test.csv."""
    names = [f"pixel{index}" for index in range(784)]

    def text(header, rows) -> str:
        stream = io.StringIO(newline="")
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
        return stream.getvalue()

    train, test = np.arange(num_train) % 10, (np.arange(num_test) * 7 + 3) % 10
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        rows = np.column_stack([train, blocks(train, seed=1).reshape(num_train, -1)]).tolist()
        archive.writestr("train.csv", text(["label", *names], rows))
        archive.writestr("test.csv", text(names, blocks(test, seed=2).reshape(num_test, -1).tolist()))
        archive.writestr("sample_submission.csv", text(["ImageId", "Label"], [[i + 1, 0] for i in range(num_test)]))
    return test


def photo_folder(path: Path, per_class: int = 8, test: str = "") -> None:
    """RGB pictures of several sizes, in train/ and val/, of two classes that differ in colour.

    With `test` "labelled" there is a test/ like them, with "flat" one without folders of classes.
    """
    random = np.random.default_rng(3)
    for split, count in (("train", per_class), ("val", per_class // 2), *([("test", 3)] if test else [])):
        for label, colour in (("blue", 2), ("red", 0)):
            folder = path / split if split == "test" and test == "flat" else path / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = random.integers(0, 80, (40 + 3 * index, 60 - 2 * index, 3), dtype=np.uint8)
                pixels[..., colour] += 150
                Image.fromarray(pixels).save(folder / f"{label}{index}.jpg")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A finished run on a small competition zip. Beside it: digits.zip and test_labels.json."""
    from hf_vit_scratch.training import main

    folder = tmp_path_factory.mktemp("run")
    labels = competition_zip(folder / "digits.zip")
    (folder / "test_labels.json").write_text(json.dumps(labels.tolist()))
    learn = ["--num_train_epochs", "40", "--learning_rate", "1e-2", "--label_smoothing_factor", "0"]
    flags = [*TINY, *learn, "--weight_decay", "0", "--augmentation", "none", "--bf16", "false"]
    main(["--data", str(folder / "digits.zip"), "--output_dir", str(folder / "out"), *flags])
    return folder / "out"


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback, and `hub.environment()` for the processes that talk to it."""
    from hub_server import Hub

    with Hub(tmp_path / "hub") as server:
        yield server
    assert not server.errors, server.errors
