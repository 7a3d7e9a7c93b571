"""Checks of settings that argparse cannot make: ranges, and combinations of flags."""

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy

from .flags import RunArguments, Settings

TEACHER_NETWORKS = ("strided", "pooled")
# Beyond these a run would not end, or would take all memory and processes of a machine.
_RANGES = {
    "num_train_epochs": (0, 10**6),
    "per_device_train_batch_size": (1, 10**6),
    "per_device_eval_batch_size": (1, 10**6),
    "gradient_accumulation_steps": (1, 10**6),
    "dataloader_num_workers": (0, 1024),
    "learning_rate": (0, 1e30),
    "seed": (0, 2**31),
    "data_seed": (0, 2**31),
}


def check_settings(settings: Settings) -> None:
    """Check the settings of a run.

    Raises: ValueError, in one line, if a value is out of range, flags contradict each other, or a flag would select
        the weights by their validation score, round them for the evaluation, or upload optimizer states.
    """
    _check_trainer(settings.training)
    _check_run(settings.run)
    if settings.data.shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer must be at least 1, got {settings.data.shuffle_buffer}.")


def _check_trainer(training: TrainingArguments) -> None:
    for name, (least, most) in _RANGES.items():
        if (value := getattr(training, name)) is not None and not least <= value <= most:
            raise ValueError(f"{name} must be from {least:,} to {most:,}, got {value}.")
    if training.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end would select the weights by their validation score. Leave it out: a run always "
            "keeps the weights of the last step."
        )
    if training.save_strategy == SaveStrategy.BEST:
        raise ValueError("save_strategy best would select the weights by their validation score: use steps or epoch.")
    if training.save_only_model:
        raise ValueError(
            "save_only_model would write checkpoints from which no run can be resumed. Leave it out, or use "
            "--save_strategy no."
        )
    if training.enable_jit_checkpoint:
        raise ValueError("enable_jit_checkpoint is not needed: train.py saves a checkpoint on SIGTERM. Leave it out.")
    if training.push_to_hub and training.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        value = training.hub_strategy.value
        raise ValueError(f"hub_strategy {value} uploads optimizer states: use end or every_save.")
    if training.push_to_hub and not training.hub_model_id:
        raise ValueError("push_to_hub needs --hub_model_id USER/NAME.")
    if training.bf16_full_eval or training.fp16_full_eval:
        raise ValueError(
            "bf16_full_eval and fp16_full_eval would round the weights. Leave them out: evaluation runs in fp32."
        )


def _check_run(run: RunArguments) -> None:
    if not 0 <= run.ema_decay < 1:
        raise ValueError(f"ema_decay must be at least 0 and below 1, got {run.ema_decay}.")
    if run.muon_learning_rate is not None and not run.muon_learning_rate >= 0:
        raise ValueError(f"muon_learning_rate must be at least 0, got {run.muon_learning_rate}.")
    if run.freeze_encoder and not run.model_name_or_path:
        raise ValueError("freeze_encoder is for a pre-trained model: pass model_name_or_path, or leave it out.")
    if run.freeze_encoder and run.muon_learning_rate:
        raise ValueError("Muon trains the blocks, which freeze_encoder does not train: pass muon_learning_rate 0.")
    if not run.teacher_epochs >= 0:
        raise ValueError(f"teacher_epochs must be at least 0, got {run.teacher_epochs}.")
    if run.teacher_network not in TEACHER_NETWORKS:
        names = " or ".join(TEACHER_NETWORKS)
        raise ValueError(f"teacher_network must be {names}, got {run.teacher_network!r:.80}.")
    if run.num_teachers < 1:
        raise ValueError(f"num_teachers must be at least 1, got {run.num_teachers}.")
    if not 0 <= run.teacher_weight <= 1:
        raise ValueError(f"teacher_weight must be from 0 to 1, got {run.teacher_weight}.")
    if not run.teacher_temperature > 0:
        raise ValueError(f"teacher_temperature must be above 0, got {run.teacher_temperature}.")
