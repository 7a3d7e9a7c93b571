"""The program `vit-scratch`: all that is not training, by command.

What a command needs is imported when it runs, so that `vit-scratch --help` answers at once.
"""

import argparse
import os

from ..console import exit_with_one_line
from . import env, evaluate, explore, export, predict, push, size, submit

COMMANDS = (predict, submit, evaluate, size, explore, push, export, env)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(message)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = _Parser(prog="vit-scratch", description="Classify, submit, evaluate, size, explore, push and export.")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(parsers)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command: one line on bad input, and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with exit_with_one_line("vit-scratch"):
        arguments, others = build_parser().parse_known_args(argv)
        if others and not arguments.takes_flags_of_training:
            raise ValueError(f"unrecognized arguments: {' '.join(others)}")
        arguments.others = others  # flags whose names are known where transformers is imported
        arguments.run(arguments)
