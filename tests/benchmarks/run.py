"""All that is measured of speed and memory, beside the models that a user would take instead.

    pip install -e ".[peers]" && python tests/benchmarks/run.py --data digit-recognizer.zip [--json FILE]

Model: hidden 64, 6 layers, 4 heads, patch 4, 28x28 (digits-tiny), in batches of 128; peers have the same size, see
the same batches and take turns with it. "As it comes" is a peer's default attention, in fp32, not compiled; "at its
best" the fastest of all attentions, precisions and compile states it has. "Ours" is what `train.py` chooses for the
machine; in "one's own loop" it has the attention that it has by default, under autocast, and is not compiled. All
share one process and with it the threads and the allocator that train.py sets: the peers gain by it. The rows of a
whole `train.py`, of reading data and of starting are fresh processes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import data_loading
import torch
from peers import PEERS
from steps import (
    Setting,
    batch,
    build,
    house_setting,
    matrix_product,
    peak_bytes,
    rates,
    settings_of,
    training_flops,
    training_step,
)

from hf_vit_scratch import ViTScratchConfig, data
from hf_vit_scratch.conversion.export import export_model
from hf_vit_scratch.data.batches import ImageBatches, PixelValues
from hf_vit_scratch.device import best_device, describe, fastest_attention, set_up_cpu
from hf_vit_scratch.evaluation.classifier import Classifier, load_model
from hf_vit_scratch.evaluation.prediction import predict_logits
from hf_vit_scratch.training.assembly import build_processor

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Row:
    """One comparison: a figure a run for ours and for what it is measured against; None where that is nothing."""

    what: str
    unit: str
    ours: list[float]
    against: str = ""
    peer: list[float] | None = None
    percent: bool = False

    def ratios(self) -> list[float]:
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)] if self.peer else []

    def __str__(self) -> str:
        ratio = ""
        if self.peer:
            ratio = spread(self.ratios(), 100 if self.percent else 1) + (" %" if self.percent else " x")
        peer = f"{spread(self.peer)} ({self.against})" if self.peer else self.against
        return f"| {self.what} | {spread(self.ours)} {self.unit} | {peer} | {ratio} |"


def spread(values: list[float], scale: float = 1) -> str:
    """Mean and standard deviation, in three digits or so."""
    values = [value * scale for value in values]
    mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 2
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"


def fastest(measured: dict[str, list[float]], names: list[str]) -> str:
    return max(names, key=lambda name: statistics.mean(measured[name]))


def training(config, size: int, repeats: int, runs: int, device, every_setting: bool) -> list[Row]:
    """Images per second of a training step: as it comes, at its best, and as a share of the machine's peak."""
    images, labels = batch(config, size, device)
    house = house_setting(config, device, compiled=every_setting)
    own = Setting(fastest_attention(config.num_tokens, device), house.bf16)
    contenders = {
        f"ours, {setting}": training_step(build("ours", config, setting, device), setting, images, labels)
        for setting in (house, own)
    }
    as_they_come, at_their_best = [], []
    for name in PEERS:
        for index, setting in enumerate(settings_of(name, device)):
            if index == 0 or every_setting:
                title = f"{name}, {setting}"
                (as_they_come if index == 0 else at_their_best).append(title)
                model = build(name, config, setting, device)
                contenders[title] = training_step(model, setting, images, labels)
    measured = rates(contenders, size, repeats, runs)
    ours, alone = measured[f"ours, {house}"], measured[f"ours, {own}"]
    unit, title = "images/s", f"training step, width {config.hidden_size}"
    rows = []
    for what, names in (("as it comes", as_they_come), ("at its best", as_they_come + at_their_best)):
        peer = fastest(measured, names)
        rows.append(Row(f"{title}, fastest peer {what}", unit, ours, peer, measured[peer]))
    peer = fastest(measured, as_they_come)
    rows.append(Row(f"{title}, in one's own loop, fastest peer as it comes", unit, alone, peer, measured[peer]))
    for name, figures in measured.items():
        print(f"  {name}: {spread(figures)} images/s", file=sys.stderr)
    return rows


def share_of_peak(config, size: int, repeats: int, runs: int, device, compiled: bool) -> Row:
    """FLOPs of a training step by torch's counter, as a share of a large matrix product's in the same precision."""
    images, labels = batch(config, size, device)
    house = house_setting(config, device, compiled)
    product, product_flops = matrix_product(device, house.bf16)
    step = training_step(build("ours", config, house, device), house, images, labels)
    flops = {"ours": [], "peak": []}
    for _ in range(runs):
        flops["ours"] += rates({"ours": step}, size * training_flops(config) / 1e9, repeats, 1)["ours"]
        flops["peak"] += rates({"peak": product}, product_flops / 1e9, 10 * repeats, 1)["peak"]
    precision = "bf16" if house.bf16 else "fp32"
    what = f"training step, width {config.hidden_size}, share of a {precision} matrix product"
    return Row(what, "GFLOP/s", flops["ours"], "matrix product", flops["peak"], percent=True)


def trained(config, split, device, steps: int):
    """A model that has learned enough to be sure of most images, as those are whose predictions are wanted."""
    classifier = Classifier(build("ours", config, Setting("eager"), device).model, build_processor(config))
    images, to_pixel_values = ImageBatches(split, classifier.processor), PixelValues(classifier.processor).to(device)
    optimizer = torch.optim.AdamW(classifier.model.parameters(), lr=2e-3)
    for step in range(steps):
        batch = images.__getitems__([(128 * step + index) % len(split) for index in range(128)])
        labels = batch["labels"].to(device)
        classifier.model(to_pixel_values(batch["pixel_values"].to(device)), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    classifier.model.eval()
    return classifier


def inference(split, config, steps: int, runs: int, device) -> list[Row]:
    """All images of a split: `predict_logits`, from the split on, beside bare forward passes of the peers."""
    classifier = trained(config, split, device, steps)
    images, _ = batch(config, 500, device)

    def forward(peer):
        with torch.inference_mode():
            for start in range(0, len(split), 500):
                peer(images[: min(500, len(split) - start)])

    contenders = {
        "classes": lambda: predict_logits(classifier, split, show_progress=False, only_classes=True),
        "logits": lambda: predict_logits(classifier, split, show_progress=False),
    }
    for name in PEERS:
        peer = build(name, config, settings_of(name, device)[0], device).eval()
        contenders[name] = lambda peer=peer: forward(peer)
    other = (contenders["classes"]().argmax(dim=-1) != contenders["logits"]().argmax(dim=-1)).sum().item()
    print(f"  classes that differ from those of fp32: {other} of {len(split):,}", file=sys.stderr)
    measured = rates(contenders, len(split), 1, runs, warmup=1)
    peer = fastest(measured, list(PEERS))
    what = f"inference, {len(split):,} images"
    return [Row(f"{what}, {kind}", "images/s", measured[kind], peer, measured[peer]) for kind in ("classes", "logits")]


def latency(config, repeats: int, runs: int) -> list[Row]:
    """One image on the CPU, in milliseconds: the model as it is loaded, and as `vit-scratch export` writes it."""
    device = torch.device("cpu")
    image, _ = batch(config, 1, device)
    peers = {name: build(name, config, settings_of(name, device)[0], device).eval() for name in PEERS}

    def forward(model):
        with torch.inference_mode():
            model(image)

    with tempfile.TemporaryDirectory() as folder:
        model = build("ours", config, Setting(), device).model
        model.save_pretrained(f"{folder}/model")
        build_processor(config).save_pretrained(f"{folder}/model")
        loaded, _ = load_model(f"{folder}/model", device)
        contenders = {name: (lambda model=model: forward(model)) for name, model in {"ours": loaded, **peers}.items()}
        measured = rates(contenders, 1, repeats, runs)
        export_model(f"{folder}/model", "onnx", f"{folder}/onnx")
        measured |= rates({"exported": onnx_session(f"{folder}/onnx/model.onnx", image)}, 1, repeats, runs)
    peer = fastest(measured, list(PEERS))
    milliseconds = {name: [1000 / rate for rate in figures] for name, figures in measured.items()}
    what = {"ours": "one image, as loaded", "exported": "one image, exported to ONNX"}
    return [Row(what[name], "ms", milliseconds[name], peer, milliseconds[peer]) for name in ("ours", "exported")]


def onnx_session(file: str, image: torch.Tensor):
    """A call of onnxruntime for an image. Its threads spin after a call, so nothing can take turns with it."""
    import onnxruntime

    session, feed = onnxruntime.InferenceSession(file), {"pixel_values": image.numpy()}
    return lambda: session.run(None, feed)


def memory(config, size: int, device, compiled: bool) -> list[Row]:
    """Most bytes that a training step's tensors hold at once."""
    images, labels = batch(config, size, device)

    def megabytes(name, setting):
        step = training_step(build(name, config, setting, device), setting, images, labels)
        return [peak_bytes(step, device) / 1e6]

    ours = megabytes("ours", house_setting(config, device, compiled))
    peers = {name: megabytes(name, settings_of(name, device)[0]) for name in PEERS}
    what = f"peak memory of a training step, batch {size}"
    return [Row(what, "MB", ours, name, peer) for name, peer in peers.items()]


def whole_job(recipe: str, warmup: int, steps: int, runs: int) -> list[Row]:
    """`train.py` beside the bare loop of its own model, and beside transformers' ViT under a default Trainer."""
    figures = {"train.py": [], "bare": [], "peer": []}

    def images_per_second(kind):
        command = [
            sys.executable,
            str(Path(__file__).with_name("whole_job.py")),
            kind,
            recipe,
            str(warmup),
            str(steps),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        (line,) = [line for line in printed.splitlines() if line.startswith("images/s")]
        return map(float, line.split()[1:])

    for _ in range(runs):
        job, bare = images_per_second("ours")
        (peer,) = images_per_second("peer")
        for name, figure in (("train.py", job), ("bare", bare), ("peer", peer)):
            figures[name].append(figure)
    return [
        Row(f"train.py --recipe {recipe}", "images/s", figures["train.py"], "its bare step loop", figures["bare"]),
        Row(f"train.py --recipe {recipe}", "images/s", figures["train.py"], "transformers' Trainer", figures["peer"]),
    ]


def reading(source: str, runs: int) -> list[Row]:
    """From files to the first training batch."""
    times = data_loading.measure(source, runs)
    return [Row(f"files to first batch, {name}", "s", times[name], "pandas", times["pandas"]) for name in times][1:]


def starting(runs: int) -> list[Row]:
    """Wall clock of what should answer at once."""
    commands = {
        "vit-scratch --help": "from hf_vit_scratch.cli import main; main(['--help'])",
        "import hf_vit_scratch": "import hf_vit_scratch",
        "Python alone": "pass",
    }
    times = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, code in commands.items():
            start = time.perf_counter()
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment, check=True)
            times[name].append(time.perf_counter() - start)
    return [Row(name, "s", figures[1:]) for name, figures in times.items()]  # the first reads files from disk


def digits(source: str | None, number: int):
    """So many images: those of a source, over and over."""
    import datasets

    split = data.load(source or "sample")["train"]
    return datasets.concatenate_datasets([split] * -(-number // len(split))).select(range(number))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", help="The competition's zip, for the rows of reading data; without it they are left out."
    )
    parser.add_argument("--runs", type=int, default=5, help="Alternating runs (default: %(default)s).")
    parser.add_argument("--only", nargs="+", metavar="PART", help="Some of the parts alone.")
    parser.add_argument("--tiny", action="store_true", help="Tiny sizes: to see that all of it runs.")
    parser.add_argument("--json", metavar="FILE", help="Write the figures of each run.")
    options = parser.parse_args()
    set_up_cpu()
    torch._dynamo.config.recompile_limit = 100  # past it torch.compile quietly stops compiling
    os.environ.setdefault("TQDM_DISABLE", "1")
    device, runs, tiny = best_device(), options.runs, options.tiny
    width = {"hidden_size": 192, "intermediate_size": 768}
    size, repeats, images, warmup, steps = 128, 8, 28000, 12, 60
    fields = {"num_labels": 10}
    if tiny:
        width = {"hidden_size": 32}
        size, repeats, images, warmup, steps = 4, 1, 600, 1, 2
        fields |= {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    config, wide = (ViTScratchConfig.from_size("digits-tiny", **fields | change) for change in ({}, width))
    photos = ViTScratchConfig.from_size("B/16", num_labels=1000)
    parts = {
        "starting": lambda: starting(runs),
        "reading": lambda: reading(options.data, runs) if options.data else [],
        "latency": lambda: latency(config, repeats * 5, runs),
        "memory": lambda: memory(config, size, device, not tiny),
        "training": lambda: training(config, size, repeats, runs, device, every_setting=not tiny),
        "peak": lambda: [share_of_peak(each, size, repeats, runs, device, not tiny) for each in (config, wide)],
        "inference": lambda: inference(digits(options.data, images), config, steps * 10, runs, device),
        "whole_job": lambda: whole_job("sample" if tiny else "digits-tiny", warmup, steps, runs),
    }
    if device.type == "cuda":
        parts["photos"] = lambda: [
            *training(photos, size, repeats, runs, device, every_setting=True),
            share_of_peak(photos, size, repeats, runs, device, True),
        ]
    rows = []
    print(f"{describe(device)}, Python {platform.python_version()}, {runs} alternating runs")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "timm", "vit-pytorch")))
    print("\n| what | ours | against | ratio |\n| --- | --- | --- | --- |")
    for name in options.only or parts:
        for row in parts[name]():
            rows.append(row)
            print(row, flush=True)
    if options.json:
        machine = {"device": describe(device), "python": platform.python_version(), "torch": torch.__version__}
        content = {"machine": machine, "rows": [{**asdict(row), "ratios": row.ratios()} for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
