"""`vit-scratch evaluate`: measure the models of a recipe on the rows that were held out from them."""

import argparse

from .flags import add_command


def add_parser(parsers) -> None:
    """The command and its flags."""
    parser = add_command(parsers, "evaluate", run, help="measure the models of a recipe on their held-out rows")
    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        help="Output folders of runs of one recipe, which differ only in --seed and in the rows held out (--fold).",
    )
    parser.add_argument("--data", required=True, help="The data that they were trained on.")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="MODEL",
        help="Output folders of runs of another recipe with the same rows held out, to compare with.",
    )
    parser.add_argument(
        "--output_dir",
        required=True,
        metavar="DIR",
        help="A new folder; or the folder of a model of the recipe trained on all rows, whose card gets the figures.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, and print a summary."""
    from ..evaluation.held_out import evaluate, summary

    print(summary(evaluate(arguments.model, arguments.data, arguments.output_dir, arguments.against)))
    print(f"Figures and plots are in {arguments.output_dir}")
