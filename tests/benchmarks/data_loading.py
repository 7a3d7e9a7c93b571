"""Time from the competition's files to the first training batch, beside pandas.read_csv on the same CSVs.

Every run is a fresh process and is timed after its imports; pandas, cold (empty cache) and warm (full cache) take
turns, so that all three see the same machine. pandas reads the CSVs unpacked, `load` the source as it is given.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PANDAS = """
import sys, time
import pandas
start = time.perf_counter()
train, test = pandas.read_csv(sys.argv[1] + "/train.csv"), pandas.read_csv(sys.argv[1] + "/test.csv")
print(time.perf_counter() - start)
"""
LOAD = """
import sys, time
from hf_vit_scratch import ViTScratchImageProcessor
from hf_vit_scratch.data.batches import ImageBatches
from hf_vit_scratch.data import load
processor = ViTScratchImageProcessor(num_channels=1, size={"height": 28, "width": 28})
start = time.perf_counter()
splits = load(sys.argv[1], cache_dir=sys.argv[2])
batch = ImageBatches(splits["train"], processor).__getitems__(list(range(0, 128)))
print(time.perf_counter() - start)
"""
ROOT = Path(__file__).resolve().parents[2]


def seconds(script: str, *arguments: str) -> float:
    """What a script prints that is run in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(data: str, runs: int) -> dict[str, list[float]]:
    """Seconds of "pandas", "cold" and "warm" in each run. `data`: the competition's zip, or a folder with CSVs."""
    times = {"pandas": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = data
        if zipfile.is_zipfile(data):
            folder = os.path.join(scratch, "csv")
            with zipfile.ZipFile(data) as archive:
                archive.extractall(folder, ["train.csv", "test.csv"])
        seconds(PANDAS, folder)  # the files are then in the page cache for all
        for run in range(runs):
            cache = os.path.join(scratch, f"cache-{run}")
            times["pandas"].append(seconds(PANDAS, folder))
            times["cold"].append(seconds(LOAD, data, cache))
            times["warm"].append(seconds(LOAD, data, cache))
    return times
