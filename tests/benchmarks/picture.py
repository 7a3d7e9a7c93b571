"""The picture that the README links to: what the released model does with a few digits of the sample.

    python tests/benchmarks/picture.py

For each digit: the image, its tokens (7x7 patches of 4x4 pixels), how much the class token attends to each of them in
the last block (mean over the heads), and the probabilities of the ten classes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from hf_vit_scratch.data import load
from hf_vit_scratch.evaluation.classifier import load_model

ROOT = Path(__file__).resolve().parents[2]
ROWS = (1503, 3795, 2221)  # of the sample: a clear digit, a doubtful one, and one of the few that it gets wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "model_cards/vit-scratch-digits-small", help="Default: %(default)s.")
    parser.add_argument("--output_file", default=Path(__file__).with_name("what_it_does.png"))
    options = parser.parse_args()
    digits = load("sample", validation_size=0)["train"][list(ROWS)]
    model, processor = load_model(options.model, torch.device("cpu"))
    with torch.inference_mode():
        outputs = model(**processor(digits["image"], return_tensors="pt"), output_attentions=True)
    grid, patch = model.config.grid_size, model.config.patch_size
    attention = outputs.attentions[-1].mean(dim=1)[:, 0, 1:].reshape(-1, *grid).numpy()  # (B, heads, T, T)
    figure = draw(digits, attention, outputs.logits.softmax(dim=-1).numpy(), patch)
    figure.savefig(options.output_file, dpi=110)


def draw(digits: dict[str, list], attention: np.ndarray, probabilities: np.ndarray, patch: int) -> Figure:
    """A row for each image: image, tokens, attention `(rows, columns)`, probabilities `(num_labels,)`."""
    images = digits["image"]
    figure = Figure(figsize=(7.2, 1.55 * len(images) + 0.3), layout="constrained")
    cells = figure.subplots(len(images), 4, width_ratios=(1, 1, 1, 2.2))
    rows = zip(cells, images, digits["label"], attention, probabilities, strict=True)
    for row, image, label, weights, scores in rows:
        pixels = np.asarray(image)
        row[0].imshow(pixels, cmap="gray")
        row[1].imshow(in_patches(pixels, patch))
        row[2].imshow(pixels, cmap="gray")
        extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
        row[2].imshow(weights, cmap="inferno", alpha=0.65, extent=extent, interpolation="bicubic")
        for cell in row[:3]:
            cell.axis("off")
        row[3].bar(range(len(scores)), scores, color=["C0" if p < scores.max() else "C1" for p in scores])
        row[3].set(xticks=range(len(scores)), ylim=(0, 1.2), yticks=(0, 1))
        row[3].text(scores.argmax(), scores.max() + 0.02, f"{scores.max():.2f}", ha="center", fontsize=8)
        row[3].text(0.02, 0.96, f"label {label}", transform=row[3].transAxes, va="top", fontsize=8)
        row[3].tick_params(labelsize=8)
    titles = ("image", "7x7 tokens", "attention of the\nclass token", "probabilities")
    for cell, title in zip(cells[0], titles, strict=True):
        cell.set_title(title, fontsize=10)
    return figure


def in_patches(pixels: np.ndarray, patch: int) -> np.ndarray:
    """The image as RGB `(height, width, 3)` with a blue line between its patches."""
    rows, columns = (side // patch for side in pixels.shape)
    apart = np.empty((rows * (patch + 1) - 1, columns * (patch + 1) - 1, 3), np.uint8)
    apart[:] = (31, 119, 180)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (patch + 1), column * (patch + 1)
            part = pixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            apart[top : top + patch, left : left + patch] = part[..., None]
    return apart


if __name__ == "__main__":
    main()
