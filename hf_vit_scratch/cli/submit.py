"""`vit-scratch submit`: write a submission for Kaggle."""

import argparse
import sys
from pathlib import Path

from .flags import add_command, add_model


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "submit", run, help="write a submission for Kaggle")
    add_model(parser)
    parser.add_argument(
        "--data",
        required=True,
        help="The competition's zip, kaggle to download it, or other data with an unlabelled test split.",
    )
    parser.add_argument(
        "--image_column", default="image", help="Name of the column with the images (default: %(default)s)."
    )
    parser.add_argument(
        "--label_column", default="label", help="Name of the column with the labels (default: %(default)s)."
    )
    parser.add_argument("--streaming", action="store_true", help="The data are shards, as for train.py --streaming.")
    parser.add_argument("--output_file", default="submission.csv", help="File to write (default: %(default)s).")


def run(arguments: argparse.Namespace) -> None:
    """Write the predictions of a model for the unlabelled test split of the data."""
    from ..data.digit_recognizer import saw_sample
    from ..data.shards import load_stream
    from ..data.sources import load
    from ..evaluation.classifier import load_model
    from ..evaluation.prediction import predict_logits, write_predictions

    output = Path(arguments.output_file)
    if not output.parent.is_dir():
        raise ValueError(f"--output_file {output}: there is no folder {output.parent}. Create it first.")
    columns = {"image_column": arguments.image_column, "label_column": arguments.label_column}
    if arguments.streaming:
        splits = load_stream(arguments.data, **columns)
    else:
        splits = load(arguments.data, validation_size=0, **columns)
    if "test" not in splits or "label" in splits["test"].column_names:
        raise ValueError(f"{arguments.data} has no unlabelled test split to predict.")
    classifier = load_model(arguments.model)
    config = classifier.model.config
    names, expected = list(config.id2label.values()), splits["train"].features["label"].names
    if names != expected:
        raise ValueError(f"{arguments.model} has the classes {names}, but the data has {expected}.")
    if saw_sample(config):
        print(
            "Warning: this model was trained on the sample, which contains many labelled digits of the competition's "
            "test set. Its score on the competition is therefore meaningless.",
            file=sys.stderr,
        )
    logits = predict_logits(classifier, splits["test"], only_classes=True)
    write_predictions(logits, splits["test"], config.id2label, output)
    print(f"{len(splits['test']):,} rows written to {output}")
