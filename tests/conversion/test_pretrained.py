"""Fine-tuning starts from what the source computes: models of this package, transformers and timm, made small here.

Weights are random throughout, so that nothing that is dropped or swapped hides behind zeros and ones.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import REPOSITORY, photo_folder
from PIL import Image
from processes import run_python
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.conversion.pretrained import load_pretrained, model_name
from hf_vit_scratch.evaluation.classifier import load_model
from hf_vit_scratch.settings.flags import parse_arguments
from hf_vit_scratch.training import main
from hf_vit_scratch.training.assembly import build_processor

SIZES = dict(image_size=32, patch_size=8, num_channels=3, hidden_size=16, num_hidden_layers=2)
SIZES |= dict(num_attention_heads=2, intermediate_size=32)
CLASSES = ["blue", "green", "red"]
LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
# A run of seconds; two epochs of eight images in batches of four are four steps.
QUICK = ["--num_train_epochs", "2", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0"]
QUICK += [
    "--eval_steps",
    "0.5",
    "--save_steps",
    "0.5",
    "--use_cpu",
    "true",
    "--bf16",
    "false",
    "--disable_tqdm",
    "true",
]


def randomized(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model.eval()


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def save_ours(folder: Path, **fields):
    model = randomized(ViTScratchForImageClassification(ViTScratchConfig(**{**SIZES, **LABELS, **fields})))
    model.save_pretrained(folder)
    build_processor(model.config, 0.8).save_pretrained(folder)
    return model


def save_vit(folder: Path, model_class=ViTForImageClassification, **fields):
    model = randomized(model_class(ViTConfig(**{**SIZES, **LABELS, **fields})))
    model.save_pretrained(folder)
    pixels = dict(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    ViTImageProcessorPil(**pixels).save_pretrained(folder)
    return model


def save_timm(folder: Path, **others):
    arguments = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, **others)
    model = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments))
    model.pretrained_cfg |= dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2), crop_pct=0.92, interpolation="bilinear")
    save_for_hf(model, folder, model_config={"label_names": CLASSES}, model_args=arguments, safe_serialization=True)
    return model


SOURCES = {"ours": save_ours, "transformers": save_vit, "timm": save_timm}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[Path, torch.nn.Module]]:
    """A folder of each kind and the model that was saved in it."""
    folder = tmp_path_factory.mktemp("sources")
    return {kind: (folder / kind, save(folder / kind)) for kind, save in SOURCES.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """Two classes, blue and red, 8 pictures each for training and 4 for validation."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    photo_folder(folder)
    return str(folder)


def fitted(folder: Path, classes=CLASSES, **fields):
    pretrained = load_pretrained(str(folder))
    return pretrained.fit(pretrained.config_for(fields, list(classes), "photos")).eval()


def logits(model, pixels, **kwargs):
    with torch.no_grad():
        outputs = model(pixels, **kwargs)
    return getattr(outputs, "logits", outputs)


# ---- what the model computes before it is trained


@pytest.mark.parametrize("kind", SOURCES)
def test_the_logits_are_those_of_the_source(kind, sources):
    folder, source = sources[kind]
    model, expected = fitted(folder), logits(source, images())
    assert type(model) is ViTScratchForImageClassification
    torch.testing.assert_close(logits(model, images()), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    # The same classes in another order keep the head, each its row.
    turned = fitted(folder, ["red", "blue", "green"])
    torch.testing.assert_close(logits(turned, images()), expected[:, [2, 0, 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [["blue", "red"], ["blue", "green", "yellow"]], ids=len)
@pytest.mark.parametrize("kind", SOURCES)
def test_other_classes_get_a_head_of_zeros_and_the_rest_is_kept(kind, classes, sources):
    folder, _ = sources[kind]
    model, kept = fitted(folder, classes, drop_path_rate=0.2), fitted(folder)
    assert logits(model, images()).tolist() == [[0.0] * len(classes)] * 2
    assert model.config.id2label == dict(enumerate(classes)) and model.config.label2id["blue"] == 0
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(tensor, kept.vit.state_dict()[name]), name
    assert model.vit.layers[1].drop_path.p == 0.2
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification], ids=["encoder", "num_labels 0"])
def test_a_source_without_head_gets_one(model_class, tmp_path):
    source = save_vit(tmp_path / "vit", model_class, **({} if model_class is ViTModel else {"num_labels": 0}))
    model = fitted(tmp_path / "vit")
    with torch.no_grad():
        ours = model.vit(images()).last_hidden_state
        theirs = getattr(source, "vit", source)(images()).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert logits(model, images()).tolist() == [[0.0] * 3] * 2
    model.vit.save_pretrained(tmp_path / "ours")  # and the same as an encoder of this package
    build_processor(model.config).save_pretrained(tmp_path / "ours")
    assert torch.equal(
        fitted(tmp_path / "ours").vit(images()).last_hidden_state, model.vit(images()).last_hidden_state
    )


def test_timms_own_repositories_name_an_architecture_and_keep_a_pickle_beside_the_weights(tmp_path):
    """config.json of timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k, as it is on the Hub."""
    source = randomized(timm.create_model("vit_tiny_patch16_224"))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"is not read")
    pretrained_cfg = {"tag": "augreg_in21k_ft_in1k", "custom_load": True, "input_size": [3, 224, 224]}
    pretrained_cfg |= {"fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    pretrained_cfg |= {"mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 1000, "pool_size": None}
    pretrained_cfg |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 1000, "num_features": 192, "global_pool": "token"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": pretrained_cfg}))
    pretrained = load_pretrained(str(tmp_path))
    torch.testing.assert_close(logits(pretrained.model, images(224)), logits(source, images(224)), rtol=0, atol=1e-4)
    processor = build_processor(pretrained.model.config, pretrained=pretrained)
    assert (processor.size.shortest_edge, processor.crop_size.height, processor.image_mean) == (248, 224, 0.5)


@pytest.mark.parametrize("side", [48, 16])
def test_another_resolution_interpolates_the_positions_as_transformers_does(side, sources):
    folder, source = sources["transformers"]
    model = fitted(folder, image_size=side)
    assert model.config.image_size == side
    assert model.vit.embeddings.position_embeddings.shape == (1, (side // 8) ** 2 + 1, 16)
    expected = logits(source, images(side), interpolate_pos_encoding=True)
    torch.testing.assert_close(logits(model, images(side)), expected, rtol=0, atol=1e-5)
    pixels = images(48)[..., :24]
    torch.testing.assert_close(
        logits(fitted(folder, image_size=[48, 24]), pixels), logits(source, pixels, interpolate_pos_encoding=True)
    )


def test_positions_that_are_not_learned_are_those_of_the_new_grid(tmp_path):
    other = dict(position_embedding="sincos2d", pooling="mean", stem="conv")
    source = save_ours(tmp_path / "ours", **other)
    model = fitted(tmp_path / "ours", image_size=48)
    expected = logits(source, images(48), interpolate_pos_encoding=True)
    torch.testing.assert_close(logits(model, images(48)), expected, rtol=0, atol=1e-5)
    assert {name: getattr(model.config, name) for name in other} == other


def test_the_line_that_says_what_is_new(sources):
    pretrained = load_pretrained(str(sources["timm"][0]))
    same = pretrained.config_for({}, CLASSES, "photos")
    assert pretrained.describe(same) == "Fine-tuning timm at 32x32, its own head for 3 classes."
    other = pretrained.config_for({"image_size": 48}, ["a", "b"], "photos")
    line = "Fine-tuning timm at 48x48, a new head for 2 classes, positions interpolated from 4x4 to 6x6."
    assert pretrained.describe(other) == line


# ---- what the model sees


@pytest.fixture
def picture() -> Image.Image:
    # Resized to 34x56 for timm: an odd margin would be cut one pixel apart, by torchvision and by transformers.
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8))


def our_pixels(folder: Path, picture, **fields):
    pretrained = load_pretrained(str(folder))
    config = pretrained.config_for(fields, CLASSES, "photos")
    return build_processor(config, pretrained=pretrained)(picture, return_tensors="pt")["pixel_values"][0]


def test_pixels_are_those_of_transformers_processor(sources, picture):
    folder, _ = sources["transformers"]
    expected = ViTImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(our_pixels(folder, picture), expected)


def test_pixels_are_those_of_timms_transform(sources, picture):
    from timm.data import create_transform, resolve_data_config

    folder, source = sources["timm"]
    settings = resolve_data_config({"input_size": (3, 32, 32)}, model=source)
    assert settings["interpolation"] == "bilinear" and settings["crop_pct"] == 0.92
    torch.testing.assert_close(our_pixels(folder, picture), create_transform(**settings)(picture), rtol=0, atol=1e-5)


def test_pixels_are_those_of_the_run_before(sources, picture):
    folder, _ = sources["ours"]
    expected = ViTScratchImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(our_pixels(folder, picture), expected)
    # At another resolution the same part of the picture is shown, and a crop that is asked for wins.
    pretrained = load_pretrained(str(folder))
    config = pretrained.config_for({"image_size": 64}, CLASSES, "photos")
    assert build_processor(config, pretrained=pretrained).size.shortest_edge == 80
    assert build_processor(config, 0.5, pretrained).size.shortest_edge == 128


@pytest.mark.parametrize("changes", [{"image_mean": [0.2, 0.2, 0.2], "image_std": [0.3] * 3}, {"do_normalize": False}])
def test_one_mean_for_all_channels_serves_a_grey_model(changes, tmp_path):
    save_vit(tmp_path / "grey", num_channels=1)
    edit_json(tmp_path / "grey" / "preprocessor_config.json", **changes)
    mean, std = (0.2, 0.3) if "image_mean" in changes else (0.0, 1.0)
    pixels = our_pixels(tmp_path / "grey", Image.new("L", (40, 40), 100))
    torch.testing.assert_close(pixels, torch.full((1, 32, 32), (100 / 255 - mean) / std))


# ---- whole runs


def edit_json(file: Path, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def run(model: Path | str, data: str, out: Path, *flags: str) -> dict:
    main(["--model_name_or_path", str(model), "--data", data, "--output_dir", str(out), *QUICK, *flags])
    return json.loads((out / "all_results.json").read_text())


def test_fine_tuning_learns_and_says_what_it_started_from(sources, photos, tmp_path, capsys):
    shutil.copytree(sources["ours"][0], tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", training_data=["earlier"])
    learn = ["--num_train_epochs", "15", "--learning_rate", "3e-3", "--image_size", "48"]
    results = run(tmp_path / "base", photos, tmp_path / "out", *learn)
    assert results["validation_accuracy"] > 0.85 and results["validation_num_images"] == 8
    assert (results["base_model"], results["recipe"]) == ("base", "photos-finetune")
    line = "Fine-tuning base at 48x48, a new head for 2 classes, positions interpolated from 4x4 to 6x6."
    assert line in capsys.readouterr().out
    model, processor = load_model(tmp_path / "out")
    assert model.config.training_data == ["earlier", "photos"]
    assert list(model.config.id2label.values()) == ["blue", "red"]
    assert processor.size.shortest_edge == 60 and processor.crop_size.height == 48
    settings = json.loads((tmp_path / "out" / "training_args.json").read_text())
    assert (settings["run"]["model_name_or_path"], settings["run"]["size"]) == ("base", None)
    texts = [
        path for path in (tmp_path / "out").glob("*") if path.suffix in (".json", ".md") and "state" not in path.name
    ]
    assert not [path for path in texts if str(tmp_path / "base") in path.read_text()]


def test_a_linear_probe_trains_the_head_alone(sources, photos, tmp_path, capsys):
    learn = ["--freeze_encoder", "true", "--num_train_epochs", "15", "--learning_rate", "1e-2"]
    results = run(sources["ours"][0], photos, tmp_path / "out", *learn)
    saved, before = load_file(tmp_path / "out" / "model.safetensors"), fitted(sources["ours"][0]).state_dict()
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["drop_path_rate"] == 0 and results["validation_accuracy"] > 0.7
    card = (tmp_path / "out" / "README.md").read_text()
    assert "a linear head that was trained on the frozen encoder of" in card and "fine-tuned from" not in card
    with pytest.raises(SystemExit):
        run(sources["ours"][0], photos, tmp_path / "out", *learn[2:], "--resume_from_checkpoint", "true")
    assert "freeze_encoder True, but this run has False" in capsys.readouterr().err
    shutil.copytree(tmp_path / "out", tmp_path / "stopped")
    last = max((tmp_path / "stopped").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(last)
    (tmp_path / "stopped" / "model.safetensors").unlink()
    run(sources["ours"][0], photos, tmp_path / "stopped", *learn, "--resume_from_checkpoint", "true")
    again = load_file(tmp_path / "stopped" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("kind", SOURCES)
def test_a_run_without_learning_leaves_the_weights_as_they_were(kind, sources, photos, tmp_path):
    """So the average starts from them, and what is trained, saved and evaluated is the model that was loaded."""
    folder, _ = sources[kind]
    shutil.copytree(Path(photos) / "train" / "red", tmp_path / "photos" / "train" / "green")
    shutil.copytree(photos, tmp_path / "photos", dirs_exist_ok=True)
    run(folder, str(tmp_path / "photos"), tmp_path / "out", "--learning_rate", "0", "--max_steps", "2")
    saved, expected = load_file(tmp_path / "out" / "model.safetensors"), fitted(folder).state_dict()
    assert saved.keys() == expected.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    assert "head" in load_pretrained(str(tmp_path / "out")).describe(fitted(folder).config)


def test_a_resumed_run_ends_as_if_never_stopped_and_needs_the_base_no_more(sources, photos, tmp_path, capsys):
    shutil.copytree(sources["transformers"][0], tmp_path / "base")
    flags = ["--save_steps", "2", "--learning_rate", "1e-3", "--image_size", "48", "--eval_strategy", "no"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(tmp_path / "base", photos, whole, *flags)
    with pytest.raises(SystemExit):
        run(tmp_path / "base", photos, whole, *flags)
    assert "holds a run already" in capsys.readouterr().err
    shutil.copytree(whole, out)
    (out / "model.safetensors").unlink()
    last = max(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
    shutil.rmtree(out / f"checkpoint-{last}")
    shutil.rmtree(tmp_path / "base")
    flags += ["--resume_from_checkpoint", "true"]
    with pytest.raises(SystemExit):
        run(sources["ours"][0], photos, out, *flags)
    assert "cannot resume" in (error := capsys.readouterr().err) and "'base', but this run has 'ours'" in error
    results = run(tmp_path / "base", photos, out, *flags)
    assert results["resumed_from_step"] == last - 2 and results["base_model"] == "base"
    one, other = load_file(out / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_grey_digits_train_a_model_for_colours(sources, tmp_path):
    from helpers import competition_zip

    competition_zip(tmp_path / "digits.zip", num_train=100, num_test=5)
    results = run(sources["timm"][0], str(tmp_path / "digits.zip"), tmp_path / "out", "--max_steps", "2")
    assert results["recipe"] == "digits-finetune" and (tmp_path / "out" / "submission.csv").exists()
    assert load_model(tmp_path / "out")[0].config.num_channels == 3


# ---- flags


def test_the_recipe_follows_the_task_and_the_model_wins_over_its_size(tmp_path):
    base = ["--model_name_or_path", "output/photos"]
    recipes = {"photos": "photos-finetune", "sample": "digits-finetune", "kaggle": "digits-finetune"}
    for source, recipe in recipes.items():
        assert parse_arguments([*base, "--data", source]).run.recipe == recipe
    settings = parse_arguments([*base, "--recipe", "photos-small", "--data", "photos"])
    run = settings.run
    assert (run.size, run.model_name_or_path, settings.model.image_size) == (None, "output/photos", [160])
    assert settings.training.learning_rate == 1e-3
    run = parse_arguments(["--recipe", "photos-finetune"]).run
    assert (run.size, run.model_name_or_path) == (None, "google/vit-base-patch16-224")


def test_a_model_is_called_by_its_id_or_its_folder(tmp_path, monkeypatch):
    (tmp_path / "output" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in ("output/photos", "output/photos/", str(tmp_path / "output" / "photos"), "/gone/photos"):
        assert model_name(source) == "photos"
    assert model_name("google/vit-base-patch16-224") == "google/vit-base-patch16-224"


# ---- refusals


def refusal(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, argv), *QUICK])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("train.py: error:")
    return line


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("ours", ["--hidden_size", "32"], ["hidden_size 32 contradicts ours, which has 16", "image_size"]),
        ("timm", ["--stem", "conv"], ["stem 'conv' contradicts timm, which has 'patch'"]),
        ("transformers", ["--num_channels", "1"], ["num_channels 1 contradicts transformers, which has 3"]),
        ("ours", ["--recipe", "sample"], ["stem 'conv' contradicts ours"]),
        ("ours", ["--size", "Ti/16"], ["size Ti/16 is for a new model", "ours has its own"]),
        ("ours", ["--image_size", "50"], ["image_size 50 is no multiple of patch_size 8: change one"]),
    ],
)
def test_flags_that_contradict_the_model_are_refused(kind, flags, words, sources, photos, tmp_path, capsys):
    out = tmp_path / "out"
    line = refusal(capsys, "--model_name_or_path", sources[kind][0], "--data", photos, "--output_dir", out, *flags)
    assert all(part in line for part in words) and not out.exists()
    # What says the same as the model is no contradiction.
    same = load_pretrained(str(sources[kind][0])).config_for({"hidden_size": 16, "stem": "patch"}, CLASSES, "photos")
    assert same.hidden_size == 16


def without(folder: Path, name: str):
    (folder / name).unlink()


def as_pickle(folder: Path, name: str = "pytorch_model.bin"):
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    without(folder, "model.safetensors")


def without_a_tensor(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "fc2" in name or "output.dense" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "damage", "words"),
    [
        ("ours", as_pickle, "pytorch_model.bin, and a pickle can run any code"),
        ("transformers", as_pickle, "pytorch_model.bin, and a pickle can run any code"),
        ("timm", as_pickle, "pytorch_model.bin, and a pickle can run any code"),
        (
            "ours",
            lambda folder: without(folder, "model.safetensors"),
            "only from model.safetensors, but there is none",
        ),
        ("ours", without_a_tensor, "its weights lack"),
        ("transformers", without_a_tensor, "its weights lack"),
        ("timm", without_a_tensor, "Missing key"),
        ("ours", lambda folder: without(folder, "config.json"), "got none"),
        ("ours", lambda folder: without(folder, "preprocessor_config.json"), "no preprocessor_config.json"),
        ("transformers", lambda folder: without(folder, "preprocessor_config.json"), "no preprocessor_config.json"),
        ("transformers", lambda folder: edit_json(folder / "config.json", model_type="deit"), "got model_type deit"),
        ("transformers", lambda folder: edit_json(folder / "config.json", intermediate_size=48), "48"),
        ("ours", lambda folder: edit_json(folder / "config.json", intermediate_size=48), "by its config.json"),
        (
            "transformers",
            lambda folder: edit_json(folder / "preprocessor_config.json", rescale_factor=1 / 127.5),
            "not scaled to [0, 1]",
        ),
        (
            "transformers",
            lambda folder: edit_json(folder / "preprocessor_config.json", image_mean=[0.1, 0.2]),
            "image_mean [0.1, 0.2] does not have one value for each of its 3 channels",
        ),
        ("timm", lambda folder: save_timm(folder, init_values=0.1), "blocks.0.ls1 is a LayerScale"),
        ("timm", lambda folder: edit_json(folder / "config.json", architecture="vit_huge_x"), "Unknown model"),
        ("ours", lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "cannot start from"),
        ("ours", lambda folder: (folder / "config.json").write_text("{"), "cannot start from"),
        ("ours", shutil.rmtree, "cannot start from"),
    ],
)
def test_a_source_that_is_not_whole_is_refused_in_one_line(kind, damage, words, sources, tmp_path, capsys):
    folder = tmp_path / "source"
    shutil.copytree(sources[kind][0], folder)
    damage(folder)
    line = refusal(capsys, "--model_name_or_path", folder, "--data", "nowhere", "--output_dir", tmp_path / "out")
    assert f"cannot start from {folder}" in line and words in line, line


def test_timm_is_asked_for_where_it_is_missing(sources, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    line = refusal(capsys, "--model_name_or_path", sources["timm"][0], "--output_dir", tmp_path / "out")
    assert line.endswith("it is a model of timm, which is an optional package: pip install timm.")


def test_code_beside_the_weights_is_not_run(sources, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(sources["ours"][0], folder)
    for file in folder.glob("*.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_pretrained(str(folder))
    assert not (tmp_path / "ran").exists()


# ---- the Hub


FROM_THE_HUB = """
import json, sys
from huggingface_hub import HfApi
from hf_vit_scratch.conversion.pretrained import load_pretrained
from hf_vit_scratch.training import main
for kind in ("transformers", "timm", "pickled"):
    HfApi().create_repo(f"alice/{kind}")
    HfApi().upload_folder(repo_id=f"alice/{kind}", folder_path=f"{sys.argv[1]}/{kind}")
found = {"names": [load_pretrained(f"alice/{kind}").name for kind in ("transformers", "timm")]}
for kind in ("pickled", "nowhere"):
    try:
        load_pretrained(f"alice/{kind}")
    except ValueError as error:
        found[kind] = str(error)
main(["--model_name_or_path", "alice/transformers", *sys.argv[2:]])
print(json.dumps(found))
"""


def test_a_repository_of_the_hub_is_fine_tuned_by_its_id(hub, sources, photos, tmp_path):
    for kind in ("transformers", "timm"):
        shutil.copytree(sources[kind][0], tmp_path / "folders" / kind)
    shutil.copytree(sources["transformers"][0], tmp_path / "folders" / "pickled")
    as_pickle(tmp_path / "folders" / "pickled")
    out = tmp_path / "out"
    flags = ["--data", photos, "--output_dir", str(out), *QUICK, "--max_steps", "2"]
    environment = hub.environment() | {"PYTHONPATH": str(REPOSITORY)}
    printed = run_python(FROM_THE_HUB, tmp_path / "folders", *flags, environment=environment, cwd=tmp_path)
    found = json.loads(printed.splitlines()[-1])
    assert found["names"] == ["alice/transformers", "alice/timm"]
    assert "cannot start from alice/pickled" in found["pickled"] and "pytorch_model.bin" in found["pickled"]
    assert "cannot start from alice/nowhere" in found["nowhere"] and "\n" not in found["nowhere"]
    assert not [request for request in hub.requests if request.path.endswith("resolve/main/pytorch_model.bin")]
    results = json.loads((out / "all_results.json").read_text())
    settings = json.loads((out / "training_args.json").read_text())
    assert results["base_model"] == settings["run"]["model_name_or_path"] == "alice/transformers"
    assert "alice/transformers" in (out / "README.md").read_text()
