"""A teacher: a CNN that is trained first, on the same rows, and that the model then learns from beside the labels.

"Training data-efficient image transformers & distillation through attention" (DeiT, arXiv 2012.12877) found a
convolutional network to teach a ViT what its lack of inductive bias keeps from it. The student alone is kept.
"""

import copy
import dataclasses
import os
from pathlib import Path

import datasets
import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .arguments import AugmentationArguments, RunArguments
from .building import build_trainer
from .cnn import ConvNet
from .configuration_vit_scratch import ViTScratchConfig
from .image_processing_vit_scratch import ViTScratchImageProcessor

TEACHER_NAME = "teacher.safetensors"
# Chosen on fold 1 of the competition; all else is as the run says.
_WIDTHS, _DROPOUT = (32, 64, 128), 0.3
_LEARNING_RATE, _LABEL_SMOOTHING = 3e-3, 0.05


def get_teacher(
    config: ViTScratchConfig,
    processor: ViTScratchImageProcessor,
    train: datasets.Dataset,
    run: RunArguments,
    augmentation: AugmentationArguments,
    training: TrainingArguments,
    resume_from: Path | None = None,
) -> tuple[torch.nn.Module, dict]:
    """Train the teacher for `teacher_epochs` on the rows of the run, or read that of the run that is resumed.

    It is left in the output folder as `teacher.safetensors`, for a run that goes on.

    Args: those of a trainer; `train`, the rows; `resume_from`, the folder of the run that is resumed.

    Returns: the teacher, which only answers; and what was measured, by its names in all_results.json.
    """
    model = ConvNet(config.num_channels, config.num_labels, _WIDTHS, _DROPOUT)
    measured = {"teacher_parameters": sum(parameter.numel() for parameter in model.parameters())}
    if resume_from is not None:
        safetensors.torch.load_model(model, resume_from / TEACHER_NAME)
        model.to(training.device)
    else:
        own = copy.copy(training)
        own.num_train_epochs = run.teacher_epochs  # max_steps, where it is given, cuts this short as well
        own.learning_rate, own.label_smoothing_factor = _LEARNING_RATE, _LABEL_SMOOTHING
        own.eval_strategy, own.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
        run = dataclasses.replace(run, muon_learning_rate=None)
        trainer = build_trainer(model, processor, datasets.DatasetDict(train=train), run, augmentation, own)
        state = PartialState()
        transformers.set_seed(training.seed + state.process_index)  # each process augments its images in its own way
        if state.is_main_process:
            print(f"First its teacher, a CNN of {measured['teacher_parameters']:,} parameters:", flush=True)
        measured["teacher_runtime"] = trainer.train().metrics["train_runtime"]
        with trainer.average.in_place():
            model = copy.deepcopy(trainer.model)
    if PartialState().is_main_process:
        file = Path(training.output_dir) / TEACHER_NAME
        safetensors.torch.save_model(model, f"{file}.partial")
        os.replace(f"{file}.partial", file)
    model.eval().requires_grad_(False)
    return (torch.compile(model) if training.torch_compile else model), measured
