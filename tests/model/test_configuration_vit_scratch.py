"""The configuration: named sizes, refusals, and what is kept on the way through config.json."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchModel
from hf_vit_scratch.model.configuration_vit_scratch import SIZES

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    ViTScratchForImageClassification(ViTScratchConfig(**SMALL, num_labels=3)).save_pretrained(folder)
    return folder


def refusal(function, *args, **kwargs) -> str:
    """The message of the ValueError that a call raises; a message is one line."""
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("fields", "in_message"),
    [
        ({"image_size": 30, "patch_size": 4}, ["image_size", "30", "patch_size", "4"]),
        ({"image_size": [8, 30]}, ["image_size", "30", "patch_size", "4"]),
        ({"image_size": 0}, ["image_size", "0"]),
        ({"image_size": [8]}, ["image_size", "[8]"]),
        ({"image_size": [8, 8, 8]}, ["image_size", "[8, 8, 8]"]),
        ({"image_size": 8.0}, ["image_size", "8.0"]),
        ({"hidden_size": 63}, ["hidden_size", "63", "num_attention_heads", "4"]),
        ({"num_attention_heads": 5}, ["hidden_size", "16", "num_attention_heads", "5"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"hidden_size": "16"}, ["hidden_size", "'16'"]),
        ({"hidden_size": 16.0}, ["hidden_size", "16.0"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "0"]),
        ({"intermediate_size": -1}, ["intermediate_size", "-1"]),
        ({"num_channels": 0}, ["num_channels", "0"]),
        ({"patch_size": True}, ["patch_size", "True"]),
        ({"num_labels": 0}, ["num_labels", "0"]),
        ({"pooling": "max"}, ["pooling", "'max'", "cls", "mean"]),
        ({"position_embedding": "rope"}, ["position_embedding", "'rope'", "learned", "sincos2d", "none"]),
        ({"position_embedding": None}, ["position_embedding", "None"]),
        ({"stem": "resnet"}, ["stem", "'resnet'", "patch", "conv"]),
        ({"hidden_act": "gelo"}, ["hidden_act", "'gelo'", "gelu"]),
        ({"hidden_size": 18, "num_attention_heads": 2, "position_embedding": "sincos2d"}, ["sincos2d", "4", "18"]),
        ({"image_size": 12, "patch_size": 6, "stem": "conv"}, ["conv", "patch_size", "6"]),
        ({"patch_size": 1, "stem": "conv"}, ["conv", "patch_size", "1"]),
        ({"stem_depth": 2}, ["stem_depth", "'patch'"]),
        ({"stem_width": 8}, ["stem_width", "'patch'"]),
        ({"stem": "conv", "stem_width": 0}, ["stem_width", "0"]),
        ({"hidden_size": None}, ["hidden_size", "None"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate", "1.0"]),
        ({"hidden_dropout_prob": -0.1}, ["hidden_dropout_prob", "-0.1"]),
        ({"attention_probs_dropout_prob": "0.1"}, ["attention_probs_dropout_prob", "'0.1'"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps", "0"]),
        ({"layer_norm_eps": float("nan")}, ["layer_norm_eps", "nan"]),
        ({"initializer_range": -0.1}, ["initializer_range", "-0.1"]),
        ({"qkv_bias": "yes"}, ["qkv_bias", "'yes'"]),
        ({"hiden_size": 16}, ["hiden_size", "hidden_size"]),
        ({"head_dim": 4, "use_mask": True}, ["head_dim", "use_mask"]),
    ],
    ids=str,
)
def test_a_config_that_cannot_work_is_refused_when_it_is_made(fields, in_message):
    message = refusal(ViTScratchConfig, **{**SMALL, **fields})
    for part in in_message:
        assert part in message


def test_a_field_that_was_broken_later_is_refused_by_the_model_and_on_saving(tmp_path):
    config = ViTScratchConfig(**SMALL)
    config.hidden_size = 63
    for refused in (ViTScratchModel, ViTScratchForImageClassification, AutoModel.from_config):
        assert "63" in refusal(refused, config)
    assert "63" in refusal(config.save_pretrained, tmp_path)


@pytest.mark.parametrize(
    "load",
    [
        ViTScratchConfig.from_pretrained,
        AutoConfig.from_pretrained,
        ViTScratchModel.from_pretrained,
        ViTScratchForImageClassification.from_pretrained,
        AutoModel.from_pretrained,
        AutoModelForImageClassification.from_pretrained,
    ],
    ids=lambda load: load.__self__.__name__,
)
def test_a_field_changed_on_loading_is_checked(checkpoint, load):
    assert "63" in refusal(load, checkpoint, hidden_size=63)
    assert "'max'" in refusal(load, checkpoint, pooling="max")
    with pytest.raises((ValueError, TypeError), match="drop_path_ratio") as error:
        load(checkpoint, drop_path_ratio=0.25)
    assert "\n" not in str(error.value)
    loaded = load(checkpoint, drop_path_rate=0.25)
    assert getattr(loaded, "config", loaded).drop_path_rate == 0.25


def test_from_dict_gives_back_what_it_does_not_know_where_it_is_asked_to():
    written = ViTScratchConfig(**SMALL).to_dict()
    config, unused = ViTScratchConfig.from_dict(dict(written), return_unused_kwargs=True, hidden_size=32, revision="x")
    assert (config.hidden_size, unused) == (32, {"revision": "x"})
    assert ViTScratchConfig.from_dict(dict(written), device_map="cpu").hidden_size == written["hidden_size"]
    assert "'hiden_size'" in refusal(ViTScratchConfig.from_dict, dict(written), hiden_size=32)
    assert "'hiden_size'" in refusal(ViTScratchConfig.from_dict, {**written, "hiden_size": 32})
    assert "12" in refusal(ViTScratchConfig.from_dict, dict(written), num_attention_heads=12)
    both = ViTScratchConfig.from_dict(dict(written), hidden_size=36, num_attention_heads=12)
    assert (both.hidden_size, both.num_attention_heads) == (36, 12)


def test_a_config_survives_its_file(tmp_path):
    config = ViTScratchConfig(
        **{**SMALL, "image_size": (8, 12)},
        hidden_act="relu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.2,
        layer_norm_eps=1e-5,
        initializer_range=0.0,
        qkv_bias=False,
        position_embedding="sincos2d",
        pooling="mean",
        stem="conv",
        drop_path_rate=0.3,
        training_data=["mnist"],
        id2label={0: "zero", 1: "one", 2: "two"},
    )
    config.save_pretrained(tmp_path)
    loaded = ViTScratchConfig.from_pretrained(tmp_path)
    for name in ViTScratchConfig.__annotations__:
        if name != "image_size":
            assert getattr(loaded, name) == getattr(config, name), name
    assert loaded.image_height_width == config.image_height_width == (8, 12)
    assert loaded.id2label == {0: "zero", 1: "one", 2: "two"}
    assert loaded.num_labels == 3
    assert ViTScratchConfig(**loaded.to_dict()).to_dict() == loaded.to_dict()


def test_what_others_set_on_a_config_does_not_stop_it_from_loading(tmp_path):
    # The Trainer sets use_cache on the config of every model that it gets.
    config = ViTScratchConfig(**SMALL)
    config.use_cache = False
    config.note = "from elsewhere"
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is False
    assert ViTScratchConfig.from_pretrained(tmp_path).note == "from elsewhere"
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 16


@pytest.mark.parametrize(
    # Dosovitskiy et al., table 1, and Touvron et al. (arXiv 2012.12877).
    ("size", "millions"),
    [("Ti/16", 5.7), ("S/16", 22), ("B/16", 86), ("L/16", 307), ("H/14", 632)],
)
def test_the_named_sizes_have_the_parameters_of_the_papers(size, millions):
    with torch.device("meta"):
        model = ViTScratchForImageClassification(ViTScratchConfig.from_size(size, num_labels=1000))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.015)


@pytest.mark.parametrize("size", [size for size in SIZES if size.startswith("digits")])
def test_the_digits_sizes_take_a_digit(size):
    with torch.device("meta"):
        model = ViTScratchForImageClassification(ViTScratchConfig.from_size(size, num_labels=10))
        assert model(torch.empty(2, 1, 28, 28)).logits.shape == (2, 10)


def test_from_size_takes_other_fields_and_refuses_other_sizes():
    config = ViTScratchConfig.from_size("digits-tiny", hidden_size=128, pooling="mean")
    plain = ViTScratchConfig.from_size("digits-tiny")
    assert (config.hidden_size, config.pooling) == (128, "mean")
    assert config.num_hidden_layers == plain.num_hidden_layers
    assert "'G/14'" in refusal(ViTScratchConfig.from_size, "G/14")
    assert "hiden_size" in refusal(ViTScratchConfig.from_size, "B/16", hiden_size=4)
    assert "100" in refusal(ViTScratchConfig.from_size, "B/16", image_size=100)
