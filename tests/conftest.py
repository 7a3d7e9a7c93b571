"""Fixtures that several rooms share: caches, a finished run, a Hub on loopback."""

import gc
import json
import os
import signal
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may need the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from helpers import TINY, call_it_the_competition, competition_zip  # noqa: E402 - it imports torch

# A pytest that a script has started in the background ignores Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each of several pytest processes, and whatever it starts, has a core of its own: two threads each on one and the same
# two cores would wait for each other, and take as long as one pytest process.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


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


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A finished run on a small zip that is taken for the competition's. Beside it: digits.zip, test_labels.json."""
    from hf_vit_scratch.training import main

    folder = tmp_path_factory.mktemp("run")
    labels = competition_zip(folder / "digits.zip")
    (folder / "test_labels.json").write_text(json.dumps(labels.tolist()))
    learn = ["--num_train_epochs", "40", "--learning_rate", "1e-2", "--label_smoothing_factor", "0"]
    flags = [*TINY, *learn, "--weight_decay", "0", "--augmentation", "none", "--bf16", "false"]
    with pytest.MonkeyPatch.context() as patch:
        call_it_the_competition(patch, folder / "digits.zip")
        main(["--data", str(folder / "digits.zip"), "--output_dir", str(folder / "out"), *flags])
    return folder / "out"


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> str:
    """The path of a small competition zip."""
    path = tmp_path_factory.mktemp("digits") / "digits.zip"
    competition_zip(path)
    return str(path)


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback, and `hub.environment()` for the processes that talk to it."""
    from hub_server import Hub

    with Hub(tmp_path / "hub") as server:
        yield server
    assert not server.errors, server.errors


def pytest_collection_modifyitems(items):
    """The two longest tests first, so that no pytest process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_pages.py", "test_benchmarks.py"))
