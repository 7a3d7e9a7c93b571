"""Errors of the command-line programs: one line on stderr and an exit code."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


@contextmanager
def exit_with_one_line(program: str, shown: bool = True) -> Iterator[None]:
    """End the program with one line on stderr and exit code 2 if the block raises a ValueError or an OSError.

    Tokens of the Hub in the line are masked.

    Args:
        program: name of the program, at the beginning of the line.
        shown: whether to print the line. Of several processes in one launch, only one should.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if shown:
            line = _TOKEN.sub("hf_...", " ".join(str(error).split()))
            print(f"{program}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from error


def leave(line: str) -> NoReturn:
    """End the program after Ctrl-C, with this line on stderr and exit code 130, without waiting for threads.

    A regular exit waits for the threads of an upload, and a stalled upload never ends.
    """
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(130)
