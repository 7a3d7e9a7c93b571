"""The program `vit-scratch`, with a command for each task other than training.

A command imports its dependencies when it runs, so that `vit-scratch --help` is fast.
"""

import argparse
import os

from ..console import exit_with_one_line
from . import config, demo, env, evaluate, explain, explore, export, predict, push, size, submit, verify

COMMANDS = (predict, demo, submit, evaluate, explain, size, config, explore, push, export, verify, env)


_DESCRIPTION = (
    "Classify images, serve a page to draw on, write submissions, and evaluate, compare, explain, export and push "
    "models."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands and their flags."""
    parser = _Parser(prog="vit-scratch", description=_DESCRIPTION)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(parsers)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command. Errors that the user can correct end it with one line on stderr and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with exit_with_one_line("vit-scratch"):
        arguments, others = build_parser().parse_known_args(argv)
        if others and not arguments.takes_flags_of_training:
            raise ValueError(f"unrecognized arguments: {' '.join(others)}")
        arguments.others = others  # flags of train.py, whose parser needs transformers
        arguments.run(arguments)
