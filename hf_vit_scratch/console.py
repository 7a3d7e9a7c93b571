"""How the command-line programs end: one line on stderr and an exit code, after an error, SIGTERM or Ctrl-C."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_LONGEST_LINE = 3000  # characters: some errors of libraries repeat all of their input
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
# The process of `accelerate launch` or torchrun that has started this one, or None. It is read here, before imports
# that take seconds, in which it may end, and before TrainingArguments sets some of the variables of a launcher.
LAUNCHER = (
    os.getppid() if {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "TORCHELASTIC_RUN_ID"} & os.environ.keys() else None
)
if LAUNCHER is not None:  # torch, which is imported later, would print C++ stacks when a rank is lost
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Ctrl-C is SIGINT; SIGHUP is sent when the terminal is closed.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal ends the program. `exit_code` is the usual one: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, number: int):
        super().__init__("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def exit_with_one_line(program: str, shown: bool = True) -> Iterator[None]:
    """End the program with one line on stderr and exit code 2 if the block raises a ValueError or an OSError.

    So it does if the memory is not sufficient, whatever the type of the exception, and [`leave`]s after Ctrl-C. Tokens
    of the Hub in the line are masked.

    Args:
        program: name of the program, at the beginning of the line.
        shown: whether to print the line. Of several processes in one launch, only one should. A process whose memory
            is not sufficient always prints it, since the others do not know.
    """
    # Pillow warns of pictures that this package refuses in a line of its own.
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    try:
        yield
    except KeyboardInterrupt:
        leave(f"{program}: stopped." if shown else "")
    except Exception as error:
        text = str(error)
        if reason := out_of_memory(error):
            text = text if isinstance(error, MemoryError) and text else reason
        elif not isinstance(error, (ValueError, OSError)):
            raise
        if shown or reason:
            line = _TOKEN.sub("hf_...", " ".join(text.split()))
            line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."
            print(f"{program}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from error


def out_of_memory(error: BaseException) -> str:
    """What an exception says about insufficient memory of the device or the machine. Empty for other exceptions."""
    text = str(error)
    # By name, so that commands without torch do not import it: torch raises OutOfMemoryError on an accelerator, and
    # RuntimeError on a CPU.
    if type(error).__name__ == "OutOfMemoryError":
        return ". ".join(text.split(". ")[:2]).rstrip(".") + "."  # "CUDA out of memory. Tried to allocate 2.00 GiB."
    if match := re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", text):
        return f"out of memory: {int(match[1]) / 2**20:,.0f} MiB could not be allocated."
    if isinstance(error, MemoryError):
        return f"out of memory. {text}".strip()
    return ""


def leave(line: str) -> NoReturn:
    """End the program after a signal, with this line on stderr, without waiting for threads.

    The exit code is that of the [`Stopped`] that is being handled, else 130, as after Ctrl-C. A regular exit waits for
    the threads of an upload, and a stalled upload never ends.
    """
    exit_code = getattr(sys.exception(), "exit_code", 130)
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        if line:
            print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
    for child in multiprocessing.active_children():  # workers of a DataLoader, which would notice after seconds
        child.kill()
    os._exit(exit_code)


def leave_on_signals(program: str) -> None:
    """Let SIGTERM and Ctrl-C end the program in one line, while it imports its libraries."""

    def stop(number, frame):
        try:
            raise Stopped(number)
        except Stopped as stopped:
            leave(f"{program}: stopped by {stopped} before it began." if os.environ.get("RANK", "0") == "0" else "")

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
