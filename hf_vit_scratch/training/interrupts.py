"""What SIGTERM, Ctrl-C and the end of the launcher do to a run: the training saves a checkpoint first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from ..console import LAUNCHER, SIGNALS, Stopped
from .checkpoints import STATE_NAME

# Launchers pass Ctrl-C on to processes that the terminal has sent it to already: within this time it counts once.
_SECONDS_OF_ONE_PRESS = 1.0


class Interrupts:
    """The signals that a run has received.

    While `saving` is set, a signal is noted, and [`StopAfterSave`] ends the training with a checkpoint. A second
    Ctrl-C ends it at once. Otherwise a signal raises [`Stopped`].
    """

    def __init__(self):
        self.received = 0  # the number of the first signal
        self.saving = False
        self.begun = False  # whether the run has written anything
        self._when = 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """A context in which this object handles the signals. It does nothing outside of the main thread."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            # As under nohup, or in the background of a script, what is ignored stays so.
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
            process = os.getpid()
            for number in before:
                signal.signal(number, lambda number, frame: self._receive(number, process))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, process: int) -> None:
        if os.getpid() != process:  # a forked worker of a DataLoader, which ends with the run
            return
        first, now = not self.received, time.monotonic()
        self.received = self.received or number
        if not self.saving:
            raise Stopped(number)
        if first:
            self._when = now
            say(f"{Stopped(number)}: a checkpoint is saved after this step. Ctrl-C again ends the run at once.")
        elif number == signal.SIGINT and now - self._when > _SECONDS_OF_ONE_PRESS:
            raise Stopped(number)


def launcher_is_gone() -> bool:
    """Whether the launcher of this process has ended: `accelerate launch` that is killed passes no signal on."""
    return LAUNCHER not in (None, os.getppid())


def say(line: str) -> None:
    """Print a line on stderr, in the first process of a launch. Safe in a signal handler."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # the terminal may be gone
            begin = "\n" if os.isatty(2) else ""  # after the progress bar
            os.write(2, f"{begin}train.py: {line}\n".encode())


class StopWithLauncher(TrainerCallback):
    """End a training that writes no checkpoints if the launcher is gone."""

    def on_step_end(self, args, state, control, **kwargs):
        if launcher_is_gone():
            say("the launcher of this process is gone.")
            raise Stopped(signal.SIGTERM)


class StopAfterSave(TrainerCallback):
    """Save a checkpoint after the step in which a signal came, and raise [`Stopped`].

    Several processes agree on the step, since a signal may reach only one of them, or reach them in different steps.
    They exchange it on the CPU, and read the answer one step later: no device is synchronized, and no process waits.
    """

    def __init__(self, interrupts: Interrupts):
        self.interrupts = interrupts
        self._stop = 0
        self._group: Any = None
        self._work: Any = None
        self._flag = torch.tensor(0)

    def on_train_begin(self, args, state, control, **kwargs):
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))
        self.interrupts.saving = True

    def on_step_end(self, args, state, control, **kwargs):
        if not self.interrupts.received and launcher_is_gone():
            self.interrupts.received = signal.SIGTERM
            say("the launcher of this process is gone: a checkpoint is saved, and the run ends.")
        self._stop = self._stop or self._agreed()
        if self._stop:
            control.should_save = True

    on_evaluate = on_step_end  # an evaluation may take longer than a step

    def on_save(self, args, state, control, **kwargs):
        if self._stop:
            self._finish()
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if (folder / STATE_NAME).is_file():
                say(f"{folder} is saved.")
            raise Stopped(self._stop)

    def on_train_end(self, args, state, control, **kwargs):
        self._finish()
        self.interrupts.saving = False
        if self.interrupts.received:
            raise Stopped(self.interrupts.received)

    def _agreed(self) -> int:
        """The signal that any process had received one call ago; without other processes, now."""
        if self._group is None:
            return self.interrupts.received
        agreed = self._finish()
        self._flag = torch.tensor(self.interrupts.received)
        self._work = distributed.all_reduce(self._flag, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def _finish(self) -> int:
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._flag)
