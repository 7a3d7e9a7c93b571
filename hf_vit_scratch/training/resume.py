"""Existing runs in a folder: which one is resumed, whether it fits the settings, and what may be overwritten."""

import math
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..model.configuration_vit_scratch import ViTScratchConfig
from ..output_folder import (
    CARD_NAME,
    CONFIG_NAME,
    CONFUSION_PLOT,
    CURVES_PLOT,
    EMISSIONS_NAME,
    EVALUATION_NAME,
    EXAMPLE_NAME,
    MANIFEST_NAME,
    RESULTS_NAME,
    ROBUSTNESS_PLOT,
    SETTINGS_NAME,
    SUBMISSION_NAME,
    TEACHER_NAME,
    WEIGHTS_PATTERNS,
    WRONG_PLOT,
    damage,
    read_json,
    write_manifest,
)
from ..settings.flags import Settings, complete_settings
from .callbacks import STREAM_STATE
from .checkpoints import ASIDE_NAME, STATE_NAME, checkpoints_of, faults

# Flags that must not change when a run is resumed. Otherwise held-out rows would be trained on, or the optimizer or
# the teacher would not fit.
_FIXED = ("data", "validation_size", "split_seed", "fold", "num_folds", "model_name_or_path", "muon_learning_rate")
_FIXED += ("streaming", "teacher_epochs", "num_teachers", "teacher_weight", "teacher_temperature", "optim")
_FIXED += ("teacher_network", "freeze_encoder", "muon_stem")
# Files of a finished run that are not in its manifest, since people and `vit-scratch evaluate` change them later.
_CHANGING = {CARD_NAME, EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT, MANIFEST_NAME}


class StoppedRun(NamedTuple):
    """A run to resume: its folder, and its checkpoint, or None if only CNNs of its teacher exist."""

    folder: Path
    checkpoint: str | None


def find_stopped_run(training: TrainingArguments) -> StoppedRun | None:
    """The run that `resume_from_checkpoint` names. `true` names the newest whole checkpoint in the output folder.

    Damaged checkpoints that are passed over, and a checkpoint without a manifest, are reported on stderr.

    Returns: None if no run is to be resumed.

    Raises: ValueError if there is no whole checkpoint.
    """
    wanted, output = training.resume_from_checkpoint, Path(training.output_dir)
    if wanted is None or wanted.lower() == "false":
        return None
    newest, damaged = wanted.lower() == "true", []
    for checkpoint in checkpoints_of(output) if newest else [Path(wanted)]:
        if found := faults(checkpoint):
            damaged.append(f"{checkpoint} is damaged: {_listed(found)}.")
            continue
        if damaged:
            _note(f"Warning: {' '.join(damaged)} The run is resumed from {checkpoint}.")
        if not (checkpoint / MANIFEST_NAME).is_file():
            _note(
                f"{checkpoint} has no {MANIFEST_NAME}, as older versions wrote checkpoints: its files can be read, "
                "but whether they are as they were written cannot be checked."
            )
        return StoppedRun(checkpoint.parent, str(checkpoint))
    names = {file.name for file in output.glob("*")}
    if newest and {TEACHER_NAME, SETTINGS_NAME} <= names and CONFIG_NAME not in names:  # a finished run has one
        if damaged:
            _note(f"Warning: {' '.join(damaged)} The run is resumed after the CNNs of its teacher.")
        return StoppedRun(output, None)
    way_on = "Start again with --overwrite_output_dir."
    if damaged and not newest:
        way_on = "For the newest whole checkpoint in --output_dir, pass --resume_from_checkpoint true."
    raise ValueError(
        " ".join(
            [f"there is no complete checkpoint to resume from in {output if newest else wanted}.", *damaged, way_on]
        )
    )


def _listed(found: list[str]) -> str:
    """The first faults, and how many others there are."""
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _note(line: str) -> None:
    if PartialState().is_main_process:
        print(line, file=sys.stderr, flush=True)


def step_of(checkpoint: str | Path) -> int:
    """The training step of a checkpoint. Raises: ValueError if its trainer_state.json is damaged."""
    step = read_json(Path(checkpoint) / STATE_NAME).get("global_step")
    if type(step) is not int or step < 0:
        raise ValueError(f"{checkpoint} is damaged: global_step in its {STATE_NAME} is {step!r:.80}.")
    return step


def what_there_is(folder: Path, begun: bool) -> str:
    """How to go on with a run that stops now: from its newest checkpoint, after the CNNs of its teacher, or anew.

    Args:
        folder: the output folder.
        begun: whether this run has written anything.
    """
    if not begun:
        return "Nothing was written."
    checkpoint = next((path for path in checkpoints_of(folder) if (path / STATE_NAME).is_file()), None)
    if checkpoint is not None:
        return f"To go on from step {step_of(checkpoint)}, pass --resume_from_checkpoint true."
    if (folder / TEACHER_NAME).is_file():
        return "To go on after the last finished CNN of the teacher, pass --resume_from_checkpoint true."
    return "There is nothing to resume from yet. To start again, pass --overwrite_output_dir."


def is_finished(settings: Settings, stopped: StoppedRun | None) -> bool:
    """Whether nothing is left to do in the folder of a run: it was trained to the end, and its files are sound."""
    if stopped is None or stopped.checkpoint is None or damage(stopped.folder) != []:
        return False
    state, then = read_json(Path(stopped.checkpoint) / STATE_NAME), read_json(stopped.folder / SETTINGS_NAME)
    names = ("num_train_epochs", "max_steps")
    same_end = all(then["training"].get(name) == getattr(settings.training, name) for name in names)
    return same_end and state["global_step"] >= state["max_steps"]


def seal(folder: Path) -> None:
    """Write the manifest of a finished run, which `vit-scratch verify` reads."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    write_manifest(folder, [path for path in files if path.name not in _CHANGING])


def check_resumable(config: ViTScratchConfig, record: dict, stopped: StoppedRun) -> None:
    """Refuse to resume a run that does not fit the settings. The Trainer would continue it without an error.

    Args:
        config: config of this run.
        record: settings of this run, as in training_args.json.
        stopped: the run to resume.

    Raises: ValueError if the model differs, held-out rows would be trained on, or a required file is missing.
    """
    file, where = stopped.folder / SETTINGS_NAME, stopped.checkpoint or stopped.folder
    then, now = _flags(complete_settings(read_json(file)) if file.is_file() else {}), _flags(record)
    # CNNs that are trained now must have the same settings as the finished ones.
    of_teacher = ("seed", *record["augmentation"]) if stopped.checkpoint is None else ()
    for name in (*_FIXED, *of_teacher):
        if name in then and then[name] != now[name]:
            raise ValueError(f"cannot resume: {where} has {name} {then[name]!r}, but this run has {now[name]!r}.")
    if stopped.checkpoint is None:
        return
    _check_same_model(config, stopped.checkpoint)
    _check_same_batch(then, now, stopped.checkpoint)
    _check_end(now, stopped.checkpoint)
    if now["teacher_epochs"] and not (stopped.folder / TEACHER_NAME).is_file():
        raise ValueError(f"cannot resume: {stopped.folder} lacks {TEACHER_NAME}, the teacher of the run.")


def _flags(record: dict) -> dict:
    return {
        name: value
        for kind in ("data", "run", "augmentation", "training")
        for name, value in record.get(kind, {}).items()
    }


def _check_same_model(config: ViTScratchConfig, checkpoint: str) -> None:
    old = ViTScratchConfig.from_pretrained(checkpoint)
    for name in ViTScratchConfig.__annotations__:
        if getattr(old, name) != getattr(config, name):
            raise ValueError(
                f"cannot resume: {checkpoint} has {name} {getattr(old, name)!r}, but this run has "
                f"{getattr(config, name)!r}."
            )
    if old.id2label != config.id2label:
        raise ValueError(f"cannot resume: the classes of {checkpoint} differ from the classes of the data.")


def _check_same_batch(then: dict, now: dict, checkpoint: str) -> None:
    """Refuse another number of images per step, since the Trainer counts epochs and the learning rate in steps."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_processes")
    if not then.keys() >= set(names[:2]):
        return
    # Older versions did not record num_processes, but each process saves the state of its random numbers.
    then = {"num_processes": len(list(Path(checkpoint).glob("rng_state*.pth"))) or 1} | then
    before = {name: then[name] for name in names}
    if math.prod(before.values()) != math.prod(now[name] for name in names):
        raise ValueError(
            f"cannot resume: {checkpoint} has {', '.join(f'{name} {value}' for name, value in before.items())}, but "
            f"this run has {', '.join(str(now[name]) for name in names)}. Choose values with the same product: the "
            "finished steps would count as other epochs."
        )


def _check_end(now: dict, checkpoint: str) -> None:
    """Refuse to end before the checkpoint: its weights would pass for those of a shorter training."""
    state = read_json(Path(checkpoint) / STATE_NAME)
    step, epoch = state["global_step"], state["epoch"]
    if now["max_steps"] > 0:
        name, ended = "max_steps", step > now["max_steps"]
    else:  # a fraction of an epoch ends within a step: only the step before tells
        name, ended = "num_train_epochs", epoch * (step - 1) / step > now["num_train_epochs"] - 1e-6
    if ended:
        raise ValueError(
            f"cannot resume: {checkpoint} is at step {step} and epoch {epoch:g}, past the end of this run with {name} "
            f"{now[name]:g}. Choose an earlier checkpoint, or a longer run."
        )


def check_same_stream(division: dict[str, int], checkpoint: str) -> None:
    """Refuse to go on with a stream that is divided in another way, since images would be skipped and repeated.

    At the end of an epoch nothing is left to divide. Raises: ValueError if a number of `division` differs.
    """
    state = read_json(Path(checkpoint) / STATE_NAME)
    then = state["stateful_callbacks"].get(STREAM_STATE, division)
    for name, value in division.items():
        if then[name] != value and state["epoch"] % 1:
            raise ValueError(
                f"cannot resume in the middle of an epoch: {checkpoint} has {name} {then[name]}, but this run has "
                f"{value}, and a stream would skip images and repeat others. Resume with the same number."
            )


def check_output_dir(settings: Settings) -> None:
    """Raises: ValueError if the output folder holds a run that must not be overwritten, or foreign files."""
    folder = Path(settings.training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file. Choose another --output_dir.")
    names = {path.name for path in folder.glob("*")}
    if names & {SETTINGS_NAME, CONFIG_NAME} or any(name.startswith(PREFIX_CHECKPOINT_DIR) for name in names):
        if not settings.run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a run already. Resume it with --resume_from_checkpoint true, replace it with "
                "--overwrite_output_dir, or choose another --output_dir."
            )
    elif foreign := names & {CARD_NAME, SUBMISSION_NAME, RESULTS_NAME}:
        raise ValueError(
            f"{folder} holds a {min(foreign)} that does not belong to a run. Choose another --output_dir."
        )


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed has left half written, and an evaluation of weights that will change."""
    shutil.rmtree(folder / ASIDE_NAME, ignore_errors=True)
    for file in folder.glob("*.partial"):
        file.unlink(missing_ok=True)
    for name in (EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT, MANIFEST_NAME):
        (folder / name).unlink(missing_ok=True)


def remove_old_run(folder: Path) -> None:
    """Remove weights and results of an earlier run, which could be mistaken for results of the new run if it stops."""
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(checkpoint)
    files = [SETTINGS_NAME, RESULTS_NAME, EXAMPLE_NAME, EMISSIONS_NAME, TEACHER_NAME]
    files += [CONFIG_NAME, CARD_NAME, SUBMISSION_NAME, CURVES_PLOT, CONFUSION_PLOT]
    files += [file.name for pattern in WEIGHTS_PATTERNS for file in folder.glob(pattern)]
    for name in files:
        (folder / name).unlink(missing_ok=True)
