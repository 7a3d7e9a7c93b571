"""Time from the competition's files to both splits ready, beside pandas.read_csv on the same CSVs.

    python tests/benchmarks/data_loading.py --data digit-recognizer.zip

Every run is a fresh process and is timed after its imports; pandas, cold (empty cache) and warm (full cache) take
turns, so that all three see the same machine. pandas reads the CSVs unpacked, `load` the source as it is given.
"""

import argparse
import os
import statistics
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
from hf_vit_scratch.data import load
start = time.perf_counter()
splits = load(sys.argv[1], cache_dir=sys.argv[2])
print(time.perf_counter() - start)
"""
ROOT = Path(__file__).resolve().parents[2]


def seconds(script: str, *arguments: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the competition's zip, or a folder with its plain CSVs")
    parser.add_argument("--runs", type=int, default=7, help="runs of each (default: 7)")
    options = parser.parse_args()
    times = {"pandas": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data
        if zipfile.is_zipfile(options.data):
            folder = os.path.join(scratch, "csv")
            with zipfile.ZipFile(options.data) as archive:
                archive.extractall(folder, ["train.csv", "test.csv"])
        seconds(PANDAS, folder)  # the files are then in the page cache for all
        for run in range(options.runs):
            cache = os.path.join(scratch, f"cache-{run}")
            times["pandas"].append(seconds(PANDAS, folder))
            times["cold"].append(seconds(LOAD, options.data, cache))
            times["warm"].append(seconds(LOAD, options.data, cache))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        each = " ".join(f"{value:.2f}" for value in values)
        ratio = medians[name] / medians["pandas"]
        print(f"{name:7} median {medians[name]:.3f} s, {ratio:.2f} of pandas, runs: {each}")


if __name__ == "__main__":
    main()
