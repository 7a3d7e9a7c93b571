"""The plots of an explanation, as PNG. Colours are perceptually uniform: viridis, and for signs a diverging map."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

# Colours of classes that remain distinct for the colour-blind side by side (Okabe and Ito, then Tol's muted ones).
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#A6761D", "#1B1B1B", "#A2C523"),
    *("#882255", "#117733", "#999933", "#332288", "#AA4499", "#661100", "#44AA99", "#DDCC77", "#6699CC", "#888888"),
)
_OTHERS = "#C8C8C8"
_Path = str | os.PathLike


def plain(text: str, most: int = 24) -> str:
    """A text for a plot: one short line, in which nothing is read as mathematics."""
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return line.replace("$", r"\$")


def picture(image: np.ndarray, side: int) -> np.ndarray:
    """An image `(height, width, channels)` from 0 to 255 as RGB with `side` pixels on its longer side."""
    channels = image if image.shape[2] in (1, 3) else image.mean(axis=2, keepdims=True)
    rgb = Image.fromarray(np.broadcast_to(channels, (*channels.shape[:2], 3)).astype(np.uint8))
    scale = side / max(rgb.size)
    size = [max(1, round(scale * each)) for each in rgb.size]
    return np.asarray(rgb.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX))


def overlay(image: np.ndarray, shares: np.ndarray, side: int) -> np.ndarray:
    """A map `(rows, columns)` over an image in grey, in viridis from 0 to its largest value; values below 0 are 0."""
    grey = picture(image, side).mean(axis=2, keepdims=True)
    heat = Image.fromarray((np.clip(shares, 0, None) / max(shares.max(), 1e-12) * 255).astype(np.uint8))
    heat = np.asarray(heat.resize(grey.shape[1::-1], Image.Resampling.NEAREST))
    return (0.4 * grey + 0.6 * 255 * colormaps["viridis"](heat)[..., :3]).astype(np.uint8)


def mosaic(tiles: np.ndarray, gap: int = 3) -> np.ndarray:
    """Tiles `(rows, columns, height, width, 3)` as one RGB image with white gaps."""
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)[:-gap, :-gap]


def plot_maps(image: np.ndarray, maps: dict[str, np.ndarray], file: _Path) -> None:
    """Plot an image, and beside it maps `(rows, columns)` over it, each with its title."""
    panels = {"image": picture(image, 224), **{name: overlay(image, each, 224) for name, each in maps.items()}}
    whole = mosaic(np.stack([[*panels.values()]]), gap=8)
    figure, axes = _axes_around(whole, (4, 30, 4, 4))
    starts = np.arange(len(panels)) * (panels["image"].shape[1] + 8)
    for start, name in zip(starts, panels, strict=True):
        axes.text(start, -9, name, fontsize=13)
    figure.savefig(file, dpi=100)


def plot_heads(image: np.ndarray, heads: np.ndarray, rollout: np.ndarray, file: _Path) -> None:
    """Plot maps over an image: rows are layers, columns are heads, their mean, and the rollout up to the layer.

    Args:
        image: `(height, width, channels)`, from 0 to 255.
        heads: `(layers, heads, rows, columns)`.
        rollout: `(layers, rows, columns)`.
        file: PNG file to write.
    """
    layers, number = heads.shape[:2]
    cells = np.concatenate([heads, heads.mean(axis=1, keepdims=True), rollout[:, None]], axis=1)
    tiles = np.stack([[overlay(image, cell, 72 if number <= 16 else 40) for cell in row] for row in cells])
    height, width = tiles.shape[2:4]
    figure, axes = _axes_around(mosaic(tiles), (28, 40, 0, 0))
    for column, name in enumerate([*map(str, range(1, number + 1)), "mean", "rollout"]):
        axes.text((column + 0.5) * (width + 3), -6, name, fontsize=8, ha="center")
    for row in range(layers):
        axes.text(-6, (row + 0.5) * (height + 3), str(row + 1), fontsize=8, ha="right", va="center")
    axes.text(number / 2 * (width + 3), -24, "head", fontsize=8, ha="center")
    axes.text(-26, layers / 2 * (height + 3), "layer", fontsize=8, rotation=90, va="center")
    figure.savefig(file, dpi=100)


def _axes_around(whole: np.ndarray, margins: tuple[int, int, int, int]) -> tuple[Figure, Axes]:
    """A figure and its axes, which show an image pixel by pixel.

    The margins are for text: left, top, right and bottom, in pixels.
    A layout by matplotlib would take three times as long, and there are two of these figures for each image.
    """
    (height, width), (left, top, right, bottom) = whole.shape[:2], margins
    size = (width + left + right, height + top + bottom)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
    axes.imshow(whole, aspect="auto", interpolation="none")
    axes.axis("off")
    return figure, axes


def plot_filters(filters: np.ndarray, file: _Path, columns: int = 7) -> None:
    """Plot filters `(number, height, width, channels)`: grey is 0, and each is scaled to its largest weight."""
    values = filters if filters.shape[3] in (1, 3) else filters.mean(axis=3, keepdims=True)
    largest = np.maximum(np.abs(values).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    side = max(values.shape[1:3])
    tiles = [picture(127.5 + 127.5 * each, side * max(1, 80 // side)) for each in values / largest]
    columns = min(columns, len(tiles))
    empty = -len(tiles) % columns
    tiles += [np.full_like(tiles[0], 255)] * empty
    whole = mosaic(np.stack(tiles).reshape(-1, columns, *tiles[0].shape), gap=6)
    Image.fromarray(whole).save(file)


def plot_position_similarity(similarity: np.ndarray, file: _Path, most: int = 14) -> None:
    """Plot similarities `(rows, columns, rows, columns)`: a tile for each patch, at most `most` along each side."""
    rows, columns = similarity.shape[:2]
    shown = [np.unique(np.linspace(0, side - 1, min(side, most)).round().astype(int)) for side in (rows, columns)]
    lowest = float(similarity.min())
    scale = max(1, 48 // max(rows, columns))
    colours = colormaps["viridis"]((similarity[np.ix_(*shown)] - lowest) / max(1 - lowest, 1e-12))
    tiles = (255 * colours[..., :3]).astype(np.uint8).repeat(scale, axis=2).repeat(scale, axis=3)
    whole = mosaic(tiles)
    inches = 4.2 / max(whole.shape[:2])
    figure = Figure(figsize=(whole.shape[1] * inches + 1.3, whole.shape[0] * inches + 0.6), layout="constrained")
    axes = figure.subplots()
    colour = Normalize(lowest, 1)
    axes.imshow(whole)
    bar = figure.colorbar(ScalarMappable(colour, "viridis"), ax=axes, shrink=0.8)
    bar.set_label("cosine similarity")
    for axis, places, side in ((axes.yaxis, shown[0], tiles.shape[2]), (axes.xaxis, shown[1], tiles.shape[3])):
        axis.set_ticks((np.arange(len(places)) + 0.5) * (side + 3) - 2, [str(place + 1) for place in places])
    axes.set(xlabel="column of the patch", ylabel="row of the patch")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    figure.savefig(file, dpi=140)


def plot_attention_distance(distances: np.ndarray, uniform: float, file: _Path) -> None:
    """Plot mean attention distances `(layers, heads)`, in pixels, and that of uniform attention."""
    layers, heads = distances.shape
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(uniform, linestyle="--", color="0.45", label="attention to all patches alike")
    places = np.arange(1, layers + 1)
    axes.plot(places, distances.mean(axis=1), color="#E69F00", label="mean of the heads")
    axes.scatter(places.repeat(heads), distances.ravel(), s=28, color="#0072B2", alpha=0.75, label="head", zorder=3)
    axes.set(xlabel="layer", ylabel="mean attention distance, pixels", ylim=(0, 1.08 * max(uniform, distances.max())))
    axes.set_xticks(places if layers <= 16 else places[:: -(-layers // 16)])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(file, dpi=140)


def plot_embedding(points: np.ndarray, groups: np.ndarray | None, names: Sequence[str], wrong, file: _Path) -> None:
    """Plot points `(num_images, 2)`, coloured by group, with the name of each group at its middle.

    Args:
        points: `(num_images, 2)`.
        groups: class of each image, or None.
        names: names of the classes. The 20 most frequent have colours, and the others are grey.
        wrong: whether each image is a mistake, `(num_images,)`, or None if it is not known.
        file: PNG file to write.
    """
    figure = Figure(figsize=(5.4, 5.2), layout="constrained")
    axes = figure.subplots()
    size = 7 if len(points) > 500 else 22
    counts = np.zeros(0) if groups is None else np.bincount(groups, minlength=len(names))
    frequent = np.sort(np.argsort(-counts, kind="stable")[: len(_COLOURS)])
    frequent = frequent[counts[frequent] > 0]
    rest = np.ones(len(points), bool) if groups is None else ~np.isin(groups, frequent)
    axes.scatter(*points[rest].T, s=size, color=_OTHERS if groups is not None else _COLOURS[0], linewidths=0)
    for number, group in enumerate(frequent.tolist()):
        axes.scatter(*points[groups == group].T, s=size, color=_COLOURS[number], alpha=0.7, linewidths=0)
    if wrong is not None and wrong.any():
        style = {"s": 52, "facecolors": "none", "edgecolors": "black", "linewidths": 1.2}
        axes.scatter(*points[wrong].T, **style, label=f"mistake ({int(wrong.sum()):,})")
        figure.legend(loc="outside upper right", fontsize=9, frameon=False)
    outline = [withStroke(linewidth=3, foreground="white")]
    for group in frequent.tolist():
        x, y = np.median(points[groups == group], axis=0)
        style = {"fontsize": 13, "weight": "bold", "ha": "center", "va": "center", "path_effects": outline}
        axes.text(x, y, plain(names[group], 14), **style)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.8")
    figure.savefig(file, dpi=140)


def plot_confused_pairs(rows: list[tuple[str, list[np.ndarray]]], file: _Path) -> None:
    """Plot a row for each pair of classes: its text, and examples `(height, width, channels)` from 0 to 255."""
    columns = max(len(examples) for _, examples in rows)
    figure = Figure(figsize=(2.2 + 0.95 * columns, 1.05 * len(rows)), layout="constrained")
    cells = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=[2.2, *[0.95] * columns])
    for (text, examples), line in zip(rows, cells, strict=True):
        for cell in line:
            cell.axis("off")
        line[0].text(0, 0.5, text, va="center", fontsize=10, transform=line[0].transAxes)
        for cell, example in zip(line[1:], examples, strict=False):
            cell.imshow(picture(example, 112))
    figure.savefig(file, dpi=140)


def plot_reliability(bins: dict[str, np.ndarray], file: _Path) -> None:
    """Plot the accuracy of images by the confidence of the model, with 95% intervals, and the number of images.

    Args:
        bins: of [`evaluation.metrics.reliability`], with `low` and `high`, the ends of the intervals.
        file: PNG file to write.
    """
    figure = Figure(figsize=(4.8, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = bins["count"] > 0
    confidence, accuracy = bins["confidence"][filled], bins["accuracy"][filled]
    errors = [accuracy - bins["low"][filled], bins["high"][filled] - accuracy]
    top.plot([0, 1], [0, 1], "--", color="0.45", label="calibrated")
    style = {"fmt": "o", "color": "#0072B2", "capsize": 3, "label": "images of a bin, with 95% interval"}
    top.errorbar(confidence, accuracy, yerr=np.maximum(errors, 0), **style)
    top.set(ylabel="accuracy", ylim=(-0.03, 1.03), xlim=(0, 1.02))
    edges = np.linspace(0, 1, len(bins["count"]) + 1)
    bottom.bar(edges[:-1], bins["count"], width=np.diff(edges), align="edge", color="#56B4E9", edgecolor="white")
    bottom.set(xlabel="confidence: probability of the predicted class", ylabel="images", yscale="log")
    bottom.set_ylim(0.7, 2 * bins["count"].max())
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(file, dpi=140)


def plot_randomization(similarities: dict[str, np.ndarray], parts: Sequence[str], file: _Path) -> None:
    """Plot the similarity of maps `(1 + parts,)` to those of the trained model, a line for each kind of map."""
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.subplots()
    names, places = ["none", *parts], np.arange(len(parts) + 1)
    axes.axhline(0, color="0.45", linewidth=0.8)
    styles = (("o", "-", "#0072B2"), ("s", "--", "#D55E00"))
    for (kind, values), (marker, line, colour) in zip(similarities.items(), styles, strict=False):
        axes.plot(places, values, marker=marker, linestyle=line, color=colour, label=kind)
    lowest = min(values.min() for values in similarities.values())
    axes.set(ylabel="rank correlation with the trained model's map", ylim=(min(-0.3, lowest) - 0.05, 1.05))
    axes.set_xlabel("untrained from the head down to here")
    every = -(-len(names) // 14)
    axes.set_xticks(places[::every], names[::every], rotation=45 if len(names) > 8 else 20, ha="right", fontsize=8)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(file, dpi=140)
