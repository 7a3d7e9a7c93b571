"""Checks of the Trainer's flags whose values are mappings, which the Trainer itself passes on unseen."""

import inspect
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments

# Flags that take a mapping, and those of them that also take the path of a JSON file.
MAPPINGS = (
    *("accelerator_config", "activation_checkpointing_kwargs", "deepspeed", "fsdp_config"),
    *("gradient_checkpointing_kwargs", "lr_scheduler_kwargs"),
)
OR_FILES = ("accelerator_config", "deepspeed", "fsdp_config")


def check_nested(training: TrainingArguments) -> None:
    """Try the arguments of scheduler, optimizer and gradient checkpointing, and find numbers that are none.

    Raises: ValueError with the name of the flag.
    """
    for name, value in vars(training).items():
        if isinstance(value, float) and not -1e30 <= value <= 1e30:
            raise ValueError(f"{name} must be a finite number, got {value}.")
        if name in MAPPINGS and name not in OR_FILES and not isinstance(value, dict | None):
            raise ValueError(f"{name} must be a mapping, got {value!r:.80}.")
    from transformers import Trainer  # late: it takes long to import, and reading flags alone does not need it

    _try("optim_args", training.optim_args, lambda: Trainer.get_optimizer_cls_and_kwargs(training))
    if training.lr_scheduler_kwargs:
        _try("lr_scheduler_kwargs", training.lr_scheduler_kwargs, lambda: _schedule(training))
    if unknown := (training.gradient_checkpointing_kwargs or {}).keys() - inspect.signature(checkpoint).parameters:
        raise ValueError(f"gradient_checkpointing_kwargs has unknown keys: {', '.join(sorted(map(str, unknown)))}.")


def _schedule(training: TrainingArguments) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    steps = {"num_warmup_steps": 1, "num_training_steps": 4}
    kind, arguments = training.lr_scheduler_type, dict(training.lr_scheduler_kwargs)
    schedule = get_scheduler(kind, optimizer, **steps, scheduler_specific_kwargs=arguments)
    for _ in range(3):
        optimizer.step()
        schedule.step(*([1.0] if kind == "reduce_lr_on_plateau" else []))


def _try(name: str, value: Any, action) -> None:
    try:
        action()
    except Exception as error:  # TypeError, KeyError, ZeroDivisionError and others, from code that takes them on trust
        problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} {value!r:.80} cannot be used: {problem}") from error
