import getpass
import os
import platform
from importlib import metadata

import torch
from helpers import REPOSITORY

from hf_vit_scratch.cli import main


def test_env_prints_what_a_bug_report_needs_and_nothing_private(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    main(["env"])
    printed = capsys.readouterr().out
    facts = dict(line.removeprefix("- ").split(": ", 1) for line in printed.splitlines())
    assert facts["torch"] == torch.__version__.partition("+")[0] or facts["torch"] == torch.__version__
    assert facts["transformers"] == metadata.version("transformers")
    assert facts["Python"].startswith(platform.python_version())
    assert facts["OMP_NUM_THREADS"] == "3"
    assert {"hf-vit-scratch", "device", "bf16", "torch.compile", "accelerate config", "timm"} <= facts.keys()
    private = ["hf_abc", str(REPOSITORY), os.path.expanduser("~"), platform.node()]
    assert not [word for word in private if word in printed], printed
    assert f"/{getpass.getuser()}" not in printed


def test_a_package_that_is_not_there_is_said_to_be_missing(capsys, monkeypatch):
    version = metadata.version

    def without_timm(name):
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_timm)
    main(["env"])
    assert "- timm: not installed\n" in capsys.readouterr().out
