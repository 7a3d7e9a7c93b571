"""Folders of images as people have them: classes, rows, order and pixels, against what `os.walk` and Pillow find."""

import csv
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import TINY
from PIL import Image, ImageFile, ImageOps
from processes import run_python

from hf_vit_scratch.data import DataError, image_shape, load, pixel_array
from hf_vit_scratch.data.image_folder import file_names

RED, GREEN, BLUE = (220, 30, 30), (30, 220, 30), (30, 30, 220)
COLOURS = {"red": RED, "blue": BLUE}


def put(path, colour=RED, size=(16, 16), **how):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **how)


def classes(root, number=4, names=("red", "blue"), size=(16, 16)):
    for name in names:
        for i in range(number):
            put(Path(root, name, f"{i}.png"), COLOURS.get(name.lower(), GREEN), size)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def read(tmp_path):
    def read(source, **options):
        return load(source, cache_dir=tmp_path / "cache", **{"validation_size": 0, **options})

    return read


@pytest.fixture
def refusal(read):
    def refusal(source, **options) -> str:
        with pytest.raises(DataError) as error:
            read(source, **options)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
        return str(error.value)

    return refusal


@pytest.fixture
def said(capsys):
    """The notices on stderr, without the bars of progress."""

    def said() -> list[str]:
        lines = [line for part in capsys.readouterr().err.split("\n") for line in part.split("\r")]
        return [line for line in lines if line.startswith(os.sep)]

    return said


def content(split) -> list[tuple[str, tuple]]:
    """The class of each row, or None, and its first pixel as RGB."""
    labels = split["label"][:] if "label" in split.column_names else [None] * len(split)
    names = split.features["label"].names if "label" in split.column_names else []
    pixels = [image.convert("RGB").getpixel((0, 0)) for image in split["image"]]
    return [(None if code is None else names[code], pixel) for code, pixel in zip(labels, pixels, strict=True)]


def by_hand(folder, label) -> list[tuple[str, tuple]]:
    """The same of all images below a folder, by os.walk and Pillow; `label` makes the class of a path in it."""
    found = []
    for path, _, files in os.walk(folder, followlinks=True):
        for name in files:
            try:
                with Image.open(os.path.join(path, name)) as image:
                    pixel = image.convert("RGB").getpixel((0, 0))
            except OSError:
                continue
            found.append((label(os.path.relpath(os.path.join(path, name), folder)), pixel))
    return found


def first(path: str) -> str:
    return path.split(os.sep)[0]


def assert_same(split, expected):
    assert Counter(content(split)) == Counter(expected)


# ---- what is on disk is read


def test_any_file_that_pillow_opens_is_read(root, read, said):
    classes(root)
    for name in ("fox/0.avif", "fox/1.webp", "fox/2.jfif", "fox/3.tif", "fox/4.gif", "fox/5.ppm", "fox/6.ico"):
        put(root / name, GREEN)
    for name, kind in (("red/none", "PNG"), ("red/5.dat", "JPEG"), ("blue/6.PNG", "PNG"), ("blue/7.jpg", "PNG")):
        put(root / name, COLOURS[first(name)], format=kind)
    put(root / "blue" / "notes.txt", BLUE, format="PNG")
    put(root / "red" / ".hidden.png")
    split = read(root)["train"]
    assert split.features["label"].names == ["blue", "fox", "red"]
    assert_same(split, by_hand(root, first))
    assert Counter(name for name, _ in content(split)) == {"blue": 7, "fox": 7, "red": 7}
    assert said() == []


def test_what_is_no_image_is_named_with_its_number(root, read, said):
    classes(root)
    for name in ("red/notes.docx", "red/data.npy", "blue/clip.mp4", "README.md"):
        (root / name).write_text("no image")
    (root / "red" / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))  # Pillow knows it, but cannot decode it
    os.mkfifo(root / "red" / "pipe")
    (root / ".git").mkdir()
    put(root / ".git" / "cat.png")
    assert_same(read(root)["train"], [(name, COLOURS[name]) for name in ("red", "blue")] * 4)
    files, folder = said()
    assert "not read: 6 files that Pillow does not open: blue/clip.mp4, README.md, red/data.npy and 3 more." in files
    assert "not read: 1 hidden folder: .git." in folder


def test_rubbish_and_sidecars_are_passed_over_in_silence(root, read, said):
    classes(root)
    for name in (
        *(".DS_Store", "red/Thumbs.db", "red/desktop.ini", "red/._0.png", "__MACOSX/red/._0.png"),
        *("__pycache__/prepare.cpython-311.pyc", "lost+found/1", "System Volume Information/x"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("rubbish")
    for name in ("red/0.png.json", "red/1.txt", "blue/2.xml", "blue/3.png.xmp"):
        (root / name).write_text("beside an image")
    put(root / "red" / ".ipynb_checkpoints" / "0-checkpoint.png")
    put(root / ".ipynb_checkpoints" / "0-checkpoint.png")
    put(root / "red" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_S.png")
    assert_same(read(root)["train"], [(name, COLOURS[name]) for name in ("red", "blue")] * 4)
    assert said() == []


@pytest.mark.parametrize("name", ["moving.gif", "pages.tif", "moving.webp", "moving.png"])
@pytest.mark.parametrize("size", [(16, 16), (90, 80)])
def test_that_only_the_first_frame_of_several_is_read_is_said(size, name, root, read, said):
    classes(root, size=size)
    previews = [Image.new("RGB", size)]
    Image.new("RGB", size, RED).save(root / "red" / "camera.jpg", "MPO", save_all=True, append_images=previews)
    read(root)
    assert said() == []
    frames = [Image.new("RGB", size, colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(root / "red" / name, save_all=True, append_images=frames[1:])
    for _ in range(2):  # the second time from the cache
        split = read(root)["train"]
        assert Counter(label for label, _ in content(split)) == {"red": 6, "blue": 4}
        (line,) = said()
        assert "only the first frame or page is read of 1 image" in line and str(root / "red" / name) in line


def test_a_class_or_split_without_a_readable_image_is_refused_and_an_empty_one_named(root, read, refusal, said):
    classes(root)
    (root / "empty").mkdir()
    assert read(root)["train"].features["label"].names == ["blue", "red"]
    assert "empty" in said()[0]
    (root / "fox").mkdir()
    for i in range(5):
        (root / "fox" / f"{i}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    message = refusal(root)
    assert str(root / "fox") in message and "0.heic, 1.heic, 2.heic and 2 more" in message
    split = root.parent / "splits"
    classes(split / "train")
    (root / "fox").rename(split / "val")
    assert str(split / "val") in refusal(split)


def test_links_are_followed(root, tmp_path, read, said):
    classes(root)
    for i in range(3):
        put(tmp_path / "elsewhere" / f"{i}.png", GREEN)
    put(tmp_path / "single", GREEN, format="PNG")
    (root / "green").symlink_to(tmp_path / "elsewhere")
    (root / "red" / "more.png").symlink_to(tmp_path / "single")
    split = read(root)["train"]
    assert split.features["label"].names == ["blue", "green", "red"]
    assert_same(split, by_hand(root, first))
    assert said() == []
    (tmp_path / "again").symlink_to(root)
    assert_same(read(tmp_path / "again")["train"], by_hand(root, first))


def test_a_file_that_a_split_holds_twice_is_said(root, read, said):
    classes(root)
    (root / "red" / "latest.png").symlink_to("0.png")
    os.link(root / "red" / "1.png", root / "blue" / "z.png")
    assert_same(read(root)["train"], by_hand(root, first))
    (line,) = said()
    assert "2 images read twice in a split, through links" in line
    assert f"{root}/red/1.png is the same file as {root}/blue/z.png" in line


def test_a_linked_split_is_followed_and_one_folder_is_not_read_twice(root, tmp_path, read, refusal):
    classes(root / "train")
    classes(tmp_path / "held", 2)
    (root / "test").symlink_to(tmp_path / "held")
    assert_same(read(root)["test"], by_hand(tmp_path / "held", first))
    (root / "val").symlink_to(root / "train")
    assert "is the same folder as" in refusal(root)
    (root / "val").unlink()
    (root / "train" / "red" / "loop").symlink_to(root)
    message = refusal(root)
    assert "is the same folder as" in message and str(root / "train" / "red" / "loop") in message


def test_links_to_nothing_are_refused_by_name(root, refusal):
    classes(root)
    (root / "red" / "gone.png").symlink_to(root / "nowhere.png")
    assert "gone.png" in refusal(root)
    (root / "red" / "gone.png").unlink()
    (root / "red" / "self").symlink_to(root / "red" / "self")
    assert "self" in refusal(root)


def test_names_of_classes_with_underscores_and_spaces_are_read(root, read, said):
    classes(root, 3, ("red", "blue", "__background__", "_other", "test tube", "dev-board"))
    split = read(root)["train"]
    assert split.features["label"].names == sorted(
        ["red", "blue", "__background__", "_other", "test tube", "dev-board"]
    )
    assert_same(split, by_hand(root, first))
    assert said() == []


def test_the_classes_are_the_first_level(root, read, said):
    for name, colour in COLOURS.items():
        for session in ("session1", "session2/morning"):
            for i in range(3):
                put(root / name / session / f"{i}.png", colour)
    put(root / "red" / "flat.png")
    split = read(root)["train"]
    assert split.features["label"].names == ["blue", "red"]
    assert_same(split, by_hand(root, first))
    assert ["session1" in line and "red" in line for line in said()] == [True]
    for part in ("train", "val"):  # the same inside of splits
        for name, colour in COLOURS.items():
            put(root.parent / "splits" / part / name / "deep" / "0.png", colour)
    splits = read(root.parent / "splits")
    for part in ("train", "validation"):
        assert_same(splits[part], [(name, COLOURS[name]) for name in COLOURS])


def test_a_lone_folder_around_folders_is_said_not_to_be_a_class(root, read, said):
    """pets/cat, pets/dog and cat/session1, cat/session2 look the same."""
    for session in ("session1", "session2"):
        put(root / "cat" / session / "0.png")
    assert read(root)["train"].features["label"].names == ["session1", "session2"]
    (line,) = said()
    assert str(root / "cat") in line and "around the classes" in line and "session1, session2" in line


@pytest.mark.parametrize("around", ["images", "Data", "train", "training_images/images"])
def test_a_folder_in_train_that_says_nothing_holds_the_classes(around, root, read, said):
    classes(root / "train" / around)
    classes(root / "val", 2)
    classes(root / "test" / "images", 3)
    splits = read(root)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "validation": 4, "test": 6}
    assert_same(splits["train"], by_hand(root / "train" / around, first))
    assert said() == []


def test_a_lone_class_of_val_that_says_nothing_is_a_class_if_train_has_it(root, read, refusal):
    classes(root / "train", names=("images", "drawings"))
    put(root / "val" / "images" / "0.png")
    assert content(read(root)["validation"]) == [("images", RED)]
    (root / "val" / "images").rename(root / "val" / "photos")
    assert "photos holds images without folders of classes" in refusal(root)


def test_empty_folders_of_splits_and_metadata_that_is_not_read_are_named(root, read, said):
    classes(root / "train")
    (root / "val" / "red").mkdir(parents=True)
    (root / "test").mkdir()
    (root / "train" / "red" / "metadata.csv").write_text("file_name,label\n0.png,red\n")
    assert list(read(root)) == ["train"]
    table, empty = said()
    assert "not read: 1 metadata file outside of the folders of splits: train/red/metadata.csv." in table
    assert "not read: 2 empty folders: test, val." in empty


def test_images_outside_of_the_classes_are_named(root, read, said):
    classes(root / "train")
    classes(root / "test", 2)
    for name in ("preview.png", "train/stray.png", "other/1.png"):
        put(root / name)
    splits = read(root)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "test": 4}
    (line,) = said()
    assert "not read: 3 images outside of" in line and "other/1.png, preview.png, train/stray.png" in line


# ---- a test image is never trained on

SPLIT_FOLDERS = {
    "wrapper": ("chest_xray/train", "chest_xray/test"),
    "two wrappers": ("archive/data/Training", "archive/data/Testing"),
    "doubled": ("seg_train/seg_train", "seg_test/seg_test"),
    "sets": ("training_set", "test_set"),
    "images": ("images/train_images", "images/test-images"),
    "numbers": ("train1", "test1"),
    "words in one": ("TrainData", "testimages"),
    "other words": ("data_training", "holdout"),
}


@pytest.mark.parametrize("form", SPLIT_FOLDERS)
def test_splits_are_found_where_archives_put_them(form, root, read, said):
    train, test = (root / name for name in SPLIT_FOLDERS[form])
    classes(train, 5)
    for name in COLOURS:
        put(test / name / "t.png", (1, 2, 3))
    (root / "__MACOSX").mkdir()
    splits = read(root)
    assert list(splits) == ["train", "test"]
    assert_same(splits["train"], by_hand(train, first))
    assert_same(splits["test"], [("red", (1, 2, 3)), ("blue", (1, 2, 3))])
    assert said() == []


def test_an_archive_with_itself_inside_is_named(root, read, said):
    for folder in (root / "x", root / "x" / "x"):
        classes(folder / "train")
        classes(folder / "test", 2)
    splits = read(root)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "test": 4}
    assert "not read: 12 images outside of" in said()[0]


def flat(*names):
    return lambda root: [put(root / name / f"{i}.png") for name in names for i in range(3)]


def tree(*folders):
    return lambda root: [put(root / folder / f"{i}.png") for folder in folders for i in range(3)]


REFUSED = {
    "train and test without classes": (flat("train", "test"), "no folders of classes"),
    "with val and unlabelled": (flat("train", "test", "val", "unlabeled"), "no folders of classes"),
    "other names": (flat("train_images", "test_images"), "no folders of classes"),
    "in a wrapper": (flat("pets/train", "pets/test"), "no folders of classes"),
    "train alone": (flat("train"), "no folders of classes"),
    "test alone": (tree("test/a", "test/b"), "no train"),
    "test beside classes": (flat("cat", "dog", "test"), "has the name of a test split"),
    "a set beside classes": (flat("cat", "dog", "Test_Set"), "has the name of a test split"),
    "train beside classes": (tree("cat/s", "train/a", "train/b"), "a split or a class"),
    "classes that hold splits": (tree("cat/train", "cat/test", "dog/train", "dog/test"), "holds splits"),
    "a class of train that holds splits": (tree("train/cat/train", "train/cat/test", "train/dog"), "holds splits"),
    "years that hold splits": (tree("2019/train/a", "2019/train/b", "2020/test/a"), "holds splits"),
    "two validation splits": (tree("train/a", "train/b", "val/a", "valid/a"), "both could be the validation"),
    "val without classes": (tree("train/a", "train/b", "val"), "without folders of classes"),
    "a test split with and without": (tree("train/a", "train/b", "test", "test/a"), "beside folders"),
    "sessions of one class of train": (tree("train/cat/s1", "train/cat/s2"), "cat alone"),
    "val of images in a folder": (tree("train/a", "train/b", "val/images"), "without folders of classes"),
    "one class": (tree("train/a", "test/a"), "one for each class"),
    "one class alone": (tree("a"), "one for each class"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_layout_that_is_none_is_refused_with_the_one_that_works(form, root, refusal):
    make, words = REFUSED[form]
    make(root)
    message = refusal(root)
    assert words in message, message
    if form not in ("two validation splits", "a test split with and without"):
        assert "folder/train/class/image" in message, message


def test_the_same_file_in_two_splits_is_refused(root, refusal):
    classes(root / "train")
    classes(root / "test", 2)
    (root / "test" / "red" / "linked.png").symlink_to(root / "train" / "red" / "0.png")
    assert "linked.png is the same file as" in refusal(root)
    (root / "test" / "red" / "linked.png").unlink()
    os.link(root / "train" / "red" / "1.png", root / "test" / "red" / "hard.png")
    assert "hard.png is the same file as" in refusal(root)


def test_classes_named_like_splits_are_said(root, read, said):
    flat("bus", "test", "train")(root)
    split = read(root)["train"]
    assert split.features["label"].names == ["bus", "test", "train"]
    assert_same(split, by_hand(root, first))
    (line,) = said()
    assert "test, train" in line and "read as classes" in line


# ---- the classes are those of train


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("name", "hint"), [("Red", "'red'"), ("red ", "'red'"), ("green", "")])
def test_a_class_that_train_has_not_is_refused(split, name, hint, root, refusal):
    classes(root / "train")
    classes(root / split, 2, ("blue", name))
    message = refusal(root)
    assert f"label {name!r} is not one of the 2 classes of train" in message and hint in message


@pytest.mark.parametrize("folder", ["unknown", "test", "images", "Unlabelled images"])
def test_one_folder_that_is_no_class_holds_unlabelled_test_images(folder, root, read, refusal):
    classes(root / "train")
    for i in range(1, 12):
        put(root / "test" / folder / f"{i}.png", (i, 0, 0))
    splits = read(root)
    assert splits["train"].features["label"].names == ["blue", "red"]
    assert_same(splits["train"], by_hand(root / "train", first))
    assert splits["test"].column_names == ["image"]
    assert content(splits["test"]) == [(None, (i, 0, 0)) for i in range(1, 12)]
    assert file_names(splits["test"]) == [f"{i}.png" for i in range(1, 12)]
    (root / "test" / folder).rename(root / "test" / "Red")
    assert "'Red' is not one of the 2 classes" in refusal(root)


def test_a_test_split_of_one_class_of_train_is_labelled_and_what_it_lacks_is_said(root, read, said):
    classes(root / "train")
    for split in ("val", "test"):
        put(root / split / "red" / "0.png")
    splits = read(root)
    assert content(splits["test"]) == content(splits["validation"]) == [("red", RED)]
    assert [line.endswith("has no image of 1 of the 2 classes: blue.") for line in said()] == [True, True]


def test_near_duplicates_of_classes_are_pointed_out(root, read, said):
    classes(root, 2, ("cat", "Cat", "dog"))
    assert len(read(root)["train"].features["label"].names) == 3
    assert "'Cat' and 'cat'" in said()[0]


def test_two_forms_of_one_letter_are_told_apart_by_their_codes(root, refusal):
    classes(root / "train", names=("caf\u00e9", "tea"))
    classes(root / "val", names=("cafe\u0301", "tea"))
    assert r"label 'cafe\u0301' is not one of the 2 classes of train, which has 'caf\xe9'" in refusal(root)


def test_a_single_test_folder_with_a_misspelt_name_is_said_to_be_read_without_labels(root, read, said):
    classes(root / "train")
    put(root / "test" / "redd" / "0.png")
    assert read(root)["test"].column_names == ["image"]
    assert "redd is no class of train" in said()[0]


def frame(labels):
    images = [{"bytes": _png(i), "path": None} for i, _ in enumerate(labels)]
    return datasets.Dataset.from_dict({"image": images, "label": labels})


def _png(value: int) -> bytes:
    import io

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_labels_of_columns_that_differ_in_spaces_or_case_are_pointed_out_and_blank_ones_refused(
    root, read, refusal, capsys
):
    frame(["cat", "dog", "cat ", "Dog"] * 3).to_parquet(root / "train.parquet")
    assert read(root)["train"].features["label"].names == ["Dog", "cat", "cat ", "dog"]
    printed = capsys.readouterr().err
    assert "'cat' and 'cat '" in printed and "'Dog' and 'dog'" in printed
    for blank in ("", "  ", None):
        frame(["cat", "dog", blank] * 3).to_parquet(root / "train.parquet")
        assert "row 3: the label is blank" in refusal(root)
    splits = datasets.DatasetDict(train=frame(["a", "b"] * 3), Test_Set=frame(["", ""]), extra=frame(["a"]))
    splits.save_to_disk(root.parent / "saved")
    assert read(root.parent / "saved")["test"].column_names == ["image"]
    assert "not used: extra (1 rows)" in capsys.readouterr().err


# ---- metadata


def listed(root, rows, header=("file_name", "label")):
    """A metadata.csv, and the images that it lists, each in a colour of its own."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "metadata.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    for i, row in enumerate(rows):
        put(root / row[0], (i, 0, 0))


def labels_of(split) -> dict[tuple, str]:
    return {pixel: name for name, pixel in content(split)}


@pytest.mark.parametrize("top", ["", "wrapper/"])
def test_splits_that_file_names_of_metadata_say(top, root, read, said):
    rows = [(f"{split}/{i}.png", "ab"[i % 2]) for split in ("train", "val", "test") for i in range(4)]
    listed(root / top, rows)
    splits = read(root)
    assert list(splits) == ["train", "validation", "test"]
    for number, split in enumerate(splits.values()):
        assert labels_of(split) == {(4 * number + i, 0, 0): "ab"[i % 2] for i in range(4)}
    assert said() == []


def test_splits_that_a_column_of_metadata_says(root, read, refusal):
    rows = [(f"images/{i}.png", "ab"[i % 2], ("train", "train", "test")[i // 2 % 3]) for i in range(6)]
    listed(root, rows, ("file_name", "label", "split"))
    splits = read(root)
    assert labels_of(splits["train"]) == {(i, 0, 0): "ab"[i % 2] for i in range(4)}
    assert labels_of(splits["test"]) == {(i, 0, 0): "ab"[i % 2] for i in (4, 5)}
    listed(root, [*rows[:5], ("images/5.png", "b", "later")], ("file_name", "label", "split"))
    assert "found 'later'" in refusal(root)
    rows = [("train/0.png", "a", "train"), ("test/1.png", "b", "train"), ("test/2.png", "b", "test")]
    listed(root, rows, ("file_name", "label", "split"))
    assert "its folder says test" in refusal(root)


def test_metadata_without_labels_for_test_and_in_each_split(root, read):
    listed(root, [(f"train/{i}.png", "ab"[i % 2]) for i in range(4)] + [(f"test/{i}.png", "") for i in (10, 9, 1)])
    splits = read(root)
    assert splits["test"].column_names == ["image"]
    assert file_names(splits["test"]) == ["test/1.png", "test/9.png", "test/10.png"]
    assert [pixel for _, pixel in content(splits["test"])] == [(6, 0, 0), (5, 0, 0), (4, 0, 0)]
    other = root.parent / "other"
    for split in ("train", "validation"):
        listed(other / split, [(f"{i}.png", str(10 - i), "x") for i in range(4)], ("file_name", "kind", "label"))
    put(other / "test" / "1.png")
    splits = read(other, label_column="kind")
    assert splits["train"].features["label"].names == ["7", "8", "9", "10"]
    assert labels_of(splits["validation"]) == {(i, 0, 0): str(10 - i) for i in range(4)}
    assert splits["test"].column_names == ["image"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_metadata_of_other_forms(form, root, read):
    rows = [{"file_name": f"{i}.png", "label": "ab"[i % 2]} for i in range(4)]
    listed(root, [tuple(row.values()) for row in rows])
    (root / "metadata.csv").unlink()
    if form == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
    assert labels_of(read(root)["train"]) == {(i, 0, 0): "ab"[i % 2] for i in range(4)}


def test_files_that_metadata_does_not_list_are_named(root, read, said):
    listed(root, [(f"{i}.png", "ab"[i % 2]) for i in range(4)])
    for i in range(5):
        put(root / "more" / f"{i}.png")
    assert len(read(root)["train"]) == 4
    (line,) = said()
    assert "not read: 5 images that the metadata does not list: more/0.png, more/1.png" in line


def test_metadata_that_does_not_fit_is_refused(root, refusal):
    rows = [(f"{i}.png", "ab"[i % 2]) for i in range(4)]
    listed(root, rows)
    (root / "3.png").unlink()
    assert "lists 1 file not found as an image: 3.png" in refusal(root)
    listed(root, [*rows, ("3.png", "a")])
    assert "more than once: 3.png" in refusal(root)
    listed(root, [*rows, ("4.png", "")])
    message = refusal(root)
    assert "4.png" in message and "the label is blank" in message
    listed(root, [*rows[:3], ("3.png", "a", "b")])
    assert "row 4: expected one value for each column" in refusal(root)
    listed(root, rows, ("name", "label"))
    assert "expected one column 'file_name', separated from the others by commas. Its columns: name, label" in refusal(
        root
    )
    listed(root, [("cat/0.png", "a"), ("test/0.png", "b")])
    assert "Add a column split" in refusal(root)
    listed(root, [("train/0.png", "a"), ("../0.png", "b")])
    assert "not found as an image: ../0.png" in refusal(root)
    for damaged in (b"\xff\xfe\0", b""):
        (root / "metadata.csv").write_bytes(damaged)
        assert str(root / "metadata.csv") in refusal(root)


@pytest.mark.parametrize("column", ["is_valid", "isTest", "train_is"])
def test_a_column_that_says_the_splits_in_another_way_is_refused(column, root, read, refusal):
    listed(root, [(f"{i}.png", "ab"[i % 2], i % 3 == 0) for i in range(6)], ("file_name", "label", column))
    message = refusal(root)
    assert f"column {column!r}" in message and "a column 'split' with train, validation or test" in message
    listed(root, [(f"{i}.png", "ab"[i % 2], "x") for i in range(6)], ("file_name", "test", "setting"))
    assert len(read(root, label_column="test")["train"]) == 6


def test_metadata_of_one_label_is_refused_and_its_file_may_be_in_upper_case(root, read, refusal):
    listed(root, [(f"{i}.png", "ab"[i % 2]) for i in range(4)])
    (root / "metadata.csv").rename(root / "Metadata.CSV")
    assert labels_of(read(root)["train"]) == {(i, 0, 0): "ab"[i % 2] for i in range(4)}
    (root / "Metadata.CSV").unlink()
    listed(root, [(f"{i}.png", "a") for i in range(4)])
    assert "all images of train have the label 'a'" in refusal(root)


# ---- order and submissions

NAMES = ["1", "2", "3", "9", "10", "11", "100", "a2", "a10", "b1-9", "b1-10"]


@pytest.mark.parametrize("size", [(16, 16), (90, 80)])  # decoded into the cache, and read from the files
def test_the_test_split_is_in_natural_order(size, root, read):
    classes(root / "train", size=size)
    for i, name in enumerate(NAMES):
        put(root / "test" / f"{name}.png", (i, 0, 0), size)
    split = read(root)["test"]
    assert [pixel for _, pixel in content(split)] == [(i, 0, 0) for i in range(len(NAMES))]
    assert file_names(split) == [f"{name}.png" for name in NAMES]
    assert file_names(split.select([3, 0])) == ["9.png", "1.png"]
    assert (pixel_array(split) is None) == (size != (16, 16))


def test_the_rows_of_labelled_splits_are_in_the_order_of_datasets_imagefolder(root, read, tmp_path):
    """Rows that were held out from a model stay held out from it."""
    for name in ("cat", "cat-a", "cat b", "Dog"):
        for i in ("1", "2", "10", "a", "Z", "z-1"):
            put(root / name / f"{i}.png", size=(70 + len(name), 80))
    ours = read(root)["train"].cast_column("image", datasets.Image(decode=False))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(root), split="train", cache_dir=str(tmp_path / "c"))
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["path"] for row in ours] == [row["image"]["path"] for row in theirs]
    assert ours["label"][:] == theirs["label"][:] and ours.features["label"] == theirs.features["label"]


@pytest.mark.parametrize("folder", ["test", "test/unknown"])
def test_a_submission_names_the_files_in_natural_order(folder, root, tmp_path, monkeypatch):
    from hf_vit_scratch.cli import main as vit_scratch
    from hf_vit_scratch.training import main as train

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    classes(root / "train", 16, size=(28, 28))
    for i in range(1, 13):
        put(root / folder / f"{i}.png", RED if i < 5 else BLUE, (28, 28))
    flags = ["--augmentation", "none", "--num_train_epochs", "12", "--learning_rate", "1e-2", "--ema_decay", "0"]
    train(["--data", str(root), *TINY, *flags, "--output_dir", str(tmp_path / "out")])
    written = (tmp_path / "out" / "submission.csv").read_text()
    expected = [f"{i}.png,{'red' if i < 5 else 'blue'}" for i in range(1, 13)]
    assert written == "\n".join(["file_name,label", *expected]) + "\n"
    arguments = ["--model", str(tmp_path / "out"), "--data", str(root), "--output_file", str(tmp_path / "again.csv")]
    vit_scratch(["submit", *arguments])
    assert (tmp_path / "again.csv").read_text() == written


# ---- modes and formats


def deep(root, values, dtype=np.int32):
    for name, value in values.items():
        for i in range(2):
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((12, 12), value, dtype)
            pixels[0, 0] = 0
            Image.fromarray(pixels).save(root / name / f"{i}.tif")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_images_reach_the_model_as_16_bit_ones_do(dtype, root, read):
    from hf_vit_scratch.data.batches import ImageBatches
    from hf_vit_scratch.model.image_processing_vit_scratch import ViTScratchImageProcessor

    deep(root / "deep", {"dark": 5000, "bright": 60000}, dtype)
    deep(root / "usual", {"dark": 5000, "bright": 60000}, np.uint16)
    processor = ViTScratchImageProcessor(size={"height": 12, "width": 12}, num_channels=1)
    batches = []
    for name in ("deep", "usual"):
        split = read(root / name)["train"]
        assert image_shape(split) == (12, 12, 1)
        batches.append(ImageBatches(split, processor).__getitems__([0, 1, 2, 3])["pixel_values"].numpy())
    np.testing.assert_array_equal(*batches)
    assert batches[0][:, 0, 5, 5].tolist() == [60000 // 257] * 2 + [5000 // 257] * 2


@pytest.mark.parametrize(
    ("values", "dtype", "said"),
    [
        ({"a": 1, "b": 70000}, np.int32, "0 to 70000"),
        ({"a": -5, "b": 100}, np.int32, "-5 to 0"),
        ({"a": 0.25, "b": 0.75}, np.float32, "0 to 0.25"),
        ({"a": 200, "b": 60000}, np.int32, "up to 200 and others have up to 60000"),
    ],
)
def test_other_ranges_of_32_bits_are_refused_by_name(values, dtype, said, root, refusal):
    deep(root, values, dtype)
    message = refusal(root)
    assert said in message and ".tif has 32-bit pixels" in message
    assert refusal(root) == message  # from the cache, too


@pytest.mark.parametrize(("train", "test"), [(np.int32, np.int32), (np.uint16, np.float32)])
def test_ranges_of_32_bits_are_compared_between_splits(train, test, root, read, refusal):
    deep(root / "train", {"a": 30000, "b": 60000}, train)
    deep(root / "test", {"a": 100, "b": 200}, test)
    message = refusal(root)
    assert str(root / "test" / "a" / "0.tif") in message and "up to 100 and others have up to 60000" in message
    assert refusal(root) == message
    deep(root / "test", {"a": 1000, "b": 200}, np.uint16)
    assert len(read(root)["test"]) == 4


@pytest.mark.parametrize(("highest", "dim"), [(4095, True), (4096, False)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_images_that_scaling_makes_nearly_black_are_said(dtype, highest, dim, root, read, said):
    deep(root, {"a": 1000, "b": highest}, dtype)
    read(root)
    assert [f"values up to {highest} of 65535" in line for line in said()] == [True] * dim


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "RGB", "P"])
def test_white_ink_on_transparent_reaches_the_model(mode, root, read):
    """For L, RGB and P, the file names the colour that is transparent."""
    from hf_vit_scratch.data.batches import ImageBatches
    from hf_vit_scratch.model.image_processing_vit_scratch import ViTScratchImageProcessor

    for name, column in (("one", 6), ("other", 20)):
        ink = np.zeros((28, 28), bool)
        ink[4:24, column] = True
        picture, options = Image.fromarray(np.where(ink, 255, 254).astype(np.uint8)).convert(mode), {}
        if mode in ("RGBA", "LA"):
            picture.putalpha(Image.fromarray(ink.astype(np.uint8) * 255))
        else:
            options["transparency"] = (254, 254, 254) if mode == "RGB" else picture.getpixel((0, 0))
        (root / name).mkdir()
        for i in range(2):
            picture.save(root / name / f"{i}.png", **options)
    processor = ViTScratchImageProcessor(size={"height": 28, "width": 28}, num_channels=1)
    split = read(root)["train"]
    pixels = ImageBatches(split, processor).__getitems__([0, 1, 2, 3])["pixel_values"].numpy()
    for image, column in zip(pixels, (6, 6, 20, 20), strict=True):
        expected = np.zeros((28, 28))
        expected[4:24, column] = 255
        np.testing.assert_array_equal(image[0], expected)


def test_images_of_one_size_and_several_modes_have_a_size(root, read):
    classes(root)
    Image.new("L", (16, 16), 9).save(root / "red" / "grey.png")
    assert image_shape(read(root)["train"]) == (16, 16, 3)
    put(root / "red" / "large.png", size=(17, 16))
    assert image_shape(read(root)["train"]) is None


@pytest.mark.parametrize(
    "form",
    [
        {"type": "numpy", "columns": ["label"]},
        {"type": "torch"},
        {"type": "pandas"},
        {"type": "arrow", "columns": ["image"], "output_all_columns": True},
        {"type": "jax"},  # not installed
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_the_format_of_a_saved_data_set_does_not_matter(form, whole, root, read):
    labels = [0, 1, 2] * 5
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("xyz"))})
    images = [{"bytes": _png(i), "path": None} for i in range(15)]
    made = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    if form["type"] == "jax":
        made.save_to_disk(root / "train")
        state = json.loads((root / "train" / "state.json").read_text())
        (root / "train" / "state.json").write_text(json.dumps(state | {"_format_type": "jax"}))
    else:
        made.with_format(**form).save_to_disk(root / "train")
    if not whole:
        (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
    split = read(root if not whole else root / "train")["train"]
    assert content(split) == [("xyz"[label], (i, 0, 0)) for i, label in enumerate(labels)]


def test_a_parquet_file_beside_more_images_does_not_change_the_reader(root, tmp_path, read, said):
    """`datasets` takes a folder for what most of its files are, and reads images in its own way."""
    classes(root)
    put(root / "red" / "none", format="PNG")
    put(tmp_path / "elsewhere" / "0.png", GREEN)
    (root / "green").symlink_to(tmp_path / "elsewhere")
    pq.write_table(pa.table({"x": [1]}), root / "statistics.parquet")
    assert_same(read(root)["train"], by_hand(root, first))
    assert "statistics.parquet" in said()[0]


# ---- hostile folders and the cache


def test_names_with_newlines_and_signs_work_and_others_are_refused_in_one_line(root, read, refusal):
    classes(root)
    for name in ("new\nline.png", "per%cent, [x]*?.png", "ünïcode 図.png", "#hash;.png"):
        put(root / "red" / name)
    assert_same(read(root)["train"], by_hand(root, first))
    with open(os.path.join(os.fsencode(root), b"red", b"\xff.png"), "wb") as stream:
        stream.write(_png(1))
    assert "not valid UTF-8" in refusal(root)


def test_deep_and_wide_folders_end(root, read):
    """Deeper than Python recurses; removed by hand, because pytest would recurse, too."""
    classes(root, 2)
    folders = [root / "red" / "d"]
    while len(folders) < sys.getrecursionlimit() + 100:
        folders.append(folders[-1] / "d")
    for folder in folders:
        folder.mkdir()
    try:
        put(folders[-1] / "x.png")
        for i in range(3000):
            (root / "blue" / f"{i}.json").touch()
        assert len(read(root)["train"]) == 5
    finally:
        (folders[-1] / "x.png").unlink(missing_ok=True)
        for folder in reversed(folders):
            folder.rmdir()


def test_a_folder_that_cannot_be_opened_is_named(root, refusal, monkeypatch):
    classes(root)
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("red"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    message = refusal(root)
    assert str(root / "red") in message and "cannot be opened: Permission denied" in message


@pytest.mark.parametrize(("third", "alike"), [(None, True), ((30, 20), False), ((4000, 3000), False)])
def test_small_images_are_kept_decoded_if_all_are_upright_of_one_size(third, alike, tmp_path, monkeypatch):
    """One is stored on its side, with an orientation in its EXIF data. Another size is found before it is decoded."""
    random = np.random.default_rng(0)
    folder, exif = tmp_path / "photos" / "train", Image.Exif()
    exif[0x0112] = 6
    for label, (width, height), extra in (("a", (20, 30), {}), ("b", (30, 20), {"exif": exif})):
        (folder / label).mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / label / "1.jpg", **extra)
    if third:
        Image.new("RGB", third).save(folder / "b" / "2.jpg")
    seen, load_pixels = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (seen.append(image.size), load_pixels(image))[1])
    split = load(tmp_path / "photos", validation_size=0, cache_dir=tmp_path / "cache")["train"]
    monkeypatch.undo()
    assert (pixel_array(split) is not None) == alike
    assert (4000, 3000) not in seen
    if alike:
        opened = [ImageOps.exif_transpose(Image.open(folder / label / "1.jpg")) for label in "ab"]
        expected = np.stack([np.asarray(image) for image in opened])
        np.testing.assert_array_equal(pixel_array(split), expected)
        assert expected.shape == (2, 30, 20, 3)


@pytest.mark.parametrize("row", [0, 1])
def test_an_empty_image_of_a_dataset_is_named(row, tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "png")
    values = [{"bytes": stream.getvalue(), "path": None} for _ in range(4)]
    values[row] = {"bytes": None, "path": None}
    table = pa.table({"image": values, "label": ["a", "b", "a", "b"]})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    with pytest.raises(DataError, match=f"row {row + 1} .*the value is empty"):
        load(tmp_path / "set", validation_size=0, cache_dir=tmp_path / "cache")


READ = """
import sys
from hf_vit_scratch.data import load
splits = load(sys.argv[1], cache_dir=sys.argv[2], validation_size=0)
print([(name, split._fingerprint, split.cache_files) for name, split in splits.items()])
"""


@pytest.mark.parametrize("size", [(16, 16), (90, 80)])
def test_a_later_process_reads_the_cache_and_a_changed_folder_is_read_anew(size, root, tmp_path, read):
    classes(root, size=size)
    before = run_python(READ, root, tmp_path / "cache")
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.arrow")}
    assert len(written) == 1
    assert run_python(READ, root, tmp_path / "cache") == before
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.arrow")}
    put(root / "red" / "0.png", (9, 9, 9), size)
    assert ("red", (9, 9, 9)) in content(read(root)["train"])
    (root / "red" / "1.png").unlink()
    assert_same(read(root)["train"], by_hand(root, first))
    put(root / "new" / "1.png", GREEN, size)
    assert_same(read(root)["train"], by_hand(root, first))


def test_notices_are_of_the_first_process_of_a_launch(root, read, said, monkeypatch):
    classes(root)
    (root / "notes.md").write_text("no image")
    monkeypatch.setenv("RANK", "1")
    read(root)
    assert said() == []
    monkeypatch.setenv("RANK", "0")
    read(root)
    assert len(said()) == 1
