"""What a run is told: flags, recipes and defaults, under one name each."""

import dataclasses
import json
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import get_args

import torch
import yaml
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments

from .competition import KAGGLE, SAMPLE, is_competition
from .configuration_vit_scratch import SIZES, ViTScratchConfig
from .device import best_device, computes_bf16

RECIPES = resources.files(__package__) / "recipes"
# What every run has unless its recipe or a flag says otherwise: a Trainer without uploads, pickled or unused extras.
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


def _flag(default, text: str):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class DataArguments:
    """Which images, and how they are split."""

    data: str = _flag(
        SAMPLE,
        "sample (real digits that come with the install), the competition's zip or a folder with its CSVs, kaggle, an "
        "image folder, a Parquet or Arrow dataset on disk, or the id of a dataset on the Hub.",
    )
    image_column: str = _flag("image", "Name of the column with the images.")
    label_column: str = _flag("label", "Name of the column with the labels.")
    validation_size: float = _flag(0.1, "Fraction of the training rows held out, where the data has no such split.")
    split_seed: int = _flag(42, "Decides which rows these are.")
    fold: int | None = _flag(
        None, "Hold out this part, from 1, of num_folds stratified parts of the training rows, instead of a fraction."
    )
    num_folds: int = _flag(5, "With fold: how many parts there are.")
    crop_fraction: float | None = _flag(
        None,
        "Evaluate on the centre crop that is this fraction of the shorter side (photographs: 0.875). "
        "Unset: the whole image is brought to image_size.",
    )


@dataclasses.dataclass
class AugmentationArguments:
    """What happens to training images, in whole batches on the training device."""

    augmentation: str = _flag(
        "none", "none, digits (affine and elastic, never flipped) or photos (random crop, flip)."
    )
    rotation_degrees: float = _flag(15.0, "digits: largest rotation.")
    scale_range: float = _flag(0.15, "digits: 0.15 scales by 0.85 to 1.15.")
    shear_degrees: float = _flag(10.0, "digits: largest shear.")
    shift_pixels: float = _flag(2.0, "digits: largest shift along each axis.")
    elastic_pixels: float = _flag(0.8, "digits: standard deviation of the elastic displacement.")
    mild_fraction: float = _flag(0.0, "digits: this last fraction of the steps has all of these times mild_strength.")
    mild_strength: float = _flag(0.3, "digits: with mild_fraction.")
    min_crop_area: float = _flag(
        0.35, "photos: smallest part of a picture that is cropped, as a fraction of its area."
    )


@dataclasses.dataclass
class RunArguments:
    """What the Trainer has no flag for."""

    recipe: str | None = _flag(
        None,
        "Name of a recipe of the package, or path of a YAML file with the names of these flags as keys; a flag on the "
        "command line wins over it. Default: sample for the sample, digits-tiny for other data; to fine-tune, "
        "digits-finetune for the sample and the competition, photos-finetune for other data.",
    )
    size: str | None = _flag(
        None,
        f"A named size, whose fields the flags of the model replace: {', '.join(SIZES)}. Default: digits-tiny.",
    )
    model_name_or_path: str | None = _flag(
        None,
        "Fine-tune this model, which then says the size: a folder, or the id of a repository on the Hub, of this "
        "package, of transformers' ViT or of timm's.",
    )
    attn_implementation: str | None = _flag(None, "eager, sdpa, flex_attention, ... Default: the fastest here.")
    ema_decay: float = _flag(0.999, "Decay of the moving average of the weights, which is what is evaluated; 0: none.")
    muon_learning_rate: float | None = _flag(
        None,
        "Muon, with this learning rate on AdamW's scale, for the matrices of the blocks; learning_rate is then that "
        "of everything else. Unset or 0: one optimizer for all.",
    )
    teacher_epochs: float = _flag(
        0.0,
        "Train a CNN on the same rows first, for so many epochs, and learn from its answers beside the labels; 0: "
        "from the labels alone.",
    )
    num_teachers: int = _flag(1, "With teacher_epochs: so many CNNs from other seeds, which answer with their mean.")
    teacher_weight: float = _flag(0.8, "With teacher_epochs: its part of the loss, from 0 to 1.")
    teacher_temperature: float = _flag(2.0, "With teacher_epochs: softens the answers of both.")
    overwrite_output_dir: bool = _flag(False, "Replace the run that lies in output_dir.")


@dataclasses.dataclass
class _EarlyArguments:
    """Flags of the Trainer on which defaults depend."""

    use_cpu: bool = parse_flag_from_env("ACCELERATE_USE_CPU")
    fp16: bool = False


def _scalar(annotation):
    """The type of a flag for a field of the config: `int | list[int]` takes one or two integers."""
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    lists = [option for option in options if get_args(option)]
    return (lists or [option for option in options if option is not type(None)])[0]


# Every field of the config is a flag of its name. None stands for "not given": then the size says it, or the data.
ModelArguments = dataclasses.make_dataclass(
    "ModelArguments",
    [
        (
            name,
            _scalar(annotation) | None,
            _flag(None, f"Field of the config. Default: that of --size. ({annotation})"),
        )
        for name, annotation in ViTScratchConfig.__annotations__.items()
        if name != "training_data"
    ],
)


@dataclasses.dataclass
class ExploreArguments:
    """What `vit-scratch explore` is told beside the flags of train.py."""

    study: str = _flag(
        "search",
        "search (draws sizes), size (a grid of widths and depths) or data (plain ViT, ViT with convolutional stem and "
        "CNN, with ever more images).",
    )
    trials: int = _flag(30, "search: how many sizes are tried, with those of earlier calls.")
    bounds: str | None = _flag(None, "YAML file with other bounds for what is varied.")
    max_parameters: int | None = _flag(None, "No size with more parameters.")
    max_flops: float | None = _flag(None, "No size with more FLOPs for one image's forward pass: 50e6.")
    storage: str | None = _flag(
        None,
        "Where trials are stored, as an SQLAlchemy URL of Optuna's RDBStorage: several machines can work on one. "
        "Default: an SQLite file in output_dir.",
    )


_KINDS = (RunArguments, DataArguments, AugmentationArguments, ModelArguments, TrainingArguments)


@dataclasses.dataclass
class _SizeArguments:
    """What `vit-scratch size` is asked about, beside the fields of the config."""

    size: str | None = _flag(None, f"A named size: {', '.join(SIZES)}. Default: that of the recipe, or digits-tiny.")
    recipe: str | None = _flag(None, "Name of a recipe of the package, or path of a YAML file.")
    num_labels: int | None = _flag(None, "Number of classes. Default: 10 for the digits sizes, 1000 for others.")


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise ValueError(message)  # argparse would print the usage of two hundred flags before it


def parse_arguments(argv: list[str]):
    """Flags to dataclasses: house defaults, then the recipe, then the command line, each winning over the last.

    Returns (run, data, augmentation, model, training). Raises: ValueError for a recipe that cannot be read, and for
    keys and flags that are unknown, have values of the wrong type, or ask for a new model and a pre-trained one.
    """
    parser = _Parser(
        _KINDS, prog="train.py", allow_abbrev=False, description="Train a Vision Transformer from scratch."
    )
    early = _Parser((RunArguments, DataArguments, _EarlyArguments), add_help=False, allow_abbrev=False)
    known, _ = early.parse_known_args(argv)
    recipe = known.recipe or _default_recipe(known.data, known.model_name_or_path)
    values = read_recipe(recipe)
    if known.model_name_or_path and known.size is None:
        values.pop("size", None)  # of a new model: the flag that names another one wins over it
    flags = {action.dest for action in parser._actions}
    _check_keys(recipe, values, flags)
    device = torch.device("cpu") if known.use_cpu else best_device()
    house = {
        **_HOUSE_DEFAULTS,
        "output_dir": f"output/{Path(recipe).stem}",
        "bf16": computes_bf16(device) and not known.fp16,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
    }
    arguments = parser.parse_args_into_dataclasses([*_as_flags({**house, **values}), *argv], look_for_args_file=False)
    run = arguments[0]
    run.recipe = recipe
    if run.size and run.model_name_or_path:
        raise ValueError(
            f"size {run.size} is for a new model, and {run.model_name_or_path} has its own: give size or "
            "model_name_or_path."
        )
    if not run.model_name_or_path:
        run.size = run.size or "digits-tiny"
    return arguments


def parse_size(argv: list[str]) -> ViTScratchConfig:
    """The config that `--size`, `--recipe` and the fields of the config on a command line describe.

    A field wins over the recipe, and the recipe over the named size. Unless `--num_labels` says otherwise there are 10
    classes for the digits sizes and 1000 for the others, as in the papers.

    Raises: ValueError, in one line, for what [`parse_arguments`] and [`ViTScratchConfig`] refuse.
    """
    parser = _Parser((_SizeArguments, ModelArguments), allow_abbrev=False, prog="vit-scratch size")
    known, _ = _Parser(_SizeArguments, add_help=False, allow_abbrev=False).parse_known_args(argv)
    told = read_recipe(known.recipe) if known.recipe else {"size": "digits-tiny"}
    _check_keys(known.recipe, told, {action.dest for action in _Parser(_KINDS)._actions})
    if not (known.size or told.get("size")):
        raise ValueError(f"recipe {known.recipe} is for a model that is there already: give --size or another recipe.")
    flags = {action.dest for action in parser._actions}
    told = {name: value for name, value in told.items() if name in flags}
    run, model = parser.parse_args_into_dataclasses([*_as_flags(told), *argv], look_for_args_file=False)
    fields = {name: value for name, value in vars(model).items() if value is not None}
    if len(fields.get("image_size", ())) == 1:
        (fields["image_size"],) = fields["image_size"]
    labels = (10 if run.size.startswith("digits") else 1000) if run.num_labels is None else run.num_labels
    return ViTScratchConfig.from_size(run.size, **fields, num_labels=labels)


# What of the Trainer's flags makes a run what it is; the others say where, how fast, and how it is watched.
TRAINING_OF_A_RECIPE = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "label_smoothing_factor", "optim"),
    *("max_grad_norm", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
)
_OF_A_RECIPE = {
    *("size", "ema_decay", "muon_learning_rate", "crop_fraction", "torch_compile", *TRAINING_OF_A_RECIPE),
    *(field.name for kind in (AugmentationArguments, ModelArguments) for field in dataclasses.fields(kind)),
}


def parse_exploration(argv: list[str]) -> tuple:
    """The flags of `vit-scratch explore`: its own, and all of train.py for what it does not vary.

    Returns (explore, recipe, run, data, augmentation, model, training), of which `recipe` has what the recipe and the
    flags say of how to train, by name, as a recipe file would. Raises: ValueError as [`parse_arguments`] does.
    """
    explore, rest = _Parser(ExploreArguments, add_help=False, allow_abbrev=False).parse_known_args(argv)
    explore = ExploreArguments(**vars(explore))
    if explore.study == "data" and (explore.max_parameters or explore.max_flops):
        raise ValueError("max_parameters and max_flops are for the studies search and size.")
    if explore.trials < 1:
        raise ValueError(f"trials must be at least 1, got {explore.trials}.")
    for name in ("max_parameters", "max_flops"):
        if (limit := getattr(explore, name)) is not None and not limit > 0:
            raise ValueError(f"{name} must be above 0, got {limit}.")
    if not any(word.partition("=")[0].replace("-", "_") == "__output_dir" for word in rest):
        rest += ["--output_dir", f"output/explore-{explore.study}"]
    arguments = parse_arguments(rest)
    run = arguments[0]
    if run.model_name_or_path:
        raise ValueError("model_name_or_path: explore trains from scratch, since a pre-trained model has its size.")
    flags = (word[2:].partition("=")[0].replace("-", "_") for word in rest if word.startswith("--"))
    values = {name: value for part in arguments for name, value in vars(part).items()}
    recipe = {name: values[name] for name in ("size", "num_train_epochs", "learning_rate")}
    for name in [*read_recipe(run.recipe), *flags]:
        if name in _OF_A_RECIPE:
            recipe[name] = getattr(values[name], "value", values[name])  # a choice of transformers is an Enum
    return explore, recipe, *arguments


def complete_settings(settings: dict) -> dict:
    """What is in training_args.json, with the defaults of flags that were not there yet when it was written."""
    kinds = {"run": RunArguments, "data": DataArguments, "augmentation": AugmentationArguments}
    defaults = {
        part: {field.name: field.default for field in dataclasses.fields(kind)} for part, kind in kinds.items()
    }
    return {**settings, **{part: {**told, **settings.get(part, {})} for part, told in defaults.items()}}


def _check_keys(recipe: str, values: dict, flags: set[str]) -> None:
    if unknown := sorted(str(key) for key in values if key not in flags or key in ("recipe", "help")):
        raise ValueError(f"recipe {recipe} has unknown keys: {', '.join(unknown)}. Keys are the flags' names.")


def _default_recipe(data: str, model_name_or_path: str | None) -> str:
    if model_name_or_path:
        return "digits-finetune" if data in (SAMPLE, KAGGLE) or is_competition(data) else "photos-finetune"
    return "sample" if data == SAMPLE else "digits-tiny"


def read_recipe(recipe: str) -> dict:
    """The keys and values of a recipe, by its name in the package or the path of a YAML file."""
    file = RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        file = Path(recipe)
        if not file.is_file():
            names = ", ".join(sorted(entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir()))
            raise ValueError(f"no recipe {recipe!r}: expected the path of a YAML file or one of {names}.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {recipe} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {recipe} must be a mapping of flags to values, got {type(values).__name__}.")
    return values


def _as_flags(values: dict) -> list[str]:
    """A recipe's values as they would be typed, so that argparse checks and converts both alike."""
    flags = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
