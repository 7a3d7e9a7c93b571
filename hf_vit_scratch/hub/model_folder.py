"""Checks of the files of a model before it is loaded: what they ask for, against what the weights hold.

Every command that loads a model passes them. Only JSON and the headers of safetensors are read, and the weights one by
one, so that nothing is allocated for a model that its files do not hold.
"""

import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import list_repo_files
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig
from transformers.utils import cached_file

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..model.modeling_vit_scratch import ViTScratchForImageClassification, ViTScratchModel
from ..output_folder import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, read_json

MAX_HEADER_BYTES = 2**24  # of a safetensors file; that of a ViT-H/14 has 60 KB
MAX_PIXELS = 2**26  # of an image that a processor makes
_FLOATS = ("F64", "F32", "F16", "BF16")
# Keys with which a config.json makes transformers load something else than these weights.
_LOADERS = ("quantization_config", "transformers_weights", "fusion_config", "per_layer_config", "distributed_config")
_SIZES = ("size", "crop_size", "pad_size")
_SIDES = {"height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"}
_FLAGS = (
    "do_center_digit",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_pad",
    "do_convert_rgb",
    "default_to_square",
)
# Fields of transformers' ViT that mean the same here, and so have the same bounds.
_OF_A_VIT = (
    *("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"),
    *("initializer_range", "qkv_bias", "num_labels"),
)
Shapes = dict[str, tuple[int, ...]]


def check_model(source: str, has_head: bool | None = None) -> ViTScratchConfig:
    """Check all files of a model of this package: config, preprocessing and weights.

    Args:
        source: a folder, or the id of a repository on the Hub.
        has_head: whether the weights include a head. Default: what config.json says.

    Returns:
        The config.

    Raises:
        ValueError or OSError: a file is missing, damaged, or asks for something that the others do
            not hold; a weight is not a finite number.
    """
    content = read_config(source)
    if content.get("model_type") != ViTScratchConfig.model_type:
        found = f"{content.get('model_type')!r:.80}"
        raise ValueError(f"expected a model of type {ViTScratchConfig.model_type}, got {found}.")
    config = ViTScratchConfig.from_pretrained(source)
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    files = weight_files(source)
    check_preprocessing(source)
    if has_head is None:
        has_head = ViTScratchForImageClassification.__name__ in (config.architectures or [])
    model_class = ViTScratchForImageClassification if has_head else ViTScratchModel
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    _check_shapes(read_shapes(files), expected)
    check_finite(files)
    return config


def read_config(source: str) -> dict:
    """The content of config.json. Raises: ValueError or OSError if it cannot be that of a model."""
    file = cached_file(source, CONFIG_NAME)
    if file is None:
        raise ValueError(f"expected a {CONFIG_NAME}, got none.")
    content = read_json(file)
    if os.path.isdir(source):
        for name in sorted(os.listdir(source)):
            if name == "adapter_config.json" or re.fullmatch(r"shard-\d+-model-.*\.safetensors", name):
                raise ValueError(f"it holds {name}, so its weights are not those of {WEIGHTS_NAME} alone.")
    for name in content:
        if name in _LOADERS:
            raise ValueError(f"its {CONFIG_NAME} has {name}, which is not read: expected plain weights.")
        if callable(getattr(PretrainedConfig, name, None)) or name.startswith("__"):
            raise ValueError(f"its {CONFIG_NAME} has {name!r:.80}, which is not a field of a config.")
    architectures, data = content.get("architectures"), content.get("training_data")
    for name, value in (("architectures", architectures), ("training_data", data)):
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise ValueError(f"its {name} must be a list of names, got {value!r:.80}.")
    if not isinstance(names := content.get("id2label"), dict | None):
        raise ValueError(f"its id2label must map numbers to names, got {names!r:.80}.")
    return content


def check_vit(source: str, content: dict, has_head: bool) -> None:
    """Check all files of a ViT of transformers, whose names of weights depend on its version.

    Args:
        source, has_head: as for [`check_model`].
        content: the content of config.json.

    Raises: as [`check_model`], also if a field is out of the bounds of [`ViTScratchConfig`].
    """
    files = weight_files(source)
    check_preprocessing(source)
    fields = {name: content[name] for name in _OF_A_VIT if name in content}
    for name in ("image_size", "patch_size"):
        sides = fields.get(name)
        if isinstance(sides, list) and len({*map(repr, sides)}) == 1:
            fields[name] = sides[0]
    fields["layer_norm_eps"] = fields.get("layer_norm_eps", 1e-12)
    if isinstance(names := content.get("id2label"), dict):
        fields["num_labels"] = len(names)
    if fields.get("num_labels") == 0:  # in transformers this means no head
        has_head = bool(fields.pop("num_labels"))
    config = ViTScratchConfig(**fields)
    with torch.device("meta"):
        model = (ViTScratchForImageClassification if has_head else ViTScratchModel)(config)
    given = ", ".join(f"{name} {value!r:.20}" for name, value in fields.items() if name.endswith(("_size", "layers")))
    check_count(model, read_shapes(files), given)
    check_finite(files)


def check_count(model: torch.nn.Module, held: Shapes, described: str) -> None:
    """Raises: ValueError if a model (on the meta device) has more than twice the parameters that the weights hold.

    Where only a few are missing, loading names them.
    """
    expected = sum(parameter.numel() for parameter in model.parameters())
    if expected > 2 * (found := sum(map(math.prod, held.values()))):
        raise ValueError(
            f"its {CONFIG_NAME} ({described}) describes {expected:,} parameters, but its weights hold {found:,}."
        )


def check_preprocessing(source: str) -> dict:
    """The content of preprocessor_config.json. Raises: ValueError if a value has the wrong type or is out of range."""
    file = cached_file(source, PREPROCESSOR_NAME, _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise ValueError(f"the normalization of its pixels is unknown: it has no {PREPROCESSOR_NAME}.")
    content = read_json(file)

    def refuse(name: str, expected: str):
        raise ValueError(f"{PREPROCESSOR_NAME}: {name} must be {expected}, got {content[name]!r:.80}.")

    for name, value in content.items():
        if callable(getattr(ViTScratchImageProcessor, name, None)) or name.startswith("__"):
            raise ValueError(f"{PREPROCESSOR_NAME} has {name!r:.80}, which is not a field of a processor.")
        if value is None:
            continue
        if name in _FLAGS and type(value) is not bool:
            refuse(name, "true or false")
        if name in _SIZES and not _is_size(value):
            refuse(name, f"sides of at least 1 pixel and at most {MAX_PIXELS:,} pixels in all")
        if name == "resample" and (type(value) is not int or not 0 <= value <= 5):
            refuse(name, "an integer from 0 to 5")
        if name == "num_channels" and (type(value) is not int or not 1 <= value <= 2**16):
            refuse(name, "an integer from 1 to 65,536")
        if name == "rescale_factor" and not (_is_number(value) and value > 0):
            refuse(name, "a number above 0")
        if name in ("image_mean", "image_std"):
            numbers = value if isinstance(value, list) and value else [value]
            if not all(_is_number(each) and (each > 1e-6 or name == "image_mean") for each in numbers):
                refuse(name, "a number, or one for each channel" + (", above 0" if name == "image_std" else ""))
    return content


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and value is not True and value is not False and -1e6 < value < 1e6


def _is_size(value) -> bool:
    """Whether a size of a processor is one or more sides in pixels, which give an image of a bearable size."""
    sides = value if isinstance(value, dict) else {"height": value, "width": value}
    if not sides or not sides.keys() <= _SIDES or not all(type(each) is int and each > 0 for each in sides.values()):
        return False
    height, width = sides.get("height", max(sides.values())), sides.get("width", max(sides.values()))
    return height * width <= MAX_PIXELS


# ---- weights


def weight_files(source: str, sharded: bool = True) -> list[Path]:
    """The local paths of the safetensors files of a model, downloaded if `source` is a repository.

    Args:
        source: a folder, or the id of a repository on the Hub.
        sharded: whether weights in several files, with an index, are read too.

    Raises: ValueError if there are none, or the index names other files than those beside it.
    """
    if file := cached_file(source, WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False):
        return [Path(file)]
    index = cached_file(source, WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False) if sharded else None
    if index is None:
        files = os.listdir(source) if os.path.isdir(source) else list_repo_files(source)
        pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")))
        found = f"there is only {', '.join(pickles)}, and a pickle can run any code" if pickles else "there is none"
        raise ValueError(f"weights are read only from {WEIGHTS_NAME}, but {found}.")
    files = []
    for name in shard_names(read_json(index)):
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if file is None:
            raise ValueError(f"{WEIGHTS_INDEX_NAME} names {name!r:.80}, which is missing.")
        files.append(Path(file))
    return files


def shard_names(index: dict) -> list[str]:
    """The files that the content of an index names. Raises: ValueError if one could be in another folder."""
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights or not isinstance(index.get("metadata", {}), dict):
        raise ValueError(f"{WEIGHTS_INDEX_NAME} must have a weight_map from weights to files.")
    names = {name if isinstance(name, str) else repr(name) for name in weights.values()}
    if wrong := sorted(name for name in names if not re.fullmatch(r"\w[\w.-]*\.safetensors", name)):
        expected = "expected the names of safetensors files beside it"
        raise ValueError(f"{WEIGHTS_INDEX_NAME} names {wrong[0]!r:.80}: {expected}.")
    return sorted(names)


def read_shapes(files: list[Path]) -> Shapes:
    """The shapes of all weights, by name, from the headers. Raises: ValueError for weights that are no numbers."""
    shapes: Shapes = {}
    for stored, name in _weights(files):
        part = stored.get_slice(name)
        if part.get_dtype() not in _FLOATS:
            raise ValueError(f"its weight {name!r:.80} has the type {part.get_dtype()}, expected floating point.")
        shapes[name] = tuple(part.get_shape())
    return shapes


def check_finite(files: list[Path]) -> None:
    """Raises: ValueError if a weight is NaN or infinite. One weight at a time is in memory."""
    for stored, name in _weights(files):
        if not torch.isfinite(stored.get_tensor(name)).all():
            raise ValueError(f"its weight {name!r:.80} holds NaN or infinity.")


def _weights(files: list[Path]) -> Iterator[tuple]:
    for file in files:
        with open(file, "rb") as stream:
            start = stream.read(8)
        if len(start) < 8 or struct.unpack("<Q", start)[0] > MAX_HEADER_BYTES:
            problem = f"its header should have at most {MAX_HEADER_BYTES:,} bytes"
            raise ValueError(f"{file} is not a complete safetensors file: {problem}.")
        try:
            with safe_open(file, "pt") as stored:
                for name in stored.keys():
                    yield stored, name
        except SafetensorError as error:
            raise ValueError(f"{file} is not a complete safetensors file: {error}.") from error


def _check_shapes(held: Shapes, expected: Shapes) -> None:
    """Raises: ValueError if the shapes of the weights are not those that config.json asks for."""
    for name in sorted(held.keys() & expected.keys()):
        if held[name] != expected[name]:
            raise ValueError(f"its {name} is {held[name]}, and {expected[name]} by its {CONFIG_NAME}.")
    if lacking := sorted(expected.keys() - held.keys()):
        raise ValueError(f"its weights lack {', '.join(lacking[:3])}.")
    if more := sorted(held.keys() - expected.keys()):
        names = ", ".join(name[:80] for name in more[:3])
        raise ValueError(f"its weights hold {names}, which a model of its {CONFIG_NAME} does not have.")
