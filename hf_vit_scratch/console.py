"""How a program of this package ends where something goes wrong: with one line and an exit code."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


@contextmanager
def exit_with_one_line(program: str, shown: bool = True) -> Iterator[None]:
    """End the program with one line on stderr and exit code 2 where a ValueError or an OSError leaves the block.

    Args:
        program: its name, with which the line begins. A token of the Hub in the line is masked.
        shown: whether to print the line; of several processes of one launch, one should.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if shown:
            line = _TOKEN.sub("hf_...", " ".join(str(error).split()))
            print(f"{program}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from error


def leave(line: str) -> NoReturn:
    """End the program after Ctrl-C, with this line on stderr and exit code 130.

    Python would wait for the threads of an upload, and a stalled upload never ends.
    """
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(130)
