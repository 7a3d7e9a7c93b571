"""`vit-scratch size`: what a size costs, by part; nothing is trained."""

import argparse

from .flags import add_command


def add_parser(parsers) -> None:
    """The command and its flags."""
    parser = add_command(
        parsers,
        "size",
        run,
        takes_flags_of_training=True,
        help="print what a size costs: parameters, FLOPs, memory",
        description="Parameters, FLOPs of the forward pass of one image, tokens, and activation memory of a training "
        "step. Takes --size NAME, --recipe NAME or FILE, --num_labels N and every field of the config, as train.py "
        "does.",
    )
    parser.add_argument("--batch_size", type=int, default=128, help="Batch for the memory (default: %(default)s).")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each part of the model, and the totals."""
    from ..exploration.arguments import parse_size
    from ..exploration.cost import activation_bytes, cost

    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {arguments.batch_size}.")
    config = parse_size(arguments.others)
    found, kept = cost(config), activation_bytes(config, arguments.batch_size)
    print(f"{'':12} {'parameters':>13} {'MFLOP an image':>15} {'share':>6}")
    for part, parameters in found.parameters.items():
        line = f"{part:12} {parameters:13,}"
        if flops := found.flops.get(part):
            line += f" {flops / 1e6:15,.2f} {flops / found.total_flops:6.1%}"
        print(line)
    print(f"{'all':12} {found.total_parameters:13,} {found.total_flops / 1e6:15,.2f}")
    print(f"{found.tokens} tokens of width {config.hidden_size}; a training step takes about three times the FLOPs")
    print(f"{kept / 2**20:,.0f} MiB of activations for a batch of {arguments.batch_size} in fp32")
