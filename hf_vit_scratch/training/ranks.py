"""The processes (ranks) of one run: one that dies or hangs is named, and the others end with one line.

About twice a second each rank writes how far it has come, and reads how far the others have, in a thread and over a
connection of its own. So it also works while the ranks wait for each other in an exchange of gradients.
"""

import dataclasses
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed

# Of --ddp_timeout: a rank that hangs is named before torch's own timeout, which does not know its number.
_FRACTION_OF_TIMEOUT = 0.9
_BEAT, _SILENT, _GRACE = 0.5, 4.0, 3.0  # seconds
_ADVICE = "To resume from the last checkpoint, start all ranks again with --resume_from_checkpoint true."
_DIED = "has died or does not answer"
_SIGNS_OF_A_LOST_RANK = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
_progress = [0, 0]  # how often `mark` was called in this process, and its last step


def mark(step: int) -> None:
    """Note that this rank has computed a loss in this step. All ranks have to call it equally often."""
    _progress[:] = _progress[0] + 1, step


@contextmanager
def watched_ranks(timeout: float) -> Iterator[None]:
    """A context in which a rank that dies or hangs ends the run: one of the others prints its number and the reason.

    A rank that died is noticed after seconds if the others get an error of the connection, and a rank that hangs
    within `timeout`: it has called [`mark`] less often than the others, or its process is stopped. All ranks then end
    with exit code 2. In a run of one process nothing is watched.

    Args:
        timeout: in seconds.
    """
    if PartialState().num_processes == 1:
        yield
        return
    watch = _Watch(timeout)
    watch.start()
    try:
        yield
    except BaseException as error:
        watch.explain(error)
        stopped = isinstance(error, KeyboardInterrupt)  # as all of them are
        watch.leave("" if stopped else f"{type(error).__name__}: {error}")
        raise
    watch.leave()


@dataclasses.dataclass
class _Rank:
    """What this process knows of a rank, and since when (`time.monotonic`)."""

    text: str = ""
    marks: int = 0
    step: int = 0
    error: str | None = None
    left: bool = False
    heard: float = dataclasses.field(default_factory=time.monotonic)
    behind: float | None = None

    def update(self, text: str) -> None:
        if text == self.text:
            return
        self.text, self.heard = text, time.monotonic()
        kind, _, rest = text.partition(" ")
        if kind == "left":
            self.left, self.error = True, rest or None
            return
        marks, self.step = map(int, rest.split())
        if marks != self.marks:
            self.marks, self.behind = marks, None


class _Watch(threading.Thread):
    def __init__(self, timeout: float):
        super().__init__(daemon=True, name="watch over the ranks")
        state = PartialState()
        self.rank, self.timeout, self.limit = state.process_index, timeout, timeout * _FRACTION_OF_TIMEOUT
        self.ranks = [_Rank() for _ in range(state.num_processes)]
        self.read = time.monotonic()
        self.leaving, self.ending = threading.Event(), threading.Lock()
        host, options = os.environ.get("MASTER_ADDR", "localhost"), {"timeout": timedelta(seconds=self.limit)}
        store = None
        if self.rank == 0:
            store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False, **options)
        port = broadcast_object_list([store.port if store else None])[0]
        self.store = store or distributed.TCPStore(host, port, is_master=False, wait_for_workers=False, **options)
        self._exchange(0)
        self.read = time.monotonic()

    def _exchange(self, beats: int) -> None:
        self.store.set(str(self.rank), f"{beats} {_progress[0]} {_progress[1]}")
        self._read()

    def _read(self) -> None:
        texts = self.store.multi_get([str(rank) for rank in range(len(self.ranks))])
        for rank, text in zip(self.ranks, texts, strict=True):
            rank.update(text.decode())
        self.read, most = time.monotonic(), max(rank.marks for rank in self.ranks)
        for rank in self.ranks:
            rank.behind = None if rank.marks == most else rank.behind or self.read

    def run(self):
        beats, found_at = 0, None
        while not self.leaving.wait(_BEAT):
            beats += 1
            try:
                self._exchange(beats)
            except Exception:  # whatever it is, rank 0, which has the store, does not answer
                if not self.leaving.wait(_GRACE):
                    self._end({0: _DIED})
                return
            if found := self._ended() or self._silent(self.limit) or self._behind(self.limit):
                found_at = found_at or time.monotonic()
                if time.monotonic() - found_at > _GRACE:  # this rank may be about to end by the same error
                    self._end(found)

    def _ended(self) -> dict[int, str]:
        return {number: f"has ended: {rank.error}" for number, rank in enumerate(self.ranks) if rank.error}

    def _silent(self, seconds: float) -> dict[int, str]:
        if time.monotonic() - self.read > seconds:
            return {0: _DIED}
        return {n: _DIED for n, rank in enumerate(self.ranks) if not rank.left and self.read - rank.heard > seconds}

    def _behind(self, seconds: float) -> dict[int, str]:
        text = (
            f"has not computed the loss of step {max(rank.step for rank in self.ranks)} within {self.limit:g} s (90% "
            "of --ddp_timeout), while others have"
        )
        late = [rank.behind is not None and self.read - rank.behind >= seconds for rank in self.ranks]
        return {number: text for number, is_late in enumerate(late) if is_late and not self.ranks[number].left}

    def explain(self, error: BaseException) -> None:
        """End the process with one line if the error is that another rank is lost. Return if it is another error.

        Raises: TimeoutError, in one line, if no rank is known to be lost or behind.
        """
        errors = [one for one in (error, error.__cause__) if isinstance(one, RuntimeError)]
        texts = " ".join(str(one).lower() for one in errors)
        if not any(isinstance(one, distributed.DistError) for one in errors):
            if not any(sign in texts for sign in _SIGNS_OF_A_LOST_RANK):
                return
        deadline = time.monotonic() + 2 * _SILENT
        while not (found := self._ended() or self._silent(_SILENT)) and time.monotonic() < deadline:
            time.sleep(_BEAT)
        if found := found or self._behind(0):
            self._end(found)
        if "timed out" in texts or "timeout" in texts:
            raise TimeoutError(
                f"some rank has not answered within {self.timeout:g} s (--ddp_timeout). {_ADVICE}"
            ) from error

    def leave(self, error: str = "") -> None:
        """Stop to watch, and tell the other ranks by which error this one ends."""
        self.leaving.set()
        self.join(_GRACE)
        if self.is_alive():  # it waits for an answer of rank 0
            return
        try:
            self.store.set(str(self.rank), f"left {' '.join(error.split())}")
            until = time.monotonic() + _GRACE
            while self.rank == 0 and not all(rank.left for rank in self.ranks) and time.monotonic() < until:
                time.sleep(_BEAT / 5)  # the others still read from this process
                self._read()
        except Exception:  # rank 0 has ended before
            return

    def _end(self, found: dict[int, str]) -> NoReturn:
        """End the process. The first rank that is not found wanting prints the line."""
        with self.ending:
            if self.rank == min(set(range(len(self.ranks))) - found.keys(), default=0):
                number, text = next(iter(found.items()))
                more = f" (as have {len(found) - 1} others)" if len(found) > 1 else ""
                print(f"train.py: error: rank {number} {text}{more}. {_ADVICE}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            # A launcher ends all ranks as soon as one has ended, and the others still need rank 0 to find the same.
            time.sleep(2 * _GRACE if self.rank == 0 else _GRACE)
            for child in multiprocessing.active_children():  # workers of a DataLoader
                child.kill()
            os._exit(2)
