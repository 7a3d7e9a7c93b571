"""The flags of `train.py`, and the `Settings` that they become: house defaults, a recipe and the command line."""

import copy
import dataclasses
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import datasets
import torch
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments

from ..data.digit_recognizer import SAMPLE
from ..data.sources import load
from ..device import best_device, computes_bf16
from ..model.configuration_vit_scratch import SIZES, ViTScratchConfig
from .recipe import as_flags, check_keys, default_recipe, read_recipe

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
# The Trainer's flags that belong to a recipe. The others say where, how fast and how closely watched a run is.
TRAINING_OF_A_RECIPE = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "label_smoothing_factor", "optim"),
    *("max_grad_norm", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
)


def flag(default, text: str):
    """The field of a dataclass that becomes a flag with this default and this help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class DataArguments:
    """Which images, and how they are split."""

    data: str = flag(
        SAMPLE,
        "sample (real digits that come with the install), the competition's zip or a folder with its CSVs, kaggle, an "
        "image folder, a Parquet or Arrow dataset on disk, or the id of a dataset on the Hub.",
    )
    image_column: str = flag("image", "Name of the column with the images.")
    label_column: str = flag("label", "Name of the column with the labels.")
    validation_size: float = flag(
        0.1, "Fraction of the training rows to hold out for validation, where the data has no validation split."
    )
    split_seed: int = flag(42, "Seed that decides which rows are held out.")
    fold: int | None = flag(
        None,
        "Hold out this fold, counted from 1, of num_folds stratified folds of the training rows, instead of a "
        "fraction.",
    )
    num_folds: int = flag(5, "Number of folds, for --fold.")
    crop_fraction: float | None = flag(
        None,
        "Evaluate on the centre crop that is this fraction of the shorter side (0.875 for photographs). "
        "Unset: the whole image is resized to image_size.",
    )

    def load_splits(self) -> datasets.DatasetDict:
        """The data, read and split as [`load`] does it."""
        names = ("image_column", "label_column", "validation_size", "fold", "num_folds")
        return load(self.data, seed=self.split_seed, **{name: getattr(self, name) for name in names})


@dataclasses.dataclass
class AugmentationArguments:
    """What happens to training images, in whole batches on the training device."""

    augmentation: str = flag(
        "none", "none, digits (affine and elastic changes, never flipped) or photos (random crops and flips)."
    )
    rotation_degrees: float = flag(15.0, "digits: largest rotation, in degrees.")
    scale_range: float = flag(0.15, "digits: largest change of scale; 0.15 scales by 0.85 to 1.15.")
    shear_degrees: float = flag(10.0, "digits: largest shear, in degrees.")
    shift_pixels: float = flag(2.0, "digits: largest shift along each axis, in pixels.")
    elastic_pixels: float = flag(0.8, "digits: standard deviation of the elastic displacement, in pixels.")
    mild_fraction: float = flag(
        0.0, "digits: in this last fraction of the steps, all amounts are multiplied by mild_strength."
    )
    mild_strength: float = flag(0.3, "digits: factor of all amounts in the last mild_fraction of the steps.")
    min_crop_area: float = flag(0.35, "photos: smallest crop, as a fraction of the area of the picture.")


@dataclasses.dataclass
class RunArguments:
    """What the Trainer has no flag for."""

    recipe: str | None = flag(
        None,
        "Name of a recipe of the package, or path of a YAML file whose keys are the names of these flags. A flag on "
        "the command line wins over the recipe. Default: sample for the sample and digits-tiny for other data; for "
        "fine-tuning, digits-finetune for the sample and the competition and photos-finetune for other data.",
    )
    size: str | None = flag(
        None,
        f"A named size: {', '.join(SIZES)}. Flags of the model replace its fields. Default: digits-tiny.",
    )
    model_name_or_path: str | None = flag(
        None,
        "Fine-tune this model instead of training one from scratch: a folder, or the id of a repository on the Hub, "
        "with a model of this package, of transformers' ViT or of timm. Its size is then the model's.",
    )
    attn_implementation: str | None = flag(
        None, "eager, sdpa, flex_attention or another attention of transformers. Default: the fastest on this device."
    )
    ema_decay: float = flag(
        0.999, "Decay of the moving average of the weights, which is evaluated and saved. 0: no average."
    )
    muon_learning_rate: float | None = flag(
        None,
        "Learning rate of Muon, on AdamW's scale. Muon then trains the weight matrices of the blocks and AdamW the "
        "rest. Unset or 0: AdamW for all.",
    )
    teacher_epochs: float = flag(
        0.0,
        "Distil from a CNN that is trained first, on the same rows, for this many epochs. 0: no distillation.",
    )
    num_teachers: int = flag(
        1, "With teacher_epochs: number of CNNs, trained with different seeds. Their mean logits are the target."
    )
    teacher_weight: float = flag(0.8, "With teacher_epochs: weight of the distillation loss, from 0 to 1.")
    teacher_temperature: float = flag(
        2.0, "With teacher_epochs: temperature that softens the predictions of teacher and student."
    )
    overwrite_output_dir: bool = flag(False, "Replace the run that is in output_dir.")


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


# Every field of the config is a flag of its name. None means that it was not given: the size or the data decides it.
ModelArguments = dataclasses.make_dataclass(
    "ModelArguments",
    [
        (
            name,
            _scalar(annotation) | None,
            flag(None, f"Field of the config ({annotation}). Default: the value of --size."),
        )
        for name, annotation in ViTScratchConfig.__annotations__.items()
        if name != "training_data"
    ],
)
KINDS = (RunArguments, DataArguments, AugmentationArguments, ModelArguments, TrainingArguments)


def given_fields(model: Any) -> dict:
    """The fields of the config that a [`ModelArguments`] has a value for; one side of a square image is an integer."""
    fields = {name: value for name, value in vars(model).items() if value is not None}
    if isinstance(fields.get("image_size"), list) and len(fields["image_size"]) == 1:
        (fields["image_size"],) = fields["image_size"]
    return fields


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is told, by kind of flag. `model` is a [`ModelArguments`]."""

    run: RunArguments
    data: DataArguments
    augmentation: AugmentationArguments
    model: Any
    training: TrainingArguments

    def with_run(self, **changes) -> "Settings":
        """These settings with other values for some arguments of the run."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))

    def with_augmentation(self, **changes) -> "Settings":
        """These settings with other values for some arguments of the augmentation."""
        return dataclasses.replace(self, augmentation=dataclasses.replace(self.augmentation, **changes))

    def with_training(self, **changes) -> "Settings":
        """These settings with other values for some arguments of the Trainer."""
        training = copy.copy(self.training)  # `dataclasses.replace` would derive the output folder and more anew
        for name, value in changes.items():
            setattr(training, name, value)
        return dataclasses.replace(self, training=training)


class Parser(HfArgumentParser):
    """A parser whose errors are ValueErrors: argparse would print the usage of two hundred flags before each."""

    def error(self, message: str):
        raise ValueError(message)


def flag_names() -> set[str]:
    """The names of all flags of `train.py`."""
    return {action.dest for action in Parser(KINDS)._actions}


def parse_arguments(argv: list[str]) -> Settings:
    """Flags to settings: house defaults, then the recipe, then the command line; the later one wins.

    Raises: ValueError for a recipe that cannot be read, for keys and flags that are unknown or have values of the
        wrong type, and where a new model and a pre-trained one are both asked for.
    """
    parser = Parser(KINDS, prog="train.py", allow_abbrev=False, description="Train a Vision Transformer from scratch.")
    early = Parser((RunArguments, DataArguments, _EarlyArguments), add_help=False, allow_abbrev=False)
    known, _ = early.parse_known_args(argv)
    recipe = known.recipe or default_recipe(known.data, known.model_name_or_path)
    values = read_recipe(recipe)
    if known.model_name_or_path and known.size is None:
        values.pop("size", None)  # the flag that names a pre-trained model wins over the size of a new one
    check_keys(recipe, values, {action.dest for action in parser._actions})
    device = torch.device("cpu") if known.use_cpu else best_device()
    house = {
        **_HOUSE_DEFAULTS,
        "output_dir": f"output/{Path(recipe).stem}",
        "bf16": computes_bf16(device) and not known.fp16,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
    }
    flags = [*as_flags({**house, **values}), *argv]
    run, *others = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    run.recipe = recipe
    if run.size and run.model_name_or_path:
        raise ValueError(
            f"size {run.size} is for a new model, and {run.model_name_or_path} has its own: give size or "
            "model_name_or_path, not both."
        )
    if not run.model_name_or_path:
        run.size = run.size or "digits-tiny"
    return Settings(run, *others)


def complete_settings(settings: dict) -> dict:
    """The content of training_args.json, with the defaults of flags that did not exist when it was written."""
    kinds = {"run": RunArguments, "data": DataArguments, "augmentation": AugmentationArguments}
    defaults = {
        part: {field.name: field.default for field in dataclasses.fields(kind)} for part, kind in kinds.items()
    }
    return {**settings, **{part: {**default, **settings.get(part, {})} for part, default in defaults.items()}}
