"""`vit-scratch explore`: search for a model size, or study sizes and the number of images."""

import argparse

from .flags import add_command


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    add_command(
        parsers,
        "explore",
        run,
        takes_flags_of_training=True,
        help="search for a model size, or study sizes and the number of images",
        description="Trains many models with the same schedule, and writes tables, plots and the best size as a "
        "recipe. Flags: --study search, size or data; --data SOURCE, --output_dir DIR, --trials N, "
        "--num_train_epochs E, --bounds FILE, --max_parameters N, --max_flops N, --storage URL. All flags of train.py "
        "are accepted too, and set what is not varied.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the study, without repeating finished trials, and print the best size."""
    from ..console import leave
    from ..exploration.arguments import parse_exploration
    from ..exploration.report import summary
    from ..exploration.study import explore

    explore_arguments, recipe, settings = parse_exploration(arguments.others)
    folder = settings.training.output_dir
    try:
        findings = explore(explore_arguments, recipe, settings)
    except KeyboardInterrupt:
        leave(f"vit-scratch: stopped. Finished trials are in {folder}. Run the same command again to continue.")
    print(f"{len(findings)} trials; {summary(findings)}\nTables, plots and the best recipe are in {folder}")
