"""The main job: load the data, train, measure, and leave one folder with all of it."""

import csv
import json
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path

import datasets
import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, IntervalStrategy, SaveStrategy

from . import data
from .arguments import AugmentationArguments, DataArguments, RunArguments, complete_settings, parse_arguments
from .augmentation import DigitAugmentation, RandomFlip
from .batches import ImageBatches, PixelValues, keep_batch
from .competition import COMPETITION, SAMPLE, SAMPLE_NOTICE
from .configuration_vit_scratch import ViTScratchConfig
from .device import can_compile, describe, fastest_attention, set_up_cpu
from .image_processing_vit_scratch import ViTScratchImageProcessor
from .inference import load_model, predict_logits, write_submission
from .modeling_vit_scratch import ViTScratchForImageClassification
from .optimizer import WithMuon
from .plots import plot_confusion_matrix, plot_curves
from .pretrained import Pretrained, load_pretrained, model_name
from .publish import (
    EVALUATION_NAME,
    RESULTS_NAME,
    ROBUSTNESS_PLOT,
    SETTINGS_NAME,
    WRONG_PLOT,
    Repository,
    leave,
    write_card,
)

AVERAGE_NAME = "average.safetensors"
EXAMPLE_NAME = "example.png"
EMISSIONS_NAME = "emissions.csv"  # of codecarbon, with --report_to codecarbon


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights: average <- decay * average + (1 - decay) * weights, at each step.

    The decay rises to its value from 0.1, as (1 + step) / (10 + step), so that the first steps are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

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
        for name, parameter in self.parameters.items():
            weights = parameter.clone()
            parameter.copy_(self.average[name])
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


class ViTScratchTrainer(Trainer):
    """The Trainer, with batches that are augmented on the device, an average of the weights, and Muon where asked for.

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
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("the average of the weights needs all of them on each device: no FSDP, no DeepSpeed.")
        self.to_pixel_values = to_pixel_values.to(self.args.device)
        self.average = WeightAverage(self.model, ema_decay)
        self.add_callback(self.average)

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

    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, self._with_pixel_values(inputs, augment=True), *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        return super().prediction_step(model, self._with_pixel_values(inputs, augment=False), *args, **kwargs)

    def _with_pixel_values(self, inputs, augment: bool):
        inputs = self._prepare_inputs(inputs)
        return {**inputs, "pixel_values": self.to_pixel_values(inputs["pixel_values"], augment)}

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


class PushEverySave(TrainerCallback):
    """Push at each save what a run would leave if it ended there, in the background: where it fails, training goes on.

    Args:
        facts: what all_results.json holds before anything is measured.
    """

    def __init__(self, trainer: ViTScratchTrainer, repository: Repository, facts: dict):
        self.trainer, self.repository, self.facts = trainer, repository, facts
        self.push: Future | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()
        if state.is_world_process_zero:
            for folder in Path(args.output_dir).glob(".push-*"):  # of a run that was killed
                shutil.rmtree(folder)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or state.global_step >= state.max_steps:  # the run itself pushes its end
            return
        if self.push and not self.push.done():
            if not args.hub_always_push:
                return
            wait([self.push])
        output, step = Path(args.output_dir), f"step {state.global_step} of {state.max_steps}"
        folder = Path(tempfile.mkdtemp(prefix=".push-", dir=output))

        def done(push: Future):
            shutil.rmtree(folder)
            if error := push.exception():
                print(f"Warning: {step} was not pushed, training goes on: {error}", file=sys.stderr, flush=True)

        self.trainer.save_model(str(folder))
        for name in (SETTINGS_NAME, EXAMPLE_NAME):
            if (output / name).exists():
                shutil.copy(output / name, folder)
        _write_results(folder, self.trainer, self.facts | self._measured(state, step), output.resolve().name)
        self.push = self.repository.submit(folder)
        self.push.add_done_callback(done)

    def _measured(self, state, step: str) -> dict:
        """What is known so far, by its names in all_results.json."""
        found = {"unfinished": step, "epoch": state.epoch, "train_runtime": time.perf_counter() - self.start}
        last = next((row for row in reversed(state.log_history) if "eval_accuracy" in row), {})
        if last.get("step") == state.global_step:  # or else it is of other weights
            found |= {f"validation_{key[5:]}": value for key, value in last.items() if key.startswith("eval_")}
        return found


def _check_arguments(run: RunArguments, training: TrainingArguments):
    if training.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end picks an epoch by its validation score: the last weights are kept here."
        )
    if training.save_strategy == SaveStrategy.BEST:
        raise ValueError("save_strategy best picks an epoch by its validation score: use steps or epoch.")
    if training.push_to_hub and training.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        value = training.hub_strategy.value
        raise ValueError(f"hub_strategy {value} uploads optimizer states: use end or every_save.")
    if training.push_to_hub and not training.hub_model_id:
        raise ValueError("push_to_hub wants --hub_model_id USER/NAME.")
    if training.bf16_full_eval or training.fp16_full_eval:
        raise ValueError("bf16_full_eval and fp16_full_eval would round the weights: evaluation is in full precision.")
    if not 0 <= run.ema_decay < 1:
        raise ValueError(f"ema_decay must be at least 0 and below 1, got {run.ema_decay}.")
    if run.muon_learning_rate is not None and not run.muon_learning_rate >= 0:
        raise ValueError(f"muon_learning_rate must be at least 0, got {run.muon_learning_rate}.")


def build_config(
    run: RunArguments,
    model_arguments,
    splits: datasets.DatasetDict,
    training_data: str,
    pretrained: Pretrained | None = None,
) -> ViTScratchConfig:
    """The config of the named size with the given fields; image size, channels and classes come from the data.

    To fine-tune, size, image size and channels are those of the pre-trained model.
    """
    fields = {name: value for name, value in vars(model_arguments).items() if value is not None}
    if isinstance(fields.get("image_size"), list) and len(fields["image_size"]) == 1:
        fields["image_size"] = fields["image_size"][0]
    names = splits["train"].features["label"].names
    if pretrained is not None:
        return pretrained.config_for(fields, names, training_data)
    shape = data.image_shape(splits["train"])
    if "image_size" not in fields:
        if shape is None:
            raise ValueError("the images differ in size: give --image_size, or --recipe photos-small for photographs.")
        fields["image_size"] = shape[0] if shape[0] == shape[1] else list(shape[:2])
    fields.setdefault("num_channels", 3 if shape is None else shape[2])
    return ViTScratchConfig.from_size(
        run.size,
        **fields,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        training_data=[training_data],
    )


def build_processor(
    config: ViTScratchConfig, crop_fraction: float | None = None, pretrained: Pretrained | None = None
) -> ViTScratchImageProcessor:
    """The processor for a config: resize to `image_size`, or resize the shorter side and crop the centre.

    To fine-tune, normalization and, unless it is given, `crop_fraction` are those of the pre-trained model.
    """
    height, width = config.image_height_width
    size, others = {"height": height, "width": width}, {"num_channels": config.num_channels}
    if pretrained is not None:
        others |= pretrained.preprocessing
        crop_fraction = pretrained.crop_fraction if crop_fraction is None else crop_fraction
    if crop_fraction is None:
        return ViTScratchImageProcessor(size=size, **others)
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction must be above 0 and at most 1, got {crop_fraction}.")
    shorter = {"shortest_edge": round(max(height, width) / crop_fraction)}
    return ViTScratchImageProcessor(
        size=shorter, do_center_crop=True, crop_size=size, default_to_square=False, **others
    )


def build_augmentation(arguments: AugmentationArguments) -> nn.Module | None:
    """The module that changes a training batch on the device, or None."""
    if arguments.augmentation == "none":
        return None
    if arguments.augmentation == "digits":
        if not 0 <= arguments.mild_fraction <= 1:
            raise ValueError(f"mild_fraction must be from 0 to 1, got {arguments.mild_fraction}.")
        if not arguments.mild_strength >= 0:
            raise ValueError(f"mild_strength must be at least 0, got {arguments.mild_strength}.")
        return DigitAugmentation(
            arguments.rotation_degrees,
            arguments.scale_range,
            arguments.shear_degrees,
            arguments.shift_pixels,
            arguments.elastic_pixels,
        )
    if arguments.augmentation == "photos":
        if not 0 < arguments.min_crop_area <= 1:
            raise ValueError(f"min_crop_area must be above 0 and at most 1, got {arguments.min_crop_area}.")
        return RandomFlip()
    raise ValueError(f"augmentation must be none, digits or photos, got {arguments.augmentation!r}.")


def find_checkpoint(training: TrainingArguments) -> str | None:
    """The checkpoint to go on from: a folder as given, or for `true` the newest whole one in the output folder."""
    wanted = training.resume_from_checkpoint
    if wanted is None or wanted.lower() == "false":
        return None
    if wanted.lower() != "true":
        folders = [Path(wanted)]
    else:
        folders = Path(training.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    # trainer_state.json is written last: a checkpoint without it was cut off.
    whole = sorted((folder for folder in folders if (folder / "trainer_state.json").is_file()), key=_step_of)
    if not whole:
        where = training.output_dir if wanted.lower() == "true" else wanted
        raise ValueError(f"there is no whole checkpoint to resume from in {where}.")
    return str(whole[-1])


def _step_of(checkpoint: str | Path) -> int:
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def _check_resumable(config: ViTScratchConfig, settings: dict, checkpoint: str):
    """Refuse what would go on without a word: a model that fits in part, training images in the validation split."""
    file = Path(checkpoint).parent / SETTINGS_NAME
    written = complete_settings(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    before, now = ({**told.get("data", {}), **told.get("run", {})} for told in (written, settings))
    names = ("data", "validation_size", "split_seed", "fold", "num_folds", "model_name_or_path", "muon_learning_rate")
    for name in names:
        if name in before and before[name] != now[name]:
            raise ValueError(f"cannot resume: {checkpoint} has {name} {before[name]!r}, this run {now[name]!r}.")
    old, new = ViTScratchConfig.from_pretrained(checkpoint), config
    for name in ViTScratchConfig.__annotations__:
        if getattr(old, name) != getattr(new, name):
            raise ValueError(
                f"cannot resume: {checkpoint} has {name} {getattr(old, name)!r}, this run {getattr(new, name)!r}."
            )
    if old.id2label != new.id2label:
        raise ValueError(f"cannot resume: {checkpoint} has other classes than this run.")


def _check_output_dir(run: RunArguments, training: TrainingArguments, checkpoint: str | None):
    folder = Path(training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file.")
    if checkpoint and Path(checkpoint).resolve().parent == folder.resolve():
        return
    names = {path.name for path in folder.glob("*")}
    if names & {SETTINGS_NAME, "config.json"} or any(name.startswith(PREFIX_CHECKPOINT_DIR) for name in names):
        if not run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a run already: go on with --resume_from_checkpoint true, replace it with "
                "--overwrite_output_dir, or give another --output_dir."
            )
    elif foreign := names & {"README.md", "submission.csv", "all_results.json"}:
        raise ValueError(f"{folder} holds a {min(foreign)} that is not of a run: give another --output_dir.")


def _settings(run, data_arguments, augmentation, training) -> dict:
    """All that the run was told, without tokens and without paths: it goes to the Hub with the model."""
    flags = json.loads(training.to_json_string())
    for name in ("output_dir", "logging_dir", "resume_from_checkpoint"):
        flags |= {name: Path(flags[name]).name} if flags.get(name) else {}
    return {
        "run": {**vars(run), "recipe": Path(run.recipe).stem, "model_name_or_path": _base_model(run)},
        "data": {**vars(data_arguments), "data": data.source_name(data_arguments.data)},
        "augmentation": vars(augmentation),
        "training": flags,
    }


def _base_model(run: RunArguments) -> str | None:
    return model_name(run.model_name_or_path) if run.model_name_or_path else None


def _write_json(file: Path, content: dict):
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _remove_old_evaluation(folder: Path):
    """It is of other weights than those that a run leaves."""
    for name in (EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT):
        (folder / name).unlink(missing_ok=True)


def _remove_old_run(folder: Path):
    """What a new run might not replace, and would then be taken for its own."""
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(checkpoint)
    for name in ("submission.csv", "confusion_matrix.png", EXAMPLE_NAME, EMISSIONS_NAME):
        (folder / name).unlink(missing_ok=True)


def evaluate_logits(logits: torch.Tensor, labels: list[int]) -> dict:
    """All metrics of [`ClassifierMetrics`] for logits `(num_images, num_labels)` and labels `(num_images,)`."""
    from .metrics import ClassifierMetrics  # late: evaluate takes seconds to import

    probabilities = logits.double().softmax(dim=-1).float().numpy()
    return ClassifierMetrics().compute(predictions=probabilities, references=labels)


def _metrics_during_training(prediction) -> dict:
    results = evaluate_logits(torch.from_numpy(prediction.predictions), prediction.label_ids)
    return {key: value for key, value in results.items() if not isinstance(value, list)}


def train(
    run: RunArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    model_arguments,
    training: TrainingArguments,
) -> dict:
    """Run the whole job. Takes what [`parse_arguments`] gives; returns what is in all_results.json.

    Raises: ValueError or OSError, in one line, for anything that the user can put right.
    """
    state = PartialState()
    _check_arguments(run, training)
    repository = _repository(training) if training.push_to_hub else None
    set_up_cpu()
    if training.torch_compile and not can_compile():
        training.torch_compile, training.torch_compile_backend = False, None
        if state.is_main_process:
            print("No C++ compiler was found (g++, clang++): training without torch.compile, slower.", flush=True)
    transformers.logging.disable_progress_bar()  # that of each file that is saved; the Trainer's own stays
    if state.is_main_process and data_arguments.data == SAMPLE:
        print(SAMPLE_NOTICE, flush=True)
    checkpoint, pretrained = find_checkpoint(training), None
    if run.model_name_or_path:
        with state.main_process_first():
            pretrained = load_pretrained(checkpoint or run.model_name_or_path)
    start = time.perf_counter()
    with state.main_process_first():
        splits = data.load(
            data_arguments.data,
            image_column=data_arguments.image_column,
            label_column=data_arguments.label_column,
            validation_size=data_arguments.validation_size,
            seed=data_arguments.split_seed,
            fold=data_arguments.fold,
            num_folds=data_arguments.num_folds,
        )
    load_seconds = time.perf_counter() - start

    config = build_config(run, model_arguments, splits, data.source_name(data_arguments.data), pretrained)
    settings = _settings(run, data_arguments, augmentation, training)
    if checkpoint:
        _check_resumable(config, settings, checkpoint)
    _check_output_dir(run, training, checkpoint)
    if repository and state.is_main_process:
        repository.check()  # now, and not after hours of training
    training.push_to_hub = False  # the Trainer would push raw weights, without code, and a card of its own
    if "validation" not in splits:
        training.eval_strategy = IntervalStrategy.NO

    if training.data_seed is None:
        training.data_seed = training.seed  # one order of the images for all processes, whose other seeds differ
    transformers.set_seed(training.seed)
    fastest = fastest_attention(config.num_tokens, training.device, training.bf16)
    config._attn_implementation = run.attn_implementation or fastest
    model = pretrained.fit(config) if pretrained else ViTScratchForImageClassification(config)
    processor = build_processor(config, data_arguments.crop_fraction, pretrained)
    if pretrained and not checkpoint and state.is_main_process:
        print(pretrained.describe(config), flush=True)
    del pretrained  # two models would lie in memory
    on_device = build_augmentation(augmentation)
    min_crop_area = augmentation.min_crop_area if augmentation.augmentation == "photos" else None
    trainer = ViTScratchTrainer(
        model,
        training,
        train_dataset=ImageBatches(splits["train"], processor, min_crop_area),
        eval_dataset=ImageBatches(splits["validation"], processor) if "validation" in splits else None,
        processing_class=processor,
        compute_metrics=_metrics_during_training,
        to_pixel_values=PixelValues(processor, on_device),
        ema_decay=run.ema_decay,
        muon_learning_rate=run.muon_learning_rate,
    )
    if isinstance(on_device, DigitAugmentation) and augmentation.mild_fraction:
        trainer.add_callback(MildEnd(on_device, augmentation.mild_fraction, augmentation.mild_strength))
    facts = {
        "data": data.source_name(data_arguments.data),
        "recipe": Path(run.recipe).stem,
        **({"base_model": _base_model(run)} if run.model_name_or_path else {}),
        "parameters": model.num_parameters(),
        "train_images": len(splits["train"]),
        "hardware": describe(training.device, state.num_processes),
        "resumed_from_step": _step_of(checkpoint) if checkpoint else 0,
        "load_seconds": round(load_seconds, 3),
    }
    if repository and training.hub_strategy == HubStrategy.EVERY_SAVE:
        trainer.add_callback(PushEverySave(trainer, repository, facts))
    # Same weights in all processes, but each augments its images in its own way.
    transformers.set_seed(training.seed + state.process_index)
    state.wait_for_everyone()  # nobody writes before all have looked
    if state.is_main_process:
        if checkpoint is None and run.overwrite_output_dir:
            _remove_old_run(Path(training.output_dir))
        Path(training.output_dir).mkdir(parents=True, exist_ok=True)
        _remove_old_evaluation(Path(training.output_dir))
        _write_json(Path(training.output_dir) / SETTINGS_NAME, settings)
        if facts["data"] in (SAMPLE, COMPETITION):  # public digits; an image of the user's own is not for a card
            example = splits["validation" if "validation" in splits else "train"][0]["image"]
            example.save(Path(training.output_dir) / EXAMPLE_NAME)
    measured = trainer.train(resume_from_checkpoint=checkpoint).metrics
    measured.pop("total_flos", None)  # an estimate for language models, by the number of pixels in place of tokens
    results = {**facts, **measured, **_energy(Path(training.output_dir))}
    trainer.save_model()
    trainer.save_state()
    state.wait_for_everyone()
    results.update(_measure(training, splits))
    if state.is_main_process:
        _write_results(Path(training.output_dir), trainer, results)
        print(_summary(Path(training.output_dir), results), flush=True)
    state.wait_for_everyone()
    if repository and state.is_main_process:
        print(f"Pushing it to {repository.repo_id}", flush=True)
        print(f"Pushed: {repository.upload(training.output_dir)}", flush=True)
    return results


def _repository(training: TrainingArguments) -> Repository:
    return Repository(
        training.hub_model_id, bool(training.hub_private_repo), training.hub_revision, training.hub_token
    )


def _energy(folder: Path) -> dict:
    """What codecarbon measured, in kWh, where it was asked to."""
    if not (folder / EMISSIONS_NAME).exists():
        return {}
    with open(folder / EMISSIONS_NAME, newline="", encoding="utf-8") as stream:
        return {"energy_kwh": float(list(csv.DictReader(stream))[-1]["energy_consumed"])}


def _measure(training: TrainingArguments, splits: datasets.DatasetDict) -> dict:
    """Evaluate the folder as a user will load it, in fp32, and write the submission where the test has no labels."""
    model, processor = load_model(training.output_dir, training.device)
    results = {}
    for name in ("validation", "test"):
        if name not in splits:
            continue
        logits = predict_logits(model, processor, splits[name], training.per_device_eval_batch_size)
        if "label" in splits[name].column_names:
            measured = evaluate_logits(logits, splits[name]["label"][:])
            results.update({f"{name}_{key}": value for key, value in measured.items()})
        elif PartialState().is_main_process:
            write_submission(logits, model.config.id2label, Path(training.output_dir) / "submission.csv")
    return results


def _write_results(folder: Path, trainer: ViTScratchTrainer, results: dict, name: str | None = None):
    _write_json(folder / RESULTS_NAME, results)
    plot_curves(trainer.state.log_history, folder / "curves.png")
    if "validation_confusion_matrix" in results:
        names = list(trainer.model.config.id2label.values())
        plot_confusion_matrix(results["validation_confusion_matrix"], names, folder / "confusion_matrix.png")
    write_card(folder, trainer.model.config, results, name)


def _summary(folder: Path, results: dict) -> str:
    lines = [
        f"{results['parameters']:,} parameters, {results['train_images']:,} training images of {results['data']}, "
        f"{results['epoch']:g} epochs in {results['train_runtime'] / 60:.1f} minutes "
        f"({results['train_samples_per_second']:.0f} images/s)"
    ]
    for name in ("validation", "test"):
        if f"{name}_accuracy" in results:
            lines.append(
                f"{name} accuracy {results[f'{name}_accuracy']:.2%}: {results[f'{name}_errors']} wrong of "
                f"{results[f'{name}_num_images']:,}; macro F1 {results[f'{name}_macro_f1']:.4f}, "
                f"calibration error {results[f'{name}_calibration_error']:.4f}"
            )
    return "\n".join([*lines, f"All of it lies in {folder}"])


def main(argv: list[str] | None = None):
    """What train.py runs: one line on bad input, and exit code 2."""
    try:
        train(*parse_arguments(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        leave("train.py: stopped. --resume_from_checkpoint true goes on from the last checkpoint.")
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            line = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_...", " ".join(str(error).split()))  # a token that was mistyped
            print(f"train.py: error: {line}", file=sys.stderr)
        raise SystemExit(2) from error
