"""Damaged CSV files, zips and pictures: they load and can be trained on whole, or are refused by name in one line."""

import io
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import PIL.ImageFile
import pytest
from helpers import refused_by_train
from hostile import Watch, examples, files, shares
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_vit_scratch.data import DataError, image_shape, load, source_name
from hf_vit_scratch.data.batches import ImageBatches
from hf_vit_scratch.model import ViTScratchImageProcessor

SIDE = 3
HEADER = ",".join(["label", *(f"pixel{index}" for index in range(SIDE * SIDE))])


def table(rows: int = 8, header: str = HEADER, labels: bool = True) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, SIDE * SIDE))
    lines = [",".join(map(str, [*([row % 2] if labels else []), *line])) for row, line in enumerate(pixels.tolist())]
    return "\n".join([header, *lines, ""]).encode()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.csv", content)
    return stream.getvalue()


def processor(crop: bool, channels: int) -> ViTScratchImageProcessor:
    size = {"height": 16, "width": 16}
    if not crop:
        return ViTScratchImageProcessor(size=size, num_channels=channels)
    arguments = dict(size={"shortest_edge": 20}, do_center_crop=True, crop_size=size, default_to_square=False)
    return ViTScratchImageProcessor(**arguments, num_channels=channels)


def train_on(source: Path, cache: Path) -> None:
    """What a run does with its pictures, all of them, in training and evaluation."""
    splits = load(source, validation_size=0, cache_dir=cache)
    source_name(source)
    for split in splits.values():
        image_shape(split)
        rows = list(range(len(split)))
        ImageBatches(split, processor(crop=True, channels=3)).__getitems__(rows)
        ImageBatches(split, processor(crop=False, channels=1), min_crop_area=0.3).__getitems__(rows)


# ---- CSV and zip


def train_on_bytes(content: bytes, source: Path) -> None:
    """Like `train_on`, of a file with this content, and with a cache of its own."""
    source.write_bytes(content)
    cache = source.parent / "cache"
    try:
        train_on(source, cache)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


@shares(fast=60)
def test_any_csv_is_read_or_refused(cases, tmp_path):
    source, watch = tmp_path / "train.csv", Watch(tmp_path)
    words = (b",", b'"', b"\n", b"\r", b"\0", b"-1", b"256", b"1e2", b"0x10", b"\xff\xfe", b"\xef\xbb\xbf", b"label")
    words += (b"pixel0", b"9" * 400, b"," * 5000, b'"\n"', b" ", b";", b"nan", "é".encode())
    originals = [table(), table(header=HEADER.replace("label", "digit")), table().split(b"\n", 1)[1]]

    @examples(cases)
    @given(files(originals, words))
    def holds(content: bytes):
        watch.outcome(lambda: train_on_bytes(content, source))

    holds()
    assert 0 < watch.refused < watch.cases
    print("CSV:", watch)


@shares(fast=60)
def test_any_zip_is_read_or_refused(cases, tmp_path):
    source, watch = tmp_path / "digits.zip", Watch(tmp_path)
    test = table(4, HEADER.removeprefix("label,"), labels=False)
    originals = [zipped(train=table(), test=test, sample_submission=b"ImageId,Label\n1,0\n2,0\n3,0\n4,0\n")]
    originals += [zipped(train=table()), zipped(train=b"label,pixel0\n")]
    words = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"../", b"train.csv", b"\0", b"\xff" * 4)
    names = st.sampled_from(
        ["train.csv", "test.csv", "../train.csv", "/train.csv", "a/train.csv", "train.csv.gz", "é.csv"]
    )
    built = st.dictionaries(names, files([table(), test], (b",", b"\n")), max_size=3)

    def pack(members: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return stream.getvalue()

    @examples(cases)
    @given(st.one_of(files(originals, words), damaged_directory(originals), built.map(pack)))
    def holds(content: bytes):
        watch.outcome(lambda: train_on_bytes(content, source))

    holds()
    assert 0 < watch.refused < watch.cases
    print("zip:", watch)


@st.composite
def damaged_directory(draw, originals: list[bytes]) -> bytes:
    """A zip with other values in the fields of its directory: versions, flags, methods, sizes, places."""
    content = bytearray(draw(st.sampled_from(originals)))
    start = content.rindex(b"PK\x01\x02") if draw(st.booleans()) else content.index(b"PK\x01\x02")
    for _ in range(draw(st.integers(1, 2))):
        place, size = draw(
            st.sampled_from([(4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)])
        )
        content[start + place : start + place + size] = draw(st.binary(min_size=size, max_size=size))
    return bytes(content)


def test_a_zip_whose_directory_asks_for_another_version_is_refused_by_all_that_look_at_it(tmp_path, capsys):
    content = bytearray(zipped(train=table()))
    struct.pack_into("<H", content, content.index(b"PK\x01\x02") + 6, 255)
    source = tmp_path / "digits.zip"
    source.write_bytes(content)
    for flags in ([], ["--model_name_or_path", "nowhere"], ["--recipe", "photos-small"]):
        line = refused_by_train(capsys, "--data", str(source), "--output_dir", str(tmp_path / "out"), *flags)
        assert flags[:1] == ["--model_name_or_path"] or "digits.zip" in line
    with pytest.raises(DataError, match="digits.zip"):
        load(source, cache_dir=tmp_path)
    assert source_name(source) == "digits.zip"


@pytest.mark.parametrize("suffix", ["", ".zip", ".csv", ".parquet"])
def test_a_link_to_itself_is_refused(suffix, tmp_path, capsys):
    link = tmp_path / f"loop{suffix}"
    link.symlink_to(link)
    assert "loop" in refused_by_train(capsys, "--data", str(link), "--output_dir", str(tmp_path / "out"))
    assert "loop" in refused_by_train(capsys, "--model_name_or_path", str(link), "--output_dir", str(tmp_path / "out"))
    assert source_name(link) == link.name


@pytest.mark.parametrize("sign", [",", "1,", "pixel,", "pixel7,"])
@pytest.mark.parametrize("form", ["csv", "zip"])
def test_a_header_of_millions_of_columns_is_refused_at_once(form, sign, tmp_path):
    header = (sign * 3_000_000).encode()
    source = tmp_path / f"train.{form}"
    source.write_bytes(header if form == "csv" else zipped(train=header))
    watch = Watch(tmp_path)
    line = watch.outcome(lambda: load(source, cache_dir=tmp_path / "cache"))
    assert line and "train" in line and watch.bytes < 2**29


# ---- pictures


def noise(height: int = 24, width: int = 30, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def with_exif(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x9286], exif[0x010F] = orientation, b"comment", "maker"
    return encoded(noise(), "JPEG", exif=exif)


def folder_with(picture: bytes, place: Path) -> Path:
    for name in ("one", "two"):
        (place / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            noise(24 + 2 * number, 30).save(place / name / f"{number}.jpg")
    (place / "one" / "odd.jpg").write_bytes(picture)
    return place


PICTURES = {
    "jpeg": encoded(noise(), "JPEG"),
    "turned": with_exif(),
    "progressive": encoded(noise(), "JPEG", progressive=True),
    "cmyk": encoded(noise(mode="CMYK"), "JPEG"),
    "png": encoded(noise(), "PNG"),
    "palette": encoded(noise(mode="P"), "PNG", transparency=3),
    "alpha": encoded(noise(mode="LA"), "PNG"),
    "bits": encoded(noise(mode="1"), "PNG"),
    "16 bits": encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
    "gif": encoded(noise(mode="P"), "GIF", save_all=True, append_images=[noise(mode="P")]),
    "tiff": encoded(noise(), "TIFF", compression="tiff_lzw"),
    "float": encoded(Image.fromarray(np.full((20, 30), 7, np.float32)), "TIFF"),
    "bmp": encoded(noise(), "BMP"),
    "webp": encoded(noise(), "WEBP"),
    "ppm": encoded(noise(), "PPM"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_whole_pictures_are_trained_on(name, tmp_path):
    train_on(folder_with(PICTURES[name], tmp_path / "photos"), tmp_path / "cache")


BAD = {
    "a mode without conversion": (encoded(Image.frombytes("LAB", (30, 24), bytes(30 * 24 * 3)), "TIFF"), "LAB to RGB"),
    "a ribbon": (encoded(Image.new("L", (20_000, 1)), "PNG"), "20000x1 pixels, expected sides that differ 200-fold"),
    "a bomb": (encoded(Image.new("1", (14_000, 14_000)), "PNG"), "decompression bomb"),
    "a large one": (encoded(Image.new("1", (10_000, 9_500)), "PNG"), "10000x9500 pixels, expected at most 89,478,485"),
    "cut": (PICTURES["jpeg"][:-200], "truncated"),
    "cut before its pixels": (PICTURES["png"][:60], "OSError"),
    "bits lost": (PICTURES["png"][:300] + bytes(40) + PICTURES["png"][340:], "odd.jpg"),
    "a header alone": (b"P6\n30 24\n255\n", "truncated"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_picture_that_would_stop_training_is_refused_by_name_at_loading(name, tmp_path):
    content, words = BAD[name]
    source, watch = folder_with(content, tmp_path / "photos"), Watch(tmp_path)
    line = watch.outcome(lambda: load(source, cache_dir=tmp_path / "cache"))
    assert line and str(source / "one" / "odd.jpg") in line and words in line, line


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@shares(fast=100)
def test_any_picture_is_trained_on_or_refused_by_name_at_loading(cases, tmp_path):
    source, watch = folder_with(b"", tmp_path / "photos"), Watch(tmp_path)
    odd, cache = source / "one" / "odd.jpg", tmp_path / "cache"
    assert not PIL.ImageFile.LOAD_TRUNCATED_IMAGES

    @examples(cases)
    @given(files(list(PICTURES.values()), (b"\xff\xd8", b"IDAT", b"\0\0\0\0", b"\xff\xff\xff\xff", b"Exif\0\0")))
    def holds(content: bytes):
        odd.write_bytes(content)
        loaded = []

        def run():
            loaded.append(load(source, validation_size=0, cache_dir=cache))
            train_on(source, cache)

        if line := watch.outcome(run):
            assert not loaded and str(odd) in line, f"it loads, and then stops training: {line}"
        shutil.rmtree(cache, ignore_errors=True)

    holds()
    assert 0 < watch.refused < watch.cases
    print("pictures:", watch)
