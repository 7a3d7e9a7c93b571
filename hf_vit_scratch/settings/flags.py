"""The flags of `train.py`, and the `Settings` parsed from defaults, a recipe and the command line."""

import argparse
import copy
import dataclasses
import textwrap
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import datasets
import torch
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments

from ..data.digit_recognizer import SAMPLE
from ..data.shards import load_stream
from ..data.sources import load
from ..device import best_device, computes_bf16
from ..model.configuration_vit_scratch import SIZES, ViTScratchConfig
from .nested import check_nested
from .recipe import as_flags, check_keys, default_recipe, read_recipe

# Defaults of this package for flags of the Trainer. A recipe or the command line overrides them.
_HOUSE_DEFAULTS = {
    "report_to": "none",
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 2,
    "logging_steps": 0.02,
    "logging_nan_inf_filter": "false",
    "remove_unused_columns": "false",
    "ddp_find_unused_parameters": "false",
    "per_device_eval_batch_size": 500,
    "hub_strategy": "end",
}
# The Trainer's flags that belong to a recipe, since they change the weights. The others set paths, speed and logging.
TRAINING_OF_A_RECIPE = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "label_smoothing_factor", "optim"),
    *("max_grad_norm", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
)


def flag(default, text: str):
    """A field of a dataclass for a flag with this default and this help text."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class DataArguments:
    """Flags for the data and how they are split."""

    data: str = flag(
        SAMPLE,
        "sample (5,000 real digits, installed with the package), kaggle (downloads the competition), the zip of the "
        "competition, other CSV files with a column for each pixel (a file, a folder or a zip), an image folder, a "
        "Parquet or Arrow dataset on disk, or the id of a dataset on the Hub.",
    )
    image_column: str = flag("image", "Name of the column with the images.")
    label_column: str = flag("label", "Name of the column with the labels.")
    validation_size: float = flag(
        0.1, "Fraction of the training rows to hold out for validation, if the data has no validation split."
    )
    split_seed: int = flag(42, "Seed that decides which rows are held out.")
    fold: int | None = flag(
        None,
        "Hold out this fold, counted from 1, of num_folds stratified folds of the training rows, instead of a "
        "fraction.",
    )
    num_folds: int = flag(5, "With --fold: number of folds.")
    streaming: bool = flag(
        False,
        "Train from shards that are larger than memory and disk cache: a folder with train-*.parquet or train-*.tar "
        "(and validation-*, test-*), or a data set on the Hub in Parquet files.",
    )
    shuffle_buffer: int = flag(
        1000, "With --streaming: number of images, not decoded, among which each worker shuffles."
    )
    crop_fraction: float | None = flag(
        None,
        "Side of the centre crop for evaluation, as a fraction of the shorter side of the image (0.875 for "
        "photographs). Unset: the crop of the pre-trained model, or for a new model the whole image.",
    )

    def load_splits(self) -> datasets.DatasetDict:
        """Load and split the data with [`load`], or with [`load_stream`], whose split train is a [`Stream`]."""
        if self.streaming:
            return self._load_stream()
        names = ("image_column", "label_column", "validation_size", "fold", "num_folds")
        return load(self.data, seed=self.split_seed, **{name: getattr(self, name) for name in names})

    def _load_stream(self) -> datasets.DatasetDict:
        if self.fold is not None:
            raise ValueError(
                f"fold {self.fold} cannot be held out of a stream. Write the held-out rows to validation-*."
            )
        splits = load_stream(self.data, self.image_column, self.label_column)
        if "validation" not in splits and self.validation_size:
            raise ValueError(
                f"{self.data} has no validation split, and rows cannot be held out of a stream. Write validation-* "
                "beside train-*, or train without validation with --validation_size 0."
            )
        return splits


@dataclasses.dataclass
class AugmentationArguments:
    """Flags for the augmentation of training images."""

    augmentation: str = flag(
        "none",
        "none, digits (affine and elastic transforms, no flips) or photos (random crops and flips; --shift_pixels and "
        "--cutout_pixels add shifts and cutout).",
    )
    rotation_degrees: float = flag(15.0, "digits: largest rotation, in degrees.")
    scale_range: float = flag(0.15, "digits: largest change of scale; 0.15 scales by 0.85 to 1.15.")
    shear_degrees: float = flag(10.0, "digits: largest shear, in degrees.")
    shift_pixels: float | None = flag(
        None,
        "digits and photos: largest shift along each axis, in pixels of the model's input. Photographs are shifted by "
        "whole pixels, and their reflection fills the rest. Default: 0 for photos, 2 for digits.",
    )
    elastic_pixels: float = flag(0.8, "digits: standard deviation of the elastic displacement, in pixels.")
    mild_fraction: float = flag(
        0.0, "digits: fraction of the training steps, at the end, in which mild_strength multiplies all amounts."
    )
    mild_strength: float = flag(0.3, "digits: factor of all amounts in the last mild_fraction of the steps.")
    min_crop_area: float = flag(0.35, "photos: smallest crop, as a fraction of the image area. 1: no crop.")
    cutout_pixels: float = flag(
        0.0, "photos: side of a square at a random place that is set to grey, in pixels of the model's input. 0: none."
    )

    def __post_init__(self):
        if self.shift_pixels is None:
            self.shift_pixels = 0.0 if self.augmentation == "photos" else 2.0


@dataclasses.dataclass
class RunArguments:
    """Flags of a run that the Trainer does not have."""

    recipe: str | None = flag(
        None,
        "Name of a recipe of the package, or path of a YAML file whose keys are the names of these flags. A flag on "
        "the command line overrides the recipe. Default: sample for the sample, digits-tiny for other data. With "
        "model_name_or_path: digits-finetune for the sample and the competition, photos-finetune for other data.",
    )
    size: str | None = flag(
        None,
        f"Named size of a new model: {', '.join(SIZES)}. Flags such as --hidden_size override its fields. Default: "
        "digits-tiny.",
    )
    model_name_or_path: str | None = flag(
        None,
        "Fine-tune this model instead of training a new one: a folder, or the id of a repository on the Hub, with a "
        "model of this package, a ViT of transformers or a ViT of timm. It determines the size, so leave out --size.",
    )
    freeze_encoder: bool = flag(
        False,
        "With model_name_or_path: train the classification head alone, as a linear probe. The encoder keeps its "
        "weights, and is used without dropout and drop path.",
    )
    attn_implementation: str | None = flag(
        None,
        "Attention implementation: eager, sdpa, flex_attention or another one of transformers. Default: the fastest "
        "on this device.",
    )
    ema_decay: float = flag(
        0.999,
        "Decay of the exponential moving average of the weights. The average is evaluated and saved. 0: no average.",
    )
    muon_learning_rate: float | None = flag(
        None,
        "Learning rate of Muon, on AdamW's scale. Muon then trains the weight matrices of the blocks and AdamW the "
        "rest. Unset or 0: AdamW for all.",
    )
    muon_stem: bool = flag(
        False, "With muon_learning_rate and a convolutional stem: let Muon train the convolutions of the stem too."
    )
    teacher_epochs: float = flag(
        0.0,
        "Distil from a CNN that is trained first, on the same rows, for this many epochs. 0: no distillation.",
    )
    teacher_network: str = flag(
        "strided",
        "With teacher_epochs: kind of the CNNs, strided (for digits, 0.33 million parameters) or pooled (for small "
        "photographs, 2 million parameters).",
    )
    num_teachers: int = flag(
        1, "With teacher_epochs: number of CNNs, trained with different seeds. Their mean logits are the target."
    )
    teacher_weight: float = flag(0.8, "With teacher_epochs: weight of the distillation loss, from 0 to 1.")
    teacher_temperature: float = flag(
        2.0, "With teacher_epochs: temperature that softens the predictions of teacher and student."
    )
    overwrite_output_dir: bool = flag(False, "Delete the run in output_dir and start a new one there.")


@dataclasses.dataclass
class _EarlyArguments:
    """Flags that are parsed first: defaults of other flags, or keys of the recipe, depend on them."""

    stem: str | None = None
    use_cpu: bool = parse_flag_from_env("ACCELERATE_USE_CPU")
    fp16: bool = False
    deepspeed: str | None = None


def _scalar(annotation):
    """The type of the flag for a field of the config: for `int | list[int]`, one or two integers."""
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    lists = [option for option in options if get_args(option)]
    return (lists or [option for option in options if option is not type(None)])[0]


# Each field of the config is a flag of the same name. None: not given, so that the size or the data determine it.
ModelArguments = dataclasses.make_dataclass(
    "ModelArguments",
    [
        (
            name,
            _scalar(annotation) | None,
            flag(None, f"Field of the config ({annotation}). Default: its value in --size."),
        )
        for name, annotation in ViTScratchConfig.__annotations__.items()
        if name != "training_data"
    ],
)
_DESCRIPTION = "Train a Vision Transformer from scratch, or fine-tune a pre-trained one."
KINDS = (RunArguments, DataArguments, AugmentationArguments, ModelArguments, TrainingArguments)


def given_fields(model: Any) -> dict:
    """The fields of the config that were given as flags. A single `--image_size` becomes an integer."""
    fields = {name: value for name, value in vars(model).items() if value is not None}
    if isinstance(fields.get("image_size"), list) and len(fields["image_size"]) == 1:
        (fields["image_size"],) = fields["image_size"]
    return fields


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run, by group of flags. `model` is a [`ModelArguments`]."""

    run: RunArguments
    data: DataArguments
    augmentation: AugmentationArguments
    model: Any
    training: TrainingArguments

    def with_run(self, **changes) -> "Settings":
        """A copy with other values for some arguments of the run."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))

    def with_augmentation(self, **changes) -> "Settings":
        """A copy with other values for some arguments of the augmentation."""
        return dataclasses.replace(self, augmentation=dataclasses.replace(self.augmentation, **changes))

    def with_training(self, **changes) -> "Settings":
        """A copy with other values for some arguments of the Trainer."""
        training = copy.copy(self.training)  # `dataclasses.replace` would repeat __post_init__
        for name, value in changes.items():
            setattr(training, name, value)
        return dataclasses.replace(self, training=training)


class Parser(HfArgumentParser):
    """A parser that raises ValueError; argparse itself would print the usage of two hundred flags and exit."""

    def error(self, message: str):
        raise ValueError(message)

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Its flags, by name."""
        return {action.dest: action for action in reversed(self._actions)}

    def parse_flags(self, argv: list[str]) -> tuple:
        """The dataclasses of the parser, filled with the flags. Raises: ValueError for unknown and invalid flags."""
        *parsed, unknown = self.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            raise ValueError(f"unknown flags: {' '.join(unknown)}. `train.py --help` lists all flags.")
        return tuple(parsed)


def all_flags() -> dict[str, argparse.Action]:
    """All flags of `train.py`, by name."""
    return Parser(KINDS).flags


def parse_arguments(argv: list[str]) -> Settings:
    """Parse flags to settings. The command line overrides the recipe, and the recipe overrides the defaults.

    Raises: ValueError if the recipe cannot be read, a key or flag is unknown or has a value that cannot be used, or
        both size and model_name_or_path are given.
    """
    parser = Parser(KINDS, prog="train.py", allow_abbrev=False, description=_DESCRIPTION)
    early = Parser((RunArguments, DataArguments, _EarlyArguments), add_help=False, allow_abbrev=False)
    known, _ = early.parse_known_args(argv)
    recipe = known.recipe or default_recipe(known.data, known.model_name_or_path)
    values = read_recipe(recipe)
    if known.model_name_or_path and known.size is None:
        values.pop("size", None)  # --model_name_or_path overrides the size of a recipe
    check_keys(recipe, values, parser.flags)
    if known.deepspeed or values.get("deepspeed"):
        raise ValueError(
            "DeepSpeed is not supported: leave out --deepspeed. For a model that does not fit on one device, use "
            "FSDP2, `accelerate launch --config_file $(vit-scratch config fsdp) train.py`."
        )
    device = torch.device("cpu") if known.use_cpu else best_device()
    house = {
        **_HOUSE_DEFAULTS,
        "output_dir": f"output/{Path(recipe).stem}",
        "bf16": computes_bf16(device) and not known.fp16,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
    }
    run, *others = parse_with_recipe(parser, recipe, house, values, argv)
    run.recipe = recipe
    if run.size and run.model_name_or_path:
        raise ValueError(
            f"size {run.size} is for a new model, and {run.model_name_or_path} has its own size: give either size or "
            "model_name_or_path."
        )
    if not run.model_name_or_path:
        run.size = run.size or "digits-tiny"
    return Settings(run, *others)


def parse_with_recipe(parser: Parser, recipe: str | None, defaults: dict, values: dict, argv: list[str]) -> tuple:
    """The dataclasses of a parser, filled with defaults, then the values of a recipe, then the flags in `argv`.

    `--stem patch` takes the place of all that a recipe says of its convolutional stem.

    Raises: ValueError for the first fault, with the recipe and its key, or the flag.
    """
    early, _ = Parser(_EarlyArguments, add_help=False, allow_abbrev=False).parse_known_args(argv)
    if early.stem == "patch":
        values = {name: value for name, value in values.items() if name not in ("stem_depth", "stem_width")}

    def parse(*flags: str) -> tuple:
        parsed = parser.parse_flags([*as_flags(defaults), *flags])
        if isinstance(parsed[-1], TrainingArguments):
            check_nested(parsed[-1])
        return parsed

    try:
        return parse(*as_flags(values), *argv)
    except Exception as error:  # TrainingArguments raises exceptions of many types
        text = _reason(error)
    starts = [place for place, word in enumerate(argv) if word.startswith("--")]
    parts = [argv[start:end] for start, end in zip(starts, [*starts[1:], len(argv)], strict=True)]
    names = [part[0].partition("=")[0].lstrip("-").replace("-", "_") for part in parts]
    own = {name: as_flags({name: value}) for name, value in values.items() if name not in names}
    for name, flags in [*zip(names, parts, strict=True), *own.items()]:
        try:
            parse(*flags)
        except Exception as error:
            if _reason(error) == text:  # or else it fails only for the lack of the others
                named = text if text.startswith(name) else f"{name}: {text}"
                plain = text if name in text else f"--{name}: {text}"
                raise ValueError(f"recipe {recipe}: {named}" if name in own else plain) from error
    raise ValueError(f"recipe {recipe}: {text}" if any(name in text for name in own) else text)


def _reason(error: Exception) -> str:
    text = textwrap.shorten(str(error), 500, placeholder=" ...")
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def complete_settings(settings: dict) -> dict:
    """The content of training_args.json, plus defaults for flags that did not exist when it was written."""
    kinds = {"run": RunArguments, "data": DataArguments, "augmentation": AugmentationArguments}
    defaults = {
        part: {field.name: field.default for field in dataclasses.fields(kind)} for part, kind in kinds.items()
    }
    augmentation = dict(settings.get("augmentation", {}))
    if "cutout_pixels" not in augmentation and augmentation.get("augmentation") == "photos":
        augmentation["shift_pixels"] = 0.0  # until then photographs were never shifted, whatever was recorded
    settings = {**settings, "augmentation": augmentation}
    return {**settings, **{part: {**default, **settings.get(part, {})} for part, default in defaults.items()}}
