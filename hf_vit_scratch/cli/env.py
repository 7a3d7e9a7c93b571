"""`vit-scratch env`: print facts about machine and installation for a bug report."""

import argparse
import json
import os
import platform
from importlib import metadata

from .flags import add_command

PACKAGES = (
    *("torch", "transformers", "datasets", "safetensors", "huggingface_hub", "accelerate", "evaluate", "numpy"),
    *("pillow", "pyarrow", "scikit-learn", "optuna", "torchvision", "timm", "captum"),
    *("onnx", "onnxscript", "onnxruntime"),
)


def add_parser(parsers) -> None:
    """Add the command and its flags."""
    add_command(parsers, "env", run, help="print versions, device and installation, for a bug report")


def run(arguments: argparse.Namespace) -> None:
    """Print one line per fact, without user names, paths and tokens."""
    from accelerate.commands.config.config_args import default_config_file

    from ..device import best_device, can_compile, computes_bf16, describe

    device = best_device()
    facts = {
        "hf-vit-scratch": _install(),
        "Python": f"{platform.python_version()}, {platform.system()} {platform.release()}",
        "device": describe(device),
        "bf16": "in hardware" if computes_bf16(device) else "not in hardware",
        "torch.compile": "can be used" if can_compile() else "has no effect: no C++ compiler or no setuptools",
        "accelerate config": "a default config file" if os.path.isfile(default_config_file) else "none",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }
    for name, fact in {**facts, **{name: _version(name) for name in PACKAGES}}.items():
        print(f"- {name}: {fact}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _install() -> str:
    """The version, and whether the package was installed from a wheel or a clone."""
    try:
        package = metadata.distribution("hf-vit-scratch")
    except metadata.PackageNotFoundError:
        return "not installed, run from a folder"
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    return f"{package.version}, installed {'from a clone, editable' if editable else 'as a wheel'}"
