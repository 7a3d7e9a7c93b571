"""`vit-scratch evaluate`: evaluate the models of a recipe on their held-out rows."""

import argparse

from .flags import add_command


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "evaluate", run, help="evaluate the models of a recipe on their held-out rows")
    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        help="Output folders of runs of one recipe, which differ only in --seed and in the rows held out (--fold).",
    )
    parser.add_argument("--data", required=True, help="The data on which the models were trained.")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="MODEL",
        help="Output folders of runs of another recipe, for a comparison on the same held-out rows.",
    )
    parser.add_argument(
        "--output_dir",
        required=True,
        metavar="DIR",
        help="New folder for figures and plots, or the folder of a model of the recipe that was trained on all rows. "
        "Its model card is then rewritten with the figures.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, and print a summary."""
    from ..evaluation.held_out import evaluate, summary

    print(summary(evaluate(arguments.model, arguments.data, arguments.output_dir, arguments.against)))
    print(f"Figures and plots are in {arguments.output_dir}")
