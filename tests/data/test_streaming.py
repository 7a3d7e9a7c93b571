import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import numbered_image, numbered_shards
from PIL import Image

from hf_vit_scratch import ViTScratchImageProcessor
from hf_vit_scratch.data import DataError, load_stream
from hf_vit_scratch.data.sampling import Steps, TrainingBatches
from hf_vit_scratch.data.shards import Stream
from hf_vit_scratch.data.streaming import StreamedBatches, StreamedImages

PROCESSOR = ViTScratchImageProcessor(num_channels=1, size={"height": 8, "width": 8})


def batches_of(stream, rank: int = 0, ranks: int = 1, seed: int = 5, drop_last: bool = False, **reading):
    steps = Steps(reading.pop("batch_size", 4), 1, rank, ranks)
    batches = TrainingBatches(len(stream), steps, seed, data_seed=7, drop_last=drop_last)
    return StreamedBatches(StreamedImages(stream, PROCESSOR, **{"shuffle_buffer": 6} | reading), batches)


def loaded(batches: StreamedBatches, workers: int = 0, epoch: int = 0) -> list[dict]:
    batches.set_epoch(epoch)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)
    got = list(loader)
    assert len(got) == len(loader)
    return got


def numbers(batch: dict) -> list[int]:
    """The numbers of the images that count."""
    return [int(image[0, 0, 0]) for image in batch["pixel_values"]] if batch["weight"] else []


@pytest.mark.parametrize(
    "shape", [(1, 4, 1, 1), (3, 4, 2, 2), (8, 4, 2, 1), (33, 4, 2, 3), (64, 8, 2, 2), (65, 8, 4, 2)]
)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_stretches_of_the_workers_cover_an_epoch_in_batches_of_the_usual_sizes(shape, accumulation, drop_last):
    images, batch_size, ranks, workers = shape
    if drop_last and images < batch_size * accumulation * ranks:
        return  # refused
    covered = []
    for rank in range(ranks):
        usual = TrainingBatches(images, Steps(batch_size, accumulation, rank, ranks), 0, 0, drop_last=drop_last)
        drawn = [(len(batch.indices) if batch.weight else 0, batch.weight) for batch in usual]
        assert list(zip(*map(torch.Tensor.tolist, usual.sizes()), strict=True)) == drawn
        streamed = StreamedBatches(StreamedImages(range(images), PROCESSOR), usual)
        for worker in range(workers):
            stretch = streamed.stretch(worker, workers)
            assert len(stretch) == sum(size for size, _ in drawn[worker::workers])
            covered += stretch
    left_out = images % (batch_size * accumulation * ranks) if drop_last else 0
    assert covered == list(range(images - left_out))


@pytest.mark.parametrize(("sizes", "kind"), [([31], "tar"), ([9, 20, 4], "parquet"), ([1, 5, 3, 8, 15], "tar")])
def test_any_number_of_shards_is_read_once_by_ranks_and_workers(sizes, kind, tmp_path):
    numbered_shards(tmp_path, kind, {"train": sizes})
    stream = load_stream(tmp_path)["train"]
    for ranks, workers in ((1, 0), (5, 0), (2, 2))[: 3 if len(sizes) == 5 else 2]:
        orders = []
        for epoch in (0, 1):
            got = [loaded(batches_of(stream, rank, ranks), workers, epoch) for rank in range(ranks)]
            assert {len(part) for part in got} == {-(-sum(sizes) // (4 * ranks))}
            orders.append([number for part in got for batch in part for number in numbers(batch)])
            assert sorted(orders[-1]) == list(range(sum(sizes)))
            for batch in itertools.chain(*got):
                if batch["weight"]:
                    assert batch["labels"].tolist() == [number % 2 for number in numbers(batch)]
                    assert batch["pixel_values"].shape[1:] == (1, 8, 8) and batch["pixel_values"].dtype == torch.uint8
        assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_an_image_has_its_key_whoever_reads_it_and_another_in_each_epoch(tmp_path):
    numbered_shards(tmp_path, "tar", {"train": [9, 20, 4]})
    stream = load_stream(tmp_path)["train"]

    def keys(ranks: int, workers: int, epoch: int, seed: int = 5) -> dict[int, int]:
        got = [loaded(batches_of(stream, rank, ranks, seed=seed), workers, epoch) for rank in range(ranks)]
        pairs = [zip(numbers(batch), batch["keys"].tolist(), strict=False) for part in got for batch in part]
        return dict(sorted(itertools.chain(*pairs)))

    alone = keys(1, 0, epoch=1)
    assert len(set(alone.values())) == 33 and alone == keys(2, 2, epoch=1)
    assert not set(alone.values()) & (set(keys(1, 0, epoch=2).values()) | set(keys(1, 0, epoch=1, seed=6).values()))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_resumed_run_has_seen_is_neither_decoded_nor_opened_again(workers, tmp_path, monkeypatch):
    numbered_shards(tmp_path / "shards", "parquet", {"train": [8] * 8})
    stream, log = load_stream(tmp_path / "shards")["train"], tmp_path / "log"
    decode, read = StreamedImages.decode, Stream.read
    monkeypatch.setattr(StreamedImages, "decode", lambda self, *one: (note("decoded"), decode(self, *one))[1])
    monkeypatch.setattr(Stream, "read", lambda self, *one: (note("opened"), read(self, *one))[1])

    def note(what: str) -> None:
        with open(log, "a") as file:  # workers are other processes
            file.write(what + "\n")

    batches = batches_of(stream, shuffle_buffer=3)
    whole = loaded(batches, workers, epoch=3)
    assert log.read_text().count("decoded") == 64
    log.unlink()
    batches.start_at(3, 12)  # of 16
    rest = loaded(batches, workers, epoch=3)
    assert log.read_text().count("decoded") == 16 and 2 <= log.read_text().count("opened") <= 4
    for one, other in zip(whole[12:], rest[12:], strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(one["keys"], other["keys"])
    assert len(rest) == 16 and sorted(itertools.chain(*map(numbers, loaded(batches, workers, epoch=4)))) == list(
        range(64)
    )


def test_no_more_images_wait_than_the_buffer_holds(tmp_path, monkeypatch):
    numbered_shards(tmp_path, "tar", {"train": [50, 50, 50]})
    stream, given = load_stream(tmp_path)["train"], []
    read = Stream.read
    monkeypatch.setattr(Stream, "read", lambda self, *one: (given.append(row) or row for row in read(self, *one)))
    places = []
    for count, batch in enumerate(batches_of(stream, shuffle_buffer=20)):
        assert len(given) - 4 * count <= 4 + 20
        places += numbers(batch)
    # Each image moves by fewer places than the buffer has, and most of them do move.
    in_line = [int(np.asarray(Image.open(io.BytesIO(row.file["bytes"])))[0, 0]) for row in given]
    moved = [abs(in_line.index(number) - place) for place, number in enumerate(places)]
    assert sorted(places) == list(range(150)) and 0 < max(moved) < 20 and sum(map(bool, moved)) > 100


def test_photographs_are_cropped_in_the_worker_by_the_key_of_the_image(tmp_path):
    random = np.random.default_rng(0)
    images = []
    for _ in range(12):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(stream, "png")
        images.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"image": images, "label": ["x", "y"] * 6}), tmp_path / "train-0.parquet")
    stream = load_stream(tmp_path)["train"]

    def crops(workers: int, epoch: int, ranks: int = 1) -> dict[int, bytes]:
        parts = [loaded(batches_of(stream, rank, ranks, min_crop_area=0.3), workers, epoch) for rank in range(ranks)]
        rows = [(batch["keys"], batch["pixel_values"]) for part in parts for batch in part if batch["weight"]]
        return {
            int(key): image.numpy().tobytes() for keys, pixels in rows for key, image in zip(keys, pixels, strict=True)
        }

    alone = crops(0, 1)
    assert alone == crops(2, 1) == crops(0, 1, ranks=2) and len(set(alone.values())) == 12
    assert not set(alone.values()) & set(crops(0, 2).values())


def deep(mode: str, value: float) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode])).save(
        stream, "tiff"
    )
    return stream.getvalue()


def damaged() -> bytes:
    """A photograph of which the second half is missing."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(stream, "jpeg")
    return stream.getvalue()[: stream.tell() // 2]


def wide() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (5000, 2)).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words", "workers"),
    [
        (b"no image", "cannot identify image file", 2),
        (damaged(), "truncated", 0),
        (deep("I", 70000), "expected pixels from 0 to 255 or to 65535", 0),
        (deep("F", 200), "its pixels have 32 bits and are at most 255", 0),
        (None, "the shard holds its name alone", 0),
        (deep("F", np.nan), "its pixels have 32 bits", 0),
        (wide(), "it has 5000x2 pixels, expected sides that differ 200-fold at most", 0),
    ],
    ids=["no image", "cut off", "too bright", "unknown range", "no file", "not a number", "too wide"],
)
def test_an_image_that_cannot_be_used_is_named_in_one_line(content, words, workers, tmp_path):
    images = [{"bytes": numbered_image(number), "path": f"{number}.png"} for number in range(9)]
    images[5] = {"bytes": content, "path": "gone.png"}
    pq.write_table(pa.table({"image": images, "label": list(range(9))}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError) as error:
        loaded(batches_of(load_stream(tmp_path)["train"]), workers)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/train-0.parquet, row 6 (gone.png) cannot be used as an image")
    assert words in message and "Traceback" not in message and "\n" not in message


def test_sixteen_bits_are_scaled_as_everywhere(tmp_path):
    images = [{"bytes": deep("I;16", 257 * number), "path": None} for number in range(8)]
    pq.write_table(pa.table({"image": images, "label": list(range(8))}), tmp_path / "train-0.parquet")
    got = loaded(batches_of(load_stream(tmp_path)["train"]))
    assert sorted(itertools.chain(*map(numbers, got))) == list(range(8))


def test_a_shard_that_is_damaged_or_changed_while_it_is_read_is_named(tmp_path):
    numbered_shards(tmp_path / "shards", "parquet", {"train": [30, 30]})
    file = tmp_path / "shards" / "train-00001.parquet"
    stream = load_stream(tmp_path / "shards")["train"]
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001.parquet.* is damaged|train-00001.parquet, row"):
        loaded(batches_of(stream), 2)
    numbered_shards(tmp_path / "shards", "parquet", {"train": [30, 20]})
    with pytest.raises(DataError, match="train-00001.parquet has 20 images, and had 30"):
        loaded(batches_of(stream))


def test_leaving_out_the_last_batch_must_leave_some(tmp_path):
    numbered_shards(tmp_path, "tar", {"train": [9]})
    stream = load_stream(tmp_path)["train"]
    got = loaded(batches_of(stream, drop_last=True), 2)
    assert [len(numbers(batch)) for batch in got] == [4, 4] and all(batch["weight"] == 1 for batch in got)
    with pytest.raises(ValueError, match="dataloader_drop_last leaves out all of the 9"):
        batches_of(stream, drop_last=True, batch_size=10)
