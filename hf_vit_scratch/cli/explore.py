"""`vit-scratch explore`: search for a size, or study sizes and the number of images."""

import argparse

from .flags import add_command


def add_parser(parsers) -> None:
    """The command and its flags."""
    add_command(
        parsers,
        "explore",
        run,
        takes_flags_of_training=True,
        help="search for a size, or study sizes",
        description="Trains many sizes on one schedule and leaves tables, plots and the best as a recipe. Takes "
        "--study search, size or data; --data SOURCE, --output_dir DIR, --trials N, --num_train_epochs E, "
        "--bounds FILE, --max_parameters N, --max_flops N, --storage URL, and all flags of train.py for what is not "
        "varied.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Explore, and print the best; trials that are finished are not done again."""
    from ..console import leave
    from ..exploration.arguments import parse_exploration
    from ..exploration.report import summary
    from ..exploration.study import explore

    explore_arguments, recipe, settings = parse_exploration(arguments.others)
    folder = settings.training.output_dir
    try:
        findings = explore(explore_arguments, recipe, settings)
    except KeyboardInterrupt:
        leave(f"vit-scratch: stopped. What is finished is in {folder}; the same command goes on.")
    print(f"{len(findings)} trials; {summary(findings)}\nTables, plots and the best recipe are in {folder}")
