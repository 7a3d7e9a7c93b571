"""The teacher for distillation: CNNs that are trained first, on the same rows as the ViT.

DeiT ("Training data-efficient image transformers & distillation through attention", arXiv 2012.12877, section 5.2)
found that a ViT learns more from a convolutional teacher, which passes on its inductive bias. The saved model is the
student only.
"""

import copy
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

import datasets
import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..output_folder import TEACHER_NAME, written_whole
from ..settings.flags import Settings
from .assembly import build_trainer
from .callbacks import DivergedError
from .cnn import NETWORKS, ConvNet
from .interrupts import StopWithLauncher
from .sharding import replicated

# The CNNs are trained without label smoothing, which was chosen on fold 1 of the competition. Their learning rates are
# those of their class, and all other settings those of the run.
_LABEL_SMOOTHING = 0.0
_SEED_STEP = 1000  # between the CNNs, since the processes of a run have consecutive seeds


class Teacher(nn.Module):
    """An ensemble of frozen networks. Its logits `(batch_size, num_labels)` are the mean of theirs."""

    def __init__(self, members: Iterable[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """`pixel_values`: `(batch_size, num_channels, height, width)`."""
        logits = [member(pixel_values).logits.float() for member in self.members]
        return ImageClassifierOutput(logits=torch.stack(logits).mean(dim=0))


def get_teacher(
    config: ViTScratchConfig,
    processor: ViTScratchImageProcessor,
    train: datasets.Dataset,
    settings: Settings,
    resume_from: Path | None = None,
) -> tuple[nn.Module, dict]:
    """Train the CNNs of the teacher for `teacher_epochs` each, or load the finished ones of a resumed run.

    Finished CNNs are written to `teacher.safetensors` in the output folder, so that the run can be resumed.

    Args:
        config, processor: config and processor of the student. The CNNs have the same input and the same classes.
        train: the rows to train on.
        settings: settings of the run.
        resume_from: folder of the run that is resumed, or None.

    Returns:
        The teacher, frozen; and its metrics, by their names in all_results.json.

    Raises:
        ValueError: the file of the resumed run is damaged or does not fit the data, or the training has diverged.
    """
    run, training = settings.run, settings.training
    start, state = time.perf_counter(), PartialState()
    file = Path(training.output_dir) / TEACHER_NAME
    network = NETWORKS[run.teacher_network]
    members, earlier = _read(resume_from / TEACHER_NAME, network, config) if resume_from else ([], 0.0)
    state.wait_for_everyone()  # all processes must have read the file before it is written
    if members and state.is_main_process:
        print(f"{len(members)} of {run.num_teachers} CNNs of the teacher are already trained.", flush=True)
        _write(members, file, earlier)
    for number in range(len(members), run.num_teachers):
        transformers.set_seed(training.seed + _SEED_STEP * number)
        member = network(config.num_channels, config.num_labels)
        if state.is_main_process:
            parameters = f"{_num_parameters(member):,} parameters"
            print(f"Training the teacher first: CNN {number + 1} of {run.num_teachers}, {parameters}.", flush=True)
        members.append(_train(member, number, processor, train, settings))
        if earlier is not None:
            earlier, start = earlier + time.perf_counter() - start, time.perf_counter()
        if state.is_main_process:
            _write(members, file, earlier)
    measured: dict[str, float] = {"teacher_parameters": _num_parameters(members[0])}
    if earlier is not None:
        measured["teacher_runtime"] = earlier
    teacher = Teacher(members).to(training.device)
    return (torch.compile(teacher) if training.torch_compile else teacher), measured


def _num_parameters(member: nn.Module) -> int:
    return sum(parameter.numel() for parameter in member.parameters())


def _write(members: list[ConvNet], file: Path, seconds: float | None) -> None:
    """Write the finished CNNs, with the time of their training, if it is known, and a checksum."""
    teacher = Teacher(members)
    metadata = {"sha256": _checksum(teacher.state_dict())} | ({} if seconds is None else {"seconds": repr(seconds)})
    with written_whole(file) as partial:
        safetensors.torch.save_model(teacher, str(partial), metadata)


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path, network: type[ConvNet], config: ViTScratchConfig) -> tuple[list[ConvNet], float | None]:
    """Load the finished CNNs of a run, and the time of their training in seconds, if it is known.

    Raises: ValueError if the file is damaged or does not fit the data.
    """
    try:
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        stored = safetensors.torch.load_file(file)
        numbers = {name.split(".")[1] for name in stored}
        members = [network(config.num_channels, config.num_labels) for _ in numbers]
        Teacher(members).load_state_dict(stored)
        if metadata.get("sha256", checksum := _checksum(stored)) != checksum:  # older versions wrote none
            raise ValueError("other bytes than were written")
        return members, float(metadata["seconds"]) if "seconds" in metadata else None
    except (RuntimeError, IndexError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"cannot resume: {file} is damaged, or holds networks of another kind or version. Start again "
            "with --overwrite_output_dir."
        ) from error


def _train(
    member: ConvNet,
    number: int,
    processor: ViTScratchImageProcessor,
    train: datasets.Dataset,
    settings: Settings,
) -> ConvNet:
    """Train CNN number `number`, counted from 0. Returns it with its averaged weights."""
    torch._dynamo.reset()  # or else dynamo stops compiling after eight models, without a warning
    seed, data_seed = settings.training.seed, settings.training.data_seed
    own = settings.with_run(muon_learning_rate=member.muon_learning_rate).with_training(
        num_train_epochs=settings.run.teacher_epochs,  # if max_steps is given, it limits the CNNs too
        learning_rate=member.learning_rate,
        label_smoothing_factor=_LABEL_SMOOTHING,
        eval_strategy=IntervalStrategy.NO,
        save_strategy=SaveStrategy.NO,
        # For each CNN a different order of the images, and augmentations that differ from those of the model too.
        data_seed=data_seed + _SEED_STEP * number,
        seed=seed + _SEED_STEP * (number + 1),
        fsdp_plugin_args=None,
    )
    try:
        with replicated():  # a CNN is small
            trainer = build_trainer(member, processor, datasets.DatasetDict(train=train), own)
            trainer.add_callback(StopWithLauncher())
            # Each process draws different dropout.
            transformers.set_seed(seed + _SEED_STEP * number + PartialState().process_index)
            trainer.train()
    except DivergedError as error:
        raise ValueError(
            f"CNN {number + 1} of the teacher has diverged. Start again with more warmup_steps, with bf16 and fp16 "
            "false, or with another seed."
        ) from error
    with trainer.average.in_place():
        member = copy.deepcopy(trainer.model)
    # The statistics of batch norm differ between processes, and the file that a resumed run reads has those of one.
    broadcast(dict(member.state_dict()))
    return member
