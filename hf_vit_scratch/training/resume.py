"""Existing runs in a folder: which one is resumed, whether it fits the settings, and what may be overwritten."""

import shutil
from pathlib import Path
from typing import NamedTuple

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
    RESULTS_NAME,
    ROBUSTNESS_PLOT,
    SETTINGS_NAME,
    SUBMISSION_NAME,
    TEACHER_NAME,
    WEIGHTS_PATTERNS,
    WRONG_PLOT,
    read_json,
)
from ..settings.flags import Settings, complete_settings

_STATE_NAME = "trainer_state.json"  # the Trainer writes it last: a checkpoint without it is incomplete
# Flags that must not change when a run is resumed. Otherwise held-out rows would be trained on, or the optimizer or
# the teacher would not fit.
_FIXED = ("data", "validation_size", "split_seed", "fold", "num_folds", "model_name_or_path", "muon_learning_rate")
_FIXED += ("teacher_epochs", "num_teachers", "teacher_weight", "teacher_temperature")


class StoppedRun(NamedTuple):
    """A run to resume: its folder, and its checkpoint, or None if only CNNs of its teacher exist."""

    folder: Path
    checkpoint: str | None


def find_stopped_run(training: TrainingArguments) -> StoppedRun | None:
    """The run that `resume_from_checkpoint` names. `true` names the newest complete checkpoint in the output folder.

    Returns: None if no run is to be resumed.

    Raises: ValueError if there is no complete checkpoint.
    """
    wanted, output = training.resume_from_checkpoint, Path(training.output_dir)
    if wanted is None or wanted.lower() == "false":
        return None
    newest = wanted.lower() == "true"
    folders = output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if newest else [Path(wanted)]
    complete = sorted((folder for folder in folders if (folder / _STATE_NAME).is_file()), key=step_of)
    if complete:
        return StoppedRun(complete[-1].parent, str(complete[-1]))
    names = {file.name for file in output.glob("*")}
    if newest and {TEACHER_NAME, SETTINGS_NAME} <= names and CONFIG_NAME not in names:  # a finished run has one
        return StoppedRun(output, None)
    raise ValueError(
        f"there is no complete checkpoint to resume from in {output if newest else wanted}. "
        "Start again with --overwrite_output_dir."
    )


def step_of(checkpoint: str | Path) -> int:
    """The training step of a checkpoint. Raises: ValueError if its trainer_state.json is damaged."""
    step = read_json(Path(checkpoint) / _STATE_NAME).get("global_step")
    if type(step) is not int or step < 0:
        raise ValueError(f"{checkpoint} is damaged: global_step in its {_STATE_NAME} is {step!r:.80}.")
    return step


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
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    if not then.keys() >= set(names):
        return
    (old, new), (old_times, new_times) = ((then[name], now[name]) for name in names)
    if old * old_times != new * new_times:
        raise ValueError(
            f"cannot resume: {checkpoint} has {names[0]} {old} and {names[1]} {old_times}, but this run has {new} and "
            f"{new_times}. Choose values with the same product: the finished steps would count as other epochs."
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


def remove_old_evaluation(folder: Path) -> None:
    """Remove an evaluation of earlier weights, since the run will write new ones."""
    for name in (EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT):
        (folder / name).unlink(missing_ok=True)


def remove_old_run(folder: Path) -> None:
    """Remove weights and results of an earlier run, which could be mistaken for results of the new run if it stops."""
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(checkpoint)
    files = [SETTINGS_NAME, RESULTS_NAME, EXAMPLE_NAME, EMISSIONS_NAME, TEACHER_NAME]
    files += [CONFIG_NAME, CARD_NAME, SUBMISSION_NAME, CURVES_PLOT, CONFUSION_PLOT]
    files += [file.name for pattern in (*WEIGHTS_PATTERNS, "*.partial") for file in folder.glob(pattern)]
    for name in files:
        (folder / name).unlink(missing_ok=True)
