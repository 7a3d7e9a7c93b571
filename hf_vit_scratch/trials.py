"""What a trial of an exploration trains, on which rows, and what is measured of it."""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from itertools import product

import datasets
import numpy as np
import optuna
import torch
import transformers
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from . import data
from .arguments import ExploreArguments
from .bounds import distribution, read_bounds, values
from .building import build_config, build_processor, build_trainer, check_arguments
from .cnn import ConvNet, widths_for
from .configuration_vit_scratch import ViTScratchConfig
from .cost import cost, module_cost
from .device import PeakMemory, can_compile, describe, fastest_attention, set_up_cpu
from .inference import predict_logits
from .modeling_vit_scratch import ViTScratchForImageClassification
from .trainer import evaluate_logits

PLAIN, STEM, CNN = "plain ViT", "ViT with convolutional stem", "CNN"
_EVALUATIONS = 5  # along a run
_LARGEST_FOR_CNN = 64  # pixels: beyond, nobody would keep the full resolution for two convolutions


@dataclasses.dataclass(frozen=True)
class Spec:
    """One training of a study.

    Args:
        family: "ViT" in a search and in the study of sizes; in that of data also which one, or the CNN.
        fields: of the config; of the CNN its widths.
        learning_rate: peak of the schedule.
        seed: of the weights, the order of images, the augmentation, and which images a part consists of.
        fraction: of the training images.
        augmented: as the recipe says, or not at all.
        confirming: measured on the rows that no choice was made on.
    """

    family: str
    fields: dict
    learning_rate: float
    seed: int = 0
    fraction: float = 1.0
    augmented: bool = True
    confirming: bool = False

    @property
    def key(self) -> str:
        """The same for equal specs."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


class Explorer:
    """Trains what a [`Spec`] says, all on the same rows, with the same schedule.

    The labelled rows are cut into three: `train`, `validation`, on which choices are made, and `confirm`, as many
    again, which only the trainings that confirm a choice are measured on.

    Args: what [`parse_exploration`] gives, a kind of flags each.

    Raises: ValueError or OSError, in one line, for anything that the user can put right.
    """

    def __init__(
        self, explore: ExploreArguments, recipe: dict, run, data_arguments, augmentation, model_arguments, training
    ):
        check_arguments(run, training)
        if training.max_steps > 0:
            raise ValueError("max_steps: explore counts the images seen in num_train_epochs of all training images.")
        if run.teacher_epochs:
            raise ValueError("teacher_epochs must be 0 here: explore compares what models learn by themselves.")
        if training.push_to_hub:
            raise ValueError("push_to_hub: there is not one model here. Train best.yaml, and push that.")
        if training.world_size > 1:
            raise ValueError("explore runs in one process; start it several times, with one --storage.")
        if not training.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be above 0, got {training.num_train_epochs}.")
        set_up_cpu()
        self.explore, self.run, self.augmentation = explore, run, augmentation
        self.bounds = read_bounds(explore.study, explore.bounds)
        self.space = {name: distribution(bound) for name, bound in self.bounds.items()}
        self.source = data.source_name(data_arguments.data)
        told = {
            name: getattr(data_arguments, name)
            for name in ("image_column", "label_column", "validation_size", "fold", "num_folds")
        }
        splits = data.load(data_arguments.data, seed=data_arguments.split_seed, **told)
        self.splits = _three_parts(splits, data_arguments.split_seed)
        self.base = build_config(run, model_arguments, self.splits, self.source)
        self.processor = build_processor(self.base, data_arguments.crop_fraction)
        self.settings = {
            "study": explore.study,
            "data": self.source,
            **told,
            "split_seed": data_arguments.split_seed,
            "seed": training.seed,
            "images": [len(part) for part in self.splits.values()],
            "bounds": self.bounds,
            "max_parameters": explore.max_parameters,
            "max_flops": explore.max_flops,
            "recipe": recipe,
        }
        self.batch = training.train_batch_size * training.gradient_accumulation_steps
        self.training = self._schedule(training)
        self.families = self._families() if explore.study == "data" else {}
        for fraction in self.bounds.get("fraction", [1.0]):
            spec = Spec("ViT", {}, training.learning_rate, fraction=fraction)
            if (images := len(self._images(spec))) < self.batch:
                raise ValueError(f"{images} training images are less than a batch of {self.batch}.")
        if explore.study != "data" and not any(map(self.allows, self._smallest())):
            raise ValueError(
                "no size is within the bounds and limits: "
                f"max_parameters {explore.max_parameters}, max_flops {explore.max_flops}, {json.dumps(self.bounds)}."
            )

    def _schedule(self, training: TrainingArguments) -> TrainingArguments:
        """That of all trials: as many images are seen, in whole batches, whatever part of them a trial has."""
        training = copy.copy(training)
        images = training.num_train_epochs * len(self.splits["train"])
        training.max_steps = max(_EVALUATIONS, round(images / self.batch))
        training.dataloader_drop_last = True
        training.save_strategy, training.eval_strategy = SaveStrategy.NO, IntervalStrategy.STEPS
        training.eval_steps, training.disable_tqdm = 1 / _EVALUATIONS, True
        if training.torch_compile and not can_compile():
            training.torch_compile, training.torch_compile_backend = False, None
        return training

    def _families(self) -> dict[str, dict]:
        """Of the study of data: the fields of the two ViTs, and the stages of a CNN that costs as much."""
        if max(self.base.image_height_width) > _LARGEST_FOR_CNN:
            raise ValueError(
                f"the study of data has a CNN for images of up to {_LARGEST_FOR_CNN} pixels, got "
                f"{'x'.join(map(str, self.base.image_height_width))}."
            )
        deeper = {"stem_depth": 2} if self.base.stem == "patch" else {}
        vits = {PLAIN: {"stem": "patch"}, STEM: {"stem": "conv", **deeper}}
        plain, _ = (cost(self.config(fields)) for fields in vits.values())  # refused now, and not after an hour
        widths = widths_for(plain.total_parameters, self.base.num_channels, self.base.num_labels)
        return vits | {CNN: {"widths": list(widths)}}

    def _smallest(self) -> Iterator[dict]:
        """Of all sizes those of the least depth and MLP, since cost grows with both; these first that are narrow."""
        options = {name: values(one) for name, one in self.space.items() if name not in ("learning_rate", "fraction")}
        for name in ("num_hidden_layers", "mlp_ratio"):
            options |= {name: options[name][:1]} if name in options else {}
        for chosen in product(*options.values()):
            yield self.fields(dict(zip(options, chosen, strict=True)))

    def fields(self, drawn: dict) -> dict:
        """Of the config, for what bounds have names for.

        What is not drawn keeps its ratio to the width that it has in the recipe: the MLP, and the heads, as near as
        divisors of the width allow.
        """
        told = {name: value for name, value in drawn.items() if name not in ("learning_rate", "mlp_ratio")}
        width = told.get("hidden_size", self.base.hidden_size)
        ratio = drawn.get("mlp_ratio", self.base.intermediate_size / self.base.hidden_size)
        heads = width * self.base.num_attention_heads / self.base.hidden_size
        divisors = [divisor for divisor in range(1, width + 1) if width % divisor == 0]
        near = min(divisors, key=lambda divisor: (abs(divisor - heads), -divisor))
        return {"num_attention_heads": near} | told | {"intermediate_size": round(ratio * width)}

    def config(self, fields: dict) -> ViTScratchConfig:
        """That of the recipe with other fields. Raises: ValueError where they do not fit each other."""
        told = {**self.base.to_dict(), **fields}
        if told["stem"] == "patch":
            told |= {"stem_depth": 1, "stem_width": None}
        return ViTScratchConfig.from_dict(told)

    def allows(self, fields: dict) -> bool:
        """Whether there is such a size, within the limits."""
        try:
            found = cost(self.config(fields))
        except ValueError:
            return False
        return found.total_parameters <= (self.explore.max_parameters or math.inf) and found.total_flops <= (
            self.explore.max_flops or math.inf
        )

    def train(self, spec: Spec, trial: optuna.Trial | None = None) -> dict:
        """Train and measure it. Returns what a finding has beside the spec.

        Raises: TrialPruned where `trial` says that it is hopeless.
        """
        torch._dynamo.reset()  # it would compile one forward pass for eight models and no more, without a word
        training, run = copy.copy(self.training), self.run
        training.learning_rate, training.seed, training.data_seed = spec.learning_rate, spec.seed, spec.seed
        if run.muon_learning_rate:
            scaled = run.muon_learning_rate * spec.learning_rate / self.training.learning_rate
            run = dataclasses.replace(run, muon_learning_rate=None if spec.family == CNN else scaled)
        augmentation = self.augmentation
        if not spec.augmented:
            augmentation = dataclasses.replace(augmentation, augmentation="none")
        transformers.set_seed(spec.seed)
        asked = self.splits["confirm" if spec.confirming else "validation"]
        splits = datasets.DatasetDict(train=self._images(spec), validation=asked)
        watch = _Watch(trial, self.batch)
        with PeakMemory(training.device) as memory:
            model, price = self._build(spec)
            trainer = build_trainer(model, self.processor, splits, run, augmentation, training)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(watch)
            trainer.train()
        if watch.hopeless:
            raise optuna.TrialPruned
        with trainer.average.in_place():
            logits = predict_logits(trainer.model.eval(), self.processor, asked, show_progress=False)
        measured = evaluate_logits(logits, data.label_array(asked).tolist())
        return {
            **price,
            "train_images": len(splits["train"]),
            "images_per_second": watch.images_per_second,
            "seconds": training.max_steps * self.batch / watch.images_per_second,
            "seconds_per_epoch": len(splits["train"]) / watch.images_per_second,
            "peak_memory_mb": memory.megabytes,
            "hardware": describe(training.device),
            "errors": measured["errors"],
            "num_images": measured["num_images"],
            "negative_log_likelihood": measured["negative_log_likelihood"],
            "curve": watch.curve,
        }

    def _build(self, spec: Spec) -> tuple[nn.Module, dict]:
        if spec.family == CNN:
            model = ConvNet(self.base.num_channels, self.base.num_labels, tuple(spec.fields["widths"]))
            parameters, flops = module_cost(model, (self.base.num_channels, *self.base.image_height_width))
            return model, {"parameters": parameters, "flops": flops}
        config = self.config(spec.fields)
        config._attn_implementation = self.run.attn_implementation or fastest_attention(
            config.num_tokens, self.training.device, self.training.bf16
        )
        found = cost(config)
        return ViTScratchForImageClassification(config), {
            "parameters": found.total_parameters,
            "flops": found.total_flops,
        }

    def _images(self, spec: Spec) -> datasets.Dataset:
        train = self.splits["train"]
        if spec.fraction == 1:
            return train
        labels = data.label_array(train)
        kept, _ = _split(labels, len(labels) - round(spec.fraction * len(labels)), spec.seed)
        return train.select(kept, keep_in_memory=True)


class _Watch(TrainerCallback):
    """Along one training: the curve, the speed without evaluations and compilation, and whether to go on."""

    def __init__(self, trial: optuna.Trial | None, batch_size: int):
        self.trial, self.batch_size = trial, batch_size
        self.curve: list[float] = []
        self.hopeless = False
        self._evaluating = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == min(10, state.max_steps // 10):  # what is compiled is compiled by then
            self._start, self._first = time.perf_counter(), state.global_step

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self._evaluating += metrics["eval_runtime"]
        self.curve.append(metrics["eval_negative_log_likelihood"])
        if self.trial is not None and state.global_step < state.max_steps:
            self.trial.report(self.curve[-1], len(self.curve))
            # A loss that is not a number will not come back.
            self.hopeless = not math.isfinite(self.curve[-1]) or self.trial.should_prune()
            control.should_training_stop = self.hopeless

    def on_train_end(self, args, state, control, **kwargs):
        seconds = time.perf_counter() - self._start - self._evaluating
        self.images_per_second = (state.global_step - self._first) * self.batch_size / seconds


def _split(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of two stratified parts, `size` of them in the second, each in order."""
    try:
        parts = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    except ValueError as error:
        raise ValueError(f"{len(labels)} images are too few for this: {error}") from error
    return np.sort(parts[0]), np.sort(parts[1])


def _three_parts(splits: datasets.DatasetDict, seed: int) -> datasets.DatasetDict:
    if "validation" not in splits:
        raise ValueError("validation_size must be above 0: sizes are compared on rows held out from training.")
    kept, confirming = _split(data.label_array(splits["train"]), len(splits["validation"]), seed)
    return datasets.DatasetDict(
        train=splits["train"].select(kept, keep_in_memory=True),
        validation=splits["validation"],
        confirm=splits["train"].select(confirming, keep_in_memory=True),
    )
