"""Recipes: YAML files that have the names of the flags as keys."""

import json
from importlib import resources
from pathlib import Path

import yaml

from ..data.digit_recognizer import KAGGLE, SAMPLE, is_competition

RECIPES = resources.files("hf_vit_scratch.settings") / "recipes"


def read_recipe(recipe: str) -> dict:
    """The keys and values of a recipe, by its name in the package or the path of a YAML file.

    Raises: ValueError where there is no such recipe, or it is not YAML with a mapping in it.
    """
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


def default_recipe(data: str, model_name_or_path: str | None) -> str:
    """The recipe of a run without `--recipe`, by its data and by the model that it fine-tunes, if it does."""
    if model_name_or_path:
        return "digits-finetune" if data in (SAMPLE, KAGGLE) or is_competition(data) else "photos-finetune"
    return "sample" if data == SAMPLE else "digits-tiny"


def check_keys(recipe: str, values: dict, flags: set[str]) -> None:
    """Raises: ValueError where a key of the recipe is not the name of a flag."""
    if unknown := sorted(str(key) for key in values if key not in flags or key in ("recipe", "help")):
        raise ValueError(f"recipe {recipe} has unknown keys: {', '.join(unknown)}. Keys are the names of flags.")


def as_flags(values: dict) -> list[str]:
    """The values of a recipe as they would be typed, so that argparse checks and converts both alike."""
    flags = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
