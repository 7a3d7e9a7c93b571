"""Helpers for the parsers of commands, and flags that several commands share."""

import argparse
from collections.abc import Callable


def add_command(
    parsers, name: str, run: Callable[[argparse.Namespace], None], takes_flags_of_training: bool = False, **texts
) -> argparse.ArgumentParser:
    """Add a command that is run as `run(arguments)`. Returns its parser.

    Args:
        takes_flags_of_training: pass flags that the parser does not know to the command, as `arguments.others`. They
            are an error for other commands.
        texts: `help`, the line in the list of commands, and `description`, which defaults to `help`.
    """
    texts.setdefault("description", f"{texts['help'][0].upper()}{texts['help'][1:]}.")
    parser = parsers.add_parser(name, allow_abbrev=False, **texts)
    parser.set_defaults(run=run, takes_flags_of_training=takes_flags_of_training)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--model`."""
    parser.add_argument(
        "--model",
        required=True,
        help="Output folder of a run, or id of a repository on the Hub. Code in it is not run.",
    )
