"""`vit-scratch explain`: show what a model sees, on one HTML page."""

import argparse

from .flags import add_command, add_model


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(
        parsers,
        "explain",
        run,
        help="show what a model sees: attention, filters, embedding, mistakes, on one HTML page",
        description="Writes a page that opens without a network, and each plot as PNG: attention over each image, "
        "mean attention distance, filters, position embeddings, the images in two dimensions, confused classes, a "
        "reliability diagram, and the check that the maps depend on the weights.",
    )
    add_model(parser)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--images", nargs="+", metavar="IMAGE", help="Image files in any format that Pillow reads.")
    images.add_argument("--data", metavar="SOURCE", help="Data as for train.py: sample, a zip, a folder, a Hub id.")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="Split of --data. Default: test if it has labels, else validation, else test, else train.",
    )
    parser.add_argument("--number", type=int, help="Images of --data with attention maps (default: 50).")
    parser.add_argument(
        "--embedding_images",
        type=int,
        help="Images of --data that are predicted, for embedding, mistakes and reliability (default: 2000).",
    )
    parser.add_argument("--image_column", help="Name of the column with the images (default: image).")
    parser.add_argument("--label_column", help="Name of the column with the labels (default: label).")
    parser.add_argument(
        "--output_dir", required=True, metavar="DIR", help="New or empty folder, or that of an earlier explanation."
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page, and print where it is."""
    from ..explanation.images import ImageSource
    from ..explanation.report import explain

    counts = {name: getattr(arguments, name) for name in ("number", "embedding_images")}
    counts = {name: value for name, value in counts.items() if value is not None}
    if arguments.images and counts:
        raise ValueError(f"--{next(iter(counts))} goes with --data. With --images, all files are shown.")
    source = ImageSource(
        tuple(arguments.images or ()),
        arguments.data or "",
        arguments.split,
        arguments.image_column,
        arguments.label_column,
    )
    print(explain(arguments.model, source, arguments.output_dir, **counts))
