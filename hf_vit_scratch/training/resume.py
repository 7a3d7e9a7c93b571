"""The run that a folder holds already: what to go on from, what fits it, what may be written over."""

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

_STATE_NAME = "trainer_state.json"  # the Trainer writes it last: a checkpoint without it was cut off
# Flags that a resumed run must have in common with the run before. Rows that were held out would be trained on, or
# the optimizer and the teacher would not fit.
_FIXED = ("data", "validation_size", "split_seed", "fold", "num_folds", "model_name_or_path", "muon_learning_rate")
_FIXED += ("teacher_epochs", "num_teachers", "teacher_weight", "teacher_temperature")


class StoppedRun(NamedTuple):
    """A run to go on with: its folder, and its checkpoint, or None where only CNNs of its teacher exist."""

    folder: Path
    checkpoint: str | None


def find_stopped_run(training: TrainingArguments) -> StoppedRun | None:
    """The run that `resume_from_checkpoint` names, or for `true` the newest whole checkpoint of the output folder.

    Returns: None where no run is to be resumed.

    Raises: ValueError where there is nothing to resume from.
    """
    wanted, output = training.resume_from_checkpoint, Path(training.output_dir)
    if wanted is None or wanted.lower() == "false":
        return None
    newest = wanted.lower() == "true"
    folders = output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if newest else [Path(wanted)]
    whole = sorted((folder for folder in folders if (folder / _STATE_NAME).is_file()), key=step_of)
    if whole:
        return StoppedRun(whole[-1].parent, str(whole[-1]))
    names = {file.name for file in output.glob("*")}
    if newest and {TEACHER_NAME, SETTINGS_NAME} <= names and CONFIG_NAME not in names:  # a finished run has one
        return StoppedRun(output, None)
    raise ValueError(
        f"there is no whole checkpoint to resume from in {output if newest else wanted}: "
        "start again with --overwrite_output_dir."
    )


def step_of(checkpoint: str | Path) -> int:
    """The step after which a checkpoint was written."""
    return read_json(Path(checkpoint) / _STATE_NAME)["global_step"]


def check_resumable(config: ViTScratchConfig, record: dict, stopped: StoppedRun) -> None:
    """Refuse to resume what would go on wrongly without a word.

    Args:
        config: of this run.
        record: the settings of this run, as training_args.json holds them.

    Raises: ValueError where the model fits in part only, rows that were held out would be trained on, or a file that
        the run needs is missing.
    """
    file, where = stopped.folder / SETTINGS_NAME, stopped.checkpoint or stopped.folder
    then, now = _flags(complete_settings(read_json(file)) if file.is_file() else {}), _flags(record)
    # CNNs that are still to be trained must be of one kind with those that are finished.
    of_teacher = ("seed", *record["augmentation"]) if stopped.checkpoint is None else ()
    for name in (*_FIXED, *of_teacher):
        if name in then and then[name] != now[name]:
            raise ValueError(f"cannot resume: {where} has {name} {then[name]!r}, this run {now[name]!r}.")
    if stopped.checkpoint is None:
        return
    _check_same_model(config, stopped.checkpoint)
    if now["teacher_epochs"] and not (stopped.folder / TEACHER_NAME).is_file():
        raise ValueError(f"cannot resume: {TEACHER_NAME}, the run's teacher, is not beside {stopped.checkpoint}.")


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
                f"cannot resume: {checkpoint} has {name} {getattr(old, name)!r}, this run {getattr(config, name)!r}."
            )
    if old.id2label != config.id2label:
        raise ValueError(f"cannot resume: {checkpoint} has other classes than this run.")


def check_output_dir(settings: Settings) -> None:
    """Raises: ValueError where the output folder holds a run, unless that is to be replaced, or files of no run."""
    folder = Path(settings.training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file.")
    names = {path.name for path in folder.glob("*")}
    if names & {SETTINGS_NAME, CONFIG_NAME} or any(name.startswith(PREFIX_CHECKPOINT_DIR) for name in names):
        if not settings.run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a run already: go on with --resume_from_checkpoint true, replace it with "
                "--overwrite_output_dir, or choose another --output_dir."
            )
    elif foreign := names & {CARD_NAME, SUBMISSION_NAME, RESULTS_NAME}:
        raise ValueError(f"{folder} holds a {min(foreign)} that is not of a run: choose another --output_dir.")


def remove_old_evaluation(folder: Path) -> None:
    """Remove what measured other weights than those that a run is about to leave."""
    for name in (EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT):
        (folder / name).unlink(missing_ok=True)


def remove_old_run(folder: Path) -> None:
    """Remove all that would be taken for a part of the new run, even if it stops: weights and what was measured."""
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(checkpoint)
    files = [SETTINGS_NAME, RESULTS_NAME, EXAMPLE_NAME, EMISSIONS_NAME, TEACHER_NAME]
    files += [CONFIG_NAME, CARD_NAME, SUBMISSION_NAME, CURVES_PLOT, CONFUSION_PLOT]
    files += [file.name for pattern in (*WEIGHTS_PATTERNS, "*.partial") for file in folder.glob(pattern)]
    for name in files:
        (folder / name).unlink(missing_ok=True)
