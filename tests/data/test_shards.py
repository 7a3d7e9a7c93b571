import gzip
import io
import json
import os
import shutil
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import numbered_image, numbered_shards, photo_folder, tar_shard
from PIL import Image

from hf_vit_scratch import data
from hf_vit_scratch.data import DataError, load_stream, write_shards

SIZES = {"train": [9, 20, 4], "validation": [6], "test": [3, 2]}
LABELS = {"tar": ["0", "1"], "parquet": ["even", "odd"]}


def error_of(source, **columns) -> str:
    with pytest.raises(DataError) as error:
        load_stream(source, **columns)
    assert "\n" not in str(error.value)
    return str(error.value)


def number_of(file: dict) -> int:
    return int(np.asarray(Image.open(io.BytesIO(file["bytes"])))[0, 0])


def rows_of(stream) -> list[tuple[int, str]]:
    rows = [row for shard, rows in enumerate(stream.rows) for row in stream.read(shard, 0, rows)]
    return [(number_of(row.file), stream.names[row.label]) for row in rows]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_are_counted_and_read_in_order_with_their_labels(kind, tmp_path):
    folder = tmp_path / "a [1] folder"  # its name is no pattern
    numbered_shards(folder, kind, SIZES)
    splits = load_stream(folder)
    stream = splits["train"]
    assert (len(stream), stream.rows, stream.names) == (33, [9, 20, 4], LABELS[kind])
    assert stream.features["label"].names == LABELS[kind]
    assert rows_of(stream) == [(number, LABELS[kind][number % 2]) for number in range(33)]
    assert [number_of(row.file) for row in stream.read(1, 5, 8)] == [14, 15, 16]
    assert stream.place(8).endswith(f"train-00000.{kind}, row 9") and stream.place(9).endswith(f"1.{kind}, row 1")
    validation, test = splits["validation"], splits["test"]
    assert [np.asarray(image)[0, 0] for image in validation["image"]] == list(range(6))
    assert validation["label"][:] == [0, 1] * 3 and validation.features["label"] == stream.features["label"]
    assert [np.asarray(image)[0, 0] for image in test["image"]] == list(range(5))
    assert "label" not in test.column_names
    assert kind == "parquet" or test["id"][:] == [f"{number:03d}" for number in range(5)]


def test_what_was_counted_is_kept_until_a_shard_changes(tmp_path, monkeypatch):
    numbered_shards(tmp_path / "shards", "tar", {"train": [4, 4]})
    assert load_stream(tmp_path / "shards")["train"].rows == [4, 4]
    with monkeypatch.context() as patch:
        patch.setattr("hf_vit_scratch.data.shard_scan.scan_of", None)
        assert load_stream(tmp_path / "shards")["train"].rows == [4, 4]
    numbered_shards(tmp_path / "shards", "tar", {"train": [4, 5]})
    assert load_stream(tmp_path / "shards")["train"].rows == [4, 5]


def test_classes_of_a_parquet_file_are_kept_and_those_of_json_are_found(tmp_path):
    names = ["cat", "dog", "eel"]
    features = datasets.Features(
        picture=datasets.Image(), kind=datasets.ClassLabel(names=names), more=datasets.Value("string")
    )
    images = [{"bytes": numbered_image(number), "path": None} for number in range(4)]
    content = {"picture": images, "kind": [2, 0, 0, 2], "more": ["x"] * 4}
    (tmp_path / "named").mkdir()
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "named" / "train-0.parquet")
    stream = load_stream(tmp_path / "named", image_column="picture", label_column="kind")["train"]
    assert stream.names == names  # "dog" too, which no image has
    assert [label for _, label in rows_of(stream)] == ["eel", "cat", "cat", "eel"]

    members = {}
    for number, kind in enumerate(["dog", "cat", "dog"]):
        members |= {f"{number}.png": numbered_image(number), f"{number}.json": json.dumps({"kind": kind}).encode()}
    tar_shard(tmp_path / "json" / "train-0.tar", members)
    stream = load_stream(tmp_path / "json", label_column="kind")["train"]
    assert stream.names == ["cat", "dog"] and [label for _, label in rows_of(stream)] == ["dog", "cat", "dog"]


def test_files_on_the_hub_are_read_where_they_are(tmp_path, monkeypatch):
    """URLs stand for those of the Hub, which no test may talk to: a declared class is not looked for in all files."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    content = {
        "image": [{"bytes": numbered_image(number), "path": None} for number in range(4)],
        "label": [0, 1, 1, 0],
    }
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "0.parquet")

    class Builder:
        name = "parquet"

        class config:
            data_files = {
                datasets.Split("train"): [f"file://{tmp_path}/0.parquet"],
                datasets.Split("extra"): ["hf://x"],
            }

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda source: Builder)
    stream = load_stream("somebody/images")["train"]
    assert rows_of(stream) == [(0, "a"), (1, "b"), (2, "b"), (3, "a")]
    Builder.name, Builder.config.data_files = "webdataset", {"train": ["hf://datasets/somebody/images/0.tar"]}
    assert "would download all of them" in error_of("somebody/images")
    Builder.name = "imagefolder"
    assert "is read as imagefolder, and not as Parquet" in error_of("somebody/images")


def test_an_image_folder_becomes_shards_that_stand_alone(tmp_path):
    photo_folder(tmp_path / "photos", test="flat")
    splits = data.load(tmp_path / "photos")
    write_shards(splits, tmp_path / "shards", images_per_shard=6)
    files = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert [sum(name.startswith(split) for name in files) for split in ("train", "validation", "test")] == [3, 2, 1]
    shutil.rmtree(tmp_path / "photos")
    streamed = load_stream(tmp_path / "shards")
    stream = streamed["train"]
    assert (stream.rows, stream.names) == ([6, 5, 5], ["blue", "red"])
    labels = []
    for shard, rows in enumerate(stream.rows):
        for file, label in stream.read(shard, 0, rows):
            pixels = np.asarray(Image.open(io.BytesIO(file["bytes"]))).reshape(-1, 3).mean(0)
            assert (pixels[2] > pixels[0]) == (stream.names[label] == "blue")
            labels.append(label)
    assert sorted(labels) == [0] * 8 + [1] * 8 and labels != sorted(labels)  # a stream shuffles among few images only
    assert len(streamed["validation"]) == 8 and len(streamed["test"]) == 6
    with pytest.raises(DataError, match="holds files"):
        write_shards(splits, tmp_path / "shards")


def test_the_split_of_a_shard_is_in_its_name_or_that_of_a_folder(tmp_path):
    names = ("train/000.tar", "train/001.tar", "imagenet-val-00.tar", "dev set/test-0.tar")
    for number, name in enumerate(names):
        numbered_shards(tmp_path / "one", "tar", {"train": [number + 2]})
        (tmp_path / "shards" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / "train-00000.tar").rename(tmp_path / "shards" / name)
    splits = load_stream(tmp_path / "shards")
    assert splits["train"].rows == [2, 3] and [len(splits[name]) for name in ("validation", "test")] == [4, 5]
    assert load_stream(tmp_path / "shards" / "train")["train"].rows == [2, 3]  # no name says a split


def test_a_shard_whose_name_says_no_split_is_named(tmp_path, capsys):
    numbered_shards(tmp_path, "parquet", {"train": [4], "extra": [3]})
    assert len(load_stream(tmp_path)["train"]) == 4
    assert "1 shard not used, since their names say no split of their own: extra-" in capsys.readouterr().err


def png_and_label(number: int, **members: bytes) -> dict[str, bytes]:
    content = {"png": numbered_image(number), "cls": b"1", **members}
    return {f"{number}.{suffix}": value for suffix, value in content.items() if value}


WRONG_TARS = {
    "sample '7' has .png, and the first sample of all has .cls, .png": {
        **png_and_label(0),
        **png_and_label(7, cls=b""),
    },
    "sample '7' has .cls, .jpg, and the first sample of all has .cls, .png": {
        **png_and_label(0),
        **png_and_label(7, png=b"", jpg=numbered_image(7)),
    },
    "7.cls must hold an integer": {**png_and_label(0), **png_and_label(7, cls=b"cat")},
    "7.cls has 1,048,577 bytes, which is no label": {**png_and_label(0), **png_and_label(7, cls=bytes(2**20 + 1))},
    "has .png, .txt, but a sample needs a .cls with": png_and_label(0, cls=b"", txt=b"a cat"),
    "has .png, .cls, .jpg, but a sample needs one image": png_and_label(0, jpg=numbered_image(0)),
    "7.json must hold JSON with the key 'label'": {
        **png_and_label(0, cls=b"", json=b'{"label": 1}'),
        **png_and_label(7, cls=b"", json=b"{}"),
    },
    "sample '7' has .png, .cls, .txt, and the first sample of all has .cls, .png": {
        **png_and_label(0),
        **png_and_label(7, txt=b"a cat"),
    },
    "all images of train have the label '1'": {**png_and_label(0), **png_and_label(7)},
    "of several types: int, str": {
        **png_and_label(0, cls=b"", json=b'{"label": 1}'),
        **png_and_label(7, cls=b"", json=b'{"label": "cat"}'),
    },
}


@pytest.mark.parametrize("words", WRONG_TARS)
def test_a_wrong_sample_of_a_tar_is_named(words, tmp_path):
    tar_shard(tmp_path / "train-0.tar", WRONG_TARS[words])
    message = error_of(tmp_path)
    assert words in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, None, 1], "row 2: label None is not a class"),
        (["a", " ", "b"], "row 2: label ' ' is not a class"),
        ([0.5, 1.0, 2.0], "labels must be classes, strings, integers or booleans, got double"),
    ],
)
def test_wrong_labels_of_a_parquet_file_are_named(labels, words, tmp_path):
    image = [{"bytes": numbered_image(0), "path": None}] * 3
    pq.write_table(pa.table({"image": image, "label": labels}), tmp_path / "train-0.parquet")
    assert words in error_of(tmp_path)
    assert "no column 'class'. Its columns: image, label" in error_of(tmp_path, label_column="class")


def member(archive: tarfile.TarFile, name: str, content: bytes, **fields) -> None:
    header = tarfile.TarInfo(name)
    header.size, header.type = len(content), fields.get("type", tarfile.REGTYPE)
    header.linkname = fields.get("linkname", "")
    archive.addfile(header, io.BytesIO(content))


def test_a_tar_of_which_a_reader_would_see_a_part_is_refused(tmp_path):
    numbered_shards(tmp_path, "tar", {"train": [4, 4]})
    first, second = sorted(tmp_path.iterdir())
    whole = second.read_bytes()
    second.write_bytes(whole + first.read_bytes())
    assert f"{second} goes on behind its end at byte 8,192" in error_of(tmp_path)
    second.write_bytes(gzip.compress(whole))
    assert f"{second} is damaged, compressed, or no shard" in error_of(tmp_path)
    for name in ("train-00001.tar.gz", "train-00001.tgz"):
        second.rename(tmp_path / name)
        assert f"{name} is compressed" in error_of(tmp_path)
        (tmp_path / name).rename(second)
    with tarfile.open(second, "w") as archive:
        for name in ("004.png", "004.cls", "004.png"):
            member(archive, name, b"1")
    assert f"{second}: 004.png is there twice" in error_of(tmp_path)
    with tarfile.open(second, "w") as archive:
        member(archive, "004.png", b"", type=tarfile.SYMTYPE, linkname="/etc/hostname")
        member(archive, "004.cls", b"1")
    assert "sample '004' has .cls, and the first sample of all has" in error_of(tmp_path)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_shards_are_read_whole_or_refused(kind, split, tmp_path):
    numbered_shards(tmp_path, kind, {"train": [4], split: [6]})
    file = tmp_path / f"{split}-00000.{kind}"
    content = file.read_bytes()
    # Of a tar behind a whole sample, where its readers would take the end of the file for the end of the tar.
    file.write_bytes(content[: 4096 if kind == "tar" else -100])
    message = error_of(tmp_path)
    assert str(file) in message and "damaged" in message
    numbered_shards(tmp_path, kind, {split: [0]})
    assert str(file) in error_of(tmp_path)


def test_members_of_a_tar_are_read_under_any_name_and_written_nowhere(tmp_path):
    content = {suffix: value for suffix, value in (("png", numbered_image(3)), ("cls", b"1"))}
    names = ("../../up", "/etc/down", "a.b/c", "日本/1", "x" * 300)
    shards = {f"{name}.{suffix}": value for name in names for suffix, value in content.items()}
    tar_shard(tmp_path / "in" / "train-0.tar", {**shards, "0.png": numbered_image(0), "0.cls": b"0"})
    before = sorted(tmp_path.rglob("*"))
    stream = load_stream(tmp_path / "in")["train"]
    assert rows_of(stream) == [(3, "1")] * 5 + [(0, "0")] and sorted(tmp_path.rglob("*")) == before


def test_files_that_are_no_shards_are_named_and_links_are_followed_once(tmp_path, capsys):
    numbered_shards(tmp_path / "shards", "tar", {"train": [4]})
    (tmp_path / "shards" / "index.json").write_text("{}")
    (tmp_path / "shards" / ".cache").mkdir()
    numbered_shards(tmp_path / "shards" / ".cache", "tar", {"train": [5]})
    numbered_shards(tmp_path / "elsewhere" / "more", "tar", {"train": [3]})
    (tmp_path / "shards" / "train").symlink_to(tmp_path / "elsewhere" / "more")
    assert load_stream(tmp_path / "shards")["train"].rows == [4, 3]
    assert "not read: index.json." in capsys.readouterr().err
    (tmp_path / "shards" / "val-0.tar").symlink_to(tmp_path / "elsewhere" / "more" / "train-00000.tar")
    assert "are one file, through a link" in error_of(tmp_path / "shards")
    (tmp_path / "elsewhere" / "more" / "train-00000.tar").unlink()
    assert "val-0.tar is no file that can be read, or a broken link" in error_of(tmp_path / "shards")


def test_parquet_shards_may_store_images_and_labels_in_several_ways(tmp_path):
    files = [numbered_image(number) for number in range(4)]
    stored = [
        pa.array([{"bytes": file, "path": None} for file in files]),  # a column of nulls has a type of its own
        pa.array([{"path": "a.png", "bytes": file} for file in files]),
        pa.array(files),
    ]
    labels = [pa.array([0, 1] * 2, pa.uint8()), pa.array([0, 300] * 2), pa.array([0, 1] * 2, pa.int32())]
    for split in ("train", "validation"):
        for index, (image, label) in enumerate(zip(stored, labels, strict=True)):
            more = {"more": [1] * 4} if index else {}
            pq.write_table(pa.table({"image": image, "label": label, **more}), tmp_path / f"{split}-{index}.parquet")
    splits = load_stream(tmp_path)
    expected = [(number, name) for few in ("1", "300", "1") for number, name in enumerate(["0", few] * 2)]
    assert rows_of(splits["train"]) == expected
    names = splits["train"].names
    assert [names[label] for label in splits["validation"]["label"]] == [name for _, name in expected]
    assert [np.asarray(image)[0, 0] for image in splits["validation"]["image"]] == [0, 1, 2, 3] * 3
    pq.write_table(pa.table({"image": [1] * 4, "label": labels[0]}), tmp_path / "train-1.parquet")
    assert "train-1.parquet: column 'image' does not hold images" in error_of(tmp_path)


def test_classes_that_differ_between_shards_are_refused(tmp_path):
    for index, names in enumerate((["a", "b"], ["b", "a"])):
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        content = {"image": [{"bytes": numbered_image(0), "path": None}], "label": [0]}
        datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / f"train-{index}.parquet")
    assert "train-1.parquet declares other classes than" in error_of(tmp_path)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("damage", ["cut off", "overwritten", "empty", "without rows"])
def test_a_damaged_shard_is_refused_by_name_before_anything_is_trained(damage, kind, tmp_path):
    numbered_shards(tmp_path, kind, {"train": [5, 5, 0 if damage == "without rows" else 5]})
    file = tmp_path / f"train-00002.{kind}"
    content = bytearray(file.read_bytes())
    if damage == "cut off":
        # Of a tar behind a whole sample: nothing but its missing end says that it is not whole.
        content = content[: 4 * 1024] if kind == "tar" else content[:-100]
    elif damage == "overwritten":
        middle = 4 * 1024 if kind == "tar" else len(content) - 16
        content[middle : middle + 16] = os.urandom(16)
    elif damage == "empty":
        content = b""
    file.write_bytes(content)
    message = error_of(tmp_path)
    assert f"train-00002.{kind}" in message and ("no images" if damage == "without rows" else "damaged") in message


def test_other_data_are_refused_with_what_a_stream_reads(tmp_path):
    photo_folder(tmp_path / "photos")
    (tmp_path / "digits.csv").write_text("label,pixel0\n1,2\n")
    (tmp_path / "empty").mkdir()
    numbered_shards(tmp_path / "both", "tar", {"train": [3]})
    numbered_shards(tmp_path / "both", "parquet", {"train": [3]})
    numbered_shards(tmp_path / "untrained", "tar", {"validation": [3]})
    for source, words in (
        ("sample", "is not sharded"),
        ("kaggle", "is not sharded"),
        (tmp_path / "photos", "holds no Parquet or tar files"),
        (tmp_path / "empty", "holds no Parquet or tar files"),
        (tmp_path / "digits.csv", "is no shard"),
        (tmp_path / "both", "both Parquet and tar"),
        (tmp_path / "missing.tar", "no such file or folder"),
        (tmp_path / "untrained", "no training split"),
    ):
        message = error_of(str(source))
        assert words in message and "train-*.parquet or train-*.tar" in message, message
    assert "no such local file or folder, and loading it from the Hub failed" in error_of("nobody/has-this")
    with pytest.raises(DataError, match="pass --streaming"):
        data.load(tmp_path / "untrained")
