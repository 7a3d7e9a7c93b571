"""Checkpoints that are whole or not there: how they are written, and what is wrong with one."""

import contextlib
import errno
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors
import torch
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from ..output_folder import AVERAGE_NAME, CONFIG_NAME, WEIGHTS_NAME, damage, move_into_place, read_json
from .callbacks import WeightAverage

STATE_NAME = "trainer_state.json"
# Where a checkpoint lies while it is written. Neither the Trainer's rotation nor a resume looks there.
ASIDE_NAME = ".saving"
_OF_THE_DISK = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS") if hasattr(errno, name)]
# Without one of these the Trainer would resume with a fresh optimizer or schedule, or with other random numbers.
_NEEDED = ("*model[._-]*", "average*", "optimizer*", "scheduler.pt", "rng_state*.pth", CONFIG_NAME, STATE_NAME)


def write_failure(error: BaseException) -> str:
    """Why a file could not be written, for what Python, safetensors and torch raise. Empty for other exceptions."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = " ".join(str(error).split())
    if isinstance(error, safetensors.SafetensorError):
        return text
    # torch.save says neither which file nor why.
    if isinstance(error, RuntimeError) and "inline_container" in text and "PytorchStreamReader" not in text:
        return "torch.save could not write all bytes"
    return ""


def is_of_the_disk(error: BaseException) -> bool:
    """Whether a file could not be written because the disk is full or fails."""
    return bool(write_failure(error)) and (not isinstance(error, OSError) or error.errno in _OF_THE_DISK)


def free_space(folder: Path) -> str:
    """How much space the disk of a folder has left, as a phrase."""
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free on the disk of {folder}"


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, by their names: the newest first, whole or not."""
    steps = {
        path: int(step)
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (step := path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")).isdecimal()
    }
    return sorted(steps, key=steps.__getitem__, reverse=True)


# ---- writing


class WholeCheckpoints(Trainer):
    """A Trainer that writes a checkpoint aside, with a manifest, and renames it when all of it is on the disk.

    A checkpoint that cannot be written, for instance because the disk is full, does not end the training. The first
    such failure is reported on stderr.
    """

    _aside: Path | None = None
    _failure: BaseException | None = None
    _has_reported = False

    def _get_output_dir(self, trial):
        return str(self._aside) if self._aside else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        folder, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside = self._aside = folder / ASIDE_NAME
        self._failure = None
        self.state.best_global_step = None  # its checkpoint is not kept, and the Trainer would look for it aside
        try:
            with self.noting_failure():
                super()._save_checkpoint(model, trial)
            # Each process has written its part when the first takes the folder for whole.
            if not self._any_process_failed() and self.args.should_save:
                with self.noting_failure():
                    move_into_place(aside / name, folder / name)
            if failed := self._any_process_failed():
                self._report(name, folder)
        finally:
            self._aside = None
        if failed and self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        elif self.args.should_save:
            # Named as the best, this checkpoint stays, even if a damaged one has a higher number.
            rotate_checkpoints(str(folder), self.args.save_total_limit, str(folder / name), use_mtime=True)

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """A context that notes a failure to write a part of a checkpoint, and goes on.

        The parts need all processes: none may leave the others alone in the middle of a checkpoint.
        """
        try:
            yield
        except Exception as error:
            if self._aside is None or not write_failure(error):
                raise
            self._failure = self._failure or error

    def save_model(self, output_dir=None, _internal_call=False):
        with self.noting_failure():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir):
        with self.noting_failure():
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_scaler(self, output_dir):
        with self.noting_failure():
            super()._save_scaler(output_dir)

    def _save_rng_state(self, output_dir):
        with self.noting_failure():
            super()._save_rng_state(output_dir)

    def _any_process_failed(self) -> bool:
        failed = torch.tensor(float(self._failure is not None), device=self.args.device)
        return self.accelerator.reduce(failed, "sum").item() > 0

    def _report(self, name: str, folder: Path) -> None:
        if self._has_reported or not self.args.should_save:
            return
        self._has_reported = True
        reason = write_failure(self._failure) if self._failure else "another process could not write its part"
        whole = next((path for path in checkpoints_of(folder) if (path / STATE_NAME).is_file()), None)
        kept = f"The last whole checkpoint is {whole.name}." if whole else "There is no whole checkpoint yet."
        print(
            f"Warning: {name} was not saved, and training continues: {reason} ({free_space(folder)}). {kept} Further "
            "checkpoints that cannot be saved are not reported.",
            file=sys.stderr,
            flush=True,
        )

    def _run_epoch(self, *args, **kwargs):
        # The Trainer asks whether the last step is done only after a step: a run that is resumed from its last step
        # in the middle of an epoch would train one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)


# ---- reading


def faults(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, one phrase for each fault. None if a run can be resumed from it.

    The files are compared with the manifest. Without a manifest, as older versions wrote checkpoints, all of them are
    read as far as they can be checked. In both cases the weights must be all that the model of config.json has.
    """
    changed = damage(checkpoint)
    if changed:
        return changed
    missing = [f"{pattern} is missing" for pattern in _NEEDED if not any(checkpoint.glob(pattern))]
    if missing:
        return missing
    try:
        if not isinstance(read_json(checkpoint / STATE_NAME)["global_step"], int):
            return [f"{STATE_NAME} has no step"]
    except (ValueError, KeyError, TypeError, OSError):
        return [f"{STATE_NAME} cannot be read"]
    states = [] if changed is not None else [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]
    return [f"{file.name} is damaged" for file in states if not _is_whole_zip(file)] + _faults_of_weights(checkpoint)


def _is_whole_zip(file: Path) -> bool:
    """Whether a file of torch.save, which is a zip, has the contents that its checksums stand for."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError):
        return False


def _faults_of_weights(checkpoint: Path) -> list[str]:
    """Tensors that weights and average lack. The Trainer would leave them at their initial values."""
    try:
        config = ViTScratchConfig.from_pretrained(checkpoint)
        with torch.device("meta"):
            model = ViTScratchForImageClassification(config)
    except Exception as error:  # a damaged config may hold anything
        return [f"{CONFIG_NAME} is damaged: {' '.join(str(error).split())}"]
    expected = {WEIGHTS_NAME: model.state_dict(), AVERAGE_NAME: WeightAverage(model, 0.0).average}
    return [
        phrase
        for name, tensors in expected.items()
        if (checkpoint / name).is_file() and (phrase := _fault_of_tensors(checkpoint / name, tensors))
    ]


def _fault_of_tensors(file: Path, expected: dict[str, torch.Tensor]) -> str:
    try:
        with safetensors.safe_open(file, "pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        return f"{file.name} is damaged: {error}"
    for name, tensor in expected.items():
        if name not in shapes:
            return f"{file.name} lacks {name}"
        if shapes[name] != tuple(tensor.shape):
            return f"{file.name} has {name} of shape {shapes[name]}, and config.json asks for {tuple(tensor.shape)}"
    return ""
