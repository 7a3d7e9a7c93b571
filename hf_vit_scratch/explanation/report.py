"""`vit-scratch explain`: predict the images, and write the page and its plots whole or not at all."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm.auto import tqdm

from ..data.batches import PixelValues
from ..data.names import counted
from ..device import best_device, describe
from ..evaluation.classifier import load_model
from ..evaluation.metrics import binomial_interval
from ..output_folder import MANIFEST_NAME, move_into_place, read_json, real_path
from .images import SPLITS, ImageSource, read_pictures
from .page import PAGE_NAME, write_page
from .predictions import predict
from .sections import SECTIONS
from .subject import Subject


def explain(
    model: str,
    source: ImageSource,
    output_dir: str | os.PathLike,
    number: int = 50,
    embedding_images: int = 2000,
) -> str:
    """Explain a model: write one HTML page, which opens without a network, and each of its plots as PNG.

    Args:
        model: output folder of a run, or id of a repository on the Hub. Code in it is not run.
        source: the images.
        output_dir: a new or empty folder, or that of an earlier explanation, which is replaced. If anything fails, it
            remains as it was.
        number: images of a data set with attention maps. Of files, all have them.
        embedding_images: images of a data set that are predicted, for the embedding, the mistakes and the calibration.

    Returns:
        A line for the user: the page, and the number of plots.

    Raises:
        ValueError: in one line, if there is no such model, no images, one cannot be read, or the folder holds
            something else.
    """
    output = real_path(output_dir)
    _check_source(source)
    for name, value in (("--number", number), ("--embedding_images", embedding_images)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    _check_output(output)
    subject = _predict(model, source, number, embedding_images)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        sections = [section(subject, folder) for section in tqdm(SECTIONS, desc="Explaining")]
        origin, warning = subject.pictures.origin, subject.pictures.seen
        write_page(folder, sections, model=subject.name, facts=_facts(subject), origin=origin, warning=warning)
        move_into_place(folder, output)
    shown, plots = counted(range(subject.shown), "image"), counted(list(output.glob("*.png")), "plot")
    return f"{Path(output_dir) / PAGE_NAME} shows {shown}. Its {plots} are PNG files beside it."


def _check_source(source: ImageSource) -> None:
    if bool(source.files) == bool(source.data):
        raise ValueError("expected images: give either --images FILE ... or --data SOURCE.")
    if source.files and (source.split or source.image_column or source.label_column):
        raise ValueError("--split, --image_column and --label_column go with --data, not with --images.")
    if source.split not in (None, *SPLITS):
        raise ValueError(f"--split must be one of {', '.join(SPLITS)}, got {source.split}.")


def _check_output(output: Path) -> None:
    """Raises: ValueError if the folder holds anything but an earlier explanation."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"--output_dir {output}: expected a folder, got a file.")
    found = {path.name for path in output.iterdir()}
    if found:
        try:
            known = {PAGE_NAME, MANIFEST_NAME} <= found <= {MANIFEST_NAME, *read_json(output / MANIFEST_NAME)["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            expected = "expected a new or empty folder, or that of an earlier explanation"
            raise ValueError(f"--output_dir {output}: {expected}, got one with other files. Choose another one.")


def _predict(model: str, source: ImageSource, number: int, embedding_images: int) -> Subject:
    classifier = load_model(model)
    pictures = read_pictures(model, classifier, source, max(number, embedding_images))
    to_pixel_values = PixelValues(classifier.processor).to(classifier.model.device)
    tokens = classifier.model.config.num_tokens
    size = 500 if tokens <= 64 else 50 if tokens <= 256 else 8
    batches = pictures.batches(to_pixel_values, size)
    shown = tqdm(batches, desc="Predicting", total=-(-len(pictures.names) // size))
    logits, features = predict(classifier.model, shown)
    if not torch.isfinite(logits).all():
        raise ValueError(f"{model} computes logits that are not finite numbers, which cannot be explained.")
    name = real_path(model).name if real_path(model).exists() else model
    count = len(pictures.names) if source.files else min(number, len(pictures.names))
    return Subject(name, classifier, pictures, logits, features, count)


def _facts(subject: Subject) -> dict[str, str]:
    config = subject.classifier.model.config
    height, width = config.image_height_width
    rows, columns = config.grid_size
    parameters = sum(parameter.numel() for parameter in subject.classifier.model.parameters())
    facts = {
        "Model": f"{subject.name}: {parameters:,} parameters, {config.num_hidden_layers} layers of "
        f"{config.num_attention_heads} heads, width {config.hidden_size}",
        "Image": f"{height}x{width} pixels, {counted(range(config.num_channels), 'channel')}, "
        f"{rows}x{columns} patches of {config.patch_size}x{config.patch_size}",
        "Output": "the class token" if config.pooling == "cls" else "the mean of the patch tokens",
    }
    if subject.labels is not None:
        wrong, count = int((subject.labels != subject.predicted).sum()), len(subject.labels)
        low, high = binomial_interval(wrong, count)
        facts["Mistakes"] = f"{wrong:,} of {count:,} images, {wrong / count:.2%} "
        facts["Mistakes"] += f"(95% interval {low:.2%} to {high:.2%})"
    return facts | {"Device": describe(best_device())}
