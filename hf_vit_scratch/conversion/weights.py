"""Convert weights from and to transformers' ViT, from timm, and from the paper's `.npz` files.

There is one function for each source. It derives the config, renames the tensors and loads them strictly: an unknown
weight, a missing weight and a weight of another shape are errors, so that the result computes the same logits. The
result is in evaluation mode and shares no memory with the source.
"""

import math
import os
import re

import numpy as np
import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTModel

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.modeling_vit_scratch import ViTScratchForImageClassification, ViTScratchModel

# Fields with the same name and meaning in transformers' ViT.
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
# All classes of modules in a plain ViT of timm. Other classes may have the same weights, but compute something else.
_TIMM_CLASSES = {
    *("VisionTransformer", "PatchEmbed", "Block", "Attention", "Mlp", "LayerNorm", *_TIMM_ACTIVATIONS),
    *("Conv2d", "Linear", "Sequential", "Identity", "Dropout", "DropPath", "PatchDropout"),
}
# Flax numbers the parts of a block in the order of their creation, including dropout.
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
    """Convert transformers' ViT to a model of this package, including label names, dropout and epsilon.

    Args:
        model: the source. The pooler and the mask token of a `ViTModel` are not converted, since a classifier does not
            use them.
        fields: fields of the config that override the source's, such as `drop_path_rate`.

    Returns:
        [`ViTScratchForImageClassification`], or [`ViTScratchModel`] if the source has no head.

    Raises:
        TypeError: `model` has another class.
        ValueError: its patches are not square, or its image size is not a multiple of the patch size.
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
    if not model.config.num_labels:  # in transformers this means no head; here a config has at least one label
        del derived["id2label"], derived["label2id"]
    return _load_vit_scratch(derived | fields, _fuse_qkv(state))


def to_transformers(model: ViTScratchForImageClassification) -> ViTForImageClassification:
    """Convert a plain ViT to transformers' own class, so that a saved checkpoint needs no remote code.

    `drop_path_rate`, which only training uses, and `training_data` are not converted.

    Args:
        model: has a linear patch projection, a class token and learned position embeddings.

    Returns:
        `ViTForImageClassification`.

    Raises:
        TypeError: `model` is not a [`ViTScratchForImageClassification`].
        ValueError: transformers' ViT does not have the stem, pooling or position embedding of `model`.
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
        del fields["initializer_range"]  # Glorot's initialization, which transformers' ViT does not have
    return _load(ViTForImageClassification, ViTConfig(**fields), state)


def from_timm(model: torch.nn.Module | str | os.PathLike, **fields) -> PreTrainedModel:
    """Convert timm's `VisionTransformer` to a model of this package, including label names if it has any.

    Args:
        model: the source, or a folder or Hub repository saved by timm. A folder or repository holds only the name of
            the architecture, not its number of heads, activation and epsilon, so timm must be installed to load it.
        fields: fields of the config that override the source's, such as `drop_path_rate`.

    Returns:
        [`ViTScratchForImageClassification`], or [`ViTScratchModel`] if the source has no classes.

    Raises:
        ImportError: timm is needed, but not installed.
        ValueError: the source has a part without a counterpart here, such as registers, a distillation token, layer
            scale, normalized queries and keys, or a gated MLP.
    """
    if not isinstance(model, torch.nn.Module):
        try:
            from timm import create_model
        except ImportError as error:
            raise ImportError(
                f"loading {model} needs timm, which is an optional package: pip install timm. {error}."
            ) from error
        model = create_model(f"{'local-dir' if os.path.isdir(model) else 'hf-hub'}:{model}", pretrained=True)
    for name, module in model.named_modules():
        if type(module).__name__ not in _TIMM_CLASSES:
            part = f"its {name} is a" if name else "it is a"
            raise ValueError(f"this model of timm has no counterpart in the package: {part} {type(module).__name__}.")
    state = _rename(model.state_dict(), _TIMM_NAMES)
    if model.global_pool != ("token" if model.has_class_token else "avg"):
        with_or_without = "with" if model.has_class_token else "without"
        raise ValueError(f"global_pool {model.global_pool!r} {with_or_without} class token has no counterpart.")
    block = model.blocks[-1]  # the last block has the largest drop path rate, which is the config's
    tanh = getattr(block.mlp.act, "approximate", "none") == "tanh"  # nn.GELU with the tanh approximation
    derived = _fields_of_shapes(state) | {
        "image_size": _one_or_both(model.patch_embed.img_size),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": _TIMM_ACTIVATIONS["GELUTanh" if tanh else type(block.mlp.act).__name__],
        "hidden_dropout_prob": block.attn.proj_drop.p,
        "attention_probs_dropout_prob": block.attn.attn_drop.p,
        "drop_path_rate": round(getattr(block.drop_path1, "drop_prob", 0.0), 6),  # timm computes it in fp32
        "layer_norm_eps": block.norm1.eps,
    }
    labels = getattr(model, "pretrained_cfg", {}).get("label_names")
    if isinstance(labels, (list, tuple)) and len(labels) == model.num_classes:
        derived["id2label"] = dict(enumerate(labels))
        derived["label2id"] = {label: index for index, label in enumerate(labels)}
    return _load_vit_scratch(derived | fields, state)


def from_npz(path: str | os.PathLike, **fields) -> PreTrainedModel:
    """Convert a checkpoint of the paper's authors (`vit_jax`, `gs://vit_models`) to a model of this package.

    Args:
        path: the `.npz` file. Nothing in it is unpickled. A file without a class token (`classifier="gap"` in
            `vit_jax`) becomes a model with `pooling="mean"`.
        fields: fields of the config that override those derived from the shapes. For images that are not square,
            `image_size=[height, width]` is required. `hidden_act` is `"gelu"`, as transformers and timm load these
            files. `vit_jax` itself computes the tanh approximation, `hidden_act="gelu_pytorch_tanh"`.

    Returns:
        [`ViTScratchForImageClassification`], or [`ViTScratchModel`] if the file has no head.

    Raises:
        ValueError: an array is missing or has no counterpart here, as in hybrids and files with `pre_logits`.
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
            raise ValueError(f"{num_patches} patches are not a square. Pass image_size=[height, width].")
        derived["image_size"] = rows * derived["patch_size"]
    return _load_vit_scratch(derived | fields, state)


def _from_flax(name: str, array: np.ndarray) -> tuple[str, torch.Tensor]:
    """Convert one array of Flax, whose dense kernels are (in, out), to a `weight` or `bias` of torch."""
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
    """`(16, 16)` and `16` as 16; `(16, 8)` as `[16, 8]`."""
    sides = [sides] if isinstance(sides, int) else list(sides)
    return sides[0] if len(set(sides)) == 1 else sides


def _rename(weights: dict, names: dict[str, str]) -> dict:
    """Rename the weights by `names`, a mapping of patterns to replacements. Raises: ValueError without a match."""
    renamed = {}
    for name, value in weights.items():
        pattern = next((pattern for pattern in names if re.fullmatch(pattern, name)), None)
        if pattern is None:
            raise ValueError(f"weight {name!r} has no counterpart in the model of this package.")
        renamed[re.sub(pattern, names[pattern], name)] = value
    return renamed


def _fuse_qkv(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack q_proj, k_proj and v_proj, each (D, ...), to qkv (3D, ...), unless one of them is missing."""
    for name in [name for name in state if ".q_proj." in name]:
        parts = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
        if all(part in state for part in parts):
            state[name.replace("q_proj", "qkv")] = torch.cat([state.pop(part) for part in parts])
    return state


def _fields_of_shapes(state: dict[str, torch.Tensor]) -> dict:
    """The fields of the config that follow from the shapes of the weights: all but number of heads and image size."""
    needed = {"embeddings.patch_embeddings.weight", "embeddings.position_embeddings"}
    needed |= {"layers.0.attention.qkv.weight", "layers.0.mlp.fc1.weight"}
    if missing := sorted(needed - state.keys()):
        raise ValueError(f"these are not the weights of a plain ViT: they lack {', '.join(missing)}.")
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
    """Load weights named as in [`ViTScratchModel`] into a model of this package, with a head if they include one."""
    config = ViTScratchConfig(**fields)
    if "classifier.weight" not in state:
        return _load(ViTScratchModel, config, state)
    state = {name if name.startswith("classifier.") else f"vit.{name}": tensor for name, tensor in state.items()}
    return _load(ViTScratchForImageClassification, config, state)


def _load(model_class: type, config, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A `model_class` with copies of the tensors of `state`, in their dtype and on their device."""
    with torch.device("meta"):  # skips the initialization
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := sorted(name for name in expected | given if expected.get(name) != given.get(name)):
        shapes = f"expected {expected.get(wrong[0], 'nothing')}, got {given.get(wrong[0], 'nothing')}"
        raise ValueError(f"weights do not fit {model_class.__name__}: for {wrong[0]} {shapes} ({len(wrong)} in all).")
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    model.load_state_dict(copies, strict=True, assign=True)
    return model.eval()
