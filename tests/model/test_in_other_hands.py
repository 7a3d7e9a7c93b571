"""The model in other people's hands: replicas, hooks, tracing, subclasses, a pipeline in a terminal.

What is expected is what transformers' own ViT does with the same weights, or what a second process finds.
"""

import io
import json
import os
import pty
import shutil
import sys
from importlib import import_module
from pathlib import Path

import onnxruntime
import pytest
import torch
from helpers import REPOSITORY
from processes import run_python
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import replicate
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, ViTForImageClassification

from hf_vit_scratch import (
    ViTScratchConfig,
    ViTScratchForImageClassification,
    ViTScratchImageProcessor,
    ViTScratchModel,
)
from hf_vit_scratch.conversion import to_transformers

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_labels": 5,
    "initializer_range": 0.3,
}
OPTIONS = {"stem": "conv", "pooling": "mean", "position_embedding": "sincos2d"}
CODE = [f"{name}_vit_scratch.py" for name in ("configuration", "digits", "image_processing", "modeling")]
NAMED = {file for file in CODE if not file.startswith("digits")}  # by auto_map; these import the others


def make_model(model_class: type = ViTScratchForImageClassification, **fields):
    torch.manual_seed(0)
    return model_class(ViTScratchConfig(**{**SMALL, **fields})).eval()


def make_pixels(batch_size: int = 4) -> torch.Tensor:
    return torch.randn(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# nn.DataParallel


@pytest.fixture
def replicas_on_the_cpu(monkeypatch):
    """torch's replicate() copies the weights to GPUs; this one to the CPU. All else that it does stays."""
    module = import_module("torch.nn.parallel.replicate")
    copies = lambda tensors, devices, detach=False: [[tensor * 1 for tensor in tensors] for _ in devices]  # noqa: E731
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(module, "_get_device_index", lambda device, optional: device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_class", [ViTScratchModel, ViTScratchForImageClassification])
@pytest.mark.parametrize(
    "fields", [{}, {"stem": "conv"}, {"stem": "conv", "stem_depth": 2, "pooling": "mean"}], ids=str
)
def test_replicas_of_data_parallel_give_the_outputs_of_the_model(replicas_on_the_cpu, fields, model_class, dtype):
    model = make_model(model_class, **fields).to(dtype)
    replicas = replicate(model, [0, 1])
    assert not list(replicas[0].parameters())  # so that a replica cannot ask them for its dtype
    halves = [replica(half) for replica, half in zip(replicas, make_pixels().chunk(2), strict=True)]
    whole = model(make_pixels())
    for name in whole:
        found = torch.cat([half[name] for half in halves])
        assert found.dtype == dtype
        torch.testing.assert_close(found, whole[name])


def test_replicas_train_as_those_of_transformers_vit_do(replicas_on_the_cpu):
    ours = make_model()
    theirs, gradients = to_transformers(ours), []
    for model in (ours, theirs):
        model(make_pixels(), output_hidden_states=True)  # or each replica installs hooks of its own, in ViT as here
        parts = zip(replicate(model, [0, 1]), make_pixels().chunk(2), torch.tensor([0, 3, 1, 4]).chunk(2), strict=True)
        outputs = [replica(half, labels=labels, output_hidden_states=True) for replica, half, labels in parts]
        assert [len(half.hidden_states) for half in outputs] == [4, 4]
        torch.stack([half.loss for half in outputs]).mean().backward()
        gradients.append(model.classifier.weight.grad)
    torch.testing.assert_close(*gradients)


# Hooks


def watch(modules: dict[str, nn.Module], seen: dict, kind: str) -> list:
    """Hooks that keep the output of a module, or the gradient of its output."""

    def forward(name):
        return lambda module, arguments, output: seen.update({name: output[0] if type(output) is tuple else output})

    if kind == "forward":
        return [module.register_forward_hook(forward(name)) for name, module in modules.items()]
    return [
        module.register_full_backward_hook(lambda module, inner, outer, name=name: seen.update({name: outer[0]}))
        for name, module in modules.items()
    ]


def places(ours: nn.Module, theirs: nn.Module) -> tuple[dict, dict]:
    """The same places in both models, all in the last block or behind it."""
    names = ("", ".layernorm_before", ".layernorm_after", ".mlp", ".mlp.fc1", ".mlp.fc2", ".attention")
    names = [f"vit.layers.2{name}" for name in names] + ["vit.layernorm"]
    found = []
    for model in (ours, theirs):
        own = dict(model.named_modules())
        found.append({name: own[name] for name in names if name in own})
        found[-1]["projection"] = own.get("vit.layers.2.attention.proj", own.get("vit.layers.2.attention.o_proj"))
    assert found[0].keys() == found[1].keys() and len(found[0]) == len(names) + 1
    return tuple(found)


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hooks_in_the_last_block_see_what_those_of_transformers_vit_see(kind, attention):
    ours = make_model(attn_implementation=attention).double()
    theirs = to_transformers(ours).eval().double()
    theirs.set_attn_implementation(attention)
    ours_at, theirs_at = places(ours, theirs)
    for name in ours_at:  # one hook at a time: each has to be noticed by itself
        found = []
        for model, modules in ((ours, ours_at), (theirs, theirs_at)):
            seen = {}
            (handle,) = watch({name: modules[name]}, seen, kind)
            model(make_pixels().double())["logits"][:, 2].sum().backward()
            handle.remove()
            found.append(seen[name])
        assert found[0].shape[:2] == (4, 5), name
        # transformers' eager attention computes its softmax in float32.
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", ["layernorm_before", "layer"])
def test_grad_cam_at_the_last_block_is_that_of_transformers_vit(target):
    """Activations of the patches, weighted by the mean gradient over them, as pytorch-grad-cam does it for a ViT."""
    ours, maps = make_model(), []
    for model in (ours, to_transformers(ours).eval()):
        layer, kept = model.vit.layers[-1], {}

        def keep(module, arguments, output, kept=kept):
            kept["activations"] = output
            output.register_hook(lambda gradient: kept.update(gradients=gradient))

        (layer.layernorm_before if target == "layernorm_before" else layer).register_forward_hook(keep)
        model(make_pixels())["logits"][:, 1].sum().backward()
        weights = kept["gradients"][:, 1:].mean(dim=1, keepdim=True)
        maps.append((weights * kept["activations"][:, 1:]).sum(dim=-1))
    assert maps[0].shape == (4, 4)
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5)


class Keeper:
    """A hook that is an object with `__call__`, as tools for extracting features have them."""

    def __init__(self):
        self.shapes = []

    def __call__(self, module, *arguments):
        first = arguments[-1][0] if isinstance(arguments[-1], tuple) else arguments[-1]
        self.shapes.append(tuple(getattr(first, "shape", ())))


@torch.no_grad()
def test_hooks_of_every_kind_are_noticed_and_the_short_way_comes_back_after_them():
    model, pixels = make_model(attn_implementation="eager"), make_pixels()

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            model(pixels)
        return counter.get_total_flops()

    model(pixels, output_hidden_states=True, output_attentions=True)  # leaves hooks of transformers on the layers
    short, keeper = flops(), Keeper()
    register_globally = nn.modules.module.register_module_forward_hook
    last = model.vit.layers[-1]
    for register in (
        last.register_forward_hook,
        last.register_forward_pre_hook,
        last.mlp.fc2.register_forward_pre_hook,
        last.drop_path.register_forward_hook,
        model.vit.layernorm.register_forward_hook,
        register_globally,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register(keeper)
        assert flops() > short
        handle.remove()
        assert flops() == short
        assert any(shape[:2] == (4, 5) for shape in keeper.shapes)
        assert not any(shape[:2] == (4, 1) for shape in keeper.shapes)
        keeper.shapes.clear()
    handle = model.vit.register_forward_hook(lambda module, arguments, output: keeper(None, output.last_hidden_state))
    model(pixels)
    assert keeper.shapes == [(4, 5, 16)]
    handle.remove()
    for elsewhere in (model, model.classifier, model.vit.embeddings, model.vit.layers[0], model.vit.layers[1].mlp):
        handle = elsewhere.register_forward_hook(keeper)
        assert flops() == short
        handle.remove()


@torch.no_grad()
def test_a_compiled_and_an_exported_model_have_all_tokens_where_a_hook_looks():
    torch._dynamo.reset()
    model, pixels, seen = make_model(), make_pixels(), {}
    expected = model(pixels).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels).logits, expected)
    for hook in (lambda module, arguments, output: seen.update(last=output), None):
        handle = model.vit.layers[-1].register_forward_hook(hook) if hook else None
        torch._dynamo.reset()
        torch.testing.assert_close(compiled(pixels).logits, expected)
        exported = torch.export.export(model, (pixels,)).graph.nodes
        norms = [node.meta["val"].shape for node in exported if "layer_norm" in node.name]
        assert norms[-1] == (4, 5 if hook else 1, 16)
        if handle:
            compiled(pixels)
            assert seen["last"].shape == (4, 5, 16)
            handle.remove()


# Tracing


class LogitsOnly(nn.Module):
    """`(batch, 3, 8, 8)` -> logits, as a traced model returns tensors alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"pooling": "mean"}, OPTIONS], ids=str)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_model_traced_to_onnx_takes_other_batch_sizes(attention, fields):
    model = make_model(attn_implementation=attention, **fields)
    file = io.BytesIO()
    names = {
        "input_names": ["pixel_values"],
        "output_names": ["logits"],
        "dynamic_axes": {"pixel_values": {0: "batch"}},
    }
    torch.onnx.export(LogitsOnly(model).eval(), (make_pixels(2),), file, dynamo=False, **names)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for batch_size in (1, 2, 5):
        pixels = make_pixels(batch_size)
        (logits,) = session.run(None, {"pixel_values": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(pixels).logits, rtol=1e-4, atol=1e-5)


# Subclasses


@pytest.mark.parametrize("name", ["Mine", "DigitsForCausalLM", "PageForSegmentation", "MineForImageClassification"])
def test_a_subclass_has_the_loss_of_image_classification_whatever_its_name(name):
    ours, pixels = make_model(type(name, (ViTScratchForImageClassification,), {})), make_pixels()
    theirs = to_transformers(make_model()).eval()
    several = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]])
    for problem, labels in ((None, torch.tensor([0, 3, 1, 4])), ("multi_label_classification", several)):
        ours.config.problem_type = theirs.config.problem_type = problem
        outputs = ours(pixels, labels=labels)
        torch.testing.assert_close(outputs.loss, theirs(pixels, labels=labels).loss)
    torch.testing.assert_close(outputs.loss, nn.functional.binary_cross_entropy_with_logits(outputs.logits, several))


OUTSIDE = """
from transformers import ViTForImageClassification
from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchModel

class Mine(ViTScratchForImageClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 2
        return outputs

class MyEncoder(ViTScratchModel):
    pass

class MineConfig(ViTScratchConfig):
    temperature: float = 0.5

class WithItsOwnConfig(ViTScratchForImageClassification):
    config_class = MineConfig

class Theirs(ViTForImageClassification):
    pass
"""
BESIDE = """
from .modeling_vit_scratch import ViTScratchForImageClassification

class Doubled(ViTScratchForImageClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 2
        return outputs

Doubled.register_for_auto_class("AutoModelForImageClassification")
"""
# Argument: a folder of checkpoints. Writes each one's class and logits.
LOAD_WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["hf_vit_scratch"] = None
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

root, classes, logits = Path(sys.argv[1]), {}, {}
pixels = load_file(root / "pixels.safetensors")["pixels"]
for folder in sorted(path for path in root.iterdir() if (path / "config.json").exists()):
    auto_class = AutoModel if folder.name == "MyEncoder" else AutoModelForImageClassification
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).hidden_size == 16
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(encoder).__name__ == "ViTScratchModel" or "transformers.models.vit." in type(encoder).__module__
    classes[folder.name] = type(model).__name__
    with torch.no_grad():
        outputs = model(pixels)
    answer = outputs["logits"] if "logits" in outputs else outputs["pooler_output"]
    logits[folder.name] = answer.contiguous()
    model.save_pretrained(folder / "again")
(root / "classes.json").write_text(json.dumps(classes))
save_file(logits, root / "logits.safetensors")
"""


def files_that_it_names(folder: Path) -> set[str]:
    """The files of the classes in auto_map, each of which has to be there and hold its class."""
    auto_map = json.loads((folder / "config.json").read_text()).get("auto_map", {})
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert f"class {name}(" in (folder / f"{module}.py").read_text(), reference
    return {f"{reference.split('.')[0]}.py" for reference in auto_map.values()}


@pytest.fixture(scope="module")
def subclasses(tmp_path_factory) -> dict[str, Path]:
    """Folders that objects of subclasses have saved, by the name of the class."""
    root, own = tmp_path_factory.mktemp("subclasses"), tmp_path_factory.mktemp("own")
    (own / "outside.py").write_text(OUTSIDE)
    (own / "beside").mkdir()
    (own / "beside" / "mine.py").write_text(BESIDE)
    for file in CODE:
        shutil.copy(REPOSITORY / "hf_vit_scratch" / "model" / file, own / "beside")
    sys.path.insert(0, str(own))
    try:
        outside, beside = import_module("outside"), import_module("beside.mine")
    finally:
        sys.path.remove(str(own))
    shown = type("Shown", (ViTScratchForImageClassification,), {"__module__": "__main__"})  # of a notebook
    config = import_module("beside.configuration_vit_scratch").ViTScratchConfig(**SMALL)
    models = [make_model(kind) for kind in (outside.Mine, outside.MyEncoder, shown)]
    models.append(outside.WithItsOwnConfig(outside.MineConfig(**SMALL, temperature=0.25)))
    models.append(beside.Doubled(config))
    models.append(outside.Theirs(to_transformers(make_model()).config))
    state = make_model().state_dict()
    for model in models[2:5]:
        model.load_state_dict(state)
    models[5].load_state_dict(to_transformers(make_model()).state_dict())
    for model in models:
        model.save_pretrained(root / type(model).__name__)
    save_file({"pixels": make_pixels()}, root / "pixels.safetensors")
    return {type(model).__name__: root / type(model).__name__ for model in models} | {"root": root}


def test_the_folder_of_a_subclass_loads_without_the_package_as_that_of_a_subclass_of_vit_does(subclasses, tmp_path):
    root = subclasses["root"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    run_python(LOAD_WITHOUT_THE_PACKAGE, root, environment=environment, cwd=tmp_path)
    classes, logits = json.loads((root / "classes.json").read_text()), load_file(root / "logits.safetensors")
    # transformers loads the base class for a subclass that has not registered itself.
    assert classes.pop("Theirs") == "ViTForImageClassification"
    assert classes.pop("Doubled") == "Doubled"
    assert classes.pop("MyEncoder") == "ViTScratchModel"
    assert classes == dict.fromkeys(("Mine", "Shown", "WithItsOwnConfig"), "ViTScratchForImageClassification")
    with torch.no_grad():
        model = make_model()
        expected = model(make_pixels()).logits
        torch.testing.assert_close(logits["MyEncoder"], make_model(ViTScratchModel)(make_pixels()).pooler_output)
    for name, found in logits.items():
        if name != "MyEncoder":
            torch.testing.assert_close(found, expected * 2 if name == "Doubled" else expected, rtol=1e-4, atol=1e-5)
    for name in subclasses.keys() - {"root", "Theirs"}:
        for folder in (root / name, root / name / "again"):
            own = {"mine.py"} if name == "Doubled" else set()
            assert files_that_it_names(folder) == {*NAMED, *own}
            assert {file.name for file in folder.glob("*.py")} == {*CODE, *own}
    assert "auto_map" not in (root / "Theirs" / "config.json").read_text()


def test_a_subclass_loads_its_own_folder_and_a_class_of_the_package_takes_it_too(subclasses):
    mine = import_module("outside").Mine.from_pretrained(subclasses["Mine"])
    base = AutoModelForImageClassification.from_pretrained(subclasses["Mine"])
    assert type(base) is ViTScratchForImageClassification
    torch.testing.assert_close(mine(make_pixels()).logits, 2 * base(make_pixels()).logits)
    again = import_module("outside").WithItsOwnConfig.from_pretrained(subclasses["WithItsOwnConfig"])
    assert again.config.temperature == 0.25


def test_a_subclass_that_registers_itself_is_named_beside_the_files_of_the_package(subclasses, tmp_path):
    mine = import_module("outside").Mine
    registered = type("Registered", (mine,), {"__module__": "outside"})
    registered.register_for_auto_class("AutoModelForImageClassification")
    theirs = type("TheirsRegistered", (ViTForImageClassification,), {"__module__": "outside"})
    theirs.register_for_auto_class("AutoModelForImageClassification")
    for kind, model in (("ours", make_model(registered)), ("theirs", theirs(to_transformers(make_model()).config))):
        model.save_pretrained(tmp_path / kind)
    named = [json.loads((tmp_path / kind / "config.json").read_text())["auto_map"] for kind in ("ours", "theirs")]
    assert named[0]["AutoModelForImageClassification"] == "outside.Registered"
    assert named[1] == {"AutoModelForImageClassification": "outside.TheirsRegistered"}
    assert {file.name for file in (tmp_path / "ours").glob("*.py")} == {*CODE, "outside.py"}
    # What the next model with this config saves is its own again.
    model = make_model()
    model.config = ViTScratchConfig.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "base")
    assert files_that_it_names(tmp_path / "base") == NAMED


# A pipeline in a terminal

# Arguments: folders. The last line shows that this terminal is one in which transformers asks.
PIPELINES = """
import sys
import numpy as np
from PIL import Image
from hf_vit_scratch import ViTScratchConfig
from transformers import pipeline
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

def remote():
    return [name for name in sys.modules if name.startswith("transformers_modules.")]

picture = Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28))
for folder in sys.argv[1:]:
    for task in ("image-classification", "image-feature-extraction"):
        answer = pipeline(task, model=folder)(picture)
        assert not remote(), remote()
        print("answered", task, len(answer))
print("asks now")
del VIDEO_PROCESSOR_MAPPING._extra_content[ViTScratchConfig]
pipeline("image-classification", model=sys.argv[1])
print("ran", remote())
"""


def in_a_terminal(code: str, *arguments: str, environment: dict[str, str]) -> str:
    """What `python -c code *arguments` shows in a pseudo-terminal in which every question is answered with y."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-W", "ignore", "-c", code, *arguments], environment)
    shown, answered = b"", 0
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # on Linux the end of what a terminal shows
            break
        if not part:
            break
        shown += part
        if shown.count(b"[y/N]") > answered:
            answered += 1
            os.write(terminal, b"y\n")
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0, shown.decode()
    return shown.decode()


def test_a_pipeline_in_a_terminal_neither_asks_nor_runs_code_of_the_folder(tmp_path):
    released = REPOSITORY / "model_cards" / "vit-scratch-digits-small"
    folders = [str(released)]
    for name, fields in (("cls", {}), ("options", {**OPTIONS, "num_channels": 1})):
        make_model(**fields).save_pretrained(tmp_path / name)
        processor = ViTScratchImageProcessor(
            size={"height": 8, "width": 8}, num_channels=fields.get("num_channels", 3)
        )
        processor.save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    for file in CODE:  # code of the folder that cannot be imported unnoticed
        (tmp_path / "cls" / file).write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(REPOSITORY)}
    shown = in_a_terminal(PIPELINES, *folders, environment=environment)
    quiet, _, asked = shown.partition("asks now")
    assert quiet.count("answered image-classification") == quiet.count("answered image-feature-extraction") == 3
    assert "custom code" not in quiet and "[y/N]" not in quiet and "trust_remote_code" not in quiet
    assert not (tmp_path / "was_run").exists()
    # Without the registration in model/__init__.py transformers does ask here, and runs the code after a y.
    assert "Do you wish to run the custom code? [y/N]" in asked and "image_processing_vit_scratch" in asked
