"""A teacher: CNNs that are trained first, on the same rows, and that the model then learns from beside the labels.

"Training data-efficient image transformers & distillation through attention" (DeiT, arXiv 2012.12877) found a
convolutional network to teach a ViT what its lack of inductive bias keeps from it. The student alone is kept.
"""

import copy
import dataclasses
import os
import time
from collections.abc import Iterable
from pathlib import Path

import datasets
import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from torch import nn
from transformers import TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .arguments import AugmentationArguments, RunArguments
from .building import build_trainer
from .cnn import StridedConvNet
from .configuration_vit_scratch import ViTScratchConfig
from .image_processing_vit_scratch import ViTScratchImageProcessor

TEACHER_NAME = "teacher.safetensors"
# Chosen on fold 1 of the competition; all else is as the run says.
_LEARNING_RATE, _LABEL_SMOOTHING = 3e-3, 0.0
_SEED_STEP = 1000  # between the networks; one run's processes have seeds that follow each other


class Teacher(nn.Module):
    """Networks that answer as one, with the mean of their logits `(batch_size, num_labels)`; it is not trained."""

    def __init__(self, members: Iterable[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """`pixel_values`: `(batch_size, num_channels, height, width)`."""
        answers = [member(pixel_values).logits for member in self.members]
        return ImageClassifierOutput(logits=torch.stack(answers).mean(dim=0))


def get_teacher(
    config: ViTScratchConfig,
    processor: ViTScratchImageProcessor,
    train: datasets.Dataset,
    run: RunArguments,
    augmentation: AugmentationArguments,
    training: TrainingArguments,
    resume_from: Path | None = None,
) -> tuple[nn.Module, dict]:
    """Train the teacher, each network for `teacher_epochs` on the run's rows, after those of a run that is resumed.

    It is left in the output folder as `teacher.safetensors`, network by network, for a run that goes on.

    Args: those of a trainer; `train`, the rows; `resume_from`, the folder of the run that is resumed.

    Returns: the teacher, which only answers; and what was measured, by its names in all_results.json.
    """
    start = time.perf_counter()
    state, members = PartialState(), []
    stored = safetensors.torch.load_file(resume_from / TEACHER_NAME) if resume_from else {}
    for number in range(run.num_teachers):
        transformers.set_seed(training.seed + _SEED_STEP * number)
        member, prefix = StridedConvNet(config.num_channels, config.num_labels), f"members.{number}."
        trained = {name.removeprefix(prefix): weights for name, weights in stored.items() if name.startswith(prefix)}
        if trained:
            member.load_state_dict(trained)
        else:
            if state.is_main_process:
                parameters = f"{sum(parameter.numel() for parameter in member.parameters()):,} parameters"
                print(f"First a teacher, CNN {number + 1} of {run.num_teachers}, {parameters}:", flush=True)
            member = _train(member, number, processor, train, run, augmentation, training)
        members.append(member.to(training.device))
        if state.is_main_process:
            file = Path(training.output_dir) / TEACHER_NAME
            safetensors.torch.save_model(Teacher(members), f"{file}.partial")
            os.replace(f"{file}.partial", file)
    teacher = Teacher(members)
    measured = {"teacher_parameters": sum(parameter.numel() for parameter in members[0].parameters())}
    if not stored:
        measured["teacher_runtime"] = time.perf_counter() - start
    return (torch.compile(teacher) if training.torch_compile else teacher), measured


def _train(
    member: StridedConvNet,
    number: int,
    processor: ViTScratchImageProcessor,
    train: datasets.Dataset,
    run: RunArguments,
    augmentation: AugmentationArguments,
    training: TrainingArguments,
) -> StridedConvNet:
    """Train the network of this number, from 0, and return it with its averaged weights."""
    torch._dynamo.reset()  # it would compile one forward pass for eight models and no more, without a word
    own = copy.copy(training)
    own.num_train_epochs = run.teacher_epochs  # max_steps, where it is given, cuts this short as well
    own.learning_rate, own.label_smoothing_factor = _LEARNING_RATE, _LABEL_SMOOTHING
    own.eval_strategy, own.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    own.data_seed = training.data_seed + _SEED_STEP * number  # each sees the images in an order of its own
    run = dataclasses.replace(run, muon_learning_rate=None)
    trainer = build_trainer(member, processor, datasets.DatasetDict(train=train), run, augmentation, own)
    # Each process augments its images in its own way.
    transformers.set_seed(training.seed + _SEED_STEP * number + PartialState().process_index)
    trainer.train()
    with trainer.average.in_place():
        return copy.deepcopy(trainer.model)
