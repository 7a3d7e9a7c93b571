"""Exports against ONNX Runtime, and against torch and transformers in a process that cannot import this package."""

import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import REPOSITORY
from packaging.version import Version
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import AutoImageProcessor

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.cli import main
from hf_vit_scratch.conversion import export

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
LABELS = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
MODELS = {
    "grey": {"image_size": 28, "patch_size": 7, "num_channels": 1},
    "colour": {"image_size": [16, 32], "patch_size": 8, "num_channels": 3, "qkv_bias": False},
    "hybrid": {
        **{"image_size": [16, 24], "patch_size": 8, "num_channels": 3, "num_hidden_layers": 1},
        **{"stem": "conv", "pooling": "mean", "position_embedding": "sincos2d"},
    },
}
PROCESSORS = {
    "grey": {"size": {"height": 28, "width": 28}, "num_channels": 1},
    "colour": {
        **{"size": {"shortest_edge": 37}, "default_to_square": False},
        **{"do_center_crop": True, "crop_size": {"height": 16, "width": 32}},
    },
    "hybrid": {"size": {"height": 16, "width": 24}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
}
# What each model is exported to in the fixture.
EXPORTS = [
    ("grey", "onnx"),
    ("hybrid", "onnx"),
    ("hybrid", "torch"),
    ("grey", "transformers"),
    ("colour", "transformers"),
]
# torch.export.load comes first, where there is no transformers either.
ELSEWHERE = """
import sys
sys.modules["hf_vit_scratch"] = sys.modules["transformers"] = None
import numpy, torch
found = {}
program = torch.export.load("hybrid-torch/model.pt2").module()
for size in (1, 5):
    with torch.no_grad():
        found[f"program{size}"] = program(torch.from_numpy(numpy.load("images.npy"))[:size])
del sys.modules["transformers"]
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
for name, mode in (("grey", "L"), ("colour", "RGB")):
    model = AutoModelForImageClassification.from_pretrained(f"{name}-transformers")
    processor = AutoImageProcessor.from_pretrained(f"{name}-transformers", backend="pil")
    assert type(model).__module__.startswith("transformers."), type(model)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    with torch.no_grad():
        inputs = processor(Image.open("photo.png").convert(mode), return_tensors="pt")
        found[f"{name}-photo"] = model(**inputs).logits
numpy.savez("found.npz", **found)
"""


def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((200, 133))


def images(name: str, count: int = 5) -> torch.Tensor:
    config = ViTScratchConfig(**{**SMALL, **MODELS[name]})
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, config.num_channels, *config.image_height_width, generator=generator)


@torch.no_grad()
def logits(folder, name: str, pixel_values: torch.Tensor) -> np.ndarray:
    return ViTScratchForImageClassification.from_pretrained(folder / name).eval()(pixel_values).logits.numpy()


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models with every weight random: grey, colour, hybrid."""
    folder, generator = tmp_path_factory.mktemp("models"), torch.Generator().manual_seed(0)
    for name, fields in MODELS.items():
        model = ViTScratchForImageClassification(ViTScratchConfig(**{**SMALL, **LABELS, **fields}))
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
        model.save_pretrained(folder / name)
        ViTScratchImageProcessor(**PROCESSORS[name]).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    """The folder of the models, with those of `EXPORTS` beside them, named model-format."""
    for name, format in EXPORTS:
        report = export.export_model(str(folder / name), format, folder / f"{name}-{format}")
        assert report.startswith(f"{folder / name}-{format}: config.json, model.")
        assert ('convert("L")' in report) == (name == "grey")
    return folder


@pytest.fixture(scope="module")
def found(exported):
    """Logits from another process, which can import neither this package nor the code beside the models."""
    photo().save(exported / "photo.png")
    np.save(exported / "images.npy", images("hybrid").numpy())
    run = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=exported, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return np.load(exported / "found.npz")


@pytest.mark.parametrize("name", ["grey", "hybrid"])
def test_onnx_runtime_computes_the_same_logits_for_any_batch(exported, name):
    file = exported / f"{name}-onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [(node.name, node.shape) for node in session.get_inputs()] == [
        ("pixel_values", ["batch", *images(name).shape[1:]])
    ]
    assert [(node.name, node.shape) for node in session.get_outputs()] == [("logits", ["batch", 2])]
    for size in (1, 2, 5):
        pixel_values = images(name, size)
        (found,) = session.run(None, {"pixel_values": pixel_values.numpy()})
        assert_close(found, logits(exported, name, pixel_values))
    assert str(REPOSITORY).encode() not in file.read_bytes()


def test_a_torch_program_runs_without_this_package_and_transformers(exported, found):
    for size in (1, 5):
        assert_close(found[f"program{size}"], logits(exported, "hybrid", images("hybrid")[:size]))
    assert str(REPOSITORY).encode() not in (exported / "hybrid-torch" / "model.pt2").read_bytes()


@pytest.mark.parametrize("name", ["grey", "colour"])
def test_transformers_computes_the_same_from_a_photo_without_this_package(exported, found, name):
    processor = ViTScratchImageProcessor.from_pretrained(exported / name)
    pixel_values = processor(photo(), return_tensors="pt").pixel_values
    assert_close(found[f"{name}-photo"], logits(exported, name, pixel_values))


@pytest.mark.parametrize(("name", "format"), EXPORTS)
def test_a_folder_has_what_serving_takes_and_no_code(exported, name, format):
    output = exported / f"{name}-{format}"
    weights = {"onnx": "model.onnx", "torch": "model.pt2", "transformers": "model.safetensors"}[format]
    assert {file.name for file in output.iterdir()} == {"config.json", "preprocessor_config.json", weights}
    assert output.stat().st_mode == (exported / name).stat().st_mode
    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert (
        config["image_size"] == MODELS[name]["image_size"] and config["num_channels"] == MODELS[name]["num_channels"]
    )
    for file in output.glob("*.json"):
        assert "auto_map" not in file.read_text() and str(exported) not in file.read_text()


@pytest.mark.parametrize("name", MODELS)
def test_transformers_processor_gives_the_same_pixel_values(tmp_path, name):
    ours = ViTScratchImageProcessor(**PROCESSORS[name])
    export.to_transformers_processor(ours).save_pretrained(tmp_path)
    same = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    near = AutoImageProcessor.from_pretrained(tmp_path)  # torchvision's, where that is installed
    assert type(same).__module__.startswith("transformers.")
    transparent = photo().convert("RGBA")
    transparent.putalpha(photo().convert("L"))
    pictures = [photo(), photo().resize((40, 90)), photo().convert("L"), photo().convert("P")]
    if Version(metadata.version("transformers")) >= Version("5.23"):  # lays transparency on white, as ours does
        pictures.append(transparent)
    for picture in [picture.convert("L") for picture in pictures] if name == "grey" else pictures:
        expected = ours(picture, return_tensors="np").pixel_values
        np.testing.assert_array_equal(same(picture, return_tensors="np").pixel_values, expected)
        level = 1.01 / 255 / np.min(ours.image_std)
        np.testing.assert_allclose(near(picture, return_tensors="np").pixel_values, expected, rtol=0, atol=level)


# Refusals


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, argv)])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and printed.out == "" and "Traceback" not in printed.err
    line = printed.err.strip().splitlines()[-1]  # after what transformers shows of its progress
    assert line.startswith("vit-scratch: error:")
    return line


def test_the_command_says_in_two_lines_what_it_wrote(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    main(["export", "--model", str(folder / "grey"), "--format", "transformers", "--output_dir", f"{tmp_path}/empty"])
    first, second = capsys.readouterr().out.splitlines()
    assert "config.json, model.safetensors, preprocessor_config.json; a logit differs by at most" in first
    assert "AutoImageProcessor" in second
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("model", "format", "output", "words"),
    [
        ("grey", "onnx", "full", "expected a new or empty folder, got a folder with files in it"),
        ("grey", "onnx", "full/file", "expected a new or empty folder, got a file"),
        ("absent", "torch", "new", "cannot load a model from"),
        ("hybrid", "transformers", "new", "no stem 'conv'"),
        ("grey", "tflite", "new", "tflite"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(folder, tmp_path, capsys, model, format, output, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    argv = ["--model", folder / model, "--format", format, "--output_dir", tmp_path / output]
    line = refused(capsys, *argv)
    assert words in line
    assert format in export.FORMATS or all(known in line for known in export.FORMATS)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_onnx_without_its_extra_says_how_to_install_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refused(capsys, "--model", folder / "grey", "--format", "onnx", "--output_dir", tmp_path / "new")
    assert 'onnxscript: pip install "hf-vit-scratch[export]"' in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("off", [2e-4, float("nan")])
def test_what_computes_something_else_is_refused_and_removed(folder, tmp_path, capsys, monkeypatch, off):
    """Wrong in the largest of the batches alone."""
    write = export.FORMATS["transformers"]

    def write_wrong(model, path):
        written = write(model, path)
        return lambda batch: written(batch) + (off if len(batch) == 8 else 0)

    monkeypatch.setitem(export.FORMATS, "transformers", write_wrong)
    argv = ["--model", folder / "grey", "--format", "transformers", "--output_dir", tmp_path / "new"]
    assert "a logit differs by" in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(folder, tmp_path, monkeypatch):
    def interrupted(model, path):
        (path / "half").write_text("written")
        raise KeyboardInterrupt

    monkeypatch.setitem(export.FORMATS, "onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.export_model(folder / "grey", "onnx", tmp_path / "new")
    assert not list(tmp_path.iterdir())
