"""Callbacks of the Trainer: average of the weights, milder augmentation at the end, run time, stop if diverged."""

import math
import os
import time
from contextlib import contextmanager

import safetensors.torch
import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.augmentation import DigitAugmentation
from ..output_folder import AVERAGE_NAME
from . import sharding

STREAM_STATE = "stream"  # in the trainer_state.json of a checkpoint, among the states of callbacks


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights: average <- decay * average + (1 - decay) * weights, after each step.

    The decay is at most (1 + step) / (10 + step), so that the average forgets the initial weights quickly. Buffers
    with floats are averaged too. Under FSDP2 each process averages its shards.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self._begin()

    @torch.no_grad()
    def _begin(self):
        # Frozen weights too, so that a checkpoint can be checked to have all of them. The average of equal values is
        # the same value, bit for bit.
        averaged = dict(self.model.named_parameters())
        # The running statistics of batch norm must fit the weights.
        averaged |= {name: buffer for name, buffer in self.model.named_buffers() if buffer.is_floating_point()}
        self.average = {name: tensor.detach().clone() for name, tensor in averaged.items()}

    def _weights(self) -> list[torch.Tensor]:
        """The weights, in the order of the average. They are looked up, because FSDP2 replaces them by shards."""
        sharding.reshard(self.model)
        now = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return [sharding.local(now[name]) for name in self.average]

    def _averages(self) -> list[torch.Tensor]:
        return [sharding.local(tensor) for tensor in self.average.values()]

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:  # otherwise the run is resumed, and `load` has set the average
            self._begin()

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        torch._foreach_lerp_(self._averages(), self._weights(), 1 - decay)

    @contextmanager
    def in_place(self):
        """A context in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for tensor, average in zip(self._weights(), self._averages(), strict=True):
            weights = tensor.clone()
            tensor.copy_(average)
            average.copy_(weights)

    def save(self, folder: str, write: bool = True):
        """Save the average. All processes of a launch with FSDP2 must call this; only one of them may `write`."""
        whole = {name: sharding.whole(tensor) for name, tensor in self.average.items()}
        if write:
            safetensors.torch.save_file(whole, os.path.join(folder, AVERAGE_NAME))

    @torch.no_grad()
    def load(self, folder: str):
        self._begin()
        for name, tensor in safetensors.torch.load_file(os.path.join(folder, AVERAGE_NAME)).items():
            self.average[name].copy_(sharding.shard_like(tensor, self.average[name]))


class MildEnd(TrainerCallback):
    """Weaken the augmentation at the end of a run, so that the last images are like those of the evaluation.

    Args:
        augmentation: the callback sets its `strength`.
        fraction: fraction of the training steps, at the end.
        strength: factor of all amounts in these steps.
    """

    def __init__(self, augmentation: DigitAugmentation, fraction: float, strength: float):
        self.augmentation, self.fraction, self.strength = augmentation, fraction, strength

    def on_step_begin(self, args, state, control, **kwargs):
        at_the_end = state.global_step >= (1 - self.fraction) * state.max_steps
        self.augmentation.strength = self.strength if at_the_end else 1.0


class RunTime(TrainerCallback, ExportableState):
    """The training time of a run, in seconds, which a checkpoint keeps.

    `earlier` is the time up to the checkpoint from which the run was resumed: 0 for a run that was not resumed, and
    None if an older version wrote the checkpoint.
    """

    def __init__(self):
        self.earlier: float | None = 0.0
        self.start: float | None = None

    @property
    def seconds(self) -> float:
        """The time until now, with the earlier one if it is known."""
        return (self.earlier or 0.0) + (0.0 if self.start is None else time.perf_counter() - self.start)

    def state(self) -> dict:
        # Written as the earlier time of the run that is resumed. What is not known stays so.
        return {"args": {}, "attributes": {"earlier": None if self.earlier is None else self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        name = type(self).__name__
        if state.global_step:
            self.earlier = state.stateful_callbacks.get(name, {}).get("attributes", {}).get("earlier")
        state.stateful_callbacks[name] = self.state()  # the Trainer updates only what the checkpoint had
        self.start = time.perf_counter()


class ResumedStream(TrainerCallback):
    """Keep in each checkpoint how a stream is divided, and tell it which batches a resumed run has had already.

    The stream then reads on without decoding them.
    """

    def on_train_begin(self, args, state, control, *, train_dataloader, **kwargs):
        state.stateful_callbacks[STREAM_STATE] = train_dataloader.dataset.division(args.dataloader_num_workers)

    def on_epoch_begin(self, args, state, control, *, train_dataloader, **kwargs):
        epoch, steps = divmod(state.global_step, math.ceil(len(train_dataloader) / args.gradient_accumulation_steps))
        skipped = 0 if args.ignore_data_skip else steps * args.gradient_accumulation_steps
        train_dataloader.dataset.start_at(epoch, skipped)


class DivergedError(ValueError):
    """The training loss is no longer finite, and training cannot recover."""


class StopWhenDiverged(TrainerCallback):
    """Raise a [`DivergedError`] as soon as a logged loss is not finite, instead of training on for hours."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise DivergedError(
                f"training has diverged: the loss is {loss} at step {state.global_step} of {state.max_steps}. Start "
                f"again with a learning_rate below {args.learning_rate}, more warmup_steps, or bf16 and fp16 false."
            )
