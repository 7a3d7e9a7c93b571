"""What many tests need: small data that a small model can learn, flags of a short run, refusals in one line."""

import csv
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parent.parent
# The flags of a model and a run that take a second.
TINY_MODEL = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--intermediate_size", "32"),
]
TINY = [
    *TINY_MODEL,
    *("--patch_size", "7", "--num_train_epochs", "2", "--per_device_train_batch_size", "32"),
    *("--torch_compile", "false", "--learning_rate", "3e-3", "--use_cpu", "true", "--disable_tqdm", "true"),
]


def blocks(labels: np.ndarray, seed: int = 0, side: int = 28) -> np.ndarray:
    """uint8 images `(num_images, side, side)`: dark noise, and a bright block whose place says the class."""
    pixels = np.random.default_rng(seed).integers(0, 30, (len(labels), side, side), dtype=np.uint8)
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


def call_it_the_competition(patch: pytest.MonkeyPatch, file: Path) -> None:
    """Let a small zip be the competition's, which is known by the hash of its train.csv and its numbers of rows."""
    from hf_vit_scratch.data import digit_recognizer

    with zipfile.ZipFile(file) as archive:
        train, test = (archive.read(f"{name}.csv") for name in ("train", "test"))
    rows = tuple(text.count(b"\n") - 1 for text in (train, test))
    patch.setitem(digit_recognizer.COMPETITION_FILES, hashlib.sha256(train).hexdigest(), rows)


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


def pictures(batch=4, height=28, width=28):
    """Smooth pictures, black at the border, so that two bilinear gathers of them can be compared."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 1, 5, 5, generator=generator)
    coarse[:, :, [0, -1], :] = coarse[:, :, :, [0, -1]] = 0
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)


def refused(capsys, program: str, main, *argv: str) -> str:
    """The one line with which a program refuses bad input, and exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    *progress, line = printed.strip().splitlines()  # the first to read the sample shows how far it is
    assert line.startswith(f"{program}: error:") and not [other for other in progress if "rror" in other]
    return line


def refused_by_train(capsys, *argv: str) -> str:
    """The one line with which train.py refuses these flags."""
    from hf_vit_scratch.training import main

    return refused(capsys, "train.py", main, *argv)


def refused_by_vit_scratch(capsys, *argv: str) -> str:
    """The one line with which vit-scratch refuses this command."""
    from hf_vit_scratch.cli import main

    return refused(capsys, "vit-scratch", main, *argv)


def weights(folder) -> dict[str, torch.Tensor]:
    """The weights in a folder, by name."""
    return load_file(Path(folder) / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are the same, bit by bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """All weights but the key's biases: softmax takes no notice of them, so their gradient is rounding noise."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        parts = (0, 2) if name.endswith("qkv.bias") else (0,)
        chunks = 3 if name.endswith("qkv.bias") else 1
        for part in parts:
            one, other = actual[name].chunk(chunks)[part], tensor.chunk(chunks)[part]
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def numbered_image(number: int) -> bytes:
    """A PNG whose pixels all have this value, from 0 to 255, so that it is known wherever it appears."""
    stream = io.BytesIO()
    Image.new("L", (8, 8), number).save(stream, "png")
    return stream.getvalue()


def tar_shard(path: Path, members: dict[str, bytes]) -> None:
    """A tar with these files, by tarfile alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def numbered_shards(folder: Path, kind: str, sizes: dict[str, list[int]]) -> None:
    """Shards of [`numbered_image`], as many as `sizes` says for each split, from 0; their class is odd or even.

    `kind` is "tar" or "parquet". A split test is not labelled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in sizes.items():
        numbers = iter(range(256))
        for shard, count in enumerate(rows):
            few, name = [next(numbers) for _ in range(count)], folder / f"{split}-{shard:05d}.{kind}"
            if kind == "tar":
                images = {f"{number:03d}.png": numbered_image(number) for number in few}
                labels = {f"{number:03d}.cls": b"%d" % (number % 2) for number in few if split != "test"}
                tar_shard(name, dict(sorted({**images, **labels}.items())))
            else:
                image = [{"bytes": numbered_image(number), "path": None} for number in few]
                label = {} if split == "test" else {"label": ["even" if number % 2 == 0 else "odd" for number in few]}
                pq.write_table(pa.table({"image": image, **label}), name, row_group_size=7)
