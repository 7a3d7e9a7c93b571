"""`vit-scratch predict | submit | evaluate | size | explore | push | export`: all that is not training, by command."""

import argparse
import json
import os
import re
import sys
from pathlib import Path

# What a command needs is imported in it, so that `vit-scratch --help` answers at once.


def predict(arguments: argparse.Namespace) -> None:
    """A line for each image: file, class, probability."""
    import torch
    from PIL import Image

    from .inference import load_model

    if arguments.top_k < 1:
        raise ValueError(f"--top_k must be at least 1, got {arguments.top_k}.")
    model, processor = load_model(arguments.model)
    for file in arguments.images:
        try:
            with Image.open(file) as image:
                inputs = processor(image, return_tensors="pt").to(model.device)
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        with torch.inference_mode():
            probabilities = model(**inputs).logits[0].softmax(dim=-1).cpu()
        top = probabilities.topk(min(arguments.top_k, len(probabilities)))
        found = [(model.config.id2label[i], p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
        if arguments.json:
            line = json.dumps({"file": file, "predictions": [{"label": label, "score": p} for label, p in found]})
        else:
            line = "\t".join([file, *(f"{label}\t{p:.4f}" for label, p in found)])
        print(line, flush=True)


def submit(arguments: argparse.Namespace) -> None:
    """Write the submission of a model for the unlabelled test split of the data."""
    from . import data
    from .inference import load_model, predict_logits, write_submission
    from .publish import saw_sample

    output = Path(arguments.output_file)
    if not output.parent.is_dir():
        raise ValueError(f"--output_file {output}: there is no folder {output.parent}.")
    splits = data.load(
        arguments.data,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        validation_size=0,
    )
    if "test" not in splits or "label" in splits["test"].column_names:
        raise ValueError(f"{arguments.data} has no unlabelled test split to submit.")
    model, processor = load_model(arguments.model)
    names, expected = list(model.config.id2label.values()), splits["train"].features["label"].names
    if names != expected:
        raise ValueError(f"{arguments.model} knows the classes {names}, but the data has {expected}.")
    if saw_sample(model.config):
        print(
            "Warning: this model was trained on the sample, which holds many digits of the competition's test set "
            "with their labels. Its score there says nothing.",
            file=sys.stderr,
        )
    write_submission(predict_logits(model, processor, splits["test"]), model.config.id2label, output)
    print(f"{len(splits['test']):,} rows written to {output}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure the models of a recipe on the rows that were held out from them."""
    from .evaluation import evaluate, summary

    print(summary(evaluate(arguments.model, arguments.data, arguments.output_dir, arguments.against)))
    print(f"All of it lies in {arguments.output_dir}")


def size(arguments: argparse.Namespace) -> None:
    """What a size costs, by part; nothing is trained."""
    from .arguments import parse_size
    from .cost import activation_bytes, cost

    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {arguments.batch_size}.")
    config = parse_size(arguments.fields)
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


def explore(arguments: argparse.Namespace) -> None:
    """Search for a size, or study sizes; what is finished is not done again."""
    from .arguments import parse_exploration
    from .explore import explore
    from .findings import summary
    from .publish import leave

    told = parse_exploration(arguments.fields)
    folder = told[-1].output_dir
    try:
        findings = explore(*told)
    except KeyboardInterrupt:
        leave(f"vit-scratch: stopped. What is finished is in {folder}; the same command goes on.")
    print(f"{len(findings)} trials; {summary(findings)}\nAll of it lies in {folder}")


def push(arguments: argparse.Namespace) -> None:
    """Upload what a run left to the Hub, or say what would go."""
    from .publish import Repository, files_to_push

    files = files_to_push(arguments.folder)
    size = sum(file.stat().st_size for file in files)
    if arguments.dry_run:
        for file in files:
            print(f"{file.stat().st_size:>13,} bytes  {file.name}")
        print(f"{size:>13,} bytes  would go to {arguments.repository}")
        if left := sorted(path.name for path in Path(arguments.folder).iterdir() if path not in files):
            print(f"Not sent: {', '.join(left)}")
        return
    repository = Repository(arguments.repository, arguments.private, arguments.revision)
    print(f"Pushing {len(files)} files, {size:,} bytes, to {arguments.repository}", flush=True)
    print(f"Pushed: {repository.upload(arguments.folder)}")


def export(arguments: argparse.Namespace) -> None:
    """Write a model in a format that runs without this package."""
    from .export import export_model

    print(export_model(arguments.model, arguments.format, arguments.output_dir))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(message)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = _Parser(prog="vit-scratch", description=__doc__.partition(":")[2].strip())
    commands = parser.add_subparsers(dest="command", required=True)
    model_help = (
        "Output folder of a run, or id of a repository on the Hub. Its weights are run with this package's code."
    )

    command = commands.add_parser("predict", help="classify images", allow_abbrev=False)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="Files in any format that PIL reads.")
    command.add_argument("--model", required=True, help=model_help)
    command.add_argument("--top_k", type=int, default=1, help="Classes for each image (default: %(default)s).")
    command.add_argument("--json", action="store_true", help="A JSON object for each image.")
    command.set_defaults(run=predict)

    command = commands.add_parser("submit", help="write a submission for Kaggle", allow_abbrev=False)
    command.add_argument("--model", required=True, help=model_help)
    command.add_argument("--data", required=True, help="The competition's zip, a folder with its CSVs, or kaggle.")
    command.add_argument("--image_column", default="image", help="Default: %(default)s.")
    command.add_argument("--label_column", default="label", help="Default: %(default)s.")
    command.add_argument("--output_file", default="submission.csv", help="Default: %(default)s.")
    command.set_defaults(run=submit)

    command = commands.add_parser(
        "evaluate", help="measure the models of a recipe on their held-out rows", allow_abbrev=False
    )
    command.add_argument(
        "--model",
        required=True,
        nargs="+",
        help="Output folders of runs of one recipe, which differ in --fold (or other held-out rows) and --seed.",
    )
    command.add_argument("--data", required=True, help="What they were trained on.")
    command.add_argument(
        "--against", nargs="+", metavar="MODEL", help="Runs of another recipe, from which the same rows were held out."
    )
    command.add_argument(
        "--output_dir",
        required=True,
        metavar="DIR",
        help="A new folder; or that of a model of the recipe, whose card then gets the figures.",
    )
    command.set_defaults(run=evaluate)

    command = commands.add_parser(
        "size",
        help="what a size costs: parameters, FLOPs, memory",
        description="Parameters, FLOPs of one image's forward pass, tokens, and activation memory of a training step. "
        "--size NAME, --recipe NAME or FILE, --num_labels N and every field of the config, as in train.py.",
        allow_abbrev=False,
    )
    command.add_argument("--batch_size", type=int, default=128, help="For the memory (default: %(default)s).")
    command.set_defaults(run=size)

    command = commands.add_parser(
        "explore",
        help="search for a size, or study sizes",
        description="Trains many sizes on one schedule and leaves tables, plots and the best as a recipe. --study "
        "search, size or data; --data SOURCE, --output_dir DIR, --trials N, --num_train_epochs E, --bounds FILE, "
        "--max_parameters N, --max_flops N, --storage URL, and all flags of train.py for what is not varied.",
        allow_abbrev=False,
    )
    command.set_defaults(run=explore)

    command = commands.add_parser("push", help="upload a model to the Hub", allow_abbrev=False)
    command.add_argument("folder", metavar="DIR", help="Output folder of a run. It is only read.")
    command.add_argument("repository", metavar="USER/NAME", help="Made where there is none.")
    command.add_argument("--private", action="store_true", help="Make it private; a public one is refused.")
    command.add_argument("--revision", metavar="BRANCH", help="Made where there is none (default: main).")
    command.add_argument("--dry_run", action="store_true", help="List what would go, with sizes; nothing is sent.")
    command.set_defaults(run=push)

    command = commands.add_parser("export", help="write a model for use without this package", allow_abbrev=False)
    command.add_argument("--model", required=True, help=model_help)
    command.add_argument("--format", required=True, choices=("onnx", "torch", "transformers"))
    command.add_argument("--output_dir", required=True, metavar="DIR", help="A folder that is new or empty.")
    command.set_defaults(run=export)
    return parser


def main(argv: list[str] | None = None) -> None:
    """The program `vit-scratch`: one line on bad input, and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        arguments, fields = build_parser().parse_known_args(argv)
        if fields and arguments.run not in (size, explore):
            raise ValueError(f"unrecognized arguments: {' '.join(fields)}")
        arguments.fields = fields  # their names are known where transformers is imported
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        line = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_...", " ".join(str(error).split()))  # a token that was mistyped
        print(f"vit-scratch: error: {line}", file=sys.stderr)
        raise SystemExit(2) from error
