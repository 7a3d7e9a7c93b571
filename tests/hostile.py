"""Hostile inputs: damaged copies of valid files, and what every program keeps to whatever it is given.

No traceback but one line; no more than 30 seconds and 1 GiB; no file outside of the folders that may be written.
"""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONGEST_SECONDS, MOST_BYTES = 30, 2**30
# `HOSTILE_CASES=1000 pytest -m nightly -n 0 -s` runs fewer.
NIGHTLY_CASES = int(os.environ.get("HOSTILE_CASES", "10000"))


def shares(fast: int) -> Callable:
    """A test with the argument `cases`: `fast` of them in the suite, and 10,000 by `pytest -m nightly`."""
    nightly = pytest.param(NIGHTLY_CASES, marks=pytest.mark.nightly, id="nightly")
    return pytest.mark.parametrize("cases", [pytest.param(fast, id="fast"), nightly])


def examples(cases: int) -> settings:
    """Settings of hypothesis: the same cases each time in the suite, others each night."""
    checks = list(HealthCheck)
    return settings(
        max_examples=cases, derandomize=cases < 1000, deadline=None, database=None, suppress_health_check=checks
    )


# ---- what is kept to


class TooLong(BaseException):
    """Not an Exception, which the program might take for one of its own."""


class Watch:
    """Runs cases, and checks each. `str(watch)` says how many there were, and the worst time and memory.

    Args:
        writable: folders in which files may be written.
    """

    def __init__(self, *writable: str | os.PathLike):
        self.writable = [os.path.realpath(folder) for folder in (*writable, os.environ["HF_HOME"])]
        self.cases = self.refused = 0
        self.seconds = self.bytes = 0.0

    def __str__(self) -> str:
        worst = f"worst {self.seconds:.2f} s and {self.bytes / 2**20:,.0f} MiB above the start"
        return f"{self.cases:,} cases, {self.refused:,} refused, {worst}"

    def outcome(self, action: Callable[[], object]) -> str | None:
        """The line with which the action refuses its input, or None if it takes it."""
        _reset_peak()
        before, start = _memory("VmRSS"), time.monotonic()
        with self._no_strays(), _no_longer_than(LONGEST_SECONDS):
            try:
                line = action()
            except (ValueError, OSError) as error:
                line = " ".join(str(error).split())  # as the programs print it
                assert line, type(error)
        seconds, grown = time.monotonic() - start, _memory("VmHWM") - before
        assert grown < MOST_BYTES, f"{grown / 2**20:,.0f} MiB"
        self.cases += 1
        self.refused += isinstance(line, str)
        self.seconds, self.bytes = max(self.seconds, seconds), max(self.bytes, grown)
        assert not isinstance(line, str) or len(line) < 3000, line[:3000]
        return line if isinstance(line, str) else None

    @contextlib.contextmanager
    def _no_strays(self) -> Iterator[None]:
        strays: list[str] = []

        def note(event: str, arguments: tuple) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            places = {"os.mkdir": 0, "os.rename": 1, "os.symlink": 1, "os.link": 1, "os.remove": 0, "os.rmdir": 0}
            path = arguments[0] if writes else arguments[places[event]] if event in places else None
            if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
                return  # relative to an open folder, as shutil.rmtree goes down
            if isinstance(path, str | bytes | os.PathLike):
                path = os.path.realpath(os.fsdecode(path))
                if not path.startswith(("/dev/", "/proc/", *(folder for folder in self.writable))):
                    strays.append(path)

        _listeners.append(note)
        try:
            yield
        finally:
            _listeners.remove(note)
        assert not strays, strays


_listeners: list[Callable[[str, tuple], None]] = []


def _listen(event: str, arguments: tuple) -> None:
    for listener in _listeners:
        listener(event, arguments)


sys.addaudithook(_listen)


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def stop(*_):
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory(name: str) -> float:
    """VmRSS, the memory of this process in bytes, or VmHWM, its peak; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0.0)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def program(main: Callable, *argv: object) -> Callable[[], str | None]:
    """An action that runs a program in this process. It may end well or with exit code 2 and a line."""

    def run() -> str | None:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main([str(word) for word in argv])
                return None
            except SystemExit as stopped:
                assert stopped.code == 2, stopped.code
        assert "Traceback" not in errors.getvalue()
        line = errors.getvalue().strip().splitlines()[-1]
        assert ": error: " in line, line
        return line

    return run


# ---- inputs

NUMBERS = (0, 1, -1, 3, 255, 1000, 100_000, 10**6, 10**9, 2**31, 2**32 - 1, 2**63, 2**64, 10**30)
VALUES = st.one_of(
    st.sampled_from([*NUMBERS, None, True, False, 0.5, -0.1, 1e308, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "x", "eager", "../../../etc/passwd", "/", "é\n", "0", "nan", "x" * 1000, "${HOME}", "~nobody/x"]
    ),
    st.sampled_from(
        [[], {}, [[]], [0], [1, 2], [28, 28, 28], {"a": {"b": []}}, ["x"] * 50, {"0": 1}, [None], [1e9, "x"]]
    ),
    st.recursive(st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)


@st.composite
def damaged(draw, originals: list[bytes], words: tuple[bytes, ...] = ()) -> bytes:
    """A copy of one of these files with some bytes flipped, cut, repeated, moved, or replaced by words or numbers."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "insert", "number", "move", "word"]))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "repeat":
            content[at:at] = content[at : at + length] * draw(st.sampled_from([1, 2, 100, 5000]))
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "number":
            size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            content[at : at + size] = (draw(st.sampled_from(NUMBERS)) % 256**size).to_bytes(size, order)
        elif kind == "move":
            part, to = content[at : at + length], draw(st.integers(0, len(content)))
            content[to:to] = part
        elif words:
            content[at:at] = draw(st.sampled_from(words))
    return bytes(content)


def files(originals: list[bytes], words: tuple[bytes, ...] = ()) -> st.SearchStrategy[bytes]:
    """Damaged copies, and now and then a whole one, or any bytes at all."""
    copies = damaged(originals, words)
    sentences = st.lists(st.sampled_from([*words, b"\n", b"0"])).map(b"".join)
    return st.one_of(copies, copies, copies, st.sampled_from(originals), st.binary(max_size=300), sentences)


@st.composite
def changed(draw, original: dict, more_names: tuple[str, ...] = ()) -> object:
    """A copy of a mapping with some values replaced, removed, added or nested; or another value altogether."""
    if draw(st.integers(0, 19)) == 0:
        return draw(VALUES)
    content = dict(original)
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.one_of(st.sampled_from(sorted({*content, *more_names, "x"})), st.text(max_size=4)))
        kind = draw(st.sampled_from(["set", "set", "set", "remove", "inside"]))
        if kind == "remove":
            content.pop(name, None)
        elif kind == "inside" and isinstance(content.get(name), dict):
            content[name] = draw(changed(content[name]))
        else:
            content[name] = draw(VALUES)
    return content
