"""Conversions agree with their sources: transformers' ViT, timm's, and the paper's `.npz` layout.

Every weight is random first, class token, biases and norms included: many start as zeros or ones, which would hide a
tensor that is swapped or dropped.
"""

import json
import math
import sys

import numpy as np
import pytest
import timm
import torch
from processes import run_python
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchModel
from hf_vit_scratch.conversion import from_npz, from_timm, from_transformers, to_transformers

TOLERANCE = {"rtol": 0, "atol": 1e-5}
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "emu"}, "label2id": {"cat": 0, "dog": 1, "emu": 2}}


def randomized(model):
    """`model` with every parameter random, each of another scale than its neighbour's; for inference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model.eval()


def images(height=32, width=32, channels=3):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_outputs(model, other, pixels):
    ours, theirs = (each(pixels, output_hidden_states=True) for each in (model, other))
    torch.testing.assert_close(ours.logits, theirs.logits, **TOLERANCE)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == SIZES["num_hidden_layers"] + 1
    for state, other_state in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(state, other_state, **TOLERANCE)


def assert_same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def refusal(convert, *args, error=ValueError, **fields):
    """The message with which `convert` refuses; it is one line."""
    with pytest.raises(error) as caught:
        convert(*args, **fields)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# transformers' ViT

VARIANTS = {
    "defaults": {},
    "labels": LABELS,
    "no_qkv_bias": {"qkv_bias": False},
    "not_square": {"image_size": [16, 40]},
    "grey": {"num_channels": 1},
    "fields": {
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-3,
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
        "initializer_range": 0.05,
    },
}


def pixels_for(fields):
    height, width = fields.get("image_size", [32, 32])
    return images(height, width, fields.get("num_channels", 3))


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_from_transformers_and_back(fields):
    theirs = randomized(ViTForImageClassification(ViTConfig(**{**SIZES, **fields})))
    ours = from_transformers(theirs)
    assert type(ours) is ViTScratchForImageClassification
    assert_same_outputs(ours, theirs, pixels_for(fields))
    for name in ("layer_norm_eps", "id2label", "label2id", "num_labels", *SIZES, *fields):
        assert getattr(ours.config, name) == getattr(theirs.config, name), name
    assert_same_weights(to_transformers(ours), theirs)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_to_transformers_and_back(fields):
    ours = randomized(ViTScratchForImageClassification(ViTScratchConfig(**{**SIZES, **fields})))
    theirs = to_transformers(ours)
    assert type(theirs) is ViTForImageClassification
    assert_same_outputs(ours, theirs, pixels_for(fields))
    back = from_transformers(theirs)
    assert_same_weights(back, ours)
    assert back.config.to_diff_dict() == ours.config.to_diff_dict()


@pytest.mark.parametrize("sides", [(32, 32), [32, 32]], ids=str)
def test_from_transformers_takes_equal_sides_as_one(sides):
    theirs = randomized(ViTForImageClassification(ViTConfig(**{**SIZES, "image_size": sides, "patch_size": (8, 8)})))
    ours = from_transformers(theirs)
    assert (ours.config.image_size, ours.config.patch_size) == (32, 8)
    assert_same_outputs(ours, theirs, images())


@torch.no_grad()
def test_from_transformers_without_head():
    encoder = randomized(ViTModel(ViTConfig(**SIZES), use_mask_token=True))
    headless = randomized(ViTForImageClassification(ViTConfig(**SIZES, num_labels=0)))
    for theirs in (encoder, headless.vit):
        ours = from_transformers(theirs)
        assert type(ours) is ViTScratchModel
        outputs = ours(images())
        torch.testing.assert_close(outputs.last_hidden_state, theirs(images()).last_hidden_state, **TOLERANCE)
        assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    assert_same_weights(from_transformers(headless), from_transformers(headless.vit))


def test_fields_replace_those_of_the_source():
    theirs = randomized(ViTForImageClassification(ViTConfig(**SIZES)))
    ours = from_transformers(theirs, drop_path_rate=0.1, training_data=["photos"])
    assert ours.vit.layers[-1].drop_path.p == 0.1 and ours.config.training_data == ["photos"]
    assert_same_outputs(ours, theirs, images())


def test_a_conversion_keeps_dtype_and_shares_nothing_with_its_source():
    theirs = randomized(ViTForImageClassification(ViTConfig(**SIZES))).to(torch.bfloat16).train()
    before = torch.get_rng_state()
    ours = from_transformers(theirs)
    again = to_transformers(ours)
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.dtype == again.dtype == torch.bfloat16 and not ours.training and theirs.training
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in ours.parameters())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert_same_weights(again, theirs)
    assert all(parameter.any() for parameter in theirs.parameters())


def test_glorot_initialization_needs_no_number_in_transformers():
    ours = randomized(ViTScratchForImageClassification(ViTScratchConfig(**SIZES, initializer_range=0)))
    theirs = to_transformers(ours)
    assert theirs.config.initializer_range == ViTConfig().initializer_range
    assert_same_outputs(ours, theirs, images())


def test_a_plain_model_saves_itself_as_transformers_own(tmp_path):
    fields = {**SIZES, **LABELS, "image_size": [16, 40], "qkv_bias": False, "drop_path_rate": 0.2}
    ours = randomized(ViTScratchForImageClassification(ViTScratchConfig(**fields)))
    pixels = images(16, 40)
    to_transformers(ours).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "vit" and config["architectures"] == ["ViTForImageClassification"]
    assert "auto_map" not in config
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    program = """
import sys
import numpy, torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
assert type(model).__module__.startswith("transformers."), type(model)
with torch.no_grad():
    logits = model(torch.from_numpy(numpy.load(sys.argv[1] + "/pixels.npy"))).logits
numpy.save(sys.argv[1] + "/logits.npy", logits.numpy())
assert not any(name.startswith(("hf_vit_scratch", "transformers_modules")) for name in sys.modules)
print(*(model.config.id2label[index] for index in range(model.config.num_labels)))
"""
    assert run_python(program, tmp_path, cwd=tmp_path).split() == list(LABELS["label2id"])
    with torch.no_grad():
        expected = ours(pixels).logits
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected, **TOLERANCE)


@pytest.mark.parametrize(
    "fields",
    [{"stem": "conv"}, {"pooling": "mean"}, {"position_embedding": "sincos2d"}, {"position_embedding": "none"}],
    ids=str,
)
def test_to_transformers_refuses_what_is_not_the_plain_vit(fields):
    [(name, value)] = fields.items()
    message = refusal(to_transformers, ViTScratchForImageClassification(ViTScratchConfig(**SIZES, **fields)))
    assert name in message and repr(value) in message


def test_transformers_refusals():
    assert "ViTScratchModel" in refusal(to_transformers, ViTScratchModel(ViTScratchConfig(**SIZES)), error=TypeError)
    other = ViTForMaskedImageModeling(ViTConfig(**SIZES, encoder_stride=8))
    assert "ViTForMaskedImageModeling" in refusal(from_transformers, other, error=TypeError)
    oblong = ViTForImageClassification(ViTConfig(**{**SIZES, "patch_size": (8, 16)}))
    assert "patch_size" in refusal(from_transformers, oblong)
    cut_off = ViTForImageClassification(ViTConfig(**{**SIZES, "image_size": 36}))
    assert "image_size" in refusal(from_transformers, cut_off)
    plain = ViTForImageClassification(ViTConfig(**SIZES))
    message = refusal(from_transformers, plain, image_size=64)
    assert "position_embeddings expected (1, 65, 48), got (1, 17, 48)" in message
    del plain.vit.layers[1].mlp.fc2.bias
    assert "vit.layers.1.mlp.fc2.bias expected (48,), got nothing (1 in all)" in refusal(from_transformers, plain)
    plain.vit.layers[1].mlp.fc2.bias = torch.nn.Parameter(torch.zeros(48))
    plain.vit.extra = torch.nn.Parameter(torch.zeros(2))
    assert "vit.extra expected nothing, got (2,)" in refusal(from_transformers, plain)


# timm's ViT

TIMM_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 5 / 3}


def timm_vit(**arguments):
    return randomized(timm.create_model("vit_tiny_patch16_224", **{"num_classes": 3, **TIMM_SIZES, **arguments}))


@torch.no_grad()
def assert_same_as_timm(model, other, pixels):
    outputs = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, other(pixels), **TOLERANCE)
    _, layers = other.forward_intermediates(pixels, output_fmt="NLC", return_prefix_tokens=True)
    for state, (patches, *prefix) in zip(outputs.hidden_states[1:], layers, strict=True):
        torch.testing.assert_close(state, torch.cat([*prefix, patches], dim=1), **TOLERANCE)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"qkv_bias": False},
        {"img_size": (16, 40)},
        {"in_chans": 1},
        {"act_layer": "gelu_tanh"},
        {"act_layer": lambda: torch.nn.GELU(approximate="tanh")},
        {"act_layer": "quick_gelu", "norm_layer": lambda size, **kwargs: torch.nn.LayerNorm(size, eps=1e-3, **kwargs)},
        {"dynamic_img_size": True},
        {"drop_rate": 0.1, "proj_drop_rate": 0.2, "attn_drop_rate": 0.3, "drop_path_rate": 0.4},
    ],
    ids=lambda arguments: "-".join(arguments) or "defaults",
)
def test_from_timm(arguments):
    theirs = timm_vit(**arguments)
    ours = from_timm(theirs)
    height, width = theirs.patch_embed.img_size
    assert_same_as_timm(ours, theirs, images(height, width, arguments.get("in_chans", 3)))
    assert ours.config.layer_norm_eps == theirs.norm.eps
    assert ours.config.hidden_dropout_prob == arguments.get("proj_drop_rate", 0)
    assert ours.config.attention_probs_dropout_prob == arguments.get("attn_drop_rate", 0)
    assert ours.config.drop_path_rate == arguments.get("drop_path_rate", 0)
    assert ours.config.num_labels == 3 and ours.config.num_attention_heads == 4


@torch.no_grad()
def test_from_timm_mean_of_patches_and_no_head():
    theirs = timm_vit(global_pool="avg", class_token=False, fc_norm=False)
    ours = from_timm(theirs)
    assert ours.config.pooling == "mean"
    torch.testing.assert_close(ours(images()).logits, theirs(images()), **TOLERANCE)
    theirs = timm_vit(num_classes=0)
    ours = from_timm(theirs)
    assert type(ours) is ViTScratchModel
    torch.testing.assert_close(ours(images()).pooler_output, theirs(images()), **TOLERANCE)


def test_from_timm_reads_a_folder_that_timm_saved(tmp_path):
    theirs = timm_vit(img_size=(16, 40), qkv_bias=False)
    model_config = {"label_names": list(LABELS["label2id"])}
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True, model_config=model_config)
    for source in (tmp_path, str(tmp_path)):
        ours = from_timm(source, drop_path_rate=0.1)
        assert_same_as_timm(ours, theirs, images(16, 40))
        assert ours.config.id2label == LABELS["id2label"] and ours.config.label2id == LABELS["label2id"]
        assert ours.config.drop_path_rate == 0.1


def test_timm_is_asked_for_only_where_it_is_needed(monkeypatch, tmp_path):
    theirs = timm_vit()
    monkeypatch.setitem(sys.modules, "timm", None)
    assert_same_as_timm(from_timm(theirs), theirs, images())
    assert "timm" in refusal(from_timm, tmp_path, error=ImportError)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"init_values": 0.1}, "LayerScale"),
        ({"reg_tokens": 2}, "reg_token"),
        ({"qk_norm": True}, "q_norm"),
        ({"scale_attn_norm": True}, "attn.norm"),
        ({"pre_norm": True}, "norm_pre"),
        ({"mlp_layer": timm.layers.SwiGLUPacked}, "GluMlp"),
        ({"block_fn": timm.models.vision_transformer.ResPostBlock}, "ResPostBlock"),
        ({"norm_layer": timm.layers.RmsNorm}, "RmsNorm"),
        ({"act_layer": "mish"}, "Mish"),
        ({"global_pool": "avg"}, "fc_norm"),
        ({"global_pool": "avg", "fc_norm": False}, "'avg' with class token"),
        ({"global_pool": "max", "fc_norm": False, "class_token": False}, "'max' without class token"),
        ({"global_pool": "map"}, "attn_pool"),
        ({"no_embed_class": True}, "position_embeddings expected (1, 17, 48), got (1, 16, 48)"),
        ({"pos_embed": "none"}, "position_embeddings"),
        ({"proj_bias": False}, "attention.proj.bias"),
        ({"final_norm": False}, "layernorm"),
        ({"patch_size": (8, 16)}, "patch_size"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_from_timm_refuses_what_has_no_counterpart(arguments, part):
    assert part in refusal(from_timm, timm_vit(**arguments))


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224", "eva02_tiny_patch14_224"]
)
def test_from_timm_refuses_other_architectures(name):
    with torch.device("meta"):
        model = timm.create_model(name, depth=1) if "_r_" not in name else timm.create_model(name)
    assert "no counterpart" in refusal(from_timm, model)


# The paper's .npz


def paper_arrays(height=32, width=32, classes=5, bias=True, token=True):
    """Random arrays under the names and shapes of `gs://vit_models/imagenet21k/ViT-B_16.npz`, at `SIZES`."""
    generator = np.random.default_rng(0)
    size, heads, hidden, patch = 48, 4, 80, 8
    shapes = {"embedding/kernel": (patch, patch, 3, size), "embedding/bias": (size,)}
    if token:
        shapes["cls"] = (1, 1, size)
    tokens = height // patch * (width // patch) + token
    shapes["Transformer/posembed_input/pos_embedding"] = (1, tokens, size)
    for layer in range(3):
        block = f"Transformer/encoderblock_{layer}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/scale": (size,), f"{block}/{norm}/bias": (size,)}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (size, heads, size // heads)
            if bias:
                shapes[f"{attention}/{part}/bias"] = (heads, size // heads)
        shapes |= {f"{attention}/out/kernel": (heads, size // heads, size), f"{attention}/out/bias": (size,)}
        for dense, (fan_in, fan_out) in {"Dense_0": (size, hidden), "Dense_1": (hidden, size)}.items():
            shapes[f"{block}/MlpBlock_3/{dense}/kernel"] = (fan_in, fan_out)
            shapes[f"{block}/MlpBlock_3/{dense}/bias"] = (fan_out,)
    shapes |= {"Transformer/encoder_norm/scale": (size,), "Transformer/encoder_norm/bias": (size,)}
    if classes:
        shapes |= {"head/kernel": (size, classes), "head/bias": (classes,)}
    return {
        name: (generator.normal(scale=0.15, size=shape) + name.endswith("scale")).astype(np.float32)
        for name, shape in shapes.items()
    }


def gelu_erf(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def paper_forward(arrays, pixels, gelu):
    """The forward pass of `vit_jax/models_vit.py` in numpy: `(B, height, width, C)` to y, or to logits with a head."""
    weights = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    def dense(x, name, equation="...i,io->...o"):
        return np.einsum(equation, x, weights[f"{name}/kernel"]) + weights.get(f"{name}/bias", 0)

    count, height, width, channels = pixels.shape
    x = pixels.reshape(count, height // 8, 8, width // 8, 8, channels)
    x = dense(x, "embedding", "brpcqi,pqid->brcd").reshape(count, -1, 48)
    if "cls" in weights:
        x = np.concatenate([np.tile(weights["cls"], (count, 1, 1)), x], axis=1)
    x = x + weights["Transformer/posembed_input/pos_embedding"]
    for layer in range(3):
        block = f"Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        y = norm(x, f"{block}/LayerNorm_0")
        query, key, value = (dense(y, f"{attention}/{part}", "btd,dhk->bthk") for part in ("query", "key", "value"))
        scores = np.exp(np.einsum("bqhk,bthk->bhqt", query, key) / math.sqrt(48 // 4))
        y = np.einsum("bhqt,bthk->bqhk", scores / scores.sum(-1, keepdims=True), value)
        x = x + dense(y, f"{attention}/out", "bqhk,hkd->bqd")
        y = gelu(dense(norm(x, f"{block}/LayerNorm_2"), f"{block}/MlpBlock_3/Dense_0"))
        x = x + dense(y, f"{block}/MlpBlock_3/Dense_1")
    x = norm(x, "Transformer/encoder_norm")
    y = x[:, 0] if "cls" in weights else x.mean(axis=1)
    return dense(y, "head") if "head/kernel" in weights else y


def saved(tmp_path, arrays):
    np.savez(tmp_path / "vit.npz", **arrays)
    return tmp_path / "vit.npz"


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        ({}, {}),
        ({}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({"bias": False}, {}),
        ({"token": False}, {}),
        ({"classes": 0}, {}),
        ({"height": 16, "width": 40}, {"image_size": [16, 40]}),
    ],
    ids=["defaults", "tanh", "no_qkv_bias", "gap", "no_head", "not_square"],
)
@torch.no_grad()
def test_from_npz_agrees_with_a_forward_pass_in_numpy(tmp_path, layout, fields):
    arrays = paper_arrays(**layout)
    pixels = images(layout.get("height", 32), layout.get("width", 32))
    ours = from_npz(saved(tmp_path, arrays), **fields)
    outputs = ours(pixels)
    result = outputs.logits if isinstance(ours, ViTScratchForImageClassification) else outputs.pooler_output
    assert isinstance(ours, ViTScratchForImageClassification) == ("head/kernel" in arrays)
    gelu = gelu_tanh if fields.get("hidden_act") else gelu_erf
    expected = paper_forward(arrays, pixels.permute(0, 2, 3, 1).double().numpy(), gelu)
    torch.testing.assert_close(result.double(), torch.from_numpy(expected), **TOLERANCE)


@torch.no_grad()
def test_from_npz_agrees_with_timm_reading_the_same_file(tmp_path):
    path = saved(tmp_path, paper_arrays(classes=3))
    theirs = timm_vit()
    theirs.load_pretrained(str(path))
    torch.testing.assert_close(from_npz(path)(images()).logits, theirs(images()), **TOLERANCE)


def test_from_npz_refusals(tmp_path):
    arrays = paper_arrays()
    plus = {name: arrays | {name: np.zeros((2, 2), np.float32)} for name in ("pre_logits/kernel", "conv_root/kernel")}
    for name, extended in plus.items():
        assert repr(name) in refusal(from_npz, saved(tmp_path, extended))
    for name, ours in {
        "embedding/kernel": "embeddings.patch_embeddings.weight",
        "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel": "layers.0.attention.qkv.weight",
        "Transformer/encoderblock_2/MultiHeadDotProductAttention_1/key/bias": "layers.2.attention",
        "Transformer/encoderblock_1/LayerNorm_2/bias": "layers.1.layernorm_after.bias",
        "head/bias": "classifier.bias",
    }.items():
        without = {other: array for other, array in arrays.items() if other != name}
        assert ours in refusal(from_npz, saved(tmp_path, without))
    path = saved(tmp_path, paper_arrays(height=16, width=40))
    assert "10 patches are not a square" in refusal(from_npz, path)
    assert "position_embeddings" in refusal(from_npz, path, image_size=[16, 48])
    pickled = saved(tmp_path, arrays | {"cls": np.array([{}], dtype=object)})
    assert "allow_pickle" in refusal(from_npz, pickled)
