"""`vit-scratch export`: write a model for use without this package."""

import argparse

from .flags import add_command, add_model


def add_parser(parsers) -> None:
    """The command and its flags."""
    parser = add_command(parsers, "export", run, help="write a model for use without this package")
    add_model(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("onnx", "torch", "transformers"),
        help="onnx: for ONNX Runtime. torch: for torch.export.load. transformers: its own ViT class.",
    )
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="A folder that is new or empty.")


def run(arguments: argparse.Namespace) -> None:
    """Export, and print what was written."""
    from ..conversion.export import export_model

    print(export_model(arguments.model, arguments.format, arguments.output_dir))
