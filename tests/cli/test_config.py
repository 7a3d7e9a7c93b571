"""The config files of Accelerate: it reads them, and launches what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from helpers import REPOSITORY, TINY
from helpers import refused_by_vit_scratch as refused

from hf_vit_scratch.cli import main

NAMES = ("cpu", "fsdp", "gpu", "gpus", "machines")
RECORDING = """
import json, os, sys
from accelerate import PartialState
from hf_vit_scratch.training import job, trainer
train = trainer.ViTScratchTrainer.train
def record(self, *args, **kwargs):
    found, state = train(self, *args, **kwargs), PartialState()
    local = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in self.model.parameters())
    facts = [state.num_processes, self.args.device.type, local, sum(p.numel() for p in self.model.parameters())]
    with open(f"rank-{state.process_index}.json", "w") as file:
        json.dump(facts, file)
    return found
trainer.ViTScratchTrainer.train = record
job.main(sys.argv[1:])
"""


def path_of(name: str, capsys) -> str:
    main(["config", name])
    return capsys.readouterr().out.rstrip("\n")


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_the_file(name, capsys):
    config = load_config_from_file(path_of(name, capsys))  # it refuses unknown keys
    assert isinstance(config, ClusterConfig)
    several = {"cpu": 2, "fsdp": 2, "gpu": 1, "gpus": 2, "machines": 4}
    assert config.num_processes == several[name] and config.num_machines == (2 if name == "machines" else 1)
    assert config.use_cpu == (name == "cpu")
    assert config.fsdp_config.get("fsdp_version") == (2 if name == "fsdp" else None)


def test_without_a_name_they_are_listed_and_an_unknown_one_is_refused(capsys):
    main(["config"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all(line.endswith(".") for line in lines)
    assert f"expected one of {', '.join(NAMES)}" in refused(capsys, "config", "tpu")


def launch(folder: Path, data: str, *flags: str) -> list[subprocess.Popen]:
    """Start `accelerate launch` of a tiny run with these flags, once for each `--machine_rank`."""
    (folder / "train.py").write_text(RECORDING)
    machines = [["--machine_rank", str(rank)] for rank in (0, 1)] if "machines.yaml" in flags[1] else [[]]
    run = ["train.py", "--data", data, *TINY, "--max_steps", "2", "--output_dir", "out", "--bf16", "false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen([*command, *each, *run], cwd=folder, env=environment, **pipes) for each in machines]


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["cpu", "fsdp", "machines"])
def test_accelerate_launches_it_on_a_cpu(name, digits, tmp_path, capsys):
    """`machines` is two launches on one machine. A plain pytest launches `cpu` too, as an example of a page."""
    world = 4 if name == "machines" else 2
    port = ["--main_process_port", "0"] if world == 2 else []
    for process in launch(tmp_path, digits, "--config_file", path_of(name, capsys), *port):
        output, _ = process.communicate()
        assert process.returncode == 0, output
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(world)]
    assert {(processes, device) for processes, device, _, _ in ranks} == {(world, "cpu")}
    local, total = [part for _, _, part, _ in ranks], ranks[0][3]
    if name == "fsdp":
        assert sum(local) == total and max(local) < 0.6 * total
    else:
        assert set(local) == {total}
    assert (tmp_path / "out" / "model.safetensors").is_file()
