"""Pixels in CSV: the forms in which people bring them, compared with what was written, and what is refused."""

import csv
import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers import competition_zip
from packaging.version import Version
from PIL import Image

from hf_vit_scratch.data import DataError, digit_recognizer, load, pixel_array, pixel_csv, source_name
from hf_vit_scratch.data.digit_recognizer import write_submission
from hf_vit_scratch.settings.recipe import default_recipe
from hf_vit_scratch.training.results import save_example


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def pixel_names(count: int, start: int = 0, form: str = "pixel{}") -> list[str]:
    return [form.format(i) for i in range(start, start + count)]


def images(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, size * size))


def written(file: Path, header: list[str] | None, *columns) -> str:
    """Write a CSV of columns, each an array of one or two dimensions, and return its text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = [np.asarray(column).astype(str) for column in columns]
    rows = np.column_stack(columns).tolist()
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([*([header] if header else []), *rows])
    file.write_text(stream.getvalue())
    return stream.getvalue()


def zipped(folder: Path, file: Path, wrapper: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, wrapper + str(path.relative_to(folder)))
    return file


def failure(source, cache, **options) -> str:
    with pytest.raises(DataError) as error:
        load(source, cache_dir=cache, **options)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.arrow"))
    return str(error.value)


def check(split: datasets.Dataset, pixels: np.ndarray, labels: list[str] | None) -> None:
    """The pixels, row by row of each image, and the names of the classes, or no labels."""
    side = int(pixels.shape[1] ** 0.5)
    np.testing.assert_array_equal(pixel_array(split)[..., 0], pixels.reshape(-1, side, side))
    np.testing.assert_array_equal(np.asarray(split[1]["image"]), pixels[1].reshape(side, side))
    if labels is None:
        assert "label" not in split.column_names
    else:
        assert [split.features["label"].names[code] for code in split["label"][:]] == labels


# ---- forms of a header


FORMS = {
    # name: (size, header before the pixels, their names, header after them)
    "Fashion-MNIST": (28, ["label"], pixel_names(784, 1), []),
    "64x64": (64, ["label"], pixel_names(4096), []),
    "8x8": (8, ["label"], pixel_names(64), []),
    "pixel_0": (28, ["label"], pixel_names(784, 0, "pixel_{}"), []),
    "padded, label last": (10, [], pixel_names(100, 0, "pixel{:04}"), ["label"]),
    "1x1": (28, ["label"], [f"{i}x{j}" for i in range(1, 29) for j in range(1, 29)], []),
    "pixel_0_0": (12, ["label"], [f"pixel_{i}_{j}" for i in range(12) for j in range(12)], []),
    "numbers": (28, ["label"], pixel_names(784, 0, "{}"), []),
    "class last": (16, [], pixel_names(256, 1, "x{}"), ["class"]),
    "index without a name": (28, ["", "label"], pixel_names(784), []),
    "Unnamed: 0": (9, ["Unnamed: 0", "label"], pixel_names(81, 1), []),
    "index and label last": (9, [""], pixel_names(81), ["label"]),
    "id in train": (28, ["id", "label"], pixel_names(784), []),
    "numbered header": (28, ["0"], pixel_names(784, 1, "{}"), []),
    "index and numbered header": (28, ["", "0"], pixel_names(784, 1, "{}"), []),
    "no header": (28, None, None, None),
    "no header, 20x20": (20, None, None, None),
    "no header, index": (28, None, None, ["index"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_columns(form, tmp_path, cache):
    size, before, names, after = FORMS[form]
    for split, rows in (("train", 40), ("test", 8)):
        pixels, labels, numbers = images(rows, size, rows), np.arange(rows) % 4, np.arange(rows) + 1000
        if names is None:
            written(tmp_path / "own" / f"mnist_{split}.csv", None, *([numbers] if after else []), labels, pixels)
            continue
        columns = [labels if name in ("label", "class", "0") else numbers for name in before]
        columns += [pixels, *([labels] if after else [])]
        written(tmp_path / "own" / f"mnist_{split}.csv", before + names + after, *columns)
    splits = load(tmp_path / "own", cache_dir=cache, validation_size=0)
    assert {name: split.column_names for name, split in splits.items()} == dict.fromkeys(
        ("train", "test"), ["image", "label"]
    )
    for split, rows in (("train", 40), ("test", 8)):
        check(splits[split], images(rows, size, rows), [str(i % 4) for i in range(rows)])


PLACES = {
    "folder": lambda folder, tmp: folder,
    "zip": lambda folder, tmp: zipped(folder, tmp / "own.zip"),
    "zip with a wrapper": lambda folder, tmp: zipped(folder, tmp / "own.zip", "archive (1)/"),
    "folder with a wrapper": lambda folder, tmp: folder.rename(tmp / "archive") and tmp,
    "zip without a suffix": lambda folder, tmp: zipped(folder, tmp / "own"),
    "gz": lambda folder, tmp: [packed(file) for file in folder.iterdir()] and folder,
    "zip of gz": lambda folder, tmp: [packed(f) for f in folder.iterdir()] and zipped(folder, tmp / "own.zip"),
}


def packed(file: Path) -> Path:
    (file.parent / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return file.parent / f"{file.name}.gz"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "names", [("train", "test"), ("sign_mnist_train", "sign_mnist_test"), ("TrainData", "holdout")]
)
def test_the_places_and_names_of_the_files(names, place, tmp_path, cache):
    folder = tmp_path / "data" / "own" if place == "folder with a wrapper" else tmp_path / "digits"
    header = ["label", *pixel_names(784, 1)]
    labels = [label for label in range(25) if label != 9]
    for name, times in zip(names, (4, 1), strict=True):
        written(folder / f"{name}.csv", header, labels * times, images(24 * times, 28, times))
    written(folder / "Dig-MNIST.csv", header, [1, 2], images(2, 28))  # as in Kannada-MNIST: neither train nor test
    splits = load(PLACES[place](folder, tmp_path), cache_dir=cache, validation_size=0)
    assert splits["train"].features["label"].names == [str(label) for label in labels]
    check(splits["train"], images(96, 28, 4), [str(label) for label in labels] * 4)
    check(splits["test"], images(24, 28, 1), [str(label) for label in labels])


def test_a_file_by_itself_and_one_under_any_name_is_train(tmp_path, cache):
    pixels, labels = images(30, 28), np.arange(30) % 26
    written(tmp_path / "az" / "A_Z Handwritten Data.csv", None, labels, pixels)
    for source in (
        tmp_path / "az",
        tmp_path / "az" / "A_Z Handwritten Data.csv",
        zipped(tmp_path / "az", tmp_path / "z.zip"),
    ):
        splits = load(source, cache_dir=cache, validation_size=0)
        assert list(splits) == ["train"]
        check(splits["train"], pixels, labels.astype(str).tolist())
    assert source_name(tmp_path / "az" / "A_Z Handwritten Data.csv") == "A_Z Handwritten Data.csv"
    check(
        load(packed(tmp_path / "az" / "A_Z Handwritten Data.csv"), cache_dir=cache, validation_size=0)["train"],
        pixels,
        labels.astype(str).tolist(),
    )


def test_a_validation_file_is_the_validation_split(tmp_path, cache):
    for name, rows in (("letters-train", 20), ("letters-val", 6)):
        written(
            tmp_path / "own" / f"{name}.csv", ["label", *pixel_names(25)], np.arange(rows) % 2, images(rows, 5, rows)
        )
    splits = load(tmp_path / "own", cache_dir=cache)
    assert {name: len(split) for name, split in splits.items()} == {"train": 20, "validation": 6}
    check(splits["validation"], images(6, 5, 6), ["0", "1"] * 3)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2, 200], ["2", "9", "10", "200"]),
        (["b", "a", "c", "a b"], ["a", "a b", "b", "c"]),
        (["x10", "x9", " x1 ", "x2"], ["x1", "x2", "x9", "x10"]),
        (["A", "7", "b", "12"], ["7", "12", "A", "b"]),
        ([-1, 1, -1, 1], ["-1", "1"]),
        (["1.5", "0.5", "2.0", "10.0"], ["0.5", "1.5", "2.0", "10.0"]),
    ],
)
def test_classes_are_the_labels_of_train_in_natural_order(labels, names, tmp_path, cache):
    written(tmp_path / "own" / "train.csv", ["label", *pixel_names(16)], labels * 5, images(20, 4))
    written(tmp_path / "own" / "test.csv", ["label", *pixel_names(16)], labels[:2], images(2, 4, 1))
    splits = load(tmp_path / "own", cache_dir=cache, validation_size=0)
    assert splits["train"].features["label"].names == names
    check(splits["train"], images(20, 4), [str(label).strip() for label in labels] * 5)
    check(splits["test"], images(2, 4, 1), [str(label).strip() for label in labels[:2]])


def test_the_column_of_the_labels_may_have_another_name(tmp_path, cache):
    header = [*pixel_names(16), "emotion"]
    written(tmp_path / "own" / "train.csv", header, images(20, 4), ["sad", "glad"] * 10)
    message = failure(tmp_path / "own", cache)
    assert "'label' is missing and column 'emotion' is unknown" in message and "--label_column" in message
    splits = load(tmp_path / "own", cache_dir=cache, validation_size=0, label_column="emotion")
    check(splits["train"], images(20, 4), ["sad", "glad"] * 10)
    assert "'mood' is missing" in failure(tmp_path / "own", cache.with_name("other"), label_column="mood")


@pytest.mark.parametrize("place", ["folder", "zip", "wrapper"])
def test_what_else_lies_there_is_named(place, tmp_path, cache, capsys):
    folder = tmp_path / "own" / "data" if place == "wrapper" else tmp_path / "own"
    header = ["label", *pixel_names(16)]
    for name in ("train", "test", "Dig-MNIST", "train_augmented"):
        written(folder / f"{name}.csv", header, [0, 1], images(2, 4))
    (folder / "t10k-images-idx3-ubyte").touch()
    (folder / ".DS_Store").touch()
    (folder / "thumbs.db").touch()
    if place == "folder":
        written(folder / "more" / "test.csv", header, [0, 1], images(2, 4))
    source = zipped(folder, tmp_path / "own.zip") if place == "zip" else tmp_path / "own"
    load(source, cache_dir=cache, validation_size=0)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    before = "data/" if place == "wrapper" else ""
    assert f"read from {before}train.csv, {before}test.csv; not read: " in line
    names = ["Dig-MNIST.csv", *(["more/"] if place == "folder" else []), "t10k-images-idx3-ubyte"]
    assert ", ".join(before + name for name in names) in line
    assert line.endswith(" and 1 more." if place == "folder" else "train_augmented.csv.")
    load(folder / "train.csv", cache_dir=cache, validation_size=0)
    assert "not read" not in capsys.readouterr().err


def test_notices_about_classes_are_those_of_image_folders(tmp_path, cache, capsys):
    header = ["label", *pixel_names(16)]
    written(tmp_path / "own" / "train.csv", header, ["a", "A", "b"] * 4, images(12, 4))
    written(tmp_path / "own" / "eval.csv", header, ["a", "A"], images(2, 4))
    assert list(load(tmp_path / "own", cache_dir=cache)) == ["train", "validation"]
    printed = capsys.readouterr().err
    assert "'A' and 'a'" in printed and "split validation has no image of 1 of the 3 classes: b." in printed
    written(tmp_path / "own" / "train.csv", header, ["a"] * 12, images(12, 4))
    with pytest.raises(DataError, match="all images of train have the label 'a'"):
        load(tmp_path / "own" / "train.csv", cache_dir=cache)


# ---- the submission


def submission(splits: datasets.DatasetDict, file: Path) -> list[list[str]]:
    """The rows of a submission in which each image gets the class of its row number, modulo the classes."""
    names = splits["train"].features["label"].names
    logits = torch.eye(len(names))[torch.arange(len(splits["test"])) % len(names)]
    write_submission(logits, dict(enumerate(names)), file, splits["test"])
    return [line.split(",") for line in file.read_text().splitlines()]


IDS = {
    # name: (ids and name of the column in test.csv, header and ids of sample_submission.csv, header and ids expected)
    "Kannada-MNIST": (("id", range(5)), (["id", "label"], range(5)), (["id", "label"], range(5))),
    "without a sample": (("id", [7, 3, 9, 1, 5]), None, (["id", "label"], [7, 3, 9, 1, 5])),
    "texts": (
        ("image_id", ["0a", "007", "x y", "z", "é"]),
        None,
        (["image_id", "label"], ["0a", "007", "x y", "z", "é"]),
    ),
    "Label of the sample": (("Id", range(5)), (["Id", "Digit"], range(5)), (["Id", "Digit"], range(5))),
    "sample alone": (None, (["id", "label"], range(5)), (["id", "label"], range(5))),
    "competition": (None, (["ImageId", "Label"], range(1, 6)), (["ImageId", "Label"], range(1, 6))),
    "neither": (None, None, (["ImageId", "Label"], range(1, 6))),
    "index": (("Unnamed: 0", range(5)), None, (["ImageId", "Label"], range(1, 6))),
}


@pytest.mark.parametrize("case", IDS)
@pytest.mark.parametrize("labels", [["0", "1", "3"], ["a", "b"]])
def test_the_submission_has_the_ids_of_the_test_file(labels, case, tmp_path, cache):
    ids, sample, (header, expected) = IDS[case]
    written(tmp_path / "own" / "train.csv", ["label", *pixel_names(784)], labels * 6, images(6 * len(labels), 28))
    columns = ([ids[0]], [list(ids[1])]) if ids else ([], [])
    written(tmp_path / "own" / "test.csv", [*columns[0], *pixel_names(784)], *columns[1], images(5, 28, 1))
    if sample:
        written(tmp_path / "own" / "sample_submission.csv", sample[0], list(sample[1]), [0] * 5)
    splits = load(tmp_path / "own", cache_dir=cache, validation_size=0)
    check(splits["test"], images(5, 28, 1), None)
    assert splits["train"].column_names == ["image", "label"]
    rows = submission(splits, tmp_path / "submission.csv")
    names = [labels[i % len(labels)] for i in range(5)]
    assert rows == [header, *([str(id_), name] for id_, name in zip(expected, names, strict=True))]
    again = load(tmp_path / "own", cache_dir=cache, validation_size=0)  # from the cache
    assert submission(again, tmp_path / "submission.csv") == rows


def test_a_run_and_submit_write_the_ids(tmp_path, run_folder):
    """run_folder's model knows the ten digits."""
    from hf_vit_scratch.cli import main

    written(tmp_path / "own" / "train.csv", ["label", *pixel_names(784)], np.arange(30) % 10, images(30, 28))
    written(tmp_path / "own" / "test.csv", ["id", *pixel_names(784)], [12, 4, 8], images(3, 28, 1))
    file = tmp_path / "submission.csv"
    main(["submit", "--model", str(run_folder), "--data", str(tmp_path / "own"), "--output_file", str(file)])
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    assert header == ["id", "label"] and [row[0] for row in rows] == ["12", "4", "8"]


# ---- what is the competition


def test_only_the_competitions_content_is_called_by_its_name(tmp_path, cache, monkeypatch):
    competition_zip(tmp_path / "digit-recognizer.zip")
    with zipfile.ZipFile(tmp_path / "digit-recognizer.zip") as archive:
        train = archive.read("train.csv")
        archive.extractall(tmp_path / "digit-recognizer")
    sources = tmp_path / "digit-recognizer.zip", tmp_path / "digit-recognizer"
    assert [source_name(source) for source in sources] == ["digit-recognizer.zip", "local digit-recognizer"]
    files = digit_recognizer.COMPETITION_FILES
    monkeypatch.setitem(files, hashlib.sha256(train).hexdigest(), (200, 50))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    for _ in range(2):
        assert [source_name(source) for source in sources] == ["digit-recognizer"] * 2
        for source in sources:
            load(source)
    if Version(datasets.__version__) >= Version("5.0"):
        monkeypatch.setattr(digit_recognizer, "file_sha256", None)  # the cache has the hash
    assert [source_name(source) for source in sources] == ["digit-recognizer"] * 2
    monkeypatch.setitem(files, hashlib.sha256(train).hexdigest(), (200, 49))
    assert [source_name(source) for source in sources] == ["digit-recognizer.zip", "local digit-recognizer"]
    monkeypatch.undo()
    assert list(files.values()) == [(42_000, 28_000)]


@pytest.mark.parametrize("change", ["a pixel", "a row less", "another test", "a validation file", "gone"])
def test_a_set_that_only_looks_like_the_competition_is_not_called_so(change, tmp_path, monkeypatch):
    competition_zip(tmp_path / "digits.zip")
    folder = tmp_path / "digits"
    with zipfile.ZipFile(tmp_path / "digits.zip") as archive:
        monkeypatch.setitem(
            digit_recognizer.COMPETITION_FILES, hashlib.sha256(archive.read("train.csv")).hexdigest(), (200, 50)
        )
        archive.extractall(folder)
    assert source_name(folder) == "digit-recognizer"
    lines = (folder / "train.csv").read_text().splitlines(keepends=True)
    if change == "a pixel":
        (folder / "train.csv").write_text("".join(lines).replace(",250,", ",249,", 1))
    elif change == "a row less":
        (folder / "train.csv").write_text("".join(lines[:-1]))
    elif change == "another test":
        (folder / "test.csv").write_text("".join((folder / "test.csv").read_text().splitlines(keepends=True)[:-1]))
    elif change == "a validation file":
        (folder / "val.csv").write_text("".join(lines[:20]))
    else:
        (folder / "train.csv").unlink()
    assert source_name(folder) == "digits"


@pytest.mark.parametrize("name", ["sample", "digit-recognizer", "kaggle"])
def test_no_picture_of_a_folder_that_borrows_a_public_name_is_published(name, tmp_path, cache):
    for label in ("cat", "dog"):
        (tmp_path / name / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / name / label / f"{i}.png")
    splits = load(tmp_path / name, cache_dir=cache, validation_size=0.25)
    save_example(splits, source_name(tmp_path / name), tmp_path)
    assert not (tmp_path / "example.png").exists()
    save_example(splits, name.replace("kaggle", "sample"), tmp_path)  # what the name would have done
    assert (tmp_path / "example.png").exists()


def test_pixels_are_fine_tuned_as_digits_and_photographs_as_photographs(tmp_path):
    written(tmp_path / "own" / "sign_mnist_train.csv", ["label", *pixel_names(16)], [1, 2], images(2, 4))
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    assert default_recipe(str(tmp_path / "own"), "base") == "digits-finetune"
    assert default_recipe(str(tmp_path / "photos"), "base") == "photos-finetune"


# ---- refusals


def table(folder: Path, rows: int = 100) -> list[list[str]]:
    """Rows of a train.csv like Fashion-MNIST's, with the header first; labels 0 to 3 and 5."""
    labels = np.array([0, 1, 2, 3, 5])[np.arange(rows) % 5]
    written(folder / "own_train.csv", ["label", *pixel_names(784, 1)], labels, images(rows, 28))
    return [line.split(",") for line in (folder / "own_train.csv").read_text().splitlines()]


def changed(row: int, column: int, value: str):
    def change(rows):
        rows[row][column] = value

    return change


DAMAGE = {
    "word as label": (changed(3, 0, "x"), ["row 3 (line 4)", "'label'", "'x'"]),
    "no label": (changed(3, 0, ""), ["row 3 (line 4)", "'label'", "''"]),
    "pixel of 256": (changed(7, 784, "256"), ["row 7 (line 8)", "'pixel784'", "0 to 255", "'256'"]),
    "fraction": (changed(7, 2, "0.5"), ["row 7 (line 8)", "'pixel2'", "'0.5'"]),
    "hexadecimal": (changed(7, 2, "0x1F"), ["row 7 (line 8)", "'pixel2'", "'0x1F'"]),
    "short row": (lambda rows: rows.__setitem__(5, rows[5][:300]), ["row 5 (line 6)", "'pixel300'", "785", "300"]),
    "long row": (lambda rows: rows[5].append("1"), ["row 5 (line 6)", "column 786", "785", "786"]),
    "missing column": (lambda rows: [row.pop(8) for row in rows], ["line 1", "'pixel8' is missing"]),
    "missing last column": (
        lambda rows: [row.pop() for row in rows],
        ["line 1", "'pixel0' is missing if", "'pixel784' if they count from 1"],
    ),
    "doubled column": (
        lambda rows: rows[0].append("pixel3"),
        ["line 1", "'pixel3' is there a second time", "place 786"],
    ),
    "unknown column": (lambda rows: [row.append("1") for row in rows], ["line 1", "'1' is unknown"]),
    "colours": (
        lambda rows: rows.__setitem__(slice(None), [["label", *pixel_names(2352)], *([["0"] * 2353] * 4)]),
        ["line 1", "28x28 pixels of 3 colours", "image folder"],
    ),
    "label twice": (
        lambda rows: [row.insert(0, row[0]) for row in rows],
        ["line 1", "'label' is there a second time", "place 2"],
    ),
    "semicolons": (
        lambda rows: rows.__setitem__(slice(None), [[";".join(row)] for row in rows]),
        ["separated by commas"],
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_by_row_and_column(case, tmp_path, cache):
    change, said = DAMAGE[case]
    rows = table(tmp_path / "own")
    change(rows)
    (tmp_path / "own" / "own_train.csv").write_text("\n".join(",".join(row) for row in rows))
    message = failure(tmp_path / "own" / "own_train.csv", cache)
    assert "own/own_train.csv" in message
    for part in said:
        assert part in message


def test_a_label_that_train_lacks_is_named_by_row_and_column(tmp_path, cache):
    table(tmp_path / "own")
    written(tmp_path / "own" / "own_test.csv", ["label", *pixel_names(784, 1)], [5, 4, 0], images(3, 28))
    message = failure(tmp_path / "own", cache)
    for part in ("own_test.csv", "row 2 (line 3)", "'label'", "5 labels of train", "'4'"):
        assert part in message


def test_labels_of_a_test_file_that_say_nothing_make_it_unlabelled(tmp_path, cache):
    table(tmp_path / "own")
    for value in ("", "-1"):
        written(tmp_path / "own" / "own_test.csv", ["label", *pixel_names(784, 1)], [value] * 3, images(3, 28))
        assert load(tmp_path / "own", cache_dir=cache)["test"].column_names == ["image"]


def test_files_that_do_not_fit_each_other_are_refused(tmp_path, cache):
    table(tmp_path / "own")
    written(tmp_path / "own" / "own_test.csv", pixel_names(64), images(3, 8))
    assert "8x8 pixels, but train has 28x28" in failure(tmp_path / "own", cache)
    written(tmp_path / "own" / "own_test.csv", ["id", *pixel_names(784)], [4, 9, 4], images(3, 28))
    message = failure(tmp_path / "own", cache)
    assert "row 3, column 'id'" in message and "id of row 1" in message
    written(tmp_path / "own" / "other_train.csv", ["label", *pixel_names(16)], [1, 2], images(2, 4))
    message = failure(tmp_path / "own", cache)
    assert "2 train files" in message and "other_train.csv, own_train.csv" in message
    written(tmp_path / "many" / "a.csv", ["label", *pixel_names(16)], [1, 2], images(2, 4))
    written(tmp_path / "many" / "b.csv", ["label", *pixel_names(16)], [1, 2], images(2, 4))
    assert "no train.csv, but 2 CSV files with pixels: a.csv, b.csv" in failure(tmp_path / "many", cache)


def test_ids_that_test_lacks_are_refused(tmp_path, cache):
    table(tmp_path / "own")
    written(tmp_path / "own" / "test.csv", ["id", *pixel_names(784)], [4, 9, 5], images(3, 28))
    written(tmp_path / "own" / "sample_submission.csv", ["id", "label"], [5, 4, 9], [0] * 3)
    assert load(tmp_path / "own", cache_dir=cache.with_name("c"))["test"]["id"][:] == ["4", "9", "5"]
    written(tmp_path / "own" / "sample_submission.csv", ["id", "label"], [4, 9, 8], [0] * 3)
    assert "own/sample_submission.csv has the id '8', which own/test.csv lacks" in failure(tmp_path / "own", cache)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("\n", "\r").encode(), "carriage return alone"),
        (lambda text: text.encode("utf-16"), "perhaps in UTF-16"),
    ],
)
def test_a_text_of_another_kind_is_refused_with_what_to_do(change, words, tmp_path, cache):
    table(tmp_path / "own")
    file = tmp_path / "own" / "own_train.csv"
    file.write_bytes(change(file.read_text()))
    for source in (file, tmp_path / "own"):
        message = failure(source, cache)
        assert "own/own_train.csv, line 1" in message and words in message and "Save it" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.csv", b"a,b\n\r\x00", "column 'a' is unknown"),
        ("train.csv", b'"' + b"a" * 200_000 + b'",b\n1,2\n', "train.csv, line 1: field larger than field limit"),
        ("other.csv", b'"' + b"a" * 200_000 + b'",b\n1,2\n', "its first line is no CSV"),
    ],
)
def test_lines_that_are_no_csv_are_refused(name, content, words, tmp_path, cache):
    (tmp_path / name).write_bytes(content)
    assert words in failure(tmp_path / name, cache)


def test_the_home_of_a_user_who_does_not_exist_is_no_source(cache):
    assert "no such file or folder" in failure("~no-such-user/digits.zip", cache)


def test_without_a_header_the_label_comes_first(tmp_path, cache):
    pixels = images(60, 6)
    pixels[:, 0] = 0
    written(tmp_path / "own_train.csv", None, pixels, np.arange(60) % 3)
    assert "the first column, which should be the labels, has 1 different" in failure(
        tmp_path / "own_train.csv", cache
    )
    written(tmp_path / "own_train.csv", None, images(60, 6))
    assert "'label' is missing" in failure(tmp_path / "own_train.csv", cache)
    written(tmp_path / "own_train.csv", None, np.arange(60) % 3, images(60, 6)[:, :30])
    assert "31 columns without names" in failure(tmp_path / "own_train.csv", cache)


# ---- tables that list images, and other archives


def listed(folder: Path, header: str = "image_id,label", suffix: str = ".jpg", images_in: str = "images/") -> Path:
    rows = [header]
    for i in range(12):
        file = folder / images_in / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), ("red", "blue")[i % 2]).save(file)
        rows.append(f"{i}{suffix},{'ab'[i % 2]}")
    (folder / "train.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("name", ["train.csv", "labels.csv", "Training_set.csv", "HAM10000_metadata.csv"])
@pytest.mark.parametrize("suffix", [".jpg", ""])
def test_a_table_of_images_is_refused_with_the_way_that_works(suffix, name, tmp_path, cache):
    folder = listed(tmp_path / "own", "image_id,label", suffix)
    (folder / "train.csv").rename(folder / name)
    (folder / "sample_submission.csv").write_text("image_id,label\n1,a\n")
    message = failure(folder, cache)
    for part in (
        name,
        "image_id, label",
        "Rename it to metadata.csv",
        "'image_id' to 'file_name'",
        "pass that folder",
    ):
        assert part in message
    assert ("add the suffix" in message) == (suffix == "")
    text = (folder / name).read_text().replace("image_id", "file_name")
    if not suffix:
        text = text.replace(",", ".jpg,").replace("file_name.jpg", "file_name")
    (folder / "images" / "metadata.csv").write_text(text)
    splits = load(folder / "images", cache_dir=cache, validation_size=0)
    assert splits["train"].features["label"].names == ["a", "b"] and len(splits["train"]) == 12


def test_a_table_of_images_in_a_zip_or_by_itself_or_with_other_names(tmp_path, cache):
    folder = listed(tmp_path / "own", "filename,diagnosis")
    message = failure(zipped(folder, tmp_path / "own.zip"), cache)
    assert (
        "own.zip/train.csv lists images" in message and "Unzip the archive" in message and "--label_column" in message
    )
    assert "own/train.csv lists images" in failure(folder / "train.csv", cache)
    listed(tmp_path / "split", images_in="train_images")
    (tmp_path / "split" / "test_images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "split" / "test_images" / "12.jpg")
    assert "train.csv lists images" in failure(tmp_path / "split", cache)


@pytest.mark.parametrize("path", ["images/", ""])
def test_the_way_that_works_for_a_table_with_paths_works(path, tmp_path, cache):
    """Its rows start from its own folder, so that it need not be moved. The labels 0 and 1 are names of images too."""
    rows = [f"{i:03}.jpg,{i % 2}" for i in range(12)]
    for row in rows:
        (tmp_path / "own" / path).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "own" / path / row[:7])
    for name in ("0.jpg", "1.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "own" / path / name)
    file = tmp_path / "own" / "train.csv"
    file.write_text("\n".join(["label,where", *(f"{row[8:]},{path}{row[:7]}" for row in rows)]))
    message = failure(tmp_path / "own", cache)
    assert "Rename it to metadata.csv, rename its column 'where' to 'file_name', and pass that folder" in message
    (tmp_path / "own" / "metadata.csv").write_text(file.read_text().replace("where", "file_name"))
    file.unlink()
    splits = load(tmp_path / "own", cache_dir=cache, validation_size=0)
    assert splits["train"].features["label"].names == ["0", "1"] and len(splits["train"]) == 12


def test_a_table_beside_the_folders_of_the_classes_is_no_offence(tmp_path, cache):
    for split in ("Train", "Test"):
        for label in ("0", "1"):
            (tmp_path / "signs" / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8)).save(tmp_path / "signs" / split / label / f"{i}.png")
    (tmp_path / "signs" / "Train.csv").write_text("Width,ClassId,Path\n8,0,Train/0/1.png\n8,1,Train/1/1.png\n")
    splits = load(tmp_path / "signs", cache_dir=cache, validation_size=0)
    assert splits["train"].features["label"].names == ["0", "1"] and len(splits["test"]) == 8


@pytest.mark.parametrize("wrapper", ["", "pets/"])
def test_an_archive_of_an_image_folder_is_to_be_unpacked(wrapper, tmp_path, cache):
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / label / "1.jpg")
    message = failure(zipped(tmp_path / "pets", tmp_path / "pets.zip", wrapper), cache)
    assert "Unzip it and pass the folder as --data" in message and "1.jpg" in message
    for suffix in (".tar.gz", ".tar"):
        with tarfile.open(tmp_path / f"pets{suffix}", "w:gz" if suffix == ".tar.gz" else "w") as archive:
            archive.add(tmp_path / "pets", "pets")
        assert "Unpack it and pass the folder as --data" in failure(tmp_path / f"pets{suffix}", cache)
    assert "none of the kinds of files that are read" in failure(tmp_path / "pets" / "cat" / "1.jpg", cache)


def test_a_table_that_is_neither_pixels_nor_images(tmp_path, cache):
    (tmp_path / "titanic").mkdir()
    (tmp_path / "titanic" / "train.csv").write_text("PassengerId,Survived,Name\n1,0,Owen\n")
    message = failure(tmp_path / "titanic", cache)
    assert "'label' is missing and column 'PassengerId' is unknown" in message and "pixel" in message
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv is empty" in failure(tmp_path / "empty.csv", cache)


def test_of_two_errors_in_a_file_the_first_is_reported(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(pixel_csv, "CSV_BLOCK_BYTES", 2000)
    pixels, file = images(400, 4), tmp_path / "data" / "train.csv"
    written(file, ["label", *pixel_names(16)], np.arange(400) % 10, pixels)
    lines = file.read_text().splitlines()
    lines[3] = lines[3].replace(",", ",x", 1)
    packed_whole = gzip.compress("\n".join([*lines, ""]).encode())
    (tmp_path / "data" / "train.csv.gz").write_bytes(packed_whole[: len(packed_whole) // 2])
    file.unlink()
    with pytest.raises(DataError, match="row 3"):
        load(str(tmp_path / "data"), cache_dir=str(cache))
