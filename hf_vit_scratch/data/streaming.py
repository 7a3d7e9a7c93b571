"""The order in which a stream of shards is trained on, and its batches.

The shards, in a new order in each epoch, are laid end to end, and this line of images is cut into one stretch for each
worker of each rank. So any number of shards is read by any number of workers, each image once, and all ranks have the
same number of batches. Each worker shuffles its stretch with a buffer. All of it is known from the seed, the epoch and
the numbers of images: a run is resumed in the middle of an epoch without decoding what it has seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from .augmentation import crop_numbers
from .batches import fit_image
from .errors import DataError
from .pixels import decode_stored
from .random_numbers import image_keys, uniform
from .sampling import TrainingBatches
from .shards import Row, Stream

_ORDER_OF_SHARDS, _ORDER_OF_IMAGES = 1001, 1002  # streams of random numbers that no augmentation draws from


@dataclass(frozen=True)
class StreamedImages:
    """The training images of a stream in the size of the model.

    Args:
        stream: the images.
        processor: determines size, crop and channels.
        min_crop_area: as for [`ImageBatches`].
        shuffle_buffer: number of images, not decoded, among which each worker shuffles. 1: shuffle only the shards.
    """

    stream: Stream
    processor: ViTScratchImageProcessor
    min_crop_area: float | None = None
    shuffle_buffer: int = 1000

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(num_channels, height, width)` of all images."""
        size = self.processor.crop_size if self.processor.do_center_crop else self.processor.size
        return self.processor.num_channels, size["height"], size["width"]

    def decode(self, file: dict | None, index: int, numbers: np.ndarray) -> np.ndarray:
        """An image, uint8 `(num_channels, height, width)`. Raises: DataError, with its place, if it cannot be used."""
        try:
            if file is not None and file["bytes"] is None:
                raise ValueError("the shard holds its name alone: write the file of the image into the shard")
            image = decode_stored(file)
            # Other images may have 16 bits in 32, and a stream does not know before it has read them.
            if image.mode in ("I", "F") and (pixels := np.asarray(image)).any() and not pixels.max() > 255:
                raise ValueError("its pixels have 32 bits and are at most 255: save it with 8 or 16 bits")
            return fit_image(image, self.processor, self.min_crop_area, numbers)
        except Exception as error:  # Pillow raises many types of exceptions for damaged files
            name = f" ({file['path']})" if file and file.get("path") else ""
            problem = f"{self.stream.place(index)}{name} cannot be used as an image"
            raise DataError(f"{problem} ({type(error).__name__}: {error}).") from error


class StreamedBatches(torch.utils.data.IterableDataset):
    """The training batches of a stream: `pixel_values`, `labels`, `keys` and `weight`, as [`ImageBatches`] has them.

    Iterated in a worker of a `DataLoader`, it reads, decodes and crops what belongs to this worker of this rank.

    Args:
        images: the images.
        batches: the sizes of all batches, the rank, and the seeds of the order and of the keys.
    """

    def __init__(self, images: StreamedImages, batches: TrainingBatches):
        self.images, self.stream, self.batches = images, images.stream, batches
        # Epoch, and number of its first batches that are not needed; shared with workers that outlive an epoch.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.batches)

    def division(self, workers: int) -> dict[str, int]:
        """What decides which images are in a batch, by the names of the flags."""
        steps = self.batches.steps
        return {
            "images": len(self.stream),
            "shards": len(self.stream.files),
            "processes": steps.num_ranks,
            "dataloader_num_workers": max(1, workers),  # without workers the batches are those of one
            "per_device_train_batch_size": steps.batch_size,
            "data_seed": self.batches.data_seed,
            "shuffle_buffer": self.images.shuffle_buffer,
        }

    def set_epoch(self, epoch: int) -> None:
        """Accelerate calls this before each epoch."""
        if int(self._start[0]) != epoch:
            self.start_at(epoch, 0)

    def start_at(self, epoch: int, batches: int) -> None:
        """Make the first batches of this epoch black, without reading them, since they will not be used."""
        self._start.copy_(torch.tensor([epoch, batches]))

    def stretch(self, worker: int, workers: int) -> range:
        """The positions, in the line of all images of an epoch, of the images of a worker of this rank."""
        before = 0
        for rank in range(self.batches.steps.num_ranks):
            steps = replace(self.batches.steps, rank=rank)
            sizes, _ = replace(self.batches, steps=steps).sizes()
            for number in range(workers):
                count = int(sizes[number::workers].sum())
                if (rank, number) == (self.batches.steps.rank, worker):
                    return range(before, before + count)
                before += count
        raise ValueError(f"worker {worker} of rank {self.batches.steps.rank} does not exist.")

    def __iter__(self) -> Iterator[dict]:
        """Raises: DataError for an image that cannot be decoded, or a shard that cannot be read."""
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, skipped = self._start.tolist()
        # A DataLoader takes the first batch from the first worker, the second from the second, and so on.
        sizes, weights = (values[worker::workers].tolist() for values in self.batches.sizes())
        parts, indices = self._in_line(self.stretch(worker, workers), epoch)
        draws = uniform(image_keys(self.batches.data_seed, epoch, indices), 1, _ORDER_OF_IMAGES)[:, 0].double()
        # An image moves by fewer places than the buffer has, so that no more than this wait at any time.
        order = torch.argsort(torch.arange(len(indices)) + draws * self.images.shuffle_buffer, stable=True)
        skipped = len(range(worker, min(skipped, len(self)), workers))
        seen = np.zeros(len(indices), bool)
        seen[order[: sum(sizes[:skipped])]] = True
        rows, waiting, ends = self._read(parts, seen), {}, np.cumsum(sizes)
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            places = order[ends[number] - size : ends[number]].tolist() if number >= skipped else []
            while any(place not in waiting for place in places):
                place, row = next(rows)
                waiting[place] = row
            batch = self._batch(indices[places], epoch, [waiting.pop(place) for place in places])
            yield {**batch, "weight": weight}

    def _in_line(self, stretch: range, epoch: int) -> tuple[list[tuple[int, int, int]], torch.Tensor]:
        """The shards of a stretch of the line with their rows, `(shard, start, stop)`, and its images' indices."""
        keys = image_keys(self.batches.data_seed, epoch, torch.arange(len(self.stream.files)))
        parts, start = [], 0
        for shard in torch.argsort(uniform(keys, 1, _ORDER_OF_SHARDS)[:, 0], stable=True).tolist():
            rows = self.stream.rows[shard]
            low, high = max(stretch.start - start, 0), min(stretch.stop - start, rows)
            if low < high:
                parts.append((shard, low, high))
            start += rows
        first = self.stream.first
        numbers = [np.arange(first[shard] + low, first[shard] + high) for shard, low, high in parts]
        return parts, torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *numbers]))

    def _read(self, parts: list[tuple[int, int, int]], seen: np.ndarray) -> Iterator[tuple[int, Row]]:
        """The places in a stretch and the rows of the images that are not seen. Shards without one are not opened."""
        place = 0
        for shard, start, stop in parts:
            if not seen[place : place + stop - start].all():
                rows = enumerate(self.stream.read(shard, start, stop), place)
                yield from ((number, row) for number, row in rows if not seen[number])
            place += stop - start

    def _batch(self, indices: torch.Tensor, epoch: int, rows: list[Row]) -> dict[str, torch.Tensor]:
        """The batch of these images. A batch of none is one black image, as all ranks have to take part in a step."""
        indices = indices if rows else torch.zeros(1, dtype=torch.int64)
        keys = image_keys(self.batches.seed, epoch, indices)
        # In numpy: threads of torch, which copy in parallel, wait for each other where the cores are busy.
        images = np.zeros((len(indices), *self.images.shape), np.uint8)
        labels = torch.zeros(len(indices), dtype=torch.int64)
        crops = crop_numbers(keys[: len(rows)]).numpy()
        for number, (row, numbers) in enumerate(zip(rows, crops, strict=True)):
            images[number], labels[number] = self.images.decode(row.file, int(indices[number]), numbers), row.label
        return {"pixel_values": torch.from_numpy(images), "labels": labels, "keys": keys}
