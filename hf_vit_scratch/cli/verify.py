"""`vit-scratch verify`: compare the files of a run or of a checkpoint with what was written."""

import argparse
from pathlib import Path

from .flags import add_command


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(
        parsers,
        "verify",
        run,
        help="check that the files of a run are as they were written",
        description="Compares size and SHA-256 of the files of a finished run, and of its checkpoints, with "
        "manifest.json. Exit code 2 means that a file differs or is missing, or that DIR has no manifest.",
    )
    parser.add_argument("folder", metavar="DIR", help="Output folder of a run, or one of its checkpoints.")


def run(arguments: argparse.Namespace) -> None:
    """Print one line for each folder that is as it was written. Raises: ValueError that lists all differences."""
    from ..output_folder import MANIFEST_NAME, damage, read_json

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Expected the output folder of a run, or a checkpoint.")
    differences = []
    for part in (folder, *sorted(folder.glob("checkpoint-*"))):
        found = damage(part)
        if found:
            differences += [f"{part}: {', '.join(found)}"]
        elif found is not None:
            files = read_json(part / MANIFEST_NAME)["files"].values()
            print(f"{part}: {len(files)} files, {sum(file['size'] for file in files):,} bytes, are as written")
        elif part != folder:
            print(f"{part}: no {MANIFEST_NAME}, as older versions wrote checkpoints")
        else:
            differences += [f"{part} has no {MANIFEST_NAME}: its run is not finished, or an older version wrote it"]
    if differences:
        raise ValueError("; ".join(differences) + ".")
