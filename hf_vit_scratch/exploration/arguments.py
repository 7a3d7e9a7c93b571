"""The flags of `vit-scratch explore` and `vit-scratch size`."""

import dataclasses

from ..model.configuration_vit_scratch import SIZES, ViTScratchConfig
from ..settings.flags import (
    TRAINING_OF_A_RECIPE,
    AugmentationArguments,
    ModelArguments,
    Parser,
    Settings,
    all_flags,
    flag,
    given_fields,
    parse_arguments,
    parse_with_recipe,
)
from ..settings.recipe import check_keys, read_recipe

_OF_A_RECIPE = {
    *("size", "ema_decay", "muon_learning_rate", "muon_stem", "crop_fraction", "torch_compile", *TRAINING_OF_A_RECIPE),
    *(field.name for kind in (AugmentationArguments, ModelArguments) for field in dataclasses.fields(kind)),
}


@dataclasses.dataclass
class ExploreArguments:
    """Flags of `vit-scratch explore`, in addition to the flags of train.py."""

    study: str = flag(
        "search",
        "search (Bayesian search for size and learning rate), size (grid of widths and depths) or data (error rate of "
        "a plain ViT, a ViT with convolutional stem and a CNN against the number of training images).",
    )
    trials: int = flag(30, "search: total number of trials, including trials of earlier calls.")
    bounds: str | None = flag(None, "YAML file with other bounds for the varied parameters.")
    max_parameters: int | None = flag(None, "Skip sizes with more parameters than this.")
    max_flops: float | None = flag(
        None, "Skip sizes with more FLOPs than this for the forward pass of one image, for example 50e6."
    )
    storage: str | None = flag(
        None,
        "SQLAlchemy URL of the database for the trials (Optuna's RDBStorage). Several machines can share it. "
        "Default: an SQLite file in output_dir.",
    )


@dataclasses.dataclass
class _SizeArguments:
    """Flags of `vit-scratch size`, in addition to the fields of the config."""

    size: str | None = flag(None, f"Named size: {', '.join(SIZES)}. Default: size of the recipe, or digits-tiny.")
    recipe: str | None = flag(None, "Name of a recipe of the package, or path of a YAML file.")
    num_labels: int | None = flag(
        None, "Number of classes. Default: 10 for the digits and photos sizes, 1000 for others."
    )


def parse_size(argv: list[str]) -> ViTScratchConfig:
    """Parse `--size`, `--recipe`, `--num_labels` and the fields of the config to a config.

    A field overrides the recipe, and the recipe overrides the named size. Without `--num_labels` there are 10 classes
    for the digits and photos sizes and 1000 for the others, as in the papers.

    Raises: ValueError, in one line, as [`parse_arguments`] and [`ViTScratchConfig`].
    """
    parser = Parser((_SizeArguments, ModelArguments), allow_abbrev=False, prog="vit-scratch size")
    known, _ = Parser(_SizeArguments, add_help=False, allow_abbrev=False).parse_known_args(argv)
    values = read_recipe(known.recipe) if known.recipe else {"size": "digits-tiny"}
    check_keys(known.recipe, values, all_flags())
    if not (known.size or values.get("size")):
        raise ValueError(
            f"recipe {known.recipe} fine-tunes a pre-trained model and names no size. Pass --size or another recipe."
        )
    flags = {action.dest for action in parser._actions}
    values = {name: value for name, value in values.items() if name in flags}
    run, model = parse_with_recipe(parser, known.recipe, {}, values, argv)
    labels = (10 if run.size.startswith(("digits", "photos")) else 1000) if run.num_labels is None else run.num_labels
    return ViTScratchConfig.from_size(run.size, **given_fields(model), num_labels=labels)


def parse_exploration(argv: list[str]) -> tuple[ExploreArguments, dict, Settings]:
    """Parse the flags of `vit-scratch explore`: its own flags, and flags of train.py for all that is not varied.

    Returns:
        Its own arguments; the values of recipe and flags that determine the training, by name, as in a recipe file;
        and the settings.

    Raises: ValueError as [`parse_arguments`], and for values out of range.
    """
    explore, rest = Parser(ExploreArguments, add_help=False, allow_abbrev=False).parse_known_args(argv)
    explore = ExploreArguments(**vars(explore))
    _check(explore)
    if not any(word.partition("=")[0].replace("-", "_") == "__output_dir" for word in rest):
        rest += ["--output_dir", f"output/explore-{explore.study}"]
    settings = parse_arguments(rest)
    if settings.run.model_name_or_path:
        raise ValueError(
            "model_name_or_path: explore trains from scratch, since the size of a pre-trained model is fixed."
        )
    if settings.data.streaming:
        raise ValueError(
            "streaming: explore trains on parts of the training rows, and a stream has none. Leave it out."
        )
    flags = (word[2:].partition("=")[0].replace("-", "_") for word in rest if word.startswith("--"))
    parts = (getattr(settings, field.name) for field in dataclasses.fields(settings))
    values = {name: value for part in parts for name, value in vars(part).items()}
    recipe = {name: values[name] for name in ("size", "num_train_epochs", "learning_rate")}
    # settings.run.recipe is never None here: parse_arguments fills in a default.
    for name in [*read_recipe(settings.run.recipe), *flags]:  # pyrefly: ignore[bad-argument-type]
        if name in _OF_A_RECIPE:
            recipe[name] = getattr(values[name], "value", values[name])  # some values of transformers are an Enum
    return explore, recipe, settings


def _check(explore: ExploreArguments) -> None:
    if explore.study == "data" and (explore.max_parameters or explore.max_flops):
        raise ValueError("max_parameters and max_flops are for the studies search and size.")
    if explore.trials < 1:
        raise ValueError(f"trials must be at least 1, got {explore.trials}.")
    for name in ("max_parameters", "max_flops"):
        if (limit := getattr(explore, name)) is not None and not limit > 0:
            raise ValueError(f"{name} must be above 0, got {limit}.")
