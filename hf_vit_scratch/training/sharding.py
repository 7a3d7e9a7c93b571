"""FSDP2: weights, gradients and optimizer states that are sharded over the processes of a launch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, DynamoBackend, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

ADVICE = (
    "For a model that does not fit on one device, use FSDP2, `accelerate launch --config_file $(vit-scratch config "
    "fsdp) train.py`."
)
_FSDP, _EMPTY = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"


def check_launch() -> None:
    """Refuse launches that this package does not train under. Raises: ValueError, in one line."""
    for variable, name in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if parse_flag_from_env(variable):
            raise ValueError(f"{name} is not supported. {ADVICE}")
    if parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):
        raise ValueError(f"The parallelism_config of Accelerate is not supported. {ADVICE}")
    if parse_flag_from_env(_FSDP):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ValueError(f"FSDP1 is not supported: set fsdp_version: 2 in the config file of Accelerate. {ADVICE}")
        os.environ[_EMPTY] = "false"


def is_wanted(training: TrainingArguments) -> bool:
    """Whether the launch or the flags of the Trainer ask for FSDP."""
    return parse_flag_from_env(_FSDP) or training.fsdp_plugin_args is not None


def allow_on_cpu() -> None:
    """Let the next Accelerator shard on a CPU. Accelerate reads the settings of FSDP for accelerators only.

    Raises: ValueError on a machine with an accelerator, where torch would shard over that.
    """
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        if torch.accelerator.is_available():
            raise ValueError(
                "FSDP2 on a CPU needs a machine without a GPU: leave out use_cpu, or hide the GPUs with "
                "CUDA_VISIBLE_DEVICES=''."
            )
        state.distributed_type = DistributedType.MULTI_GPU


def set_up(accelerator: Accelerator, model: nn.Module) -> None:
    """Check Accelerate's settings for FSDP2, and adapt them to this package, before it shards the model.

    Raises: ValueError for settings that are not supported.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP1 is not supported: set version to 2 in fsdp_config. {ADVICE}")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("FSDP2 with weights on the CPU (fsdp_offload_params) is not supported: set it to false.")
    if plugin.activation_checkpointing:  # Accelerate recomputes with other random numbers: dropout drops other units
        raise ValueError(
            "fsdp_activation_checkpointing is not supported, because its gradients are wrong with dropout. Set it to "
            "false, and pass --gradient_checkpointing true instead."
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise ValueError("torch.compile is not supported with FSDP2: leave out torch_compile and Accelerate's dynamo.")
    # Only the first process would read the weights of a file, also of the finished model that all evaluate.
    plugin.cpu_ram_efficient_loading, os.environ[_EMPTY] = False, "false"
    # The Trainer saves whole weights only with this type.
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type("FULL_STATE_DICT")
    if accelerator.mixed_precision == "bf16":  # Accelerate would also add up the gradients of the processes in bf16
        plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
    # Accelerate from 1.15 on shards the input embeddings on their own, which fails inside of another sharded module.
    embeddings = model.get_input_embeddings()
    names = plugin.transformer_cls_names_to_wrap or model._no_split_modules or []
    around = [each for each in model.modules() if each is not embeddings and embeddings in each.modules()]
    outer = {type(each).__name__ for each in around}
    plugin.transformer_cls_names_to_wrap = [name for name in names if name not in outer]


@contextmanager
def replicated() -> Iterator[None]:
    """A context in which new Trainers train plain data parallel models, also in a launch with FSDP2."""
    state = PartialState()
    if state.distributed_type != DistributedType.FSDP:
        yield
        return
    shared = (PartialState._shared_state, AcceleratorState._shared_state)
    plugin = AcceleratorState._shared_state.pop("fsdp_plugin")
    kind = {"cuda": "GPU"}.get(state.device.type, state.device.type.upper())
    for each in shared:
        each["distributed_type"] = DistributedType[f"MULTI_{kind}"]
    before = os.environ.pop(_FSDP, None)
    try:
        yield
    finally:
        for each in shared:
            each["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        if before is not None:
            os.environ[_FSDP] = before


def reshard(model: nn.Module) -> None:
    """Free the whole weights that a forward pass has gathered, so that the parameters of the model are its shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The shard of this process, sharing its memory; a tensor that is not sharded is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor, for all processes, which must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """A whole tensor that all processes have, sharded like another one of its shape. It does not communicate."""
    if not isinstance(sharded, DTensor):
        return tensor
    tensor = tensor.to(sharded.device)
    return distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)


@torch.no_grad()
def load_weights(model: nn.Module, file: Path) -> None:
    """Load whole weights into a sharded model, one tensor after the other. Raises: ValueError if names differ."""
    weights = dict(model.state_dict(keep_vars=True))
    with safetensors.safe_open(file, "pt") as stored:
        if weights.keys() != set(stored.keys()):
            raise ValueError(f"cannot resume: {file} holds the weights of another model.")
        for name, tensor in weights.items():
            tensor.copy_(shard_like(stored.get_tensor(name), tensor))


def whole_states(optimizer: torch.optim.Optimizer) -> dict:
    """The state dict of an optimizer with whole tensors on the CPU. All processes must call this together."""
    states = optimizer.state_dict()
    gathered = {
        index: {key: whole(value).cpu() if torch.is_tensor(value) else value for key, value in state.items()}
        for index, state in states["state"].items()
    }
    return {**states, "state": gathered}


def load_states(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Load the state dict of an optimizer with whole tensors, and shard them like the weights."""
    states = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    for group, saved in zip(optimizer.param_groups, states["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            for key, value in states["state"].get(index, {}).items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    states["state"][index][key] = shard_like(value, parameter)
    optimizer.load_state_dict(states)
