"""Weights from and to transformers' ViT, from timm's, and from the paper's original `.npz` files.

One function for each source. Each derives the config from what it is given, renames the tensors and loads them
strictly: a weight without a place here, one that is missing and one of another shape are errors, so what comes out
computes the same logits. The result is in evaluation mode and shares no memory with its source.
"""

import math
import os
import re

import numpy as np
import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTModel

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.modeling_vit_scratch import ViTScratchForImageClassification, ViTScratchModel

# Fields with one name and one meaning here and in transformers' ViT.
_SHARED_FIELDS = (
    *("num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "initializer_range", "qkv_bias"),
    *("id2label", "label2id", "problem_type"),
)
_TIMM_NAMES = {
    r"cls_token": r"embeddings.cls_token",
    r"pos_embed": r"embeddings.position_embeddings",
    r"patch_embed\.proj\.(\w+)": r"embeddings.patch_embeddings.\1",
    r"blocks\.(\d+)\.norm1\.(\w+)": r"layers.\1.layernorm_before.\2",
    r"blocks\.(\d+)\.attn\.(qkv|proj)\.(\w+)": r"layers.\1.attention.\2.\3",
    r"blocks\.(\d+)\.norm2\.(\w+)": r"layers.\1.layernorm_after.\2",
    r"blocks\.(\d+)\.mlp\.(fc1|fc2)\.(\w+)": r"layers.\1.mlp.\2.\3",
    r"norm\.(\w+)": r"layernorm.\1",
    r"head\.(\w+)": r"classifier.\1",
}
_TIMM_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu"}
# All that a plain ViT of timm is made of. Other classes can have the same weights and compute something else.
_TIMM_CLASSES = {
    *("VisionTransformer", "PatchEmbed", "Block", "Attention", "Mlp", "LayerNorm", *_TIMM_ACTIVATIONS),
    *("Conv2d", "Linear", "Sequential", "Identity", "Dropout", "DropPath", "PatchDropout"),
}
# Flax numbers the parts of a block in the order of their creation, dropout included: hence 0, 1, 2, 3.
_NPZ_BLOCK = r"Transformer/encoderblock_(\d+)"
_NPZ_NAMES = {
    r"cls": r"embeddings.cls_token",
    r"Transformer/posembed_input/pos_embedding": r"embeddings.position_embeddings",
    r"embedding/(\w+)": r"embeddings.patch_embeddings.\1",
    rf"{_NPZ_BLOCK}/LayerNorm_0/(\w+)": r"layers.\1.layernorm_before.\2",
    rf"{_NPZ_BLOCK}/MultiHeadDotProductAttention_1/(q|k|v)(?:uery|ey|alue)/(\w+)": r"layers.\1.attention.\2_proj.\3",
    rf"{_NPZ_BLOCK}/MultiHeadDotProductAttention_1/out/(\w+)": r"layers.\1.attention.proj.\2",
    rf"{_NPZ_BLOCK}/LayerNorm_2/(\w+)": r"layers.\1.layernorm_after.\2",
    rf"{_NPZ_BLOCK}/MlpBlock_3/Dense_0/(\w+)": r"layers.\1.mlp.fc1.\2",
    rf"{_NPZ_BLOCK}/MlpBlock_3/Dense_1/(\w+)": r"layers.\1.mlp.fc2.\2",
    r"Transformer/encoder_norm/(\w+)": r"layernorm.\1",
    r"head/(\w+)": r"classifier.\1",
}


def from_transformers(model: ViTForImageClassification | ViTModel, **fields) -> PreTrainedModel:
    """transformers' ViT as a model of this package, with its label names, dropout and epsilon.

    Args:
        model: the source. The pooler and the mask token of a `ViTModel` are left behind: no classifier reads them.
        fields: fields of the config that replace those of the source, such as `drop_path_rate`.

    Returns:
        [`ViTScratchForImageClassification`], or [`ViTScratchModel`] where the source has no head.

    Raises:
        TypeError: `model` is neither of the two. ValueError: its patches are not square or do not fill its images.
    """
    if not isinstance(model, (ViTForImageClassification, ViTModel)):
        raise TypeError(f"expected transformers' ViTForImageClassification or ViTModel, got {type(model).__name__}.")
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("vit.").replace("patch_embeddings.projection.", "patch_embeddings.")
        if not name.startswith("pooler.") and name != "embeddings.mask_token":
            state[name.replace("attention.o_proj.", "attention.proj.")] = tensor
    derived = {name: getattr(model.config, name) for name in _SHARED_FIELDS}
    derived |= {name: _one_or_both(getattr(model.config, name)) for name in ("image_size", "patch_size")}
    if not model.config.num_labels:  # transformers' way to leave out the head, which a config of this package has not
        del derived["id2label"], derived["label2id"]
    return _load_vit_scratch(derived | fields, _fuse_qkv(state))


def to_transformers(model: ViTScratchForImageClassification) -> ViTForImageClassification:
    """A plain ViT as transformers' own class, whose `save_pretrained` makes a folder that needs no remote code.

    `drop_path_rate` stays behind, which only training reads, and `training_data`.

    Raises:
        TypeError: `model` is not a [`ViTScratchForImageClassification`]. ValueError: its stem, pooling or position
            embedding is not that of transformers' ViT.
    """
    if not isinstance(model, ViTScratchForImageClassification):
        raise TypeError(f"expected a ViTScratchForImageClassification, got {type(model).__name__}.")
    for name, plain in {"stem": "patch", "pooling": "cls", "position_embedding": "learned"}.items():
        if (value := getattr(model.config, name)) != plain:
            raise ValueError(f"transformers' ViT has no {name} {value!r}: only {name} {plain!r} can be converted.")
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("patch_embeddings.", "patch_embeddings.projection.")
        name = name.replace("attention.proj.", "attention.o_proj.")
        if "attention.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):  # (3D, ...) -> 3 x (D, ...)
                state[name.replace("qkv", f"{letter}_proj")] = part
        else:
            state[name] = tensor
    fields = {name: getattr(model.config, name) for name in (*_SHARED_FIELDS, "image_size", "patch_size")}
    if fields["initializer_range"] == 0:
        del fields["initializer_range"]  # Glorot's bound is this package's own: transformers' ViT wants a number
    return _load(ViTForImageClassification, ViTConfig(**fields), state)


def from_timm(model: torch.nn.Module | str | os.PathLike, **fields) -> PreTrainedModel:
    """timm's `VisionTransformer` as a model of this package, with its label names where it has some.

    Args:
        model: the source, or a folder or Hub repository that timm saved. Those name an architecture rather than
            spell out its heads, activation and epsilon, so it is timm that builds them.
        fields: fields of the config that replace those of the source, such as `drop_path_rate`.

    Returns:
        [`ViTScratchForImageClassification`], or [`ViTScratchModel`] where the source has no classes.

    Raises:
        ImportError: timm is needed and not installed. ValueError: the source has a part without a counterpart here,
            such as registers, a distillation token, layer scale, normed queries and keys, or a gated MLP.
    """
    if not isinstance(model, torch.nn.Module):
        try:
            from timm import create_model
        except ImportError as error:
            raise ImportError(f"{model} is read with timm, which is an optional package: {error}.") from error
        model = create_model(f"{'local-dir' if os.path.isdir(model) else 'hf-hub'}:{model}", pretrained=True)
    for name, module in model.named_modules():
        if type(module).__name__ not in _TIMM_CLASSES:
            part = f"its {name} is a" if name else "it is a"
            raise ValueError(f"this model of timm has no counterpart here: {part} {type(module).__name__}.")
    state = _rename(model.state_dict(), _TIMM_NAMES)
    if model.global_pool != ("token" if model.has_class_token else "avg"):
        with_or_without = "with" if model.has_class_token else "without"
        raise ValueError(f"global_pool {model.global_pool!r} {with_or_without} class token has no counterpart here.")
    block = model.blocks[-1]  # the drop path rises up to the last
    tanh = getattr(block.mlp.act, "approximate", "none") == "tanh"  # of nn.GELU, which GELUTanh spells otherwise
    derived = _fields_of_shapes(state) | {
        "image_size": _one_or_both(model.patch_embed.img_size),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": _TIMM_ACTIVATIONS["GELUTanh" if tanh else type(block.mlp.act).__name__],
        "hidden_dropout_prob": block.attn.proj_drop.p,
        "attention_probs_dropout_prob": block.attn.attn_drop.p,
        "drop_path_rate": round(getattr(block.drop_path1, "drop_prob", 0.0), 6),  # timm reckons it in fp32
        "layer_norm_eps": block.norm1.eps,
    }
    labels = getattr(model, "pretrained_cfg", {}).get("label_names")
    if isinstance(labels, (list, tuple)) and len(labels) == model.num_classes:
        derived["id2label"] = dict(enumerate(labels))
        derived["label2id"] = {label: index for index, label in enumerate(labels)}
    return _load_vit_scratch(derived | fields, state)


def from_npz(path: str | os.PathLike, **fields) -> PreTrainedModel:
    """A checkpoint of the paper's authors (`gs://vit_models`, of their `vit_jax`) as a model of this package.

    Args:
        path: the `.npz` file; nothing in it is unpickled. One without class token has `pooling="mean"`, as theirs
            of `classifier="gap"`.
        fields: fields of the config that replace those derived from the shapes. `image_size=[height, width]` is
            needed where the images are not square. `hidden_act` is `"gelu"`, as transformers and timm read these
            files; Flax computes its tanh approximation, which is `hidden_act="gelu_pytorch_tanh"`.

    Returns:
        [`ViTScratchForImageClassification`], or [`ViTScratchModel`] where the file has no head.

    Raises:
        ValueError: an array is missing or has no counterpart here, as in the hybrids and files with `pre_logits`.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = _rename({name: archive[name] for name in archive.files}, _NPZ_NAMES)
    state = _fuse_qkv(dict(_from_flax(name, array) for name, array in arrays.items()))
    derived = _fields_of_shapes(state)
    _, derived["num_attention_heads"], _ = arrays["layers.0.attention.q_proj.kernel"].shape  # (D, heads, head_dim)
    if "image_size" not in fields:
        num_patches = state["embeddings.position_embeddings"].shape[1] - (derived["pooling"] == "cls")
        rows = math.isqrt(num_patches)
        if rows**2 != num_patches:
            raise ValueError(f"{num_patches} patches are not a square: image_size=[height, width] is needed.")
        derived["image_size"] = rows * derived["patch_size"]
    return _load_vit_scratch(derived | fields, state)


def _from_flax(name: str, array: np.ndarray) -> tuple[str, torch.Tensor]:
    """One array of Flax, whose dense kernels are (in, out), as `weight` or `bias` of torch."""
    tensor = torch.from_numpy(array.astype(np.float32))
    if name.endswith("patch_embeddings.kernel"):
        tensor = tensor.permute(3, 2, 0, 1)  # (P, P, C, D) -> (D, C, P, P)
    elif name.endswith("_proj.kernel"):
        tensor = tensor.flatten(1).T  # (D, heads, head_dim) -> (heads * head_dim, D)
    elif name.endswith("_proj.bias"):
        tensor = tensor.flatten()  # (heads, head_dim) -> (D,)
    elif name.endswith(".kernel"):
        tensor = tensor.flatten(0, -2).T  # (in, out) -> (out, in); (heads, head_dim, D) -> (D, heads * head_dim)
    return re.sub(r"\.(kernel|scale)$", ".weight", name), tensor


def _one_or_both(sides):
    """`(16, 16)` as 16, one number as it is, and sides that differ as a list."""
    sides = [sides] if isinstance(sides, int) else list(sides)
    return sides[0] if len(set(sides)) == 1 else sides


def _rename(weights: dict, names: dict[str, str]) -> dict:
    """`weights` under the name that the one pattern of `names` that matches gives."""
    renamed = {}
    for name, value in weights.items():
        pattern = next((pattern for pattern in names if re.fullmatch(pattern, name)), None)
        if pattern is None:
            raise ValueError(f"weight {name!r} has no counterpart in the model of this package.")
        renamed[re.sub(pattern, names[pattern], name)] = value
    return renamed


def _fuse_qkv(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """q_proj, k_proj and v_proj, each (D, ...), as one qkv (3D, ...); without one of them the others stay apart."""
    for name in [name for name in state if ".q_proj." in name]:
        parts = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
        if all(part in state for part in parts):
            state[name.replace("q_proj", "qkv")] = torch.cat([state.pop(part) for part in parts])
    return state


def _fields_of_shapes(state: dict[str, torch.Tensor]) -> dict:
    """The fields of the config that the shapes of a plain ViT tell; the heads and the image's sides they do not."""
    needed = {"embeddings.patch_embeddings.weight", "embeddings.position_embeddings"}
    needed |= {"layers.0.attention.qkv.weight", "layers.0.mlp.fc1.weight"}
    if missing := sorted(needed - state.keys()):
        raise ValueError(f"these are not the weights of a plain ViT: there is nothing for {', '.join(missing)}.")
    hidden_size, num_channels, *patch_size = state["embeddings.patch_embeddings.weight"].shape
    fields = {
        "patch_size": _one_or_both(patch_size),
        "num_channels": num_channels,
        "hidden_size": hidden_size,
        "num_hidden_layers": sum(name.endswith(".mlp.fc1.weight") for name in state),
        "intermediate_size": len(state["layers.0.mlp.fc1.weight"]),
        "qkv_bias": "layers.0.attention.qkv.bias" in state,
        "pooling": "cls" if "embeddings.cls_token" in state else "mean",
    }
    return fields | ({"num_labels": len(state["classifier.weight"])} if "classifier.weight" in state else {})


def _load_vit_scratch(fields: dict, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """The model of this package for weights named as in [`ViTScratchModel`], with a head if there is one for it."""
    config = ViTScratchConfig(**fields)
    if "classifier.weight" not in state:
        return _load(ViTScratchModel, config, state)
    state = {name if name.startswith("classifier.") else f"vit.{name}": tensor for name, tensor in state.items()}
    return _load(ViTScratchForImageClassification, config, state)


def _load(model_class: type, config, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A `model_class` with copies of the tensors of `state`, which keep their dtype and device."""
    with torch.device("meta"):  # nothing is initialized only to be overwritten
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := sorted(name for name in expected | given if expected.get(name) != given.get(name)):
        shapes = f"expected {expected.get(wrong[0], 'nothing')}, got {given.get(wrong[0], 'nothing')}"
        raise ValueError(f"weights do not fit {model_class.__name__}: for {wrong[0]} {shapes} ({len(wrong)} in all).")
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    model.load_state_dict(copies, strict=True, assign=True)
    return model.eval()
