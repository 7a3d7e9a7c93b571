"""`vit-scratch export`: convert a model for use without this package."""

import argparse

from .flags import add_command, add_model


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "export", run, help="convert a model for use without this package")
    add_model(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("onnx", "torch", "transformers"),
        help="onnx: for ONNX Runtime. torch: for torch.export.load. transformers: for the ViT class of transformers.",
    )
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="New or empty folder.")


def run(arguments: argparse.Namespace) -> None:
    """Export, and print what was written."""
    from ..conversion.export import export_model

    print(export_model(arguments.model, arguments.format, arguments.output_dir))
