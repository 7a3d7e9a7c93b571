"""`vit-scratch config`: print the path of a config file for `accelerate launch`."""

import argparse

from .flags import add_command


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(
        parsers,
        "config",
        run,
        help="print the path of a config file for accelerate launch",
        description="Prints the path of a config file of the package, for `accelerate launch --config_file "
        "$(vit-scratch config NAME) train.py`. Without a name, it lists the files.",
    )
    parser.add_argument("name", nargs="?", help="cpu, gpu, gpus, fsdp or machines.")


def run(arguments: argparse.Namespace) -> None:
    """Print a path, or a line for each file: its name, and the first comment in it."""
    from importlib import resources

    files = resources.files("hf_vit_scratch.settings") / "accelerate"
    known = {file.name.removesuffix(".yaml"): file for file in sorted(files.iterdir(), key=lambda file: file.name)}
    if arguments.name is None:
        for name, file in known.items():
            print(f"{name:9} {file.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}")
    elif arguments.name in known:
        print(known[arguments.name])
    else:
        raise ValueError(f"no config file {arguments.name!r}: expected one of {', '.join(known)}.")
