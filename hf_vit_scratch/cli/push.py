"""`vit-scratch push`: upload to the Hub the output folder of a run, or a Space with the page of `vit-scratch demo`."""

import argparse
from pathlib import Path

from .flags import add_command


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "push", run, help="upload a model, or a Space to draw on, to the Hub")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="Output folder of a run. It is not changed.")
    parser.add_argument(
        "repository", nargs="?", metavar="USER/NAME", help="Repository on the Hub. It is created if needed."
    )
    parser.add_argument("--private", action="store_true", help="Create it as private. A public repository is refused.")
    parser.add_argument("--revision", metavar="BRANCH", help="Branch. It is created if needed (default: main).")
    parser.add_argument("--dry_run", action="store_true", help="List the files and their sizes without uploading.")
    parser.add_argument(
        "--space", metavar="USER/NAME", help="Push a Space with the page of vit-scratch demo instead of a folder."
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="USER/NAME",
        help="With --space: its models, repositories on the Hub.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Push, or list the files that would be pushed."""
    if arguments.space:
        if arguments.folder or arguments.revision or not arguments.model:
            raise ValueError(
                "expected vit-scratch push --space USER/NAME --model USER/NAME, without DIR and --revision."
            )
        return _push_space(arguments)
    if arguments.model:
        raise ValueError("--model goes with --space. To push a folder: vit-scratch push DIR USER/NAME.")
    if not arguments.repository:
        raise ValueError("expected vit-scratch push DIR USER/NAME, or vit-scratch push --space USER/NAME --model ...")
    _push_folder(arguments)


def _push_folder(arguments: argparse.Namespace) -> None:
    from ..hub.repository import Repository, files_to_push

    files = files_to_push(arguments.folder)
    sizes = {file.name: file.stat().st_size for file in files}
    if arguments.dry_run:
        _list(sizes, arguments.repository)
        if left := sorted(path.name for path in Path(arguments.folder).iterdir() if path not in files):
            print(f"Not pushed: {', '.join(left)}")
        return
    repository = Repository(arguments.repository, arguments.private, arguments.revision)
    print(f"Pushing {len(files)} files, {sum(sizes.values()):,} bytes, to {arguments.repository}", flush=True)
    print(f"Pushed: {repository.upload(arguments.folder)}")


def _push_space(arguments: argparse.Namespace) -> None:
    from ..demo.space import push_space, space_files
    from ..hub.repository import Repository

    files = space_files(arguments.model)
    sizes = {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size for name, content in files.items()
    }
    if arguments.dry_run:
        return _list(sizes, arguments.space)
    repository = Repository(arguments.space, arguments.private, kind="space")
    private = " --private" * arguments.private
    command = f"vit-scratch push --space {arguments.space} --model {' '.join(arguments.model)}{private}"
    print(f"Pushing {len(files)} files, {sum(sizes.values()):,} bytes, to the Space {arguments.space}", flush=True)
    print(f"Pushed: {push_space(repository, arguments.model, command)}")


def _list(sizes: dict[str, int], repository: str) -> None:
    for name, size in sizes.items():
        print(f"{size:>13,} bytes  {name}")
    print(f"{sum(sizes.values()):>13,} bytes  would be pushed to {repository}")
