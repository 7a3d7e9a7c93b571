"""Recipes: YAML files whose keys are names of flags of `train.py`."""

import argparse
import json
import math
import textwrap
from importlib import resources
from pathlib import Path

import yaml

from ..data.csv_files import has_pixel_csv
from ..data.digit_recognizer import KAGGLE, SAMPLE
from .nested import MAPPINGS, OR_FILES

MAX_BYTES, MAX_DEPTH = 2**18, 8  # of a recipe, and of the values in it
RECIPES = resources.files("hf_vit_scratch.settings") / "recipes"


def read_recipe(recipe: str) -> dict:
    """Read a recipe, given its name in the package or the path of a YAML file.

    Raises: ValueError if it does not exist or is not a YAML mapping of names to values, without aliases and tags. The
        message names the recipe and the key.
    """
    file = RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        file = Path(recipe)
        if not file.is_file():
            names = ", ".join(sorted(entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir()))
            raise ValueError(f"no recipe {recipe!r:.300}: expected the path of a YAML file, or one of {names}.")
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"recipe {recipe} has more than {MAX_BYTES:,} bytes. Expected a short YAML file.")
    keys: list[str] = []
    try:
        text = content.decode("utf-8-sig")
        _check_plain(text, keys)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        kind = "is not YAML" if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)) else "cannot be used"
        where = f"recipe {recipe}" + (f", key {keys[-1]!r:.80}," if keys else "")
        problem = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise ValueError(f"{where} {kind}: {problem}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {recipe} must be a mapping of flags to values, got {type(values).__name__}.")
    return values


def _check_plain(text: str, keys: list[str]) -> None:
    """Read the events of YAML, which need no memory for what they describe, and append each key to `keys`.

    Raises: ValueError for an alias, a tag, a key that stands twice, or values nested too deep.
    """
    depth, is_key = 0, True
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.NodeEvent):
            if depth == 1 and is_key:
                key = event.value if isinstance(event, yaml.ScalarEvent) else "..."
                keys.append(key)
                if keys.count(key) > 1:
                    raise ValueError("the key stands twice.")
            if event.anchor is not None:
                raise ValueError(f"it has an anchor or an alias ({event.anchor:.40}). Write the value out.")
            if getattr(event, "tag", None) is not None:
                raise ValueError(f"it has the tag {event.tag!r:.40}. Write a plain value.")
            if depth == 1:
                is_key = not is_key
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"its value is nested more than {MAX_DEPTH} levels deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def default_recipe(data: str, model_name_or_path: str | None) -> str:
    """The recipe of a run without `--recipe`. It depends on the data and on whether a model is fine-tuned."""
    if model_name_or_path:
        return "digits-finetune" if data in (SAMPLE, KAGGLE) or has_pixel_csv(data) else "photos-finetune"
    return "sample" if data == SAMPLE else "digits-tiny"


def check_keys(recipe: str, values: dict, flags: dict[str, argparse.Action]) -> None:
    """Check the keys of a recipe, and the kinds of its values.

    Args:
        flags: by name, the flags that argparse knows.

    Raises: ValueError if a key is not the name of a flag, or a value is not a number, a text, true or false, or where
        the flag takes it a list of these or a mapping.
    """
    if unknown := sorted(str(key) for key in values if key not in flags or key in ("recipe", "help")):
        names = textwrap.shorten(", ".join(unknown), 300, placeholder=" ...")
        raise ValueError(f"recipe {recipe} has unknown keys: {names}. Keys must be names of flags.")
    for name, value in values.items():
        if name in MAPPINGS:
            is_path = name in OR_FILES and isinstance(value, str) and Path(value).is_file()
            is_json = isinstance(value, str) and value.lstrip().startswith("{")
            if not (value is None or isinstance(value, dict) or is_path or is_json):
                expected = "a mapping" + (" or the path of a JSON file" if name in OR_FILES else "")
                raise ValueError(f"recipe {recipe}: {name} must be {expected}, got {value!r:.80}.")
            continue
        takes_several = flags[name].nargs in ("+", "*")
        for each in value if isinstance(value, list) and takes_several else [value]:
            if not isinstance(each, str | int | float | None) or isinstance(each, float) and not math.isfinite(each):
                expected = "numbers or texts" if takes_several else "one number, text, true or false"
                raise ValueError(f"recipe {recipe}: {name} must be {expected}, got {value!r:.80}.")


def as_flags(values: dict) -> list[str]:
    """The values of a recipe as command-line flags, so that argparse checks and converts them."""
    flags = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value, default=str) if isinstance(value, dict) else value}")
    return flags
