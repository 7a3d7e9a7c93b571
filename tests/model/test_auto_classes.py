"""Checkpoints in other processes: without the package, with the code that a checkpoint carries, and with the package.

Each process starts in an empty folder, with caches of its own and without network. Importing transformers takes
seconds, so that a process checks as much as it can.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_python as run_fresh
from safetensors.torch import load_file

import hf_vit_scratch
from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor

CODE = [f"{name}_vit_scratch.py" for name in ("configuration", "digits", "image_processing", "modeling")]
FIELDS = {
    "grey": {},
    "colour": {
        "image_size": [8, 12],
        "num_channels": 3,
        "pooling": "mean",
        "position_embedding": "sincos2d",
        "stem": "conv",
        "initializer_range": 0.0,
    },
}
SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "id2label": {0: "zero", 1: "one", 2: "two"},
    "initializer_range": 0.5,
}
PICTURES = ["grey.png", "rgb.png", "palette.png", "grey.jpg", "rgb.jpg"]

# Arguments: the folder of the checkpoints, and one to save them to again after loading.
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["hf_vit_scratch"] = None  # an installed package is not found either
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

source, target = map(Path, sys.argv[1:])
results = {}
for name in ("grey", "colour"):
    folder = source / name
    for auto_class in (AutoConfig, AutoModel, AutoModelForImageClassification, AutoImageProcessor):
        try:
            auto_class.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError(f"{auto_class.__name__} ran code that nobody trusted")
    trusted = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trusted)
    processor = AutoImageProcessor.from_pretrained(folder, **trusted)
    encoder = AutoModel.from_pretrained(folder, **trusted)
    model = AutoModelForImageClassification.from_pretrained(folder, **trusted)
    assert type(model).__module__.startswith("transformers_modules.")
    assert config.model_type == "vit_scratch" and config.id2label[2] == "two"
    fresh = AutoModelForImageClassification.from_config(config, **trusted)
    assert fresh.num_parameters() == model.num_parameters()
    for load in (AutoConfig, AutoModelForImageClassification):
        try:
            load.from_pretrained(folder, hidden_size=63, **trusted)
        except ValueError as error:
            assert "63" in str(error)
        else:
            raise AssertionError("a hidden_size that the heads do not divide was taken")
    classify = pipeline("image-classification", model=str(folder), **trusted)
    for picture in sorted(source.glob("*.[pj][np]g")):
        with torch.no_grad():
            values = processor(Image.open(picture), return_tensors="pt").pixel_values
            results[f"{name} {picture.name} logits"] = model(values).logits[0]
            results[f"{name} {picture.name} pooled"] = encoder(values).pooler_output[0]
        if picture.name != "transparent.png":  # a pipeline drops the alpha channel before the processor sees it
            scores = {answer["label"]: answer["score"] for answer in classify(str(picture))}
            in_order = [scores[config.id2label[index]] for index in range(3)]
            results[f"{name} {picture.name} scores"] = torch.tensor(in_order)
    model.save_pretrained(target / name)
    processor.save_pretrained(target / name)
    encoder.save_pretrained(target / f"{name}-encoder")
save_file(results, target / "results.safetensors")
"""

# Arguments: a folder of a checkpoint, and import statements. A fork of its own for each: none has run in it before.
WITH_A_CLASS_OF_THE_PACKAGE = """
import os, sys
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

folder, *statements = sys.argv[1:]
for statement in statements:
    child = os.fork()
    if child == 0:
        try:
            assert "hf_vit_scratch" not in sys.modules
            exec(statement)
            for trust in (False, None, True):
                for auto_class in (AutoConfig, AutoModel, AutoModelForImageClassification, AutoImageProcessor):
                    loaded = auto_class.from_pretrained(folder, trust_remote_code=trust)
                    assert type(loaded).__module__.startswith("hf_vit_scratch."), (trust, type(loaded))
            AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder))
            AutoConfig.for_model("vit_scratch", hidden_size=24)
            classify = pipeline("image-classification", model=folder, trust_remote_code=False)
            assert len(classify(os.path.join(folder, os.pardir, "grey.png"))) == 3
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"failed after: {statement}")
"""


def run_python(script: str, folder: Path, *arguments, import_package: bool = False):
    """Run a script in a process that starts in `folder`, with its own caches."""
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules")}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if import_package:
        environment["PYTHONPATH"] = str(Path(hf_vit_scratch.__file__).parents[1])
    run_fresh(script, *arguments, environment=environment, cwd=folder)


def predict(folder: Path, pictures: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint answers to the pictures here, with the package and without Auto classes."""
    model = ViTScratchForImageClassification.from_pretrained(folder)
    processor = ViTScratchImageProcessor.from_pretrained(folder)
    results = {}
    for picture in sorted(pictures.glob("*.[pj][np]g")):
        with torch.no_grad():
            values = processor(Image.open(picture), return_tensors="pt").pixel_values
            results[f"{folder.name} {picture.name} logits"] = model(values).logits[0]
            results[f"{folder.name} {picture.name} pooled"] = model.vit(values).pooler_output[0]
    return results


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with the checkpoints of `FIELDS` and the pictures: one drawing, in five kinds of file, and another."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, fields in FIELDS.items():
        torch.manual_seed(0)
        model = ViTScratchForImageClassification(ViTScratchConfig(**{**SMALL, **fields}))
        model.save_pretrained(root / name)
        height, width = model.config.image_height_width
        processor = ViTScratchImageProcessor(
            size={"height": height, "width": width}, num_channels=model.config.num_channels
        )
        processor.save_pretrained(root / name)
    drawing = np.zeros((16, 16), dtype=np.uint8)
    drawing[2:14, 6:10] = 255
    grey = Image.fromarray(drawing)
    for picture in PICTURES:
        mode = {"grey": "L", "rgb": "RGB", "palette": "P"}[picture.split(".")[0]]
        grey.convert(mode).save(root / picture, **({"quality": 100, "subsampling": 0} if "jpg" in picture else {}))
    Image.fromarray(np.dstack([np.zeros((16, 16, 3), dtype=np.uint8), 255 - drawing])).save(root / "transparent.png")
    return root


@pytest.fixture(scope="module")
def second_process(checkpoints, tmp_path_factory) -> Path:
    """Where a process without the package saved what it loaded, and its results."""
    folder = tmp_path_factory.mktemp("second")
    run_python(WITHOUT_THE_PACKAGE, folder, checkpoints, folder)
    return folder


def test_a_process_without_the_package_gives_the_same_results(checkpoints, second_process):
    results = load_file(second_process / "results.safetensors")
    for name in FIELDS:
        expected = predict(checkpoints / name, checkpoints)
        assert len(expected) == 2 * (len(PICTURES) + 1)
        for key, value in expected.items():
            torch.testing.assert_close(results[key], value)
        for picture in PICTURES:
            scores, logits = results[f"{name} {picture} scores"], results[f"{name} {picture} logits"]
            torch.testing.assert_close(scores, logits.softmax(dim=-1))
            # All are the same drawing.
            close = {"rtol": 0, "atol": 0.05} if picture.endswith("jpg") else {}
            torch.testing.assert_close(logits, results[f"{name} grey.png logits"], **close)
        # Black ink on nothing is the drawing of white, on paper.
        transparent = results[f"{name} transparent.png logits"]
        torch.testing.assert_close(transparent, results[f"{name} grey.png logits"])
        assert not torch.allclose(logits, torch.zeros(3), atol=0.01)


def test_a_model_that_was_loaded_without_the_package_carries_the_code_on(checkpoints, second_process, tmp_path):
    package = Path(hf_vit_scratch.__file__).parent / "model"
    for name in FIELDS:
        for folder in (checkpoints / name, second_process / name, second_process / f"{name}-encoder"):
            for file in CODE:
                assert (folder / file).read_bytes() == (package / file).read_bytes()
            auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
            assert set(auto_map) == {
                "AutoConfig",
                "AutoModel",
                "AutoModelForImageClassification",
                "AutoImageProcessor",
            }
            for reference in auto_map.values():
                module, class_name = reference.split(".")
                assert f"class {class_name}(" in (folder / f"{module}.py").read_text()
    for picture in checkpoints.glob("*.[pj][np]g"):
        (second_process / picture.name).write_bytes(picture.read_bytes())
    run_python(WITHOUT_THE_PACKAGE, tmp_path, second_process, tmp_path)
    first, second = (load_file(folder / "results.safetensors") for folder in (second_process, tmp_path))
    torch.testing.assert_close(second, first)


def test_with_any_class_of_the_package_imported_no_code_of_the_checkpoint_is_needed(checkpoints, tmp_path):
    classes = {
        "ViTScratchConfig": "configuration_vit_scratch",
        "ViTScratchModel": "modeling_vit_scratch",
        "ViTScratchForImageClassification": "modeling_vit_scratch",
        "ViTScratchImageProcessor": "image_processing_vit_scratch",
    }
    statements = [f"from hf_vit_scratch import {name}" for name in classes]
    statements += [f"from hf_vit_scratch.model.{module} import {name}" for name, module in classes.items()]
    run_python(WITH_A_CLASS_OF_THE_PACKAGE, tmp_path, checkpoints / "grey", *statements, import_package=True)
    assert not list((tmp_path / "modules").glob("**/*vit_scratch*"))


# How the files registered themselves while they were modules of the package's top folder, as pushed checkpoints do.
BEFORE_THE_ROOMS = {
    "configuration_vit_scratch.py": """
from importlib import import_module
if __name__ == "hf_vit_scratch.configuration_vit_scratch":
    import_module("hf_vit_scratch.modeling_vit_scratch")
""",
    "image_processing_vit_scratch.py": """
from importlib import import_module
if __name__ == "hf_vit_scratch.image_processing_vit_scratch":
    import_module("hf_vit_scratch.modeling_vit_scratch")
""",
    "modeling_vit_scratch.py": """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
if __name__ == "hf_vit_scratch.modeling_vit_scratch":
    AutoConfig.register(ViTScratchConfig.model_type, ViTScratchConfig, exist_ok=True)
    AutoModel.register(ViTScratchConfig, ViTScratchModel, exist_ok=True)
    AutoModelForImageClassification.register(ViTScratchConfig, ViTScratchForImageClassification, exist_ok=True)
    processors = {"pil": ViTScratchImageProcessor}
    AutoImageProcessor.register(ViTScratchConfig, image_processor_classes=processors, exist_ok=True)
""",
}


def test_a_checkpoint_of_the_time_before_the_rooms_loads_with_the_package_and_without(
    checkpoints, second_process, tmp_path
):
    old = shutil.copytree(checkpoints, tmp_path / "old")
    for folder in (old / name for name in FIELDS):
        for file, registration in BEFORE_THE_ROOMS.items():
            (folder / file).write_text((folder / file).read_text() + registration)
    run_python(WITHOUT_THE_PACKAGE, tmp_path / "new", old, tmp_path / "new")
    expected, found = (load_file(folder / "results.safetensors") for folder in (second_process, tmp_path / "new"))
    torch.testing.assert_close(found, expected)
    statement = "from hf_vit_scratch import ViTScratchModel"
    run_python(WITH_A_CLASS_OF_THE_PACKAGE, tmp_path / "with", old / "grey", statement, import_package=True)
    assert not list((tmp_path / "with" / "modules").glob("**/*vit_scratch*"))
