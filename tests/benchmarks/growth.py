"""How speed and memory of training grow with image, patch, width, depth and batch, beside the peers.

    pip install -e ".[peers]" && python tests/benchmarks/growth.py --output_file growth.png

One field changes at a time, from digits-tiny (images grow with patches of 7); nothing is compiled; peers are as they
come, and all take turns. The table is for ours, `FLOP model` is what its images per second would be if each FLOP took
the time it takes at the middle of the same sweep. "checkpointed" is ours with gradient checkpointing.
"""

import argparse
import statistics

import matplotlib
import torch
from peers import PEERS
from steps import batch, build, house_setting, peak_bytes, rates, settings_of, training_flops, training_step

from hf_vit_scratch import ViTScratchConfig
from hf_vit_scratch.device import best_device, describe, set_up_cpu

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

# Field: size of a batch, and the values with all that changes with them. Large models take smaller batches.
SWEEPS = {
    "image size": (8, {side: {"image_size": side, "patch_size": 7} for side in (28, 56, 112, 224)}),
    "patch size": (64, {side: {"patch_size": side} for side in (2, 4, 7, 14)}),
    "width": (
        32,
        {
            width: {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 16}
            for width in (32, 64, 128, 256, 384)
        },
    ),
    "depth": (32, {depth: {"num_hidden_layers": depth} for depth in (1, 3, 6, 12, 24)}),
    "batch": (None, {size: {} for size in (1, 8, 32, 128, 512)}),
}
CHECKPOINTED = "ours, checkpointed"


def measure(config: ViTScratchConfig, size: int, flops: float, runs: int, device) -> dict[str, tuple[float, float]]:
    """(images per second, peak megabytes) of a training step of ours and each peer, over so many FLOPs a run."""
    images, labels = batch(config, size, device)
    settings = {name: settings_of(name, device)[0] for name in PEERS}
    settings = {name: house_setting(config, device, compiled=False) for name in ("ours", CHECKPOINTED)} | settings
    steps = {}
    for name, setting in settings.items():
        model = build(name.partition(",")[0], config, setting, device)
        if name == CHECKPOINTED:
            model.model.gradient_checkpointing_enable()
        steps[name] = training_step(model, setting, images, labels)
    repeats = max(1, int(flops / training_flops(config) / size))
    measured = rates(steps, size, repeats, runs)
    return {name: (statistics.median(measured[name]), peak_bytes(step, device) / 1e6) for name, step in steps.items()}


def plot(results: dict, file: str) -> None:
    """Speed above, memory below, a column for each field, all axes logarithmic."""
    figure, axes = pyplot.subplots(2, len(results), figsize=(3.4 * len(results), 6.4), squeeze=False)
    for column, (field, points) in enumerate(results.items()):
        values = list(points)
        for name in points[values[0]]["measured"]:
            for row in range(2):
                figures = [points[value]["measured"][name][row] for value in values]
                style = {"marker": "o", "linewidth": 2 if name == "ours" else 1, "markersize": 4, "label": name}
                axes[row][column].plot(values, figures, **style)
        model = [points[value]["model"] for value in values]
        axes[0][column].plot(values, model, "k--", linewidth=1, label="FLOP model")
        for row, title in enumerate(("images per second", "peak memory, MB")):
            axes[row][column].set(xscale="log", yscale="log", xlabel=field)
            axes[row][column].set_xticks(values, [str(value) for value in values], minor=False)
            axes[row][column].minorticks_off()
            if column == 0:
                axes[row][column].set_ylabel(title)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_file", default="growth.png", help="The plot (default: %(default)s).")
    parser.add_argument("--runs", type=int, default=3, help="Alternating runs at each point (default: %(default)s).")
    parser.add_argument("--tiny", action="store_true", help="The smallest points alone: to see that all of it runs.")
    options = parser.parse_args()
    set_up_cpu()
    device = best_device()
    print(f"{describe(device)}, torch {torch.__version__}, {options.runs} runs, medians\n")
    print("| field | batch | MFLOP an image | images/s | FLOP model | fastest peer | MB | its MB | checkpointed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    results = {}
    for field, (size, values) in SWEEPS.items():
        if options.tiny:
            size, values = 2 if size else None, dict(list(values.items())[:1])
        points = {}
        for value, fields in values.items():
            config = ViTScratchConfig.from_size("digits-tiny", num_labels=10, **fields)
            measured = measure(config, size or value, 1e6 if options.tiny else 2e9, options.runs, device)
            points[value] = {"flops": training_flops(config), "measured": measured, "batch": size or value}
        middle = points[list(points)[len(points) // 2]]
        for value, point in points.items():
            point["model"] = middle["measured"]["ours"][0] * middle["flops"] / point["flops"]
            measured = point["measured"]
            peer = max(PEERS, key=lambda name: measured[name][0])
            speed, megabytes = measured["ours"]
            checkpointed = "{:,.0f} images/s, {:,.0f} MB".format(*measured[CHECKPOINTED])
            print(
                f"| {field} {value} | {point['batch']} | {point['flops'] / 1e6:,.0f} | {speed:,.0f} "
                f"| {point['model']:,.0f} | {measured[peer][0]:,.0f} ({peer}) | {megabytes:,.0f} "
                f"| {measured[peer][1]:,.0f} | {checkpointed} |",
                flush=True,
            )
        results[field] = points
    plot(results, options.output_file)


if __name__ == "__main__":
    main()
