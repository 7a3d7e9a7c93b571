"""The Trainer of this package, for any model that is called like the ViT."""

from pathlib import Path

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..data.batches import PixelValues, keep_batch
from ..data.sampling import Steps, TrainingBatches
from ..data.streaming import StreamedBatches, StreamedImages
from ..output_folder import WEIGHTS_NAME
from . import sharding
from .callbacks import RunTime, StopWhenDiverged, WeightAverage
from .checkpoints import WholeCheckpoints
from .muon import WithMuon
from .ranks import mark


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Soft distillation loss, the second term of equation 2 of DeiT (arXiv 2012.12877), averaged over the batch.

    It is the Kullback-Leibler divergence between the softmax outputs of teacher and student at this temperature, times
    the squared temperature, which keeps the scale of the gradient. Both logits are `(batch_size, num_labels)`.
    """
    student, teacher = (F.log_softmax(scores.float() / temperature, dim=-1) for scores in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class ViTScratchTrainer(WholeCheckpoints):
    """The Trainer with augmentation on the device, an average of the weights, and optionally Muon and distillation.

    Any number of processes and accumulated batches makes the same steps, by [`TrainingBatches`]: each image once in an
    epoch, with the same augmentation. Only dropout and drop path are drawn by each process for itself.

    Checkpoints hold both the weights and their average. Evaluation, prediction and the final `save_model` use the
    average.

    Args:
        to_pixel_values: normalizes batches, and augments training batches.
        ema_decay: decay of the average of the weights, from 0 to below 1. 0: no average.
        muon_learning_rate: learning rate of Muon for the blocks, on AdamW's scale. None or 0: the Trainer's optimizer
            for all weights.

    With Muon, the attribute `muon_stem` (`bool`, defaults to `False`) lets it train a convolutional stem too.

    Under FSDP2 all files are those of a run on one device, so that any launch can resume a checkpoint.

    Raises: ValueError with DeepSpeed, FSDP1, or FSDP2 where it cannot shard.
    """

    muon_stem = False

    def __init__(
        self,
        *args,
        to_pixel_values: PixelValues,
        ema_decay: float = 0.0,
        muon_learning_rate: float | None = None,
        **kwargs,
    ):
        super().__init__(*args, data_collator=keep_batch, **kwargs)
        # The loss is a mean over a batch, and a batch has a weight. The Trainer would count the labels instead.
        self.model_accepts_loss_kwargs = False
        self.muon_learning_rate = muon_learning_rate
        self.model_class = type(self.model)
        self.teacher: nn.Module | None = None
        self.to_pixel_values = to_pixel_values.to(self.args.device)
        self.average = WeightAverage(self.model, ema_decay)
        self.add_callback(self.average)
        self.add_callback(StopWhenDiverged())
        self.add_callback(RunTime())

    @property
    def run_time(self) -> RunTime:
        """The time that the training has taken so far."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, RunTime))

    def create_accelerator_and_postprocess(self) -> None:
        wanted = sharding.is_wanted(self.args)
        if wanted:
            sharding.allow_on_cpu()
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            raise ValueError(f"DeepSpeed is not supported. {sharding.ADVICE}")
        if wanted and not self.is_fsdp_enabled:
            raise ValueError("FSDP2 needs `accelerate launch` or torchrun, which start a process for each device.")
        if self.is_fsdp_enabled:
            sharding.set_up(self.accelerator, self.model)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Weight decay applies to matrices only: not to biases, norms, class token and position embeddings."""
        layers = (
            (name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
        )
        return [f"{name}.weight" for name, _ in layers]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.muon_learning_rate:
            others = super().create_optimizer(model)
            if not hasattr(self.model, "vit"):
                part = self.model.features  # of a CNN, all layers below the head
            elif self.muon_stem and self.model.config.stem == "conv":
                part = nn.ModuleList([self.model.vit.layers, self.model.vit.embeddings.patch_embeddings])
            else:
                part = self.model.vit.layers
            self.optimizer = WithMuon(part, others, self.muon_learning_rate, self.args.weight_decay)
        return super().create_optimizer(model)

    def learn_from(self, teacher: nn.Module, weight: float, temperature: float) -> None:
        """Distil from a frozen teacher: loss = (1 - weight) * cross-entropy + weight * distillation loss.

        Args:
            teacher: called like the model, with the same classes.
            weight: from 0 to 1.
            temperature: above 0.
        """
        self.teacher, self.teacher_weight, self.teacher_temperature = teacher, weight, temperature

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process, by [`TrainingBatches`]. Accelerate would repeat images in the last batch.

        A stream makes its batches itself, where Accelerate would read and decode those of all processes.
        """
        args, config, dataset = self.args, self.args.accelerator_config, self.train_dataset
        if args.train_sampling_strategy not in ("random", "sequential") or config.split_batches:
            raise ValueError("images are sampled at random or sequentially, and not by their length or split_batches.")
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        batches = TrainingBatches(
            len(dataset),
            Steps(self._train_batch_size, args.gradient_accumulation_steps, rank, num_ranks),
            args.seed,
            args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.train_sampling_strategy == "random",
            drop_last=args.dataloader_drop_last,
        )
        if isinstance(dataset, StreamedImages):
            if not batches.shuffle:
                raise ValueError("a stream is read at random only: leave out train_sampling_strategy.")
            dataset, order = StreamedBatches(dataset, batches), {"batch_size": None}
        else:
            order = {"batch_sampler": batches}
        loader = DataLoader(
            dataset,
            **order,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        # For one process, since the batches are those of this process already.
        own = {"put_on_device": True, "non_blocking": config.non_blocking, "dispatch_batches": False}
        return prepare_data_loader(loader, args.device, 1, 0, **own)

    def num_examples(self, dataloader: DataLoader) -> int:
        dataset = dataloader.dataset  # the length of a stream is the number of its batches
        return len(dataset.images) if isinstance(dataset, StreamedBatches) else super().num_examples(dataloader)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        inputs = dict(inputs)
        weight = inputs.pop("weight", 1.0)
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        if self.teacher is not None and model.training:
            with torch.no_grad(), self.accelerator.autocast():
                teacher_logits = self.teacher(inputs["pixel_values"]).logits
            distillation = distillation_loss(outputs["logits"], teacher_logits, self.teacher_temperature)
            loss = (1 - self.teacher_weight) * loss + self.teacher_weight * distillation
        loss = loss * weight
        mark(self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, self._with_pixel_values(inputs, augment=True), *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        return super().prediction_step(model, self._with_pixel_values(inputs, augment=False), *args, **kwargs)

    def _with_pixel_values(self, inputs, augment: bool):
        inputs = self._prepare_inputs(inputs)
        images, keys = inputs.pop("pixel_values"), inputs.pop("keys", None)
        pixel_values = self.to_pixel_values.augmented(images, keys) if augment else self.to_pixel_values(images)
        return {"pixel_values": pixel_values, **inputs}

    def get_eval_dataloader(self, eval_dataset=None):
        # dataloader_drop_last is for training; in the evaluation it would skip images.
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = dropped

    def evaluation_loop(self, *args, **kwargs):
        with self.average.in_place():
            found = super().evaluation_loop(*args, **kwargs)
        # On several devices the Trainer's losses also count the images that fill up the last batch. Its logits do not.
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        if name in (found.metrics or {}) and isinstance(found.predictions, np.ndarray):
            logits, labels = torch.from_numpy(found.predictions), torch.from_numpy(found.label_ids)
            smoothing = self.args.label_smoothing_factor
            found.metrics[name] = F.cross_entropy(logits, labels, label_smoothing=smoothing).item()
        return found

    def save_model(self, output_dir=None, _internal_call=False):
        if not _internal_call:
            with self.average.in_place():
                return super().save_model(output_dir, _internal_call)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save or self.is_fsdp_enabled:
            with self.noting_failure():
                self.average.save(output_dir or self.args.output_dir, self.args.should_save)

    def _save(self, output_dir=None, state_dict=None):
        # The Trainer's own `_save` also pickles the arguments, with the token for the Hub in clear text.
        if self.args.should_save:
            model = self.model
            if self.is_fsdp_enabled:  # whose class is one of torch, and whose code would be saved in place of ours
                model = object.__new__(self.model_class)
                vars(model).update(vars(self.average.model))
            model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)
            self.processing_class.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.is_fsdp_enabled:
            sharding.load_weights(self.average.model, Path(resume_from_checkpoint) / WEIGHTS_NAME)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.average.load(resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir):
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        states = sharding.whole_states(self.optimizer)
        if self.args.should_save:
            torch.save(states, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if not self.is_fsdp_enabled or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        sharding.load_states(self.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


def metrics_during_training(prediction) -> dict:
    """The metrics that are single numbers, as `compute_metrics` of the Trainer."""
    from ..evaluation.metrics import evaluate_logits  # late: evaluate takes seconds to import

    results = evaluate_logits(torch.from_numpy(prediction.predictions), prediction.label_ids)
    return {key: value for key, value in results.items() if not isinstance(value, list)}
