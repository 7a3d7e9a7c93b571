"""The cost of a size, computed without training: parameters, FLOPs and memory."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.modeling_vit_scratch import ViTScratchConvStem, ViTScratchForImageClassification


@dataclass(frozen=True)
class Cost:
    """Cost of a model.

    Only matrix products and convolutions are counted as FLOPs, with two FLOPs per multiply-add, like in torch. A
    training step takes about three times the FLOPs of the forward pass.

    Args:
        parameters: number of parameters of each part.
        flops: FLOPs of each part, for the forward pass of one image.
        tokens: sequence length.
    """

    parameters: dict[str, int]
    flops: dict[str, int]
    tokens: int

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())


def cost(config: ViTScratchConfig) -> Cost:
    """The cost of a [`ViTScratchForImageClassification`], computed from its config in microseconds.

    With a class token the last block computes only this token, as in the model when it returns only logits.
    """
    width, hidden, tokens = config.hidden_size, config.intermediate_size, config.num_tokens
    rows, columns = config.grid_size
    channels, patch = config.num_channels, config.patch_size
    if config.stem == "conv":
        stem = _ConvStem(channels, patch, width, config.stem_depth, config.stem_width)
        stem_parameters, stem_flops = _conv_stem(stem, rows * columns)
    else:
        stem_parameters = channels * patch**2 * width + width  # equation 1
        stem_flops = 2 * rows * columns * channels * patch**2 * width
    num_queries = [tokens] * (config.num_hidden_layers - 1) + [1 if config.pooling == "cls" else tokens]
    bias = 3 * width if config.qkv_bias else 0
    layers = config.num_hidden_layers
    parameters = {
        "stem": stem_parameters,
        "class token": width if config.pooling == "cls" else 0,
        "positions": tokens * width if config.position_embedding == "learned" else 0,
        "attention": layers * (4 * width**2 + bias + width),  # equations 6 and 8
        "MLP": layers * (2 * width * hidden + hidden + width),
        "norms": (2 * layers + 1) * 2 * width,
        "head": (width + 1) * config.num_labels,
    }
    flops = {
        "stem": stem_flops,
        "attention": sum(2 * (3 * tokens * width**2 + 2 * q * tokens * width + q * width**2) for q in num_queries),
        "MLP": sum(2 * 2 * q * width * hidden for q in num_queries),
        "head": 2 * width * config.num_labels,
    }
    return Cost(parameters, flops, tokens)


def module_cost(model: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Parameters of any model, and FLOPs of its forward pass for an image of `shape` (num_channels, height, width)."""
    model = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *shape, device="meta"))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


class _ConvStem(NamedTuple):
    """The fields of the config that determine the convolutional stem."""

    num_channels: int
    patch_size: int
    hidden_size: int
    stem_depth: int
    stem_width: int | None


@lru_cache(maxsize=4096)
def _conv_stem(fields: _ConvStem, num_patches: int) -> tuple[int, int]:
    """Parameters of the convolutional stem, and its FLOPs for an image of `num_patches` patches."""
    with torch.device("meta"):
        config = ViTScratchConfig(image_size=fields.patch_size, stem="conv", num_attention_heads=1, **fields._asdict())
        stem = ViTScratchConvStem(config)
    positions, flops = num_patches * fields.patch_size**2, 0
    for layer in stem:
        if isinstance(layer, nn.Conv2d):
            positions //= layer.stride[0] * layer.stride[1]
            flops += 2 * positions * layer.weight.numel()
    return sum(parameter.numel() for parameter in stem.parameters()), flops


def activation_bytes(config: ViTScratchConfig, batch_size: int) -> int:
    """Bytes of activations that a training step in fp32 keeps for the backward pass, without the weights.

    They are determined on the meta device, without computing anything, for eager attention, which keeps its weights
    `(batch_size, num_attention_heads, T, T)`. In bf16 they are about half.
    """
    return _kept_bytes(config, batch_size, "eager", "meta")


def training_memory(
    config: ViTScratchConfig, batch_size: int, devices: int = 1, sharded: bool = False, checkpointing: bool = False
) -> dict[str, int]:
    """Bytes of a training step on each device, by what they hold, with AdamW, an average, bf16 autocast and sdpa.

    They are without temporary tensors, fragmentation, and what CUDA and its libraries take (about 1 GB).

    Args:
        batch_size: images of each device.
        devices: number of devices.
        sharded: FSDP2, wrapped by block, instead of DDP.
        checkpointing: with `gradient_checkpointing`.
    """
    price, depth = cost(config), config.num_hidden_layers
    states, share = price.total_parameters, devices if sharded else 1
    # What a block keeps is the same for all blocks but the last: (bytes for one image, for two).
    last_one, last_two, both_one, both_two = (
        _of_layers(config, layers, images) for layers in (1, 2) for images in (1, 2)
    )
    block_one, block_two = both_one - last_one, both_two - last_two
    last_copies, block_copies = 2 * last_one - last_two, 2 * block_one - block_two  # in bf16, for any batch
    block, last = block_two - block_one, last_two - last_one
    hidden = 4 * config.num_tokens * config.hidden_size  # the fp32 input of a block
    images = last + (hidden * (depth - 1) + block if checkpointing and depth > 1 else block * (depth - 1))
    memory = {
        "weights": 4 * states // share,
        "gradients": 4 * states // share,
        "AdamW": 8 * states // share,
        "average": 4 * states // share,
        "activations": batch_size * images,
    }
    if sharded:
        # Two blocks in bf16, each with the buffer it is gathered in, and the gradient of one in bf16 and fp32.
        matrices = price.parameters["attention"] + price.parameters["MLP"]
        return memory | {"gathered blocks": (2 * (2 + 2) + 2 + 4) * matrices // depth}
    copies = last_copies + block_copies * (1 if checkpointing and depth > 1 else depth - 1)
    buckets = {"DDP's buckets": 4 * states} if devices > 1 else {}  # in which the gradients are added up
    return memory | {"bf16 weights": copies} | buckets


def _of_layers(config: ViTScratchConfig, num_layers: int, batch_size: int) -> int:
    """What a model of this many layers keeps for the backward pass in bf16, on fake tensors of a CPU."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    return _kept_bytes(config, batch_size, "sdpa", "cpu")


def _kept_bytes(config: ViTScratchConfig, batch_size: int, attention: str, device: str) -> int:
    """Bytes that autograd keeps for the backward pass, without the weights, counted on tensors without data.

    On "meta" in fp32; on "cpu", which autocast knows, in bf16, and with the copies of the weights in bf16.
    """
    kept: dict[int, torch.UntypedStorage] = {}
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    with torch.device("meta"):
        model = ViTScratchForImageClassification(config).train()
    with FakeTensorMode(allow_non_fake_inputs=True) if device != "meta" else nullcontext():
        model.to_empty(device=device)
        pixels = torch.empty(batch_size, config.num_channels, *config.image_height_width, device=device)
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        weights = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage  # held, so that no storage is freed and its address reused
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=device != "meta")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            model(pixels, labels=labels)
    return sum(storage.nbytes() for storage in kept.values())
