"""The model: against the equations written a second time, transformers' own ViT, and closed forms."""

import math

import pytest
import torch
from accelerate import infer_auto_device_map
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchModel
from hf_vit_scratch.device import fastest_attention
from hf_vit_scratch.model.modeling_vit_scratch import ViTScratchDropPath

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_labels": 5,
    "initializer_range": 0.3,  # large, so that a mistake anywhere reaches the logits
}
MEAN_SINCOS_CONV = {"pooling": "mean", "position_embedding": "sincos2d", "stem": "conv", "initializer_range": 0.0}
VARIANTS = [
    {},
    {"pooling": "mean"},
    {"position_embedding": "sincos2d"},
    {"position_embedding": "none"},
    MEAN_SINCOS_CONV,
]


def make_model(seed: int = 0, model_class: type = ViTScratchForImageClassification, **fields):
    """A small model in evaluation mode with no parameter left at 0 or 1."""
    torch.manual_seed(seed)
    model = model_class(ViTScratchConfig(**{**SMALL, **fields})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name and name.endswith("weight")))
    return model


def make_pixels(batch_size: int = 2, channels: int = 3, height: int = 8, width: int = 8, seed: int = 1):
    return torch.randn(batch_size, channels, height, width, generator=torch.Generator().manual_seed(seed))


def make_transformers_vit(model, **fields) -> ViTForImageClassification:
    """transformers' ViT with the numbers and the weights of one of ours."""
    config = model.config
    names = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
    names += ("intermediate_size", "hidden_act", "layer_norm_eps", "qkv_bias", "num_labels")
    vit = ViTForImageClassification(ViTConfig(**{**{name: getattr(config, name) for name in names}, **fields}))
    state = {}
    for name, tensor in model.state_dict().items():
        if ".qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("qkv", f"{part}_proj")] = rows
        else:
            name = name.replace("attention.proj", "attention.o_proj")
            state[name.replace("patch_embeddings", "patch_embeddings.projection")] = tensor
    vit.load_state_dict(state)
    return vit.eval()


def equations(state: dict[str, torch.Tensor], pixels: torch.Tensor, fields: dict) -> torch.Tensor:
    """Equations 1 to 8 for one image at a time, patch by patch and head by head, from the weights alone."""
    size, heads, eps = fields["patch_size"], fields["num_attention_heads"], fields["layer_norm_eps"]

    def norm(z, name):
        centred = z - z.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def dense(z, name):
        return z @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)

    logits = []
    for image in pixels:
        projection = state["vit.embeddings.patch_embeddings.weight"]
        tokens = [state["vit.embeddings.cls_token"][0, 0]]
        for top in range(0, image.shape[1], size):
            for left in range(0, image.shape[2], size):
                patch = image[:, top : top + size, left : left + size]
                token = torch.stack([(weight * patch).sum() for weight in projection])
                tokens.append(token + state["vit.embeddings.patch_embeddings.bias"])
        z = torch.stack(tokens) + state["vit.embeddings.position_embeddings"][0]
        for index in range(fields["num_hidden_layers"]):
            layer = f"vit.layers.{index}"
            qkv = dense(norm(z, f"{layer}.layernorm_before"), f"{layer}.attention.qkv")
            query, key, value = qkv.chunk(3, dim=-1)
            head_dim = query.shape[-1] // heads
            outputs = []
            for head in range(heads):
                part = slice(head * head_dim, (head + 1) * head_dim)
                weights = (query[:, part] @ key[:, part].T / math.sqrt(head_dim)).exp()
                outputs.append(weights / weights.sum(dim=-1, keepdim=True) @ value[:, part])
            z = z + dense(torch.cat(outputs, dim=-1), f"{layer}.attention.proj")
            hidden = dense(norm(z, f"{layer}.layernorm_after"), f"{layer}.mlp.fc1")
            hidden = hidden.clamp(min=0) if fields["hidden_act"] == "relu" else hidden * torch.special.ndtr(hidden)
            z = z + dense(hidden, f"{layer}.mlp.fc2")
        logits.append(dense(norm(z, "vit.layernorm")[0], "classifier"))
    return torch.stack(logits)


# The forward pass


@pytest.mark.parametrize(
    "changed",
    [{}, {"qkv_bias": False}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.5}, {"image_size": [4, 12]}],
    ids=str,
)
@torch.no_grad()
def test_the_logits_are_those_of_the_equations(changed):
    model = make_model(**changed).double()
    pixels = make_pixels(height=model.config.image_height_width[0], width=model.config.image_height_width[1]).double()
    fields = {**SMALL, "layer_norm_eps": 1e-6, "hidden_act": "gelu", **changed}
    torch.testing.assert_close(model(pixels).logits, equations(model.state_dict(), pixels, fields))
    assert ("vit.layers.0.attention.qkv.bias" in model.state_dict()) == changed.get("qkv_bias", True)


def test_logits_states_attentions_and_gradients_are_those_of_transformers_vit():
    ours = make_model(attn_implementation="eager").double()
    theirs = make_transformers_vit(ours, attn_implementation="eager").double()
    arguments = {"labels": torch.tensor([1, 4]), "output_hidden_states": True, "output_attentions": True}
    outputs, expected = (model(make_pixels().double(), **arguments) for model in (ours, theirs))
    assert outputs.keys() == expected.keys()
    for name in ("loss", "logits", "hidden_states", "attentions"):
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-4, atol=1e-6)
    outputs.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(
        ours.vit.embeddings.position_embeddings.grad, theirs.vit.embeddings.position_embeddings.grad
    )
    for layer, expected_layer in zip(ours.vit.layers, theirs.vit.layers, strict=True):
        parts = [getattr(expected_layer.attention, f"{part}_proj").weight.grad for part in "qkv"]
        torch.testing.assert_close(layer.attention.qkv.weight.grad, torch.cat(parts))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_last_block_works_for_the_class_token_alone_and_changes_nothing(attention, stem):
    model = make_model(attn_implementation=attention, stem=stem, drop_path_rate=0.0).double()
    arguments = {"pixel_values": make_pixels().double(), "labels": torch.tensor([1, 4])}
    gradients, flops = [], []
    for shown in ({"output_hidden_states": True}, {}):
        with FlopCounterMode(display=False) as counter:
            outputs = model(**arguments, **shown)
        outputs.loss.backward()
        flops.append(counter.get_total_flops())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    torch.testing.assert_close(gradients[1], gradients[0])
    spared = 4 * 2 * (16 * 16 + 2 * 16 * 24)  # 4 tokens, proj and both dense layers of the MLP
    if attention == "eager":
        spared += 4 * 2 * 5 * 2 * 16  # 4 queries of 5, each with 5 keys and 5 values
        assert flops[0] - flops[1] == 2 * spared  # two images
    hidden_states = model(**arguments, output_hidden_states=True).hidden_states
    pooled = model.vit(arguments["pixel_values"], only_pooler_output=True)
    assert pooled.last_hidden_state.shape == (2, 1, 16)
    torch.testing.assert_close(pooled.pooler_output, model.vit.layernorm(hidden_states[-1])[:, 0])


def test_all_tokens_are_computed_where_the_head_reads_their_mean():
    model = make_model(pooling="mean")
    outputs = model.vit(make_pixels(), only_pooler_output=True)
    assert outputs.last_hidden_state.shape == (2, 4, 16)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1))


@torch.no_grad()
def test_outputs_hold_together():
    model = make_model()
    pixels = make_pixels()
    plain = model.vit(pixels)
    outputs = model.vit(pixels, output_hidden_states=True, output_attentions=True)
    assert "hidden_states" not in plain and "attentions" not in plain
    torch.testing.assert_close(outputs.last_hidden_state, plain.last_hidden_state)
    assert len(outputs.hidden_states) == SMALL["num_hidden_layers"] + 1
    torch.testing.assert_close(outputs.hidden_states[0], model.vit.embeddings(pixels))
    torch.testing.assert_close(model.vit.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    for attention in outputs.attentions:
        assert attention.shape == (2, 4, 5, 5)
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 4, 5))
    as_tuple = model.vit(pixels, return_dict=False)
    torch.testing.assert_close(as_tuple, (plain.last_hidden_state, plain.pooler_output))


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "expected"), [(50, "eager"), (145, "eager"), (197, "sdpa")])
def test_the_default_attention_is_the_one_that_trains_fastest_and_a_choice_stays(
    tmp_path, monkeypatch, tokens, expected
):
    """Eager in the backward pass is 1.4 times as fast as sdpa for 50 tokens on a CPU; GPUs have fused kernels."""
    config = ViTScratchConfig.from_size("digits-tiny", patch_size=4, image_size=4 * math.isqrt(tokens - 1))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    model = ViTScratchForImageClassification(config)
    model.save_pretrained(tmp_path)
    load = ViTScratchForImageClassification.from_pretrained
    assert config.num_tokens == tokens
    assert fastest_attention(tokens, torch.device("cpu")) == expected  # what train.py chooses in fp32
    assert model.config._attn_implementation == load(tmp_path).config._attn_implementation == expected
    for choice in ("eager", "sdpa", "flex_attention"):
        assert load(tmp_path, attn_implementation=choice).config._attn_implementation == choice
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert load(tmp_path).config._attn_implementation == "sdpa"


def test_attentions_come_from_a_model_that_runs_sdpa(tmp_path):
    make_model().save_pretrained(tmp_path)
    pixels = make_pixels()
    eager = ViTScratchForImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    sdpa = ViTScratchForImageClassification.from_pretrained(tmp_path, attn_implementation="sdpa")
    by_config = make_model(output_attentions=True, attn_implementation="sdpa")
    by_config.load_state_dict(eager.state_dict())
    assert by_config.config._attn_implementation == "sdpa"
    expected = eager(pixels, output_attentions=True)
    for outputs in (sdpa(pixels, output_attentions=True), by_config(pixels)):
        torch.testing.assert_close(outputs.attentions, expected.attentions)
        torch.testing.assert_close(outputs.logits, expected.logits)


def test_eager_sdpa_and_flex_attention_agree():
    model, pixels, logits, gradients = make_model(), make_pixels(), {}, {}
    for implementation in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        # transformers compiles flex attention, which takes a compiler of C++ and a while; uncompiled it does the same.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits[implementation] = model(pixels).logits
    for implementation in ("eager", "sdpa"):  # flex attention has no backward pass on a CPU
        model.set_attn_implementation(implementation)
        gradients[implementation] = torch.autograd.grad(model(pixels).logits.square().sum(), list(model.parameters()))
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits["flex_attention"], logits["eager"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients["sdpa"], gradients["eager"], rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_cross_entropy_of_the_logits():
    outputs = make_model()(make_pixels(), labels=torch.tensor([0, 3]))
    probabilities = outputs.logits.exp() / outputs.logits.exp().sum(dim=-1, keepdim=True)
    torch.testing.assert_close(outputs.loss, -(probabilities[0, 0].log() + probabilities[1, 3].log()) / 2)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_every_parameter_gets_a_gradient(fields):
    model = make_model(**fields)
    model(make_pixels(), labels=torch.tensor([0, 3])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("shape", "interpolate", "in_message"),
    [
        ((1, 3, 12, 8), False, ["8x8", "12x8"]),
        ((1, 3, 8, 12), False, ["8x8", "8x12"]),
        ((1, 3, 16, 4), False, ["8x8", "16x4"]),
        ((1, 1, 8, 8), False, ["3", "1", "channels"]),
        ((1, 4, 8, 8), True, ["3", "4", "channels"]),
        ((1, 3, 8, 10), True, ["8x10", "4"]),
    ],
)
def test_an_image_of_the_wrong_size_or_channels_is_refused(shape, interpolate, in_message):
    with pytest.raises(ValueError) as error:
        make_model()(torch.zeros(shape), interpolate_pos_encoding=interpolate)
    assert "\n" not in str(error.value)
    for part in in_message:
        assert part in str(error.value)


# The fields that the paper ablates


@torch.no_grad()
def test_mean_pooling_has_no_class_token_and_averages_the_patches():
    model = make_model(pooling="mean")
    outputs = model.vit(make_pixels())
    assert outputs.last_hidden_state.shape[1] == model.config.num_tokens == (8 // 4) ** 2
    assert not any("cls_token" in name for name in model.state_dict())
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.sum(dim=1) / 4)


@torch.no_grad()
def test_without_positions_the_order_of_the_patches_does_not_matter():
    pixels = make_pixels()
    shuffled = torch.cat((pixels[..., 4:], pixels[..., :4]), dim=-1)  # the two columns of patches change places
    for position_embedding, matters in (("none", False), ("learned", True), ("sincos2d", True)):
        model = make_model(position_embedding=position_embedding)
        assert torch.allclose(model(pixels).logits, model(shuffled).logits, atol=1e-5) != matters


def sincos2d(rows: int, columns: int, hidden_size: int) -> torch.Tensor:
    """The closed form of MoCo v3 (arXiv 2104.02057), number by number."""
    quarter = hidden_size // 4
    table = torch.zeros(rows * columns, hidden_size)
    for row in range(rows):
        for column in range(columns):
            for index in range(quarter):
                frequency = 1 / 10000 ** (index / quarter)
                table[row * columns + column, index] = math.sin(column * frequency)
                table[row * columns + column, index + quarter] = math.cos(column * frequency)
                table[row * columns + column, index + 2 * quarter] = math.sin(row * frequency)
                table[row * columns + column, index + 3 * quarter] = math.cos(row * frequency)
    return table


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_sincos2d_positions_are_the_closed_form(pooling):
    fields = {"image_size": [8, 12], "pooling": pooling}
    with_positions = make_model(position_embedding="sincos2d", **fields)
    without = make_model(position_embedding="none", **fields)
    without.load_state_dict(with_positions.state_dict())  # strictly: the positions are no weights
    for height, width in ((8, 12), (12, 16)):
        pixels = make_pixels(height=height, width=width)
        added = with_positions.vit.embeddings(pixels, interpolate_pos_encoding=True)
        added -= without.vit.embeddings(pixels, interpolate_pos_encoding=True)
        expected = sincos2d(height // 4, width // 4, SMALL["hidden_size"])
        if pooling == "cls":
            assert added[:, 0].abs().max() == 0
            added = added[:, 1:]
        torch.testing.assert_close(added, expected.expand_as(added), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "layers"), [(None, (8, 16, 16, 32)), (20, (10, 20, 20, 32))])
def test_a_deeper_stem_has_convolutions_of_stride_1_before_each_halving(width, layers):
    """Against the same layers written out, of stride 1, 2, 1, 2 and so many channels."""
    fields = {"hidden_size": 32, "stem": "conv", "stem_depth": 2, "stem_width": width}
    model = make_model(image_size=[16, 24], patch_size=4, num_channels=1, **fields)
    written_out, channels = [], 1
    for out, stride in zip(layers, (1, 2, 1, 2), strict=True):
        convolution = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        written_out += [convolution, nn.GroupNorm(1, out, eps=model.config.layer_norm_eps), nn.GELU()]
        channels = out
    written_out = nn.Sequential(*written_out, nn.Conv2d(32, 32, 1))
    stem, pixels = model.vit.embeddings.patch_embeddings, torch.randn(2, 1, 16, 24)
    written_out.load_state_dict(stem.state_dict())
    assert stem(pixels).shape == (2, 32, 4, 6)
    torch.testing.assert_close(stem(pixels), written_out(pixels))


def test_the_conv_stem_is_a_pyramid_down_to_the_grid_of_patches():
    model = make_model(image_size=[16, 24], patch_size=8, num_channels=1, hidden_size=32, stem="conv")
    stem = model.vit.embeddings.patch_embeddings
    # Three halvings with 8, 16 and 32 channels, each with the norm's weight and bias, then the projection.
    convolutions = 9 * (1 * 8 + 8 * 16 + 16 * 32) + 2 * (8 + 16 + 32)
    assert sum(parameter.numel() for parameter in stem.parameters()) == convolutions + 32 * 32 + 32
    image = torch.zeros(1, 1, 16, 24)
    image[..., 8:, :8] = torch.rand(8, 8)  # second row, first column
    with torch.no_grad():
        change = (model.vit.embeddings(image) - model.vit.embeddings(torch.zeros_like(image)))[0].norm(dim=-1)
        assert change.argmax() == 1 + 1 * 3 + 0
        assert model(image).logits.shape == (1, SMALL["num_labels"])


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    torch.manual_seed(0)
    drop = ViTScratchDropPath(0.25).train()
    branch = torch.ones(20000, 3, 2, dtype=torch.bfloat16)
    dropped = drop(branch)
    per_image = dropped.flatten(1)
    assert dropped.dtype == branch.dtype
    assert (per_image == per_image[:, :1]).all()
    assert (per_image == 0).all(dim=1).float().mean() == pytest.approx(0.25, abs=0.02)
    assert dropped.float().mean() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(drop.eval()(branch), branch)


def test_drop_path_grows_with_depth():
    model = make_model(num_hidden_layers=5, drop_path_rate=0.4)
    rates = [layer.drop_path.p for layer in model.vit.layers]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.4, 5))
    assert make_model(num_hidden_layers=1, drop_path_rate=0.4).vit.layers[0].drop_path.p == 0


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"])
@torch.no_grad()
def test_dropout_is_for_training_alone(field):
    pixels = make_pixels()
    expected = make_model()(pixels).logits
    model = make_model(**{field: 0.5})
    torch.testing.assert_close(model(pixels).logits, expected)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        outputs = [model.train()(pixels).logits for _ in range(8)]
        assert any(not torch.allclose(output, outputs[0]) for output in outputs[1:])


@torch.no_grad()
def test_hidden_dropout_follows_every_dense_layer_but_the_projection_to_query_key_and_value():
    # All values but a share of 1e-7 are dropped: the embeddings and each branch are gone, the head's bias is left.
    model = make_model(hidden_dropout_prob=1 - 1e-7).train()
    outputs = model(make_pixels(), output_hidden_states=True)
    assert all(state.abs().max() == 0 for state in outputs.hidden_states)
    # In the MLP, the one after the activation by itself: fc2 is left with its bias.
    mlp = model.vit.layers[0].mlp
    torch.testing.assert_close(mlp(torch.randn(2, 5, 16)), mlp.fc2.bias.expand(2, 5, 16))


@torch.no_grad()
def test_initial_weights_have_the_standard_deviation_of_the_field():
    model = ViTScratchForImageClassification(
        ViTScratchConfig(**{**SMALL, "hidden_size": 64, "initializer_range": 0.07})
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.numel() > 1000:
            assert parameter.std() == pytest.approx(0.07, rel=0.1), name
        elif "bias" in name:
            assert parameter.abs().max() == 0, name


@pytest.mark.parametrize("intermediate_size", [128, 192])  # 192 is 3 times the width, as the fused projection is
@torch.no_grad()
def test_without_an_initializer_range_weights_are_glorots(intermediate_size):
    fields = {"hidden_size": 64, "intermediate_size": intermediate_size, "initializer_range": 0.0}
    model = ViTScratchForImageClassification(ViTScratchConfig(**{**SMALL, **fields}))
    layer = model.vit.layers[0]
    matrices = [
        (model.vit.embeddings.patch_embeddings.weight, 3 * 4 * 4, 64),
        *((part, 64, 64) for part in layer.attention.qkv.weight.chunk(3)),
        (layer.attention.proj.weight, 64, 64),
        (layer.mlp.fc1.weight, 64, intermediate_size),
        (layer.mlp.fc2.weight, intermediate_size, 64),
        (model.classifier.weight, 64, SMALL["num_labels"]),
    ]
    for weight, fan_in, fan_out in matrices:
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.97 * bound < weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert layer.attention.qkv.bias.abs().max() == 0
    assert model.vit.embeddings.position_embeddings.std() > 0


# Other image sizes


@pytest.mark.parametrize("size", [12, 16, 32])
@torch.no_grad()
def test_interpolated_positions_are_those_of_transformers_vit(size):
    ours = make_model(image_size=16).double()
    theirs = make_transformers_vit(ours).double()
    pixels = make_pixels(height=size, width=size).double()
    outputs, expected = (model(pixels, interpolate_pos_encoding=True).logits for model in (ours, theirs))
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("vertical", [True, False])
@torch.no_grad()
def test_positions_are_interpolated_along_the_right_axis(pooling, vertical):
    """Positions that change along one axis only change along that one only, as bicubic interpolation in 1-D does."""
    embeddings = make_model(image_size=[12, 20], pooling=pooling).vit.embeddings
    first = embeddings.config.num_tokens - 3 * 5
    along = torch.randn(3 if vertical else 5, 16)
    grid = (along[:, None] if vertical else along[None]).expand(3, 5, 16)
    embeddings.position_embeddings[0, first:] = grid.flatten(0, 1)
    positions = embeddings.interpolate_pos_encoding(6, 4)[0]
    assert len(positions) == first + 6 * 4
    torch.testing.assert_close(positions[:first], embeddings.position_embeddings[0, :first])
    found = positions[first:].unflatten(0, (6, 4))
    line = along.T[None, :, None]  # (1, D, 1, length)
    expected = nn.functional.interpolate(line, (1, 6 if vertical else 4), mode="bicubic")[0, :, 0].T
    torch.testing.assert_close(found, (expected[:, None] if vertical else expected[None]).expand(6, 4, 16))


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_images_that_are_not_square(fields):
    model = make_model(**fields)
    outputs = model(make_pixels(height=12, width=20), interpolate_pos_encoding=True, output_hidden_states=True)
    assert outputs.hidden_states[0].shape[1] == 3 * 5 + (model.config.pooling == "cls")
    assert outputs.logits.isfinite().all()
    same = model(make_pixels(), interpolate_pos_encoding=True).logits
    torch.testing.assert_close(same, model(make_pixels()).logits)


@torch.no_grad()
def test_fixed_positions_of_another_size_are_those_of_a_model_of_that_size():
    small = make_model(position_embedding="sincos2d")
    large = make_model(position_embedding="sincos2d", image_size=[12, 20])
    large.load_state_dict(small.state_dict())
    pixels = make_pixels(height=12, width=20)
    torch.testing.assert_close(small(pixels, interpolate_pos_encoding=True).logits, large(pixels).logits)


# Training and running


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model = make_model(hidden_dropout_prob=0.1, drop_path_rate=0.5).train()
    pixels, gradients = make_pixels(batch_size=4), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.manual_seed(3)
        loss = model(pixels, labels=torch.tensor([0, 1, 2, 3])).loss
        model.zero_grad()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert model.is_gradient_checkpointing
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_half_precision(fields, tmp_path):
    model = make_model(**fields)
    model.save_pretrained(tmp_path)
    for size in (8, 12):
        pixels = make_pixels(height=size, width=size)
        expected = model(pixels, interpolate_pos_encoding=True).logits
        scale = expected.abs().max()
        for dtype in (torch.bfloat16, torch.float16):
            loaded = ViTScratchForImageClassification.from_pretrained(tmp_path, dtype=dtype)
            cast = make_model(**fields).to(dtype)
            for half in (loaded, cast):
                logits = half(pixels, interpolate_pos_encoding=True).logits
                assert logits.dtype == dtype
                assert (logits.float() - expected).abs().max() < 0.1 * scale
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixels, interpolate_pos_encoding=True).logits
        assert (logits.float() - expected).abs().max() < 0.1 * scale


@pytest.mark.parametrize(("fields", "size"), [({}, 8), (MEAN_SINCOS_CONV, 12)], ids=str)
def test_torch_compile_has_no_graph_break(fields, size):
    torch._dynamo.reset()
    model = make_model(num_hidden_layers=2, **fields)
    # The graph is whole or fullgraph raises; "aot_eager" runs it forwards and backwards without a compiler of C++.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    arguments = {"labels": torch.tensor([1, 2]), "interpolate_pos_encoding": size != 8}
    pixels = make_pixels(height=size)
    outputs, expected = compiled(pixels, **arguments), model(pixels, **arguments)
    torch.testing.assert_close(outputs.logits, expected.logits)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(outputs.loss, parameters), torch.autograd.grad(expected.loss, parameters)
    )


@pytest.mark.parametrize("model_class", [ViTScratchModel, ViTScratchForImageClassification])
@torch.no_grad()
def test_a_compiled_model_saves_what_loads_without_compiling(model_class, tmp_path):
    torch._dynamo.reset()
    model = make_model(model_class=model_class, num_hidden_layers=2)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(make_pixels())
    compiled.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(loaded(make_pixels())[0], model(make_pixels())[0])


@pytest.mark.parametrize("fields", [{}, MEAN_SINCOS_CONV], ids=str)
@torch.no_grad()
def test_torch_export_with_any_batch_size(fields):
    model = make_model(**fields)
    program = torch.export.export(
        model, (make_pixels(),), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}
    )
    for batch_size in (1, 7):
        pixels = make_pixels(batch_size)
        torch.testing.assert_close(program.module()(pixels).logits, model(pixels).logits)


# Saving and loading


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_a_model_is_the_same_after_saving_and_loading(fields, tmp_path):
    model = make_model(**fields)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(saved, dict(model.state_dict()))
    loaded, report = ViTScratchForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert not loaded.training
    torch.testing.assert_close(loaded(make_pixels()).logits, model(make_pixels()).logits)
    encoder = ViTScratchModel.from_pretrained(tmp_path)
    torch.testing.assert_close(encoder(make_pixels()).pooler_output, model.vit(make_pixels()).pooler_output)


@torch.no_grad()
def test_fixed_positions_are_made_again_after_the_meta_device():
    expected = make_model(**MEAN_SINCOS_CONV)
    with torch.device("meta"):
        model = make_model(**MEAN_SINCOS_CONV)
    model.to_empty(device="cpu")
    model.vit.embeddings.position_embeddings.fill_(torch.nan)
    model.init_weights()
    model.load_state_dict(expected.state_dict())
    torch.testing.assert_close(model(make_pixels()).logits, expected(make_pixels()).logits)


@torch.no_grad()
def test_a_head_on_an_encoder_and_a_new_head(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "five")
    model.vit.save_pretrained(tmp_path / "encoder")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        ViTScratchForImageClassification.from_pretrained(tmp_path / "five", num_labels=7)
    seven = ViTScratchForImageClassification.from_pretrained(
        tmp_path / "five", num_labels=7, ignore_mismatched_sizes=True
    )
    added = ViTScratchForImageClassification.from_pretrained(tmp_path / "encoder", num_labels=2)
    for loaded, num_labels in ((seven, 7), (added, 2)):
        assert loaded(make_pixels()).logits.shape == (2, num_labels)
        assert loaded.config.num_labels == len(loaded.config.id2label) == num_labels
        assert loaded.classifier.weight.std() > 0
        torch.testing.assert_close(loaded.vit.state_dict(), model.vit.state_dict())


def test_labels_have_names_that_are_kept(tmp_path):
    names = {0: "cat", 1: "dog", 2: "owl"}
    make_model(id2label=names, label2id={"cat": 0, "dog": 1, "owl": 2}, num_labels=3).save_pretrained(tmp_path)
    loaded = ViTScratchForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == names
    assert loaded.config.label2id["owl"] == 2
    assert loaded.classifier.out_features == 3


@pytest.mark.parametrize("size", ["Ti/16", "S/16", "B/16", "L/16", "H/14"])
def test_the_papers_sizes_have_the_parameters_of_transformers_vit(size):
    config = ViTScratchConfig.from_size(size, num_labels=1000)
    names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    with torch.device("meta"):
        ours = ViTScratchForImageClassification(config)
        theirs = ViTForImageClassification(
            ViTConfig(
                **{name: getattr(config, name) for name in names},
                intermediate_size=config.intermediate_size,
                num_labels=1000,
            )
        )
    assert ours.num_parameters() == theirs.num_parameters()


@torch.no_grad()
def test_a_block_stays_on_one_device_and_may_live_on_disk(tmp_path):
    model = make_model(**MEAN_SINCOS_CONV)
    model.save_pretrained(tmp_path / "model")
    bytes_of_a_block = sum(parameter.nbytes for parameter in model.vit.layers[0].parameters())
    device_map = infer_auto_device_map(
        model,
        max_memory={"cpu": int(3.5 * bytes_of_a_block), "disk": 10**9},
        no_split_module_classes=list(model._no_split_modules),  # accelerate before 1.14 takes no set
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    inside_a_block = [name for name in device_map if name.startswith("vit.layers.") and name.count(".") > 2]
    assert not inside_a_block and not any(name.startswith("vit.embeddings.") for name in device_map)
    loaded = ViTScratchForImageClassification.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(loaded(make_pixels()).logits, model(make_pixels()).logits)
