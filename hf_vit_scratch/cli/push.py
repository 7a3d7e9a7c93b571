"""`vit-scratch push`: upload the output folder of a run to the Hub."""

import argparse
from pathlib import Path

from .flags import add_command


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "push", run, help="upload a model to the Hub")
    parser.add_argument("folder", metavar="DIR", help="Output folder of a run. It is not changed.")
    parser.add_argument("repository", metavar="USER/NAME", help="Repository on the Hub. It is created if needed.")
    parser.add_argument("--private", action="store_true", help="Create it as private. A public repository is refused.")
    parser.add_argument("--revision", metavar="BRANCH", help="Branch. It is created if needed (default: main).")
    parser.add_argument("--dry_run", action="store_true", help="List the files and their sizes without uploading.")


def run(arguments: argparse.Namespace) -> None:
    """Push, or list the files that would be pushed."""
    from ..hub.repository import Repository, files_to_push

    files = files_to_push(arguments.folder)
    size = sum(file.stat().st_size for file in files)
    if arguments.dry_run:
        for file in files:
            print(f"{file.stat().st_size:>13,} bytes  {file.name}")
        print(f"{size:>13,} bytes  would be pushed to {arguments.repository}")
        if left := sorted(path.name for path in Path(arguments.folder).iterdir() if path not in files):
            print(f"Not pushed: {', '.join(left)}")
        return
    repository = Repository(arguments.repository, arguments.private, arguments.revision)
    print(f"Pushing {len(files)} files, {size:,} bytes, to {arguments.repository}", flush=True)
    print(f"Pushed: {repository.upload(arguments.folder)}")
