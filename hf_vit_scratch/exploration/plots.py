"""Plots of an exploration, as PNG files."""

import os

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter


def pareto_front(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The Pareto front of cost and error rate, in order of rising cost.

    Args:
        points: a row for each size, with columns as in [`plot_sizes`].
        cost: name of the column with the cost.

    Returns: the rows with a lower `error_rate` than all rows of lower or equal cost.
    """
    points = points.sort_values([cost, "error_rate"])
    return points[points.error_rate < points.error_rate.cummin().shift(fill_value=float("inf"))]


def plot_sizes(setups: pd.DataFrame, file: str | os.PathLike) -> None:
    """Plot the error rate against parameters, FLOPs and training time, with the Pareto front of each.

    `setups` has a row for each size, with the columns `error_rate`, `error_rate_std` (standard deviation over seeds),
    `parameters`, `flops`, `seconds`, `confirming`, `hidden_size`, which is shown as the colour, and
    `num_hidden_layers`, which is shown as the size of the mark.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    costs = {"parameters": "parameters", "flops": "FLOPs of an image's forward pass", "seconds": "seconds of training"}
    chosen, confirmed = (setups[setups.confirming == value] for value in (False, True))
    widths = sorted(chosen.hidden_size.unique())
    colours = LogNorm(widths[0], widths[-1])
    for panel, (name, label) in zip(panels, costs.items(), strict=True):
        sizes = 12 * chosen.num_hidden_layers.astype(float)
        panel.scatter(chosen[name], 100 * chosen.error_rate, sizes, chosen.hidden_size, norm=colours)
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
    bar = figure.colorbar(ScalarMappable(colours), ax=panels[-1], label="width; the larger a point, the deeper")
    bar.set_ticks(widths, labels=[f"{width:g}" for width in widths], minor=False)
    bar.minorticks_off()
    figure.savefig(file, dpi=120)


def plot_images_needed(setups: pd.DataFrame, file: str | os.PathLike) -> None:
    """Plot the error rate against the number of training images, one line per family, with and without augmentation.

    `setups` has a row for each point, with the columns `train_images`, `error_rate`, `error_rate_std` (standard
    deviation over seeds), `family` and `augmented`.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
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


def _scale(panel: Axes, error_rates: pd.Series) -> None:
    """Set logarithmic axes with plain numbers. The axis of the error rate is linear if a rate is 0."""
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
