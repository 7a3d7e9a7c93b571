"""The Trainer with what this package adds to it, for any model that is called as the ViT is."""

import math
import os
from contextlib import contextmanager

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback

from .augmentation import DigitAugmentation
from .batches import PixelValues, keep_batch
from .optimizer import WithMuon

AVERAGE_NAME = "average.safetensors"


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


def distillation_loss(logits: torch.Tensor, answers: torch.Tensor, temperature: float) -> torch.Tensor:
    """Soft distillation, the second term of equation 2 of DeiT (arXiv 2012.12877), averaged over the batch.

    The Kullback-Leibler divergence from the teacher's `answers` to `logits`, both `(batch_size, num_labels)`, softened
    by the temperature, times its square, which leaves the size of the gradient as it is.
    """
    ours, theirs = (F.log_softmax(scores.float() / temperature, dim=-1) for scores in (logits, answers))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class ViTScratchTrainer(Trainer):
    """The Trainer, with batches augmented on the device, averaged weights, and Muon and a teacher where asked for.

    A checkpoint to resume from holds raw weights and average side by side; evaluation, prediction and the final
    `save_model` use the average.
    """

    def __init__(
        self,
        *args,
        to_pixel_values: PixelValues,
        ema_decay: float = 0.0,
        muon_learning_rate: float | None = None,
        **kwargs,
    ):
        super().__init__(*args, data_collator=keep_batch, **kwargs)
        self.muon_learning_rate = muon_learning_rate
        self.teacher: nn.Module | None = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("the average of the weights needs all of them on each device: no FSDP, no DeepSpeed.")
        self.to_pixel_values = to_pixel_values.to(self.args.device)
        self.average = WeightAverage(self.model, ema_decay)
        self.add_callback(self.average)
        self.add_callback(StopWhenDiverged())

    def get_decay_parameter_names(self, model) -> list[str]:
        """Matrices only: no biases, no norms, no class token, no position embeddings."""
        layers = (
            (name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
        )
        return [f"{name}.weight" for name, _ in layers]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.muon_learning_rate:
            others = super().create_optimizer(model)
            blocks = self.model.vit.layers
            self.optimizer = WithMuon(blocks, others, self.muon_learning_rate, self.args.weight_decay)
        return super().create_optimizer(model)

    def learn_from(self, teacher: nn.Module, weight: float, temperature: float) -> None:
        """Take a part `weight` of the loss from a model that answers as this one does; it is not trained."""
        self.teacher, self.teacher_weight, self.teacher_temperature = teacher, weight, temperature
        self.model_accepts_loss_kwargs = False  # all parts of the loss are means over one batch

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        if self.teacher is not None and model.training:
            with torch.no_grad(), self.accelerator.autocast():
                answers = self.teacher(inputs["pixel_values"]).logits
            taught = distillation_loss(outputs["logits"], answers, self.teacher_temperature)
            loss = (1 - self.teacher_weight) * loss + self.teacher_weight * taught
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, self._with_pixel_values(inputs, augment=True), *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        return super().prediction_step(model, self._with_pixel_values(inputs, augment=False), *args, **kwargs)

    def _with_pixel_values(self, inputs, augment: bool):
        inputs = self._prepare_inputs(inputs)
        return {**inputs, "pixel_values": self.to_pixel_values(inputs["pixel_values"], augment)}

    def get_eval_dataloader(self, eval_dataset=None):
        # dataloader_drop_last is meant for training; here it would leave images out.
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = dropped

    def evaluation_loop(self, *args, **kwargs):
        with self.average.in_place():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        if not _internal_call:
            with self.average.in_place():
                return super().save_model(output_dir, _internal_call)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.average.save(output_dir)

    def _save(self, output_dir=None, state_dict=None):
        # The Trainer's own also pickles the arguments, with a token for the Hub in clear.
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.average.load(resume_from_checkpoint)


def evaluate_logits(logits: torch.Tensor, labels: list[int]) -> dict:
    """All metrics of [`ClassifierMetrics`] for logits `(num_images, num_labels)` and labels `(num_images,)`."""
    from .metrics import ClassifierMetrics  # late: evaluate takes seconds to import

    probabilities = logits.double().softmax(dim=-1).float().numpy()
    return ClassifierMetrics().compute(predictions=probabilities, references=labels)


def metrics_during_training(prediction) -> dict:
    results = evaluate_logits(torch.from_numpy(prediction.predictions), prediction.label_ids)
    return {key: value for key, value in results.items() if not isinstance(value, list)}
