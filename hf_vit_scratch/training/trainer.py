"""The Trainer with what this package adds to it, for any model that is called as the ViT is."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer

from ..data.batches import PixelValues, keep_batch
from .callbacks import StopWhenDiverged, WeightAverage
from .muon import WithMuon


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
            self.average.save(output_dir or self.args.output_dir)

    def _save(self, output_dir=None, state_dict=None):
        # The Trainer's own also pickles the arguments, with a token for the Hub in clear.
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.average.load(resume_from_checkpoint)


def metrics_during_training(prediction) -> dict:
    """The metrics that are single numbers, for the Trainer's `compute_metrics`."""
    from ..evaluation.metrics import evaluate_logits  # late: evaluate takes seconds to import

    results = evaluate_logits(torch.from_numpy(prediction.predictions), prediction.label_ids)
    return {key: value for key, value in results.items() if not isinstance(value, list)}
