"""The trainings of an exploration: their rows, their schedule, and what is measured."""

import json
import math
import time
from collections.abc import Iterator
from itertools import product

import datasets
import optuna
import torch
import transformers
from torch import nn
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.pixels import known_labels
from ..data.sources import source_name
from ..data.splits import stratified_rows, three_parts
from ..device import PeakMemory, can_compile, describe, set_up_cpu
from ..evaluation.classifier import Classifier
from ..evaluation.metrics import evaluate_logits
from ..evaluation.prediction import predict_logits
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from ..settings.checks import check_settings
from ..settings.flags import Settings
from ..training.assembly import build_config, build_processor, build_trainer
from ..training.cnn import ConvNet, widths_for
from ..training.short_attention import attention_for_training
from .arguments import ExploreArguments
from .cost import cost, module_cost
from .search_space import distribution, read_bounds, values
from .spec import CNN, PLAIN, STEM, Spec

_EVALUATIONS = 5  # per training
_LARGEST_FOR_CNN = 64  # pixels; for larger images two convolutions at full resolution would be too expensive


def _check(settings: Settings) -> None:
    """Raises: ValueError for settings that a run of train.py supports and an exploration does not."""
    check_settings(settings)
    training = settings.training
    if training.max_steps > 0:
        raise ValueError(
            "max_steps is not supported by explore: set num_train_epochs, which determines the number of steps."
        )
    if settings.run.teacher_epochs:
        raise ValueError("teacher_epochs must be 0: explore compares models that are trained without distillation.")
    if training.push_to_hub:
        raise ValueError("push_to_hub: explore trains many models. Train one with the recipe best.yaml and push it.")
    if training.world_size > 1:
        raise ValueError(
            "explore runs in one process. To use several, start it several times with the same --storage."
        )
    if not training.num_train_epochs > 0:
        raise ValueError(f"num_train_epochs must be above 0, got {training.num_train_epochs}.")


class TrialRunner:
    """Trains the models that a [`Spec`] describes, all on the same rows and with the same schedule.

    The labelled rows are split into three parts: `train`, `validation` for choosing, and `confirm` for confirming,
    which has as many rows as `validation` and is used only for trainings that confirm a choice.

    Args:
        explore: study, bounds and limits.
        recipe: values that determine the training, by name, as they are recorded.
        settings: settings of all trainings.

    Raises: ValueError or OSError, in one line, for any error that the user can correct.
    """

    def __init__(self, explore: ExploreArguments, recipe: dict, settings: Settings):
        _check(settings)
        set_up_cpu()
        self.explore, self.run, data = explore, settings.run, settings.data
        self.bounds = read_bounds(explore.study, explore.bounds)
        self.space = {name: distribution(bound) for name, bound in self.bounds.items()}
        self.source = source_name(data.data)
        self.splits = three_parts(data.load_splits(), data.split_seed)
        self.base = build_config(settings, self.splits)
        self.processor = build_processor(self.base, data.crop_fraction)
        names = ("image_column", "label_column", "validation_size", "fold", "num_folds")
        self.record = {
            "study": explore.study,
            "data": self.source,
            **{name: getattr(data, name) for name in names},
            "split_seed": data.split_seed,
            "seed": settings.training.seed,
            "images": [len(part) for part in self.splits.values()],
            "bounds": self.bounds,
            "max_parameters": explore.max_parameters,
            "max_flops": explore.max_flops,
            "recipe": recipe,
        }
        self.batch = settings.training.train_batch_size * settings.training.gradient_accumulation_steps
        self.settings = self._with_schedule(settings)
        self.training = self.settings.training
        self.families = self._families() if explore.study == "data" else {}
        self._check_bounds()

    def _check_bounds(self) -> None:
        for fraction in self.bounds.get("fraction", [1.0]):
            spec = Spec("ViT", {}, self.training.learning_rate, fraction=fraction)
            if (images := len(self._images(spec))) < self.batch:
                raise ValueError(f"{images} training images are less than a batch of {self.batch}.")
        if self.explore.study != "data" and not any(map(self.allows, self._smallest())):
            raise ValueError(
                f"no size is within the bounds and limits: max_parameters {self.explore.max_parameters}, "
                f"max_flops {self.explore.max_flops}, {json.dumps(self.bounds)}."
            )

    def _with_schedule(self, settings: Settings) -> Settings:
        """Set the schedule: all trials process the same number of images, even with a fraction of the images."""
        images = settings.training.num_train_epochs * len(self.splits["train"])
        settings = settings.with_training(
            max_steps=max(_EVALUATIONS, round(images / self.batch)),
            dataloader_drop_last=True,
            save_strategy=SaveStrategy.NO,
            eval_strategy=IntervalStrategy.STEPS,
            eval_steps=1 / _EVALUATIONS,
            disable_tqdm=True,
        )
        if settings.training.torch_compile and not can_compile():
            settings = settings.with_training(torch_compile=False, torch_compile_backend=None)
        return settings

    def _families(self) -> dict[str, dict]:
        """For the study of data: the fields of the two ViTs, and the widths of a CNN of the same cost."""
        if max(self.base.image_height_width) > _LARGEST_FOR_CNN:
            raise ValueError(
                f"the study of data supports images of up to {_LARGEST_FOR_CNN}x{_LARGEST_FOR_CNN} pixels, because of "
                f"its CNN; got {'x'.join(map(str, self.base.image_height_width))}."
            )
        deeper = {"stem_depth": 2} if self.base.stem == "patch" else {}
        vits = {PLAIN: {"stem": "patch"}, STEM: {"stem": "conv", **deeper}}
        plain, _ = (
            cost(self.config(fields)) for fields in vits.values()
        )  # checks the configs before the first training
        widths = widths_for(plain.total_parameters, self.base.num_channels, self.base.num_labels)
        return vits | {CNN: {"widths": list(widths)}}

    def _smallest(self) -> Iterator[dict]:
        """All sizes with the smallest depth and MLP, since the cost grows with both."""
        options = {name: values(one) for name, one in self.space.items() if name not in ("learning_rate", "fraction")}
        for name in ("num_hidden_layers", "mlp_ratio"):
            options |= {name: options[name][:1]} if name in options else {}
        for chosen in product(*options.values()):
            yield self.fields(dict(zip(options, chosen, strict=True)))

    def fields(self, drawn: dict) -> dict:
        """The config's fields for the values that were drawn.

        If they are not drawn, the width of the MLP and the number of heads keep their ratio to the width in the
        recipe. The number of heads is the nearest divisor of the width.
        """
        fields = {name: value for name, value in drawn.items() if name not in ("learning_rate", "mlp_ratio")}
        width = fields.get("hidden_size", self.base.hidden_size)
        ratio = drawn.get("mlp_ratio", self.base.intermediate_size / self.base.hidden_size)
        heads = width * self.base.num_attention_heads / self.base.hidden_size
        divisors = [divisor for divisor in range(1, width + 1) if width % divisor == 0]
        near = min(divisors, key=lambda divisor: (abs(divisor - heads), -divisor))
        return {"num_attention_heads": near} | fields | {"intermediate_size": round(ratio * width)}

    def config(self, fields: dict) -> ViTScratchConfig:
        """The config of the recipe with some fields changed. Raises: ValueError if they contradict each other."""
        merged = {**self.base.to_dict(), **fields}
        if merged["stem"] == "patch":
            merged |= {"stem_depth": 1, "stem_width": None}
        return ViTScratchConfig.from_dict(merged)

    def allows(self, fields: dict) -> bool:
        """Whether the fields are a valid config whose cost is within the limits."""
        try:
            price = cost(self.config(fields))
        except ValueError:
            return False
        return price.total_parameters <= (self.explore.max_parameters or math.inf) and price.total_flops <= (
            self.explore.max_flops or math.inf
        )

    def train(self, spec: Spec, trial: optuna.Trial | None = None) -> dict:
        """Train and evaluate a model. Returns its results, by the names of their columns in results.csv.

        Raises: TrialPruned if the pruner of `trial` stops the training, or the loss is not finite.
        """
        torch._dynamo.reset()  # or else dynamo stops compiling after eight models, without a warning
        settings = self._settings_of(spec)
        transformers.set_seed(spec.seed)
        held_out = self.splits["confirm" if spec.confirming else "validation"]
        splits = datasets.DatasetDict(train=self._images(spec), validation=held_out)
        watch = _Watch(trial, self.batch)
        with PeakMemory(self.training.device) as memory:
            model, price = self._build(spec)
            trainer = build_trainer(model, self.processor, splits, settings)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(watch)
            trainer.train()
        if watch.pruned:
            raise optuna.TrialPruned
        with trainer.average.in_place():
            classifier = Classifier(trainer.model.eval(), self.processor)
            logits = predict_logits(classifier, held_out, show_progress=False)
        measured = evaluate_logits(logits, known_labels(held_out).tolist())
        return {
            **price,
            "train_images": len(splits["train"]),
            "images_per_second": watch.images_per_second,
            "seconds": self.training.max_steps * self.batch / watch.images_per_second,
            "seconds_per_epoch": len(splits["train"]) / watch.images_per_second,
            "peak_memory_mb": memory.megabytes,
            "hardware": describe(self.training.device),
            "errors": measured["errors"],
            "num_images": measured["num_images"],
            "negative_log_likelihood": measured["negative_log_likelihood"],
            "curve": watch.curve,
        }

    def _settings_of(self, spec: Spec) -> Settings:
        """The settings with the learning rates, seed and augmentation of a spec."""
        rate = spec.learning_rate
        settings = self.settings.with_training(learning_rate=rate, seed=spec.seed, data_seed=spec.seed)
        if muon := self.run.muon_learning_rate:
            scaled = muon * rate / self.training.learning_rate
            settings = settings.with_run(muon_learning_rate=None if spec.family == CNN else scaled)
        return settings if spec.augmented else settings.with_augmentation(augmentation="none")

    def _build(self, spec: Spec) -> tuple[nn.Module, dict]:
        if spec.family == CNN:
            model = ConvNet(self.base.num_channels, self.base.num_labels, tuple(spec.fields["widths"]))
            parameters, flops = module_cost(model, (self.base.num_channels, *self.base.image_height_width))
            return model, {"parameters": parameters, "flops": flops}
        config = self.config(spec.fields)
        config._attn_implementation = self.run.attn_implementation or attention_for_training(
            config.num_tokens, self.training.device, self.training.bf16, self.training.torch_compile
        )
        price = cost(config)
        return ViTScratchForImageClassification(config), {
            "parameters": price.total_parameters,
            "flops": price.total_flops,
        }

    def _images(self, spec: Spec) -> datasets.Dataset:
        train = self.splits["train"]
        if spec.fraction == 1:
            return train
        labels = known_labels(train)
        kept, _ = stratified_rows(labels, len(labels) - round(spec.fraction * len(labels)), spec.seed)
        return train.select(kept, keep_in_memory=True)


class _Watch(TrainerCallback):
    """Records the curve and the speed, without evaluations and compilation, and stops pruned trainings."""

    def __init__(self, trial: optuna.Trial | None, batch_size: int):
        self.trial, self.batch_size = trial, batch_size
        self.curve: list[float] = []
        self.pruned = False
        self._evaluating = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == min(10, state.max_steps // 10):  # compilation has ended by then
            self._start, self._first = time.perf_counter(), state.global_step

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self._evaluating += metrics["eval_runtime"]
        self.curve.append(metrics["eval_negative_log_likelihood"])
        if self.trial is not None and state.global_step < state.max_steps:
            self.trial.report(self.curve[-1], len(self.curve))
            # A training cannot recover from a loss that is not finite.
            self.pruned = not math.isfinite(self.curve[-1]) or self.trial.should_prune()
            control.should_training_stop = self.pruned

    def on_train_end(self, args, state, control, **kwargs):
        seconds = time.perf_counter() - self._start - self._evaluating
        self.images_per_second = (state.global_step - self._first) * self.batch_size / seconds
