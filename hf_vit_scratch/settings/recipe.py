"""Recipes: YAML files whose keys are names of flags of `train.py`."""

import json
from importlib import resources
from pathlib import Path

import yaml

from ..data.csv_files import has_pixel_csv
from ..data.digit_recognizer import KAGGLE, SAMPLE

RECIPES = resources.files("hf_vit_scratch.settings") / "recipes"


def read_recipe(recipe: str) -> dict:
    """Read a recipe, given its name in the package or the path of a YAML file.

    Raises: ValueError if it does not exist or is not a YAML mapping.
    """
    file = RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        file = Path(recipe)
        if not file.is_file():
            names = ", ".join(sorted(entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir()))
            raise ValueError(f"no recipe {recipe!r}: expected the path of a YAML file, or one of {names}.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {recipe} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {recipe} must be a mapping of flags to values, got {type(values).__name__}.")
    return values


def default_recipe(data: str, model_name_or_path: str | None) -> str:
    """The recipe of a run without `--recipe`. It depends on the data and on whether a model is fine-tuned."""
    if model_name_or_path:
        return "digits-finetune" if data in (SAMPLE, KAGGLE) or has_pixel_csv(data) else "photos-finetune"
    return "sample" if data == SAMPLE else "digits-tiny"


def check_keys(recipe: str, values: dict, flags: set[str]) -> None:
    """Check the keys of a recipe. Raises: ValueError if a key is not the name of a flag."""
    if unknown := sorted(str(key) for key in values if key not in flags or key in ("recipe", "help")):
        raise ValueError(f"recipe {recipe} has unknown keys: {', '.join(unknown)}. Keys must be names of flags.")


def as_flags(values: dict) -> list[str]:
    """The values of a recipe as command-line flags, so that argparse checks and converts them."""
    flags = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
