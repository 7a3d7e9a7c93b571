"""Plots of a run, as PNG."""

import os

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from .corruption import UNITS

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend without a screen has to be chosen first


def plot_curves(log_history: list[dict], file: str | os.PathLike) -> None:
    """Loss and, if there is one, validation accuracy against epochs, from the Trainer's `state.log_history`."""
    accuracies = [(row["epoch"], 100 * row["eval_accuracy"]) for row in log_history if "eval_accuracy" in row]
    panels = 2 if accuracies else 1
    figure = plt.figure(figsize=(5 * panels, 4), layout="constrained")
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
    plt.close(figure)


def plot_confusion_matrix(matrix: list[list[int]], names: list[str], file: str | os.PathLike) -> None:
    """Counts of true (rows) against predicted classes (columns); the colour is for the errors alone."""
    counts = np.asarray(matrix)
    errors = counts.astype(float)
    np.fill_diagonal(errors, np.nan)
    side = min(max(5.0, 0.45 * len(names) + 1.5), 18.0)  # inches; with many classes there is room for colours alone
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(1, counts[~np.eye(len(names), dtype=bool)].max(initial=1)))
    if len(names) <= 30:
        for row, column in np.argwhere(counts):
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8)
    axes.set(title="validation: rows true, columns predicted", xlabel="predicted", ylabel="true")
    if len(names) <= 60:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_robustness(evaluations: list[dict], file: str | os.PathLike) -> None:
    """Error rate against the strength of each corruption, a line for each recipe, from what `evaluate` measured."""
    kinds = list(evaluations[0]["robustness"])
    figure, panels = plt.subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3.4), sharey=True, layout="constrained")
    for panel, kind in zip(panels, kinds, strict=True):
        for evaluation in evaluations:
            points = [{"strength": 0, **evaluation}, *evaluation["robustness"][kind]]
            rates = [100 * point["error_rate"] for point in points]
            panel.plot([point["strength"] for point in points], rates, marker="o", label=evaluation["recipe"])
        panel.set(title=kind, xlabel=UNITS[kind], yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("wrong (%)")
    panels[-1].legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_images(images: list[np.ndarray], titles: list[str], file: str | os.PathLike, columns: int = 10) -> None:
    """Small uint8 images `(height, width, channels)` in rows, each under its title."""
    rows = max(1, -(-len(images) // columns))
    figure, cells = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.45 * rows), squeeze=False)
    for cell in cells.flat:
        cell.axis("off")
    for cell, image, title in zip(cells.flat, images, titles, strict=False):
        cell.imshow(image, cmap="gray", vmin=0, vmax=255)
        cell.set_title(title, fontsize=6)
    figure.tight_layout(pad=0.4)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def pareto_front(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The points than which none both costs as little and errs less, by rising `cost`; columns as in `plot_sizes`."""
    points = points.sort_values([cost, "error_rate"])
    return points[points.error_rate < points.error_rate.cummin().shift(fill_value=float("inf"))]


def plot_sizes(setups: pd.DataFrame, file: str | os.PathLike) -> None:
    """Error rate against parameters, FLOPs and training time, the Pareto front of each marked.

    `setups` has a row for each size: `error_rate`, its spread over seeds `error_rate_std`, `parameters`, `flops`,
    `seconds`, `confirming`, and fields of the config, of which width tells the colours apart and depth the marks.
    """
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    costs = {"parameters": "parameters", "flops": "FLOPs of an image's forward pass", "seconds": "seconds of training"}
    chosen, confirmed = (setups[setups.confirming == value] for value in (False, True))
    widths = sorted(chosen.hidden_size.unique())
    colours = LogNorm(widths[0], widths[-1])
    for panel, (name, label) in zip(panels, costs.items(), strict=True):
        sizes = 12 * chosen.num_hidden_layers.astype(float)
        points = panel.scatter(chosen[name], 100 * chosen.error_rate, sizes, chosen.hidden_size, norm=colours)
        front = pareto_front(chosen, name)
        panel.plot(front[name], 100 * front.error_rate, color="0.5", linewidth=1, zorder=0, label="Pareto front")
        if len(confirmed):
            bars = 100 * confirmed.error_rate_std
            style = {"fmt": "*", "color": "C3", "markersize": 9, "capsize": 3}
            panel.errorbar(confirmed[name], 100 * confirmed.error_rate, bars, label="confirmed, over seeds", **style)
        panel.set(xlabel=label)
        _scale(panel, setups.error_rate)
    panels[0].set_ylabel("wrong (%)")
    panels[0].legend(fontsize=8)
    bar = figure.colorbar(points, ax=panels[-1], label="width; the larger a point, the deeper")
    bar.set_ticks(widths, labels=[f"{width:g}" for width in widths], minor=False)
    bar.minorticks_off()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_images_needed(setups: pd.DataFrame, file: str | os.PathLike) -> None:
    """Error rate against the number of training images, a line for each family, with and without augmentation.

    `setups` has a row for each point: `train_images`, `error_rate`, its spread over seeds `error_rate_std`, `family`,
    `augmented`.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    colours = {family: f"C{place}" for place, family in enumerate(setups.family.unique())}
    for panel, augmented in zip(panels, (True, False), strict=True):
        for family, line in setups[setups.augmented == augmented].groupby("family", sort=False):
            line = line.sort_values("train_images")
            rates, bars = 100 * line.error_rate, 100 * line.error_rate_std
            panel.errorbar(line.train_images, rates, bars, color=colours[family], marker="o", capsize=3, label=family)
        panel.set(title="with augmentation" if augmented else "without", xlabel="training images")
        _scale(panel, setups.error_rate)
        images = sorted(setups.train_images.unique())
        panel.set_xticks(images, [f"{count:,.0f}" for count in images])
    panels[0].set_ylabel("wrong (%)")
    panels[0].legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _scale(panel: plt.Axes, error_rates: pd.Series) -> None:
    """Logarithmic axes with numbers as people write them; where an error rate is 0, that axis is linear."""
    panel.set(xscale="log", yscale="log" if (error_rates > 0).all() else "linear")
    for axis, marks, written in (
        (panel.xaxis, (1, 2, 5), EngFormatter(sep="")),
        (panel.yaxis, (1, 1.5, 2, 3, 5, 7), StrMethodFormatter("{x:g}")),
    ):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=marks))
        axis.set_major_formatter(written)
        axis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3, which="both")
