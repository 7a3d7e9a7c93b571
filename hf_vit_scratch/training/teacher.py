"""A teacher: CNNs that are trained first, on the same rows, and that the model then learns from beside the labels.

"Training data-efficient image transformers & distillation through attention" (DeiT, arXiv 2012.12877) found a
convolutional network to teach a ViT what its lack of inductive bias keeps from it. The student alone is kept.
"""

import copy
import time
from collections.abc import Iterable
from pathlib import Path

import datasets
import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..output_folder import TEACHER_NAME, written_whole
from ..settings.flags import Settings
from .assembly import build_trainer
from .callbacks import DivergedError
from .cnn import StridedConvNet

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
        answers = [member(pixel_values).logits.float() for member in self.members]
        return ImageClassifierOutput(logits=torch.stack(answers).mean(dim=0))


def get_teacher(
    config: ViTScratchConfig,
    processor: ViTScratchImageProcessor,
    train: datasets.Dataset,
    settings: Settings,
    resume_from: Path | None = None,
) -> tuple[nn.Module, dict]:
    """Train the teacher's networks, each for `teacher_epochs` on the rows `train`, or read those of a resumed run.

    Each is written into the output folder's `teacher.safetensors` as soon as it is finished, for a run that goes on.

    Args:
        config, processor: of the student. The networks take the same pixels and have the same classes.
        resume_from: the folder of the run that is resumed.

    Returns:
        The teacher, which is not trained further; and what was measured, by its names in all_results.json.

    Raises:
        ValueError: the file of the resumed run is damaged or not for this data, or a network has diverged.
    """
    run, training = settings.run, settings.training
    start, state = time.perf_counter(), PartialState()
    file = Path(training.output_dir) / TEACHER_NAME
    members = _read(resume_from / TEACHER_NAME, config) if resume_from else []
    state.wait_for_everyone()  # before it is written again
    if members and state.is_main_process:
        print(f"{len(members)} of the teacher's {run.num_teachers} CNNs are trained already.", flush=True)
        _write(members, file)
    for number in range(len(members), run.num_teachers):
        transformers.set_seed(training.seed + _SEED_STEP * number)
        member = StridedConvNet(config.num_channels, config.num_labels)
        if state.is_main_process:
            parameters = f"{_num_parameters(member):,} parameters"
            print(f"First a teacher, CNN {number + 1} of {run.num_teachers}, {parameters}:", flush=True)
        members.append(_train(member, number, processor, train, settings))
        if state.is_main_process:
            _write(members, file)
    measured: dict[str, float] = {"teacher_parameters": _num_parameters(members[0])}
    if not resume_from:
        measured["teacher_runtime"] = time.perf_counter() - start
    teacher = Teacher(members).to(training.device)
    return (torch.compile(teacher) if training.torch_compile else teacher), measured


def _num_parameters(member: nn.Module) -> int:
    return sum(parameter.numel() for parameter in member.parameters())


def _write(members: list[StridedConvNet], file: Path) -> None:
    with written_whole(file) as partial:
        safetensors.torch.save_model(Teacher(members), str(partial))


def _read(file: Path, config: ViTScratchConfig) -> list[StridedConvNet]:
    """The networks that a run had finished. Raises: ValueError where they are not for this data."""
    try:
        stored = safetensors.torch.load_file(file)
        numbers = {name.split(".")[1] for name in stored}
        members = [StridedConvNet(config.num_channels, config.num_labels) for _ in numbers]
        Teacher(members).load_state_dict(stored)
    except (RuntimeError, IndexError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"cannot resume: {file} is damaged, or of other networks or data: start again with --overwrite_output_dir."
        ) from error
    return members


def _train(
    member: StridedConvNet,
    number: int,
    processor: ViTScratchImageProcessor,
    train: datasets.Dataset,
    settings: Settings,
) -> StridedConvNet:
    """Train the network of this number, from 0, and return it with its averaged weights."""
    torch._dynamo.reset()  # it would compile one forward pass for eight models and no more, without a word
    seed, data_seed = settings.training.seed, settings.training.data_seed
    own = settings.with_run(muon_learning_rate=None).with_training(
        num_train_epochs=settings.run.teacher_epochs,  # max_steps, where it is given, cuts this short as well
        learning_rate=_LEARNING_RATE,
        label_smoothing_factor=_LABEL_SMOOTHING,
        eval_strategy=IntervalStrategy.NO,
        save_strategy=SaveStrategy.NO,
        data_seed=data_seed + _SEED_STEP * number,  # each sees the images in an order of its own
    )
    trainer = build_trainer(member, processor, datasets.DatasetDict(train=train), own)
    # Each process augments its images in its own way.
    transformers.set_seed(seed + _SEED_STEP * number + PartialState().process_index)
    try:
        trainer.train()
    except DivergedError as error:
        raise ValueError(
            f"the teacher's CNN {number + 1} has diverged: begin again with more warmup_steps, with bf16 and fp16 "
            "false, or with another seed."
        ) from error
    with trainer.average.in_place():
        return copy.deepcopy(trainer.model)
