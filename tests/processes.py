"""Fresh Python processes at a third of their price.

Most of a process that runs this package is the import of torch and other large libraries. A fork server imports them
once, and every [`Python`] is forked from it: it has imported none of this package, transformers, datasets, accelerate
and huggingface_hub, so that these read their environment variables anew. Tests of what is imported at all, and of
variables that torch reads, start a process of the ordinary kind.
"""

import io
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "torchvision", "scipy.stats", "sklearn.model_selection", "sklearn.metrics", "pandas", "pyarrow.csv"]
    + ["matplotlib.figure", "sqlalchemy", "yaml", "PIL.Image", "torch._dynamo", "jinja2"]
)


class Python:
    """A process that runs `code` as `python -c code *arguments` would.

    Args:
        environment: its whole environment. Default: this process's.
        cwd: its folder. Default: this process's.
    """

    def __init__(self, code: str, *arguments, environment: Mapping[str, str] | None = None, cwd=None):
        self._folder = tempfile.TemporaryDirectory(prefix="process-")
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        environment = dict(os.environ if environment is None else environment)
        self._process = _CONTEXT.Process(
            target=_run,
            args=(code, [str(part) for part in arguments], environment, str(cwd or os.getcwd()), self._files),
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def output(self) -> tuple[str, str]:
        """What it has written to stdout and stderr so far."""
        return tuple(file.read_text() if file.exists() else "" for file in self._files)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout} s: {self.output()}")
        return self.output()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)


def _run(code: str, arguments: list[str], environment: dict[str, str], cwd: str, files: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, file in enumerate(files, start=1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), "utf-8") for number in (1, 2))
    sys.stdout.reconfigure(write_through=True)
    sys.stderr.reconfigure(write_through=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the workers of a DataLoader start as they always do
    sys.argv = ["-c", *arguments]
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(code, "<string>", "exec"), namespace)


def run_python(code: str, *arguments, **options) -> str:
    """What a [`Python`] prints, which has to end well."""
    process = Python(code, *arguments, **options)
    output, errors = process.communicate()
    assert process.returncode == 0, f"{output}\n{errors}"
    return output


def start_ranks(code: str, number: int, *arguments, **options) -> list[Python]:
    """Run `code` in this many processes of one launch, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(number):
        own = {name: str(value) for name, value in {**launch, "RANK": rank, "LOCAL_RANK": rank}.items()}
        ranks.append(Python(code, *arguments, environment=os.environ | own, **options))
    return ranks


def run_ranks(code: str, number: int, *arguments, **options) -> None:
    """Run `code` as [`start_ranks`] does; all processes have to end well."""
    for rank in start_ranks(code, number, *arguments, **options):
        output, errors = rank.communicate()
        assert rank.returncode == 0, f"{output}\n{errors}"
