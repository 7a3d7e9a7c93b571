"""Model folders that lie: whatever their files ask for, a command takes or refuses them, in one line and early."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from helpers import refused_by_train, refused_by_vit_scratch
from hostile import Watch, changed, examples, files, program, shares
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.cli import main
from hf_vit_scratch.conversion.pretrained import load_pretrained
from hf_vit_scratch.evaluation.classifier import load_model
from hf_vit_scratch.hub.repository import files_to_push
from hf_vit_scratch.training.assembly import build_processor

SIZES = dict(image_size=16, patch_size=8, num_channels=3, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
SIZES |= dict(intermediate_size=16, id2label={0: "blue", 1: "red"}, label2id={"blue": 0, "red": 1})
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


def save_ours(folder: Path) -> None:
    model = ViTScratchForImageClassification(ViTScratchConfig(**SIZES))
    model.save_pretrained(folder)
    build_processor(model.config, 0.8).save_pretrained(folder)


def save_vit(folder: Path) -> None:
    ViTForImageClassification(ViTConfig(**SIZES)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def save_timm(folder: Path) -> None:
    arguments = dict(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, mlp_ratio=2.0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, **arguments)
    save_for_hf(model, folder, model_config={"label_names": ["a", "b"]}, model_args=arguments, safe_serialization=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Folders ours, vit and timm, and sharded, which is ours with its weights in two files."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    for kind, save in {"ours": save_ours, "vit": save_vit, "timm": save_timm}.items():
        save(folder / kind)
    shutil.copytree(folder / "ours", folder / "sharded")
    weights = load_file(folder / "ours" / WEIGHTS)
    (folder / "sharded" / WEIGHTS).unlink()
    names, places = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / "sharded" / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "sharded" / INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.new("RGB", (20, 30), "red").save(file)
    return file


def edit(name: str, **changes):
    def damage(folder: Path):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def content(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def nan(folder: Path):
    file = folder / WEIGHTS
    weights = load_file(file)
    name = next(name for name in sorted(weights) if weights[name].dim() == 2)
    weights[name][0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def integers(folder: Path):
    save_file({name: each.int() for name, each in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def huge_header(folder: Path):
    (folder / WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + b"{}" * 100)


DAMAGES = {
    "a list": (content(CONFIG, "[1, 2]"), "config.json must hold a JSON object, got list"),
    "a number": (content(CONFIG, "7"), "config.json must hold a JSON object, got int"),
    "deep": (content(CONFIG, "[" * 100_000), "config.json is damaged: it is not JSON"),
    "10^9 labels": (edit(CONFIG, id2label=None, num_labels=10**9), "1000000000"),
    "10^6 layers": (edit(CONFIG, num_hidden_layers=10**6), "num_hidden_layers must be an integer from 1 to 1,000"),
    "2^64": (
        edit(CONFIG, hidden_size=2**64),
        "hidden_size must be an integer from 1 to 65,536, got 18446744073709551616",
    ),
    "a size that is a text": (edit(CONFIG, hidden_size="8"), "hidden_size must be an integer"),
    "wider than its weights": (edit(CONFIG, hidden_size=4096, intermediate_size=16384), "config.json"),
    "an image of 100,000 pixels": (edit(CONFIG, image_size=10**5), "image_size"),
    "no name of a class": (edit(CONFIG, id2label={"0": "a", "7": "b"}), "id2label must name the classes 0 to"),
    "a list of names": (edit(CONFIG, id2label=["a", "b"]), "id2label"),
    "a type of numbers": (edit(CONFIG, dtype="float99"), "float99"),
    "quantized": (edit(CONFIG, quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
    "other weights": (edit(CONFIG, transformers_weights="../other.safetensors"), "transformers_weights"),
    "the name of a method": (edit(CONFIG, to_dict=1), "'to_dict', which is not a field"),
    "architectures": (edit(CONFIG, architectures=5), "architectures must be a list of names, got 5"),
    "processor, a list": (content(PREPROCESSOR, "[]"), "preprocessor_config.json must hold a JSON object, got list"),
    "a crop of 100,000": (edit(PREPROCESSOR, crop_size={"height": 10**5, "width": 10**5}), "crop_size must be sides"),
    "a size of 2^64": (edit(PREPROCESSOR, size={"shortest_edge": 2**64}), "size must be sides"),
    "a size of -1": (edit(PREPROCESSOR, size={"height": -1, "width": 16}), "size must be sides"),
    "a mean": (edit(PREPROCESSOR, image_mean="half"), "image_mean must be a number, or one for each channel"),
    "std 0": (edit(PREPROCESSOR, image_std=[0, 0, 0]), "image_std must be a number, or one for each channel, above 0"),
    "resample": (edit(PREPROCESSOR, resample=99), "resample must be an integer from 0 to 5, got 99"),
    "a flag": (edit(PREPROCESSOR, do_resize="no"), "do_resize must be true or false, got 'no'"),
    "NaN": (nan, "holds NaN or infinity"),
    "integers": (integers, "has the type I32, expected floating point"),
    "a header of 2^40 bytes": (huge_header, "model.safetensors is not a complete safetensors file"),
}
OF_OURS = {"other channels": (edit(PREPROCESSOR, num_channels=1), "makes pixels of (1, 16, 16)")}


@pytest.mark.parametrize("damage", [*DAMAGES, *OF_OURS])
def test_a_folder_that_lies_is_refused_by_every_command_and_early(damage, whole, picture, tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(whole / "ours", folder)
    change, words = {**DAMAGES, **OF_OURS}[damage]
    change(folder)
    commands = [["predict", picture, "--model", folder]]
    if damage in ("NaN", "10^6 layers", "a list"):
        commands += [["export", "--model", folder, "--format", "torch", "--output_dir", out]]
        commands += [["push", folder, "alice/model", "--dry_run"]]
    if damage not in OF_OURS:
        commands += [["train.py", "--model_name_or_path", folder, "--data", "nowhere", "--output_dir", out]]
    watch = Watch(tmp_path)
    for command, *flags in commands:
        refused = refused_by_train if command == "train.py" else refused_by_vit_scratch
        argv = flags if command == "train.py" else [command, *flags]
        line = refused(capsys, *map(str, argv))
        assert words in line and str(folder) in line and len(line) < 700, line
    watch.outcome(lambda: load_model(folder))
    assert watch.bytes < 2**27 and not out.exists()


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if "method" not in damage])
def test_a_vit_of_transformers_that_lies_is_refused(damage, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole / "vit", folder)
    DAMAGES[damage][0](folder)
    watch = Watch(tmp_path)
    line = watch.outcome(lambda: load_pretrained(str(folder)))
    assert line and f"cannot start from {folder}" in line and watch.bytes < 2**27


@pytest.mark.parametrize(
    "change",
    [dict(depth=10**6), dict(embed_dim=2**20), dict(embed_dim=4096), dict(img_size=10**6), dict(depth="x"), "NaN"],
    ids=str,
)
def test_a_model_of_timm_that_lies_is_refused(change, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole / "timm", folder)
    if change == "NaN":
        nan(folder)
    else:
        arguments = json.loads((folder / CONFIG).read_text())["model_args"] | change
        edit(CONFIG, model_args=arguments)(folder)
    watch = Watch(tmp_path)
    line = watch.outcome(lambda: load_pretrained(str(folder)))
    assert line and f"cannot start from {folder}" in line and watch.bytes < 2**27


@pytest.mark.parametrize(
    "name", ["../ours/model.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", "", 7, None]
)
@pytest.mark.parametrize("load", [load_model, load_pretrained, files_to_push], ids=lambda load: load.__name__)
def test_an_index_that_points_out_of_the_folder_is_refused(load, name, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole / "sharded", folder)
    shutil.copytree(whole / "ours", tmp_path / "ours")
    load(str(folder))  # as it is
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {next(iter(index["weight_map"])): name}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model.safetensors.index.json names"):
        load(str(folder))
    for damaged in ({"weight_map": []}, {"weight_map": {}}, {}, {"weight_map": index["weight_map"], "metadata": 1}):
        (folder / INDEX).write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match="must have a weight_map"):
            load(str(folder))


def test_big_but_real_models_are_not_refused(tmp_path):
    for fields in (
        dict(image_size=[518, 1036], patch_size=14, hidden_size=1408, num_hidden_layers=40, num_attention_heads=16),
        dict(image_size=64, patch_size=1, num_channels=4), dict(image_size=2048, num_labels=21843),
        dict(hidden_size=6144, num_hidden_layers=48, num_attention_heads=48, intermediate_size=24576),
    ):  # fmt: skip
        assert ViTScratchConfig(**fields).num_tokens > 1


OTHERS = ("num_labels", "quantization_config", "return_dict", "output_attentions", "dtype", "torch_dtype", "validate")
OTHERS += ("use_cache", "attn_implementation", "auto_map", "transformers_weights", "is_encoder_decoder", "__class__")
OTHERS += (
    "pad_size",
    "do_pad",
    "crop_size",
    "resample",
    "rescale_factor",
    "image_mean",
    "do_convert_rgb",
    "model_args",
)


@shares(fast=60)
def test_any_model_folder_is_loaded_or_refused(cases, whole, picture, tmp_path):
    folder, watch = tmp_path / "model", Watch(tmp_path)
    originals = {
        kind: {
            name: (whole / kind / name).read_bytes() for name in os.listdir(whole / kind) if not name.endswith(".py")
        }
        for kind in ("ours", "vit", "timm", "sharded")
    }

    @st.composite
    def folders(draw):
        kind = draw(st.sampled_from(["ours", "ours", "vit", "timm", "sharded"]))
        name = draw(st.sampled_from(sorted(originals[kind])))
        text = originals[kind][name]
        if name.endswith(".json") and draw(st.booleans()):
            text = json.dumps(draw(changed(json.loads(text), OTHERS))).encode()
        else:
            text = draw(files([text], (b"null", b"[", b'"a": ', b"1e999", b"\\ud800")))
        return kind, name, text

    @examples(cases)
    @given(folders())
    def holds(case):
        kind, name, text = case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for other, whole_text in originals[kind].items():
            (folder / other).write_bytes(text if other == name else whole_text)
        if kind in ("ours", "sharded"):
            watch.outcome(program(main, "predict", picture, "--model", folder))
        watch.outcome(lambda: load_pretrained(str(folder)) and None)

    holds()
    assert 0 < watch.refused < watch.cases
    print("model folders:", watch)
