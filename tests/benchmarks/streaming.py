"""Images a second that a stream of shards loads, with nothing else to do, against what a model trains on.

The shards are made for it: JPEGs of 224 pixels with smooth shapes and noise, about as large as photographs of that
size, in Parquet files and in tar files. Loading decodes each JPEG and crops it at random, as --recipe photos-small
does. The model trains on one batch in memory, over and over. The disk is not measured: the page cache has the shards.
"""

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from steps import batch, build, house_setting, rates, training_step

from hf_vit_scratch import ViTScratchConfig
from hf_vit_scratch.data.sampling import Steps, TrainingBatches
from hf_vit_scratch.data.shards import load_stream
from hf_vit_scratch.data.streaming import StreamedBatches, StreamedImages
from hf_vit_scratch.device import best_device, describe, set_up_cpu
from hf_vit_scratch.training.assembly import build_processor

KINDS = ("parquet", "tar")


def jpeg(random: np.random.Generator, side: int) -> bytes:
    """A picture with few large shapes and some noise, in the quality that cameras write."""
    shapes = Image.fromarray(random.integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    pixels = np.asarray(shapes, np.float32) + random.normal(0, 12, (side, side, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "jpeg", quality=90)
    return stream.getvalue()


def write(folder: Path, images: int, shards: int, side: int) -> int:
    """The same images as Parquet and as tar shards, in a folder for each. Returns the mean size of a JPEG in bytes."""
    random, sizes = np.random.default_rng(0), []
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["0", "1"]))
    for kind in KINDS:
        (folder / kind).mkdir()
    for shard in range(shards):
        content = [jpeg(random, side) for _ in range(images // shards)]
        sizes += map(len, content)
        labels, name = [number % 2 for number in range(len(content))], f"train-{shard:05d}"
        rows = {"image": [{"bytes": one, "path": None} for one in content], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "parquet" / f"{name}.parquet")
        with tarfile.open(folder / "tar" / f"{name}.tar", "w") as archive:
            for number, (one, label) in enumerate(zip(content, labels, strict=True)):
                for suffix, member in (("jpg", one), ("cls", b"%d" % label)):
                    header = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    header.size = len(member)
                    archive.addfile(header, io.BytesIO(member))
    return sum(sizes) // len(sizes)


def loading(folder: Path, config: ViTScratchConfig, size: int, workers: int, runs: int) -> list[float]:
    """Images a second of whole epochs, each after the first, which starts the workers."""
    stream = load_stream(folder, cache_dir=str(folder.parent / "cache"))["train"]
    images = StreamedImages(stream, build_processor(config), min_crop_area=0.35)
    batches = StreamedBatches(images, TrainingBatches(len(stream), Steps(size), seed=0, data_seed=0))
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    figures = []
    for epoch in range(runs + 1):
        batches.set_epoch(epoch)
        start = time.perf_counter()
        images = sum(len(one["labels"]) for one in loader)
        figures.append(images / (time.perf_counter() - start))
    return figures[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", nargs="+", default=["Ti/16", "S/16"], help="Sizes of the model (default: %(default)s)."
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="Default: %(default)s.")
    parser.add_argument("--batch_size", type=int, default=32, help="Default: %(default)s.")
    parser.add_argument("--images", type=int, default=2000, help="Images of an epoch (default: %(default)s).")
    parser.add_argument("--runs", type=int, default=3, help="Epochs, and runs of the model (default: %(default)s).")
    parser.add_argument(
        "--tiny", action="store_true", help="Small images and a tiny model: to see that all of it runs."
    )
    options = parser.parse_args()
    set_up_cpu()
    datasets.disable_progress_bars()
    device, side, repeats = best_device(), 32 if options.tiny else 224, 1 if options.tiny else 4
    fields = {"image_size": side, "num_labels": 2}
    fields |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} if options.tiny else {}
    configs = {name: ViTScratchConfig.from_size(name, **fields) for name in options.size}
    print(f"{describe(device)}, {options.runs} runs, batches of {options.batch_size}, images of {side} pixels")
    print("\n| what | images/s |\n| --- | --- |")

    def show(what: str, figures: list[float]) -> None:
        print(f"| {what} | {np.mean(figures):,.0f} ± {np.std(figures):,.0f} |", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        size = write(Path(scratch), options.images, 8, side)
        for kind in KINDS:
            for workers in options.workers:
                config = next(iter(configs.values()))
                figures = loading(Path(scratch) / kind, config, options.batch_size, workers, options.runs)
                show(f"loading {kind} shards, JPEGs of {size / 1000:.0f} kB, workers: {workers}", figures)
    for name, config in configs.items():
        setting = house_setting(config, device, compiled=not options.tiny)
        step = training_step(
            build("ours", config, setting, device), setting, *batch(config, options.batch_size, device)
        )
        measured = rates({name: step}, options.batch_size, repeats, options.runs, warmup=1 if options.tiny else 3)
        show(f"a training step of {name}, {setting}", measured[name])


if __name__ == "__main__":
    main()
