"""`vit-scratch predict`: classify images."""

import argparse
import json
from pathlib import Path

from .flags import add_command, add_model


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "predict", run, help="classify images")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Image files in any format that Pillow reads.")
    add_model(parser)
    parser.add_argument(
        "--top_k", type=int, default=1, help="Number of classes to print per image (default: %(default)s)."
    )
    parser.add_argument(
        "--show_steps",
        metavar="FILE.png",
        help="For one picture and a model of digits: draw the steps from the picture to what the model is given.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object per image.")


def run(arguments: argparse.Namespace) -> None:
    """Print one line per image: file, then class and score of the `top_k` classes with the highest scores.

    For a model of digits, print one line per digit, from left to right, or that no digit was found.
    """
    from ..evaluation.classifier import load_model

    if arguments.top_k < 1:
        raise ValueError(f"--top_k must be at least 1, got {arguments.top_k}.")
    if arguments.show_steps and len(arguments.images) > 1:
        raise ValueError(f"--show_steps draws the steps of one picture, got {len(arguments.images)} pictures.")
    if arguments.show_steps:
        steps = Path(arguments.show_steps)
        if steps.suffix.lower() != ".png" or not steps.parent.is_dir() or steps.is_dir():
            raise ValueError(f"--show_steps expects a file FILE.png in a folder that exists, got {steps}.")
    classifier = load_model(arguments.model)
    if arguments.show_steps and not classifier.processor.do_center_digit:
        raise ValueError(f"--show_steps needs a model of digits, and {arguments.model} has do_center_digit off.")
    classify = _digits if classifier.processor.do_center_digit else _image
    for file in arguments.images:
        for line in classify(file, classifier, arguments):
            print(line, flush=True)


def _image(file: str, classifier, arguments: argparse.Namespace) -> list[str]:
    """The line of an image."""
    import torch

    from ..evaluation.classifier import class_scores
    from ..image_files import process_file

    model, processor = classifier
    inputs = process_file(file, lambda image: processor(image, return_tensors="pt")).to(model.device)
    with torch.inference_mode():
        scores = class_scores(model(**inputs).logits[0], model.config).cpu()
    predictions = _best(scores, model.config, arguments.top_k)
    if arguments.json:
        return [json.dumps({"file": file, "predictions": predictions})]
    return [_line(file, predictions)]


def _digits(file: str, classifier, arguments: argparse.Namespace) -> list[str]:
    """The lines of the digits in a picture; with --json one line, whose `predictions` are the clearest digit's."""
    from ..evaluation.own_digits import draw_steps, read_digits
    from ..image_files import process_file

    reading = process_file(file, lambda image: read_digits(image, classifier))
    if arguments.show_steps:
        draw_steps(reading, arguments.show_steps)
    predictions = [_best(scores, classifier.model.config, arguments.top_k) for scores in reading.scores]
    if arguments.json:
        digits = [
            {"box": digit.box, "clarity": digit.clarity, "predictions": best}
            for digit, best in zip(reading.digits, predictions, strict=True)
        ]
        clearest = max(digits, key=lambda digit: digit["clarity"])["predictions"] if digits else []
        return [json.dumps({"file": file, "predictions": clearest, "digits": digits})]
    return [_line(file, best) for best in predictions] or [f"{file}\tno digit found"]


def _best(scores, config, number: int) -> list[dict]:
    """Label and score of the classes with the highest scores `(num_labels,)`."""
    top = scores.topk(min(number, len(scores)))
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return [{"label": config.id2label[index], "score": score} for score, index in pairs]


def _line(file: str, predictions: list[dict]) -> str:
    return "\t".join([file, *(f"{each['label']}\t{each['score']:.4f}" for each in predictions)])
