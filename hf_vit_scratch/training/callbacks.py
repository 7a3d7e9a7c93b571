"""What happens beside the steps of a training: the average of the weights, a mild end, a stop where it diverges."""

import math
import os
from contextlib import contextmanager

import safetensors.torch
import torch
from torch import nn
from transformers import TrainerCallback

from ..data.augmentation import DigitAugmentation
from ..output_folder import AVERAGE_NAME


class WeightAverage(TrainerCallback):
    """Exponential moving average of weights and buffers: average <- decay * average + (1 - decay) * now, each step.

    The decay rises to its value from 0.1, as (1 + step) / (10 + step), so that the first steps are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.averaged = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        # A batch norm's running statistics belong to the weights that made them.
        self.averaged |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        self.average = {name: tensor.detach().clone() for name, tensor in self.averaged.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        torch._foreach_lerp_(list(self.average.values()), list(self.averaged.values()), 1 - decay)

    @contextmanager
    def in_place(self):
        """Within it the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for name, tensor in self.averaged.items():
            weights = tensor.clone()
            tensor.copy_(self.average[name])
            self.average[name].copy_(weights)

    def save(self, folder: str):
        safetensors.torch.save_file(self.average, os.path.join(folder, AVERAGE_NAME))

    def load(self, folder: str):
        for name, tensor in safetensors.torch.load_file(os.path.join(folder, AVERAGE_NAME)).items():
            self.average[name].copy_(tensor)


class MildEnd(TrainerCallback):
    """Weaken the augmentation for the last part of a run, so that it ends on images like those it is asked about.

    Args:
        augmentation: its `strength` is set.
        fraction: of the run's steps, at its end.
        strength: of the augmentation there, a factor.
    """

    def __init__(self, augmentation: DigitAugmentation, fraction: float, strength: float):
        self.augmentation, self.fraction, self.strength = augmentation, fraction, strength

    def on_step_begin(self, args, state, control, **kwargs):
        at_the_end = state.global_step >= (1 - self.fraction) * state.max_steps
        self.augmentation.strength = self.strength if at_the_end else 1.0


class DivergedError(ValueError):
    """The loss of a training is not a number any more, and will not be one again."""


class StopWhenDiverged(TrainerCallback):
    """Raise a [`DivergedError`] at the first loss logged that is not finite, instead of training on for hours."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise DivergedError(
                f"training has diverged: the loss is {loss} at step {state.global_step} of {state.max_steps}. Begin "
                f"again with a learning_rate below {args.learning_rate}, more warmup_steps, or bf16 and fp16 false."
            )
