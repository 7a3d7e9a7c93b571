"""Which images of an epoch are in which batch of which process, such that their number does not matter.

An epoch is a random order of the images, cut into optimizer steps of batch size x gradient accumulation x processes
images. Each process takes its part of each step. So one process with batches of 64, two with 32, and two with 16 and
two accumulated batches make the same steps. Each image is in exactly one step of an epoch: the last step is smaller.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .random_numbers import image_keys


class Drawn(NamedTuple):
    """One batch of one process.

    Args:
        indices: of the images in the data set.
        keys: of the images, int64 `(batch_size,)`; see [`image_keys`]. In numpy, because a tensor goes to a worker
            through shared memory, which takes longer and fails with a traceback if the worker is killed.
        weight: factor of the mean loss of the batch. It is 1 in a full step. The gradient of a smaller step is then
            the mean over its images, if gradients are averaged over the processes and the accumulated batches.
    """

    indices: list[int]
    keys: np.ndarray
    weight: float


@dataclasses.dataclass(frozen=True)
class Steps:
    """The size of an optimizer step, and the part of one process in it.

    Args:
        batch_size: largest number of images in a batch of one process.
        accumulation: largest number of batches of one process in a step.
        rank: number of this process, counted from 0.
        num_ranks: number of processes.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    num_ranks: int = 1

    @property
    def num_images(self) -> int:
        """The number of images in a full step."""
        return self.batch_size * self.accumulation * self.num_ranks

    def batches_of(self, num_images: int) -> int:
        """The number of batches that each process has in a step of this many images."""
        return -(-num_images // (self.batch_size * self.num_ranks))

    def share(self, indices: torch.Tensor) -> Iterator[tuple[torch.Tensor, float]]:
        """The batches of this process in a step with the images `indices` `(num_images,)`, and their weights.

        All processes have the same number of batches. If a step has fewer images than processes, the last ones get
        the step's first image with weight 0, since all have to take part in the exchange of gradients.
        """
        parts = indices.tensor_split(self.batches_of(len(indices)) * self.num_ranks)
        for part in parts[self.rank :: self.num_ranks]:
            yield (part, len(part) * len(parts) / len(indices)) if len(part) else (indices[:1], 0.0)


@dataclasses.dataclass(eq=False)
class TrainingBatches(torch.utils.data.Sampler):
    """Batch sampler of the training: yields the batches [`Drawn`] of one process in one epoch.

    Args:
        num_images: number of images in the data set.
        steps: size of a step, and the part of this process.
        seed: seed of the keys, and so of the augmentation.
        data_seed: seed of the order.
        shuffle: whether the order is random; otherwise it is that of the data set.
        drop_last: whether to leave out the last step of an epoch if it is smaller than the others.

    Raises: ValueError if no step would be left.
    """

    num_images: int
    steps: Steps
    seed: int
    data_seed: int
    shuffle: bool = True
    drop_last: bool = False
    epoch: int = 0

    def __post_init__(self):
        if not len(self):
            raise ValueError(
                f"dataloader_drop_last leaves out all of the {self.num_images} training images, since a step takes "
                f"{self.steps.num_images}. Choose a smaller batch, or leave out dataloader_drop_last."
            )

    @property
    def batch_size(self) -> int:
        return self.steps.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Accelerate and the Trainer call this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.num_images, self.steps.num_images)
        return full * self.steps.accumulation + (0 if self.drop_last else self.steps.batches_of(rest))

    def sizes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The number of images and the weight of each batch of this process, each `(num_batches,)`."""
        full, rest = divmod(self.num_images, self.steps.num_images)
        last = [] if self.drop_last or not rest else list(self.steps.share(torch.arange(rest)))
        sizes = torch.tensor([len(part) if weight else 0 for part, weight in last], dtype=torch.int64)
        weights = torch.tensor([weight for _, weight in last], dtype=torch.float64)
        count = full * self.steps.accumulation
        return F.pad(sizes, (count, 0), value=self.steps.batch_size), F.pad(weights, (count, 0), value=1.0)

    def __iter__(self) -> Iterator[Drawn]:
        epoch, order = self.epoch, torch.arange(self.num_images)
        if self.shuffle:
            order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(self.data_seed + epoch))
        for step in order.split(self.steps.num_images):
            if len(step) == self.steps.num_images or not self.drop_last:
                for indices, weight in self.steps.share(step):
                    yield Drawn(indices.tolist(), image_keys(self.seed, epoch, indices).numpy(), weight)
