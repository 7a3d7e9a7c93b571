"""`vit-scratch push`: upload what a run left to the Hub."""

import argparse
from pathlib import Path

from .flags import add_command


def add_parser(parsers) -> None:
    """The command and its flags."""
    parser = add_command(parsers, "push", run, help="upload a model to the Hub")
    parser.add_argument("folder", metavar="DIR", help="Output folder of a run. It is only read.")
    parser.add_argument("repository", metavar="USER/NAME", help="Repository on the Hub. It is made if needed.")
    parser.add_argument("--private", action="store_true", help="Make it private. A public repository is refused.")
    parser.add_argument("--revision", metavar="BRANCH", help="Branch, made if needed (default: main).")
    parser.add_argument("--dry_run", action="store_true", help="List the files with their sizes and send nothing.")


def run(arguments: argparse.Namespace) -> None:
    """Push, or list what would go."""
    from ..hub.repository import Repository, files_to_push

    files = files_to_push(arguments.folder)
    size = sum(file.stat().st_size for file in files)
    if arguments.dry_run:
        for file in files:
            print(f"{file.stat().st_size:>13,} bytes  {file.name}")
        print(f"{size:>13,} bytes  would go to {arguments.repository}")
        if left := sorted(path.name for path in Path(arguments.folder).iterdir() if path not in files):
            print(f"Not sent: {', '.join(left)}")
        return
    repository = Repository(arguments.repository, arguments.private, arguments.revision)
    print(f"Pushing {len(files)} files, {size:,} bytes, to {arguments.repository}", flush=True)
    print(f"Pushed: {repository.upload(arguments.folder)}")
