"""Search for a size, and two fixed studies: which sizes are worth their cost, and what the number of images does.

Each training is a trial of an Optuna study: it is stored when it ends, and what is stored is not done again. What a
trial has to do is a `Spec`: a search draws it, a study has planned it.
"""

import copy
import dataclasses
import json
import math
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import optuna
import torch
import transformers
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sklearn.model_selection import train_test_split
from sqlalchemy.exc import SQLAlchemyError
from torch import nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from . import data
from .arguments import ExploreArguments
from .building import build_config, build_processor, build_trainer, check_arguments
from .cnn import ConvNet, widths_for
from .configuration_vit_scratch import ViTScratchConfig
from .cost import cost, module_cost
from .device import PeakMemory, can_compile, describe, fastest_attention, set_up_cpu
from .findings import summary, write_findings, write_plots
from .inference import predict_logits
from .modeling_vit_scratch import ViTScratchForImageClassification
from .trainer import evaluate_logits

STORAGE_NAME, SETTINGS_NAME = "trials.db", "study.json"
PLAIN, STEM, CNN = "plain ViT", "ViT with convolutional stem", "CNN"
# What is searched where --bounds says nothing, and the grids of the two studies. A list is a choice; low and high,
# with step or log, a range.
BOUNDS = {
    "search": {
        "hidden_size": {"low": 32, "high": 192, "step": 16},
        "num_hidden_layers": {"low": 2, "high": 10},
        "num_attention_heads": [1, 2, 3, 4, 6, 8],
        "patch_size": [4, 7],
        "mlp_ratio": [2, 3, 4],
        "stem": ["patch", "conv"],
        "pooling": ["cls", "mean"],
        "position_embedding": ["learned", "sincos2d", "none"],
        "learning_rate": {"low": 5e-4, "high": 8e-3, "log": True},
    },
    "size": {
        "hidden_size": [24, 32, 48, 64, 96, 128],
        "num_hidden_layers": [2, 4, 6, 8],
        "learning_rate": [1e-3, 2e-3, 4e-3],
    },
    "data": {
        "fraction": [0.05, 0.1, 0.25, 0.5, 1.0],
        "learning_rate": [1e-3, 2e-3, 4e-3],
    },
}
SEEDS = (1, 2, 3)
_FINALISTS = 3
_HEAD_DIM = 32  # of the size study, as near as the width allows
_EVALUATIONS = 5  # along a run
_LARGEST_FOR_CNN = 64  # pixels: beyond, nobody would keep the full resolution for two convolutions
_STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError)
_STALE_SECONDS = 180  # a trial whose process gives no sign of life for so long is done again


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
        self.bounds = read_bounds(explore)
        self.space = {name: _distribution(bound) for name, bound in self.bounds.items()}
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
        options = {name: _values(one) for name, one in self.space.items() if name not in ("learning_rate", "fraction")}
        for name in ("num_hidden_layers", "mlp_ratio"):
            options |= {name: options[name][:1]} if name in options else {}
        for values in product(*options.values()):
            fields = dict(zip(options, values, strict=True))
            if self.explore.study == "size":
                fields["num_attention_heads"] = _heads(fields["hidden_size"])
            yield self.fields(fields)

    def fields(self, drawn: dict) -> dict:
        """Of the config, for what bounds have names for: an MLP keeps its ratio to the width."""
        told = {name: value for name, value in drawn.items() if name not in ("learning_rate", "mlp_ratio")}
        ratio = drawn.get("mlp_ratio", self.base.intermediate_size / self.base.hidden_size)
        return told | {"intermediate_size": round(ratio * told.get("hidden_size", self.base.hidden_size))}

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
        kept, _ = _split(labels, 1 - spec.fraction, spec.seed)
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


class _FeasibleSampler(optuna.samplers.TPESampler):
    """TPE over sizes that there are, within the limits: others are drawn again, and never tried."""

    def __init__(self, explorer: Explorer):
        super().__init__(seed=explorer.training.seed)
        self._explorer = explorer

    def infer_relative_search_space(self, study, trial):
        return self._explorer.space

    def sample_relative(self, study, trial, search_space):
        for _ in range(100):
            params = super().sample_relative(study, trial, search_space)
            if not params:  # the first trials are drawn at random
                break
            if self._allows(params):
                return params
        # Drawn anew for each trial: a search that goes on, or another process, would begin with the same ones again.
        source = random.Random(f"{self._explorer.training.seed} {trial.number}")
        while True:  # there is one: it was looked for before the study began
            params = {name: _draw(one, source) for name, one in search_space.items()}
            if self._allows(params):
                return params

    def _allows(self, params: dict) -> bool:
        return self._explorer.allows(self._explorer.fields(params))


def _draw(distribution: BaseDistribution, source: random.Random):
    if isinstance(distribution, CategoricalDistribution):
        return source.choice(distribution.choices)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        return source.randrange(low, high + 1, distribution.step)
    return math.exp(source.uniform(math.log(low), math.log(high))) if distribution.log else source.uniform(low, high)


class _Study:
    """The Optuna study of an [`Explorer`], and what it has found.

    A search draws its trials; the other kinds have a plan, which grows with what is found. Several processes, also on
    several machines, can work on one storage.
    """

    def __init__(self, explorer: Explorer, url: str):
        kind = explorer.explore.study
        self.explorer, self.plan, searching = explorer, _PLANS.get(kind), kind == "search"
        self._again = optuna.storages.RetryHeartbeatStaleTrialCallback()
        self._signed: set[int] = set()
        try:
            self.storage = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=_STALE_SECONDS // 3,
                grace_period=_STALE_SECONDS,
                heartbeat_stale_trial_callback=self._again if searching else None,  # a plan has it still
            )
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=f"vit-scratch {kind}, {explorer.source}",
                sampler=_FeasibleSampler(explorer) if searching else None,
                # Hopeless: after two of five parts worse than three quarters of the others were there.
                pruner=optuna.pruners.PercentilePruner(75.0, n_warmup_steps=2)
                if searching
                else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            told = self.study.user_attrs.get("settings")
            if told is None:
                self.study.set_user_attr("settings", explorer.settings)
        except _STORAGE_ERRORS as error:
            raise _lost(url, error) from error
        if told is not None:
            _check_same(told, explorer.settings, "--output_dir or --storage")

    def findings(self) -> list[dict]:
        """What is finished, in the order of the trials."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self.study.get_trials(deepcopy=False, states=states)
        return [_finding(trial) for trial in trials if "spec" in trial.user_attrs and "twice" not in trial.user_attrs]

    def missing(self) -> list[Spec] | int:
        """What is left to do, as far as it is known: specs of the plan, or how many trials of the search."""
        findings = self.findings()
        if self.plan is None:
            return max(0, self.explorer.explore.trials - len(findings))
        found = {_key(finding["spec"]): finding["value"] for finding in findings}
        return [spec for spec in self.plan(self.explorer, found) if spec.key not in found]

    def run(self) -> Iterator[None]:
        """Train what is missing, one after another; gives control back after each."""
        while missing := self.missing():
            if self._queue(missing):
                self._number = None
                try:
                    self.study.optimize(self._objective, n_trials=1)
                except KeyboardInterrupt:
                    if self._number is not None and self.plan is None:
                        trial = self.study.trials[self._number]
                        if trial.state == TrialState.FAIL and "spec" in trial.user_attrs:  # all of it was drawn
                            self._again(self.study, trial)
                    raise
            else:  # other processes are at the rest, or were: a trial without a sign of life for long is done again
                self._give_a_first_sign()
                time.sleep(min(5, _STALE_SECONDS / 3))
                optuna.storages.fail_stale_trials(self.study)
            yield

    def _give_a_first_sign(self) -> None:
        """For each running trial, once: Optuna takes none for dead that was killed before it gave one itself."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._signed:
                self.storage.record_heartbeat(trial._trial_id)
                self._signed.add(trial.number)

    def _queue(self, missing: list[Spec] | int) -> bool:
        """See to it that a trial waits, unless others are at all that is missing."""
        at_work = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        if any(trial.state == TrialState.WAITING for trial in at_work):
            return True
        if self.plan is None:
            return missing > len(at_work)
        taken = {_key(trial.user_attrs["spec"]) for trial in at_work if "spec" in trial.user_attrs}
        free = next((spec for spec in missing if spec.key not in taken), None)
        if free is not None:
            self.study.enqueue_trial({}, user_attrs={"spec": dataclasses.asdict(free)})
        return free is not None

    def _objective(self, trial: optuna.Trial) -> float:
        self._number, searching = trial.number, self.plan is None
        if searching:
            drawn = {name: _suggest(trial, name, one) for name, one in self.explorer.space.items()}
            rate = drawn.pop("learning_rate")
            spec = Spec("ViT", self.explorer.fields(drawn), rate, self.explorer.training.seed)
            trial.set_user_attr("spec", dataclasses.asdict(spec))
        else:
            if "spec" not in trial.user_attrs:  # another process was faster to take the one that waited
                raise optuna.TrialPruned
            spec = Spec(**trial.user_attrs["spec"])
            states = (TrialState.COMPLETE, TrialState.RUNNING)
            others = self.study.get_trials(deepcopy=False, states=states)
            before = [other for other in others if other.number < trial.number and "spec" in other.user_attrs]
            if any(_key(other.user_attrs["spec"]) == spec.key for other in before):
                trial.set_user_attr("twice", True)  # two processes have queued it at the same moment
                raise optuna.TrialPruned
        try:
            measured = self.explorer.train(spec, trial if searching else None)
        except (RuntimeError, MemoryError) as error:
            # On a GPU an error of its own; on a CPU any RuntimeError, with words like these.
            if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "not enough memory" not in str(error):
                raise
            trial.set_user_attr("failed", "out of memory")
            raise optuna.TrialPruned from error
        if not math.isfinite(measured["negative_log_likelihood"]):
            trial.set_user_attr("failed", "diverged")
            raise optuna.TrialPruned
        trial.set_user_attr("measured", measured)
        return measured["negative_log_likelihood"]


def _finding(trial: FrozenTrial) -> dict:
    """A row: the trial's number and state, its spec, what was measured."""
    told = trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    return {
        "trial": trial.number,
        "state": "complete" if done else told.get("failed", "stopped early"),
        "spec": told["spec"],
        "value": trial.value if done else math.inf,
        **told.get("measured", {}),
    }


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution):
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _plan_sizes(explorer: Explorer, found: dict[str, float]) -> list[Spec]:
    """Learning rates for each width at a middle depth; the grid; the best few again, on the rows kept for that."""
    bounds, tuning, depths = explorer.bounds, {}, {}
    for width in bounds["hidden_size"]:
        fields = {"hidden_size": width, "num_attention_heads": _heads(width)}
        sizes = [explorer.fields({**fields, "num_hidden_layers": depth}) for depth in bounds["num_hidden_layers"]]
        if sizes := [size for size in sizes if explorer.allows(size)]:
            depths[width] = sizes
            tuning[width] = [Spec("ViT", sizes[len(sizes) // 2], rate) for rate in bounds["learning_rate"]]
    plan = [spec for specs in tuning.values() for spec in specs]
    if any(spec.key not in found for spec in plan):
        return plan
    rates = {width: min(specs, key=lambda spec: found[spec.key]).learning_rate for width, specs in tuning.items()}
    grid = [Spec("ViT", size, rates[width]) for width, sizes in depths.items() for size in sizes]
    plan += [spec for spec in grid if spec not in plan]
    if any(spec.key not in found for spec in plan):
        return plan
    finite = [spec for spec in grid if math.isfinite(found[spec.key])]
    finalists = sorted(finite, key=lambda spec: found[spec.key])[:_FINALISTS]
    return plan + [dataclasses.replace(one, seed=seed, confirming=True) for one in finalists for seed in SEEDS]


def _heads(width: int) -> int:
    """Heads of about 32 dimensions: as many as divide the width."""
    divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
    return min(divisors, key=lambda heads: abs(heads - width / _HEAD_DIM))


def _plan_data(explorer: Explorer, found: dict[str, float]) -> list[Spec]:
    """A learning rate for each family, all with as many tries; then each with ever more images, thrice."""
    rates = explorer.bounds["learning_rate"]
    tuning = {name: [Spec(name, fields, rate) for rate in rates] for name, fields in explorer.families.items()}
    plan = [spec for specs in tuning.values() for spec in specs]
    if any(spec.key not in found for spec in plan):
        return plan
    best = {name: min(specs, key=lambda spec: found[spec.key]) for name, specs in tuning.items()}
    return plan + [
        dataclasses.replace(spec, seed=seed, fraction=fraction, augmented=augmented, confirming=True)
        for seed in SEEDS
        for augmented in (True, False)
        for fraction in explorer.bounds["fraction"]
        for spec in best.values()
    ]


_PLANS = {"size": _plan_sizes, "data": _plan_data}


def _key(spec: dict) -> str:
    return Spec(**spec).key


def _split(labels: np.ndarray, size: float | int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of two stratified parts, `size` of them (a fraction or a number) in the second, each in order."""
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


def read_bounds(explore: ExploreArguments) -> dict:
    """Those of the kind of study, with what the YAML file of `--bounds` has in their place.

    Raises: ValueError, in one line, for a file that is no such YAML, an unknown name, an empty or impossible range.
    """
    if explore.study not in BOUNDS:
        raise ValueError(f"study must be one of {', '.join(BOUNDS)}, got {explore.study!r}.")
    bounds = BOUNDS[explore.study]
    if explore.bounds is None:
        return bounds
    try:
        told = yaml.safe_load(Path(explore.bounds).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"bounds {explore.bounds} is not YAML: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"bounds {explore.bounds} must be a mapping of names to values, got {type(told).__name__}.")
    if unknown := sorted(map(str, told.keys() - bounds.keys())):
        raise ValueError(f"bounds {explore.bounds}: unknown {', '.join(unknown)}; expected {', '.join(bounds)}.")
    return {name: _bound(name, told.get(name, default), default) for name, default in bounds.items()}


def _bound(name: str, told, default):
    """A bound as it is written: a list, or low and high with step or log; checked."""
    like = default[0] if isinstance(default, list) else default["low"]
    kinds = (int, float) if isinstance(like, float) else (type(like),)

    def value(one):
        one = float(one) if isinstance(like, float) and isinstance(one, str) else one  # YAML reads 1e-3 as a string
        if type(one) not in kinds or (not isinstance(one, str) and one <= 0) or (name == "fraction" and one > 1):
            raise ValueError
        return float(one) if isinstance(like, float) else one

    try:
        if isinstance(told, list) and told:
            return sorted({value(one) for one in told}) if not isinstance(like, str) else list(map(value, told))
        low, high = value(told["low"]), value(told["high"])
        rest = {key: told[key] for key in told.keys() - {"low", "high"}}
        allowed = {"log": bool} if isinstance(like, float) else {"step": int}
        if isinstance(default, list) or low > high or any(type(rest[key]) is not allowed[key] for key in rest):
            raise ValueError
        if rest.get("step", 1) < 1:
            raise ValueError
        return {"low": low, "high": high, **rest}
    except (ValueError, TypeError, KeyError) as error:
        shape = "a list" if isinstance(default, list) else "a list, or low and high,"
        raise ValueError(f"bounds: {name} must be {shape} of values like {like!r}, got {told!r}.") from error


def _distribution(bound: list | dict) -> BaseDistribution:
    if isinstance(bound, list):
        return CategoricalDistribution(bound)
    if isinstance(bound["low"], int):
        return IntDistribution(bound["low"], bound["high"], step=bound.get("step", 1))
    return FloatDistribution(bound["low"], bound["high"], log=bound.get("log", False))


def _values(distribution: BaseDistribution) -> list:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return list(range(distribution.low, distribution.high + 1, distribution.step))


def _check_same(told: dict, settings: dict, others: str) -> None:
    """Whether a study that is there has the settings of this one."""
    if told != settings:
        before, now = ({**one, **one.get("recipe", {})} for one in (told, settings))
        name = next(one for one in (now | before) if one != "recipe" and before.get(one) != now.get(one))
        raise ValueError(
            f"a study with {name} {before.get(name)!r} is there already, and this one has {now.get(name)!r}: give "
            f"another {others}."
        )


def _lost(url: str, error: Exception) -> ValueError:
    reason = " ".join(str(error.__cause__ or error).split())
    return ValueError(f"no trials can be stored in {url.rpartition('@')[2]}: {reason[:300]}")


def explore(explore: ExploreArguments, recipe: dict, *others) -> list[dict]:
    """Run a search or a study, or go on with one, and leave its report. Takes what [`parse_exploration`] gives.

    Returns: the findings, a trial each. After Ctrl-C the report is that of what is finished.

    Raises: ValueError or OSError, in one line, for anything that the user can put right.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    transformers.logging.set_verbosity_error()
    explorer = Explorer(explore, recipe, *others)
    output = Path(explorer.training.output_dir)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir {output} is a file.")
    settings, existed = output / SETTINGS_NAME, output.exists()
    if settings.is_file():
        _check_same(json.loads(settings.read_text(encoding="utf-8")), explorer.settings, "--output_dir")
    elif existed and any(output.iterdir()):
        raise ValueError(f"output_dir {output} holds something that is not of a study: give another.")
    output.mkdir(parents=True, exist_ok=True)
    url = explore.storage or f"sqlite:///{(output / STORAGE_NAME).resolve()}"
    try:
        study = _Study(explorer, url)
    except ValueError:
        if not existed:
            output.rmdir()
        raise
    settings.write_text(json.dumps(explorer.settings, indent=2) + "\n", encoding="utf-8")

    def report() -> list[dict]:
        findings = study.findings()
        write_findings(findings, output, explorer.settings)
        return findings

    pressed = []

    def stop(*_):
        pressed.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        try:
            with tqdm(desc=explore.study, unit="trial") as bar:
                for _ in study.run():
                    if pressed:  # what was raised where Python only prints it, in a destructor say, is raised again
                        raise KeyboardInterrupt
                    findings, missing = report(), study.missing()
                    bar.n = len(findings)
                    bar.total = bar.n + (missing if isinstance(missing, int) else len(missing))
                    bar.set_postfix_str(summary(findings))
        finally:
            findings = report()
            write_plots(findings, output, explore.study)
    except _STORAGE_ERRORS as error:
        raise _lost(url, error) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
    return findings
