"""Plots of a run and of an evaluation, as PNG."""

import os

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..data.corruption import UNITS


def plot_curves(log_history: list[dict], file: str | os.PathLike) -> None:
    """Plot the loss and, if measured, the validation accuracy against epochs, from `log_history` of the Trainer."""
    accuracies = [(row["epoch"], 100 * row["eval_accuracy"]) for row in log_history if "eval_accuracy" in row]
    panels = 2 if accuracies else 1
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    (left, *right) = figure.subplots(1, panels, squeeze=False)[0]
    for key, label in (("loss", "training"), ("eval_loss", "validation, averaged weights")):
        points = [(row["epoch"], row[key]) for row in log_history if key in row]
        if points:
            left.plot(*zip(*points, strict=True), label=label)
    left.set(title="loss", xlabel="epoch", yscale="log")
    left.legend()
    for axes in right:
        axes.plot(*zip(*accuracies, strict=True), marker="o", color="C1")
        axes.set(title="validation accuracy of the averaged weights, %", xlabel="epoch")
    for axes in (left, *right):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def plot_confusion_matrix(matrix: list[list[int]], names: list[str], file: str | os.PathLike) -> None:
    """Plot the counts of true (rows) and predicted (columns) classes. The colour shows errors only."""
    counts = np.asarray(matrix)
    errors = counts.astype(float)
    np.fill_diagonal(errors, np.nan)
    side = min(max(5.0, 0.45 * len(names) + 1.5), 18.0)  # inches; with many classes only colours fit
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(1, counts[~np.eye(len(names), dtype=bool)].max(initial=1)))
    if len(names) <= 30:
        for row, column in np.argwhere(counts):
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8)
    axes.set(title="validation: rows true, columns predicted", xlabel="predicted", ylabel="true")
    if len(names) <= 60:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
    figure.savefig(file, dpi=120)


def plot_robustness(evaluations: list[dict], file: str | os.PathLike) -> None:
    """Plot the error rate against the strength of each corruption, one line per recipe.

    The axis of the error rate is logarithmic if no rate is 0 and the largest is at least ten times the smallest.
    Each of `evaluations` has `recipe`, `error_rate` and `robustness`, as in evaluation.json.
    """
    kinds = list(evaluations[0]["robustness"])
    figure = Figure(figsize=(3.2 * len(kinds), 3.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True)
    drawn = []
    for panel, kind in zip(panels, kinds, strict=True):
        for evaluation in evaluations:
            points = [{"strength": 0, **evaluation}, *evaluation["robustness"][kind]]
            rates = [100 * point["error_rate"] for point in points]
            panel.plot([point["strength"] for point in points], rates, marker="o", label=evaluation["recipe"])
            drawn += rates
        panel.set(title=kind, xlabel=UNITS[kind])
        panel.grid(alpha=0.3)
    if 0 < 10 * min(drawn) <= max(drawn):
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[0].set_ylabel("wrong (%)")
    panels[-1].legend()
    figure.savefig(file, dpi=120)


def plot_images(images: list[np.ndarray], titles: list[str], file: str | os.PathLike, columns: int = 10) -> None:
    """Plot small uint8 images `(height, width, channels)` in rows, each with its title."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.1 * columns, 1.45 * rows))
    cells = figure.subplots(rows, columns, squeeze=False)
    for cell in cells.flat:
        cell.axis("off")
    for cell, image, title in zip(cells.flat, images, titles, strict=False):
        cell.imshow(image, cmap="gray", vmin=0, vmax=255)
        cell.set_title(title, fontsize=6)
    figure.tight_layout(pad=0.4)
    figure.savefig(file, dpi=100)
