"""The varied parameters of an exploration: their bounds, and the distributions of Optuna."""

import math
import random
from pathlib import Path

import yaml
from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

# Default bounds of each study, which --bounds overrides. A list is a choice of values. low and high, with step or log,
# are a range.
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


def read_bounds(study: str, file: str | None) -> dict:
    """The bounds of a study, with the values of the YAML file of `--bounds`.

    Raises: ValueError, in one line, if the study or a name is unknown, the file is not a YAML mapping, or a range is
        invalid. OSError if the file cannot be read.
    """
    if study not in BOUNDS:
        raise ValueError(f"study must be one of {', '.join(BOUNDS)}, got {study!r}.")
    bounds = BOUNDS[study]
    if file is None:
        return bounds
    try:
        given = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"bounds {file} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"bounds {file} must be a mapping of names to values, got {type(given).__name__}.")
    if unknown := sorted(map(str, given.keys() - bounds.keys())):
        raise ValueError(f"bounds {file}: unknown {', '.join(unknown)}; expected {', '.join(bounds)}.")
    return {name: _bound(name, given.get(name, default), default) for name, default in bounds.items()}


def _bound(name: str, given, default):
    """Check a bound: a list, or low and high with step or log."""
    like = default[0] if isinstance(default, list) else default["low"]
    kinds = (int, float) if isinstance(like, float) else (type(like),)

    def value(one):
        one = float(one) if isinstance(like, float) and isinstance(one, str) else one  # YAML reads 1e-3 as a string
        if type(one) not in kinds or (not isinstance(one, str) and one <= 0) or (name == "fraction" and one > 1):
            raise ValueError
        return float(one) if isinstance(like, float) else one

    try:
        if isinstance(given, list) and given:
            return sorted({value(one) for one in given}) if not isinstance(like, str) else list(map(value, given))
        low, high = value(given["low"]), value(given["high"])
        rest = {key: given[key] for key in given.keys() - {"low", "high"}}
        allowed = {"log": bool} if isinstance(like, float) else {"step": int}
        if isinstance(default, list) or low > high or any(type(rest[key]) is not allowed[key] for key in rest):
            raise ValueError
        if rest.get("step", 1) < 1:
            raise ValueError
        return {"low": low, "high": high, **rest}
    except (ValueError, TypeError, KeyError) as error:
        shape = "a list" if isinstance(default, list) else "a list, or low and high,"
        raise ValueError(f"bounds: {name} must be {shape} of values like {like!r}, got {given!r}.") from error


def distribution(bound: list | dict) -> BaseDistribution:
    """The distribution of Optuna for a bound."""
    if isinstance(bound, list):
        return CategoricalDistribution(bound)
    if isinstance(bound["low"], int):
        return IntDistribution(bound["low"], bound["high"], step=bound.get("step", 1))
    return FloatDistribution(bound["low"], bound["high"], log=bound.get("log", False))


def values(distribution: BaseDistribution) -> list:
    """All values of a choice or of a range of integers."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return list(range(distribution.low, distribution.high + 1, distribution.step))


def draw(distribution: BaseDistribution, source: random.Random):
    """Draw a value, uniformly or, for a logarithmic distribution, log-uniformly."""
    if isinstance(distribution, CategoricalDistribution):
        return source.choice(distribution.choices)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        return source.randrange(low, high + 1, distribution.step)
    return math.exp(source.uniform(math.log(low), math.log(high))) if distribution.log else source.uniform(low, high)


def suggest(trial: Trial, name: str, distribution: BaseDistribution):
    """Let Optuna suggest a value for a trial."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
