"""The parser of a command, and the flags that several commands have in common."""

import argparse
from collections.abc import Callable


def add_command(
    parsers, name: str, run: Callable[[argparse.Namespace], None], takes_flags_of_training: bool = False, **texts
) -> argparse.ArgumentParser:
    """The parser of a new command, which is run as `run(arguments)`.

    Args:
        takes_flags_of_training: hand flags that the parser does not know to the command, as `arguments.others`.
        texts: `help`, one line in the list of commands, and `description`, by default the same.
    """
    texts.setdefault("description", f"{texts['help'][0].upper()}{texts['help'][1:]}.")
    parser = parsers.add_parser(name, allow_abbrev=False, **texts)
    parser.set_defaults(run=run, takes_flags_of_training=takes_flags_of_training)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flag `--model`."""
    parser.add_argument(
        "--model",
        required=True,
        help="Output folder of a run, or id of a repository on the Hub. Its weights run with this package's code.",
    )
