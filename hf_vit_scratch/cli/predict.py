"""`vit-scratch predict`: classify images."""

import argparse
import json

from .flags import add_command, add_model


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    parser = add_command(parsers, "predict", run, help="classify images")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Image files in any format that Pillow reads.")
    add_model(parser)
    parser.add_argument(
        "--top_k", type=int, default=1, help="Number of classes to print per image (default: %(default)s)."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object per image.")


def run(arguments: argparse.Namespace) -> None:
    """Print one line per image: file, then class and score of the `top_k` classes with the highest scores."""
    import torch

    from ..evaluation.prediction import class_scores, load_model, process_file

    if arguments.top_k < 1:
        raise ValueError(f"--top_k must be at least 1, got {arguments.top_k}.")
    model, processor = load_model(arguments.model)
    for file in arguments.images:
        inputs = process_file(file, processor, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            scores = class_scores(model(**inputs).logits[0], model.config).cpu()
        top = scores.topk(min(arguments.top_k, len(scores)))
        results = [
            (model.config.id2label[i], p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        if arguments.json:
            line = json.dumps({"file": file, "predictions": [{"label": label, "score": p} for label, p in results]})
        else:
            line = "\t".join([file, *(f"{label}\t{p:.4f}" for label, p in results)])
        print(line, flush=True)
