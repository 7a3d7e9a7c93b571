"""Images a second of small photographs: from files, with crops in workers, augmented in batches, and in `train.py`.

Each part alone, on a folder of JPEGs of 32x32 pixels: `--data`, or shapes and noise that are drawn for it.

- files: `load` from files that are not cached, which decodes each once.
- crops: what a `DataLoader` delivers if each image is decoded and cropped at random, as it is where images differ in
  size; with the memory that its workers add to that of the process (unique set size).
- augmentation: flips, crops, shifts and cutout of a batch in memory.
- train.py: `--recipe photos-tiny` with AdamW, and after it, in the same process, a bare loop
  of forward, backward and AdamW on one batch.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from streaming import jpeg

from hf_vit_scratch import data
from hf_vit_scratch.data.augmentation import PhotoAugmentation
from hf_vit_scratch.data.batches import ImageBatches, keep_batch
from hf_vit_scratch.data.random_numbers import image_keys
from hf_vit_scratch.data.sampling import Steps, TrainingBatches
from hf_vit_scratch.device import describe, set_up_cpu
from hf_vit_scratch.model.image_processing_vit_scratch import ViTScratchImageProcessor

SIDE, BATCH = 32, 128
WHOLE_JOB = Path(__file__).parent / "whole_job.py"


def write(folder: Path, images: int) -> None:
    """Two classes of JPEGs in folders."""
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "train" / label).mkdir(parents=True)
        for number in range(images // 2):
            (folder / "train" / label / f"{number:05d}.jpg").write_bytes(jpeg(random, SIDE))


def read(folder: str, scratch: str, run: int) -> tuple[float, datasets.Dataset]:
    """Images a second of `load` with an empty cache, and the training split."""
    start = time.perf_counter()
    splits = data.load(folder, cache_dir=f"{scratch}/cache{run}", validation_size=0)
    images = sum(map(len, splits.values()))
    return images / (time.perf_counter() - start), splits["train"]


def memory_of(pids: list[int]) -> float:
    """Unique set size of processes in MB: the memory that they share with no other process."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def crops(files: list[str], workers: int) -> tuple[float, float]:
    """Images a second of a DataLoader that decodes and crops, and the memory of its workers in MB."""
    split = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    images = ImageBatches(split, ViTScratchImageProcessor(size={"height": SIDE, "width": SIDE}), min_crop_area=0.35)
    batches = TrainingBatches(len(split), Steps(BATCH), seed=0, data_seed=0)
    loader = iter(
        torch.utils.data.DataLoader(images, batch_sampler=batches, collate_fn=keep_batch, num_workers=workers)
    )
    next(loader)
    start = time.perf_counter()
    count = sum(len(batch["pixel_values"]) for batch in (next(loader) for _ in range(len(batches) - 2)))
    seconds = time.perf_counter() - start
    taken = memory_of([worker.pid for worker in getattr(loader, "_workers", [])])
    return count / seconds, taken


def augmented(repeats: int) -> float:
    """Images a second of the augmentation of one batch."""
    images, keys = torch.rand(BATCH, 3, SIDE, SIDE), image_keys(0, 0, torch.arange(BATCH))
    augment = PhotoAugmentation(min_crop_area=0.35, shift_pixels=2, cutout_pixels=8)
    augment(images, keys)
    start = time.perf_counter()
    for _ in range(repeats):
        augment(images, keys)
    return repeats * BATCH / (time.perf_counter() - start)


def whole_job(folder: str, tiny: bool) -> list[float]:
    """Images a second of train.py and of the bare loop, in a process of its own."""
    flags = ["--data", folder, "--validation_size", "0", "--muon_learning_rate", "0"]
    flags += ["--hidden_size", "8", "--torch_compile", "false", "--use_cpu", "true"] if tiny else []
    flags += ["--per_device_train_batch_size", "16", "--num_attention_heads", "2"] if tiny else []
    steps = ["1", "2"] if tiny else ["20", "60"]
    command = [sys.executable, str(WHOLE_JOB), "ours", "photos-tiny", *steps, *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(word) for word in printed.rpartition("images/s")[2].split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Folder with images of 32x32 pixels in train/CLASS/. Default: drawn images.")
    parser.add_argument("--images", type=int, default=10_000, help="Number of drawn images (default: %(default)s).")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="Default: %(default)s.")
    parser.add_argument("--runs", type=int, default=3, help="Default: %(default)s.")
    parser.add_argument("--tiny", action="store_true", help="A tiny model: to see that all of it runs.")
    options = parser.parse_args()
    set_up_cpu()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or f"{scratch}/drawn"
        if options.data is None:
            write(Path(folder), options.images)
        files = sorted(map(str, Path(folder, "train").glob("*/*")))
        files = files[:: max(1, len(files) // options.images)]
        rows: dict[str, list[float]] = {}
        for run in range(options.runs):
            rows.setdefault("files, nothing cached", []).append(read(folder, scratch, run)[0])
            for workers in options.workers:
                speed, memory = crops(files, workers)
                rows.setdefault(f"crops, workers: {workers}", []).append(speed)
                if workers:
                    rows.setdefault(f"MB of a worker, of {workers}", []).append(memory / workers)
            rows.setdefault("augmentation", []).append(augmented(2 if options.tiny else 100))
            ours, bare = whole_job(folder, options.tiny)
            for name, figure in (("train.py", ours), ("bare loop", bare), ("train.py / bare loop", ours / bare)):
                rows.setdefault(name, []).append(figure)
    print(f"{describe(torch.device('cpu'))}, {options.runs} runs, images of {SIDE} pixels, batches of {BATCH}")
    print("\n| what | |\n| --- | --- |")
    for name, figures in rows.items():
        unit = "" if name.startswith("MB") or "/" in name else " images/s"
        digits = ".2f" if "/" in name else ".1f" if name.startswith("MB") else ",.0f"
        print(f"| {name} | {np.mean(figures):{digits}} ± {np.std(figures):{digits}}{unit} |")


if __name__ == "__main__":
    main()
