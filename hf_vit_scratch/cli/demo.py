"""`vit-scratch demo`: serve a page on which one draws a digit."""

import argparse
import socket
from importlib.util import find_spec

from .flags import add_command

HOST = "127.0.0.1"


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "demo", run, help="serve a page to draw a digit on, on this computer alone")
    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        help="Output folders of runs, or ids of repositories on the Hub, to switch between. Code in them is not run.",
    )
    parser.add_argument("--port", type=int, help=f"Port on {HOST} (default: the first free one from 7860).")


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {arguments.port}.")
    if find_spec("gradio") is None:
        raise ValueError('vit-scratch demo needs the package gradio: pip install "hf-vit-scratch[demo]".')
    if arguments.port is not None:
        _check_free(arguments.port)
    from ..demo.server import serve

    serve(arguments.model, HOST, arguments.port)


def _check_free(port: int) -> None:
    """Raises: ValueError if another program uses the port, before anything is loaded."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last page may have ended a second ago
        try:
            trial.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"--port {port} cannot be used: {error.strerror}. Choose another one.") from error
