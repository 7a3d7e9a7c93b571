"""`vit-scratch size`: print the cost of a size by part, without training."""

import argparse

from .flags import add_command


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(
        parsers,
        "size",
        run,
        takes_flags_of_training=True,
        help="print the cost of a size: parameters, FLOPs, memory",
        description="Prints parameters, FLOPs of the forward pass of one image, number of tokens, and activation "
        "memory of a training step. Flags: --size NAME, --recipe NAME or FILE, --num_labels N, and every field of the "
        "config, such as --hidden_size 96.",
    )
    parser.add_argument(
        "--batch_size", type=int, default=128, help="Batch size for the memory (default: %(default)s)."
    )


def run(arguments: argparse.Namespace) -> None:
    """Print one line per part of the model, and the totals."""
    from ..exploration.arguments import parse_size
    from ..exploration.cost import activation_bytes, cost, training_memory

    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {arguments.batch_size}.")
    config = parse_size(arguments.others)
    price, memory = cost(config), activation_bytes(config, arguments.batch_size)
    print(f"{'':12} {'parameters':>13} {'MFLOP per image':>15} {'share':>6}")
    for part, parameters in price.parameters.items():
        line = f"{part:12} {parameters:13,}"
        if flops := price.flops.get(part):
            line += f" {flops / 1e6:15,.2f} {flops / price.total_flops:6.1%}"
        print(line)
    print(f"{'all':12} {price.total_parameters:13,} {price.total_flops / 1e6:15,.2f}")
    print(f"{price.tokens} tokens of width {config.hidden_size}; a training step takes about three times the FLOPs")
    print(f"{memory / 2**20:,.0f} MiB of activations for a batch of {arguments.batch_size} in fp32")
    parts = training_memory(config, arguments.batch_size)
    each = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items())
    print(
        f"\n{_gigabytes(sum(parts.values()))} GB on one device for a batch of {arguments.batch_size} in bf16: {each}"
    )
    print("GB a device, with this batch on each:")
    print(f"{'':24} {'1 device':>10} {'DDP':>10} {'FSDP2 on 2':>10} {'on 4':>10} {'on 8':>10}")
    for name, checkpointing in (("", False), ("--gradient_checkpointing", True)):
        launches = ((1, False), (2, False), (2, True), (4, True), (8, True))
        totals = (sum(training_memory(config, arguments.batch_size, *way, checkpointing).values()) for way in launches)
        print(f"{name:24} {' '.join(f'{_gigabytes(total):>10}' for total in totals)}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.3f}"
