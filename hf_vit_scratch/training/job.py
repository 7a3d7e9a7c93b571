"""A training run: load the data, train, evaluate, and write the output folder."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import transformers
from accelerate import PartialState
from transformers.trainer_utils import HubStrategy, IntervalStrategy

from ..console import exit_with_one_line, leave
from ..conversion.pretrained import Pretrained, load_pretrained
from ..data.digit_recognizer import SAMPLE, SAMPLE_NOTICE
from ..device import can_compile, fastest_attention, set_up_cpu
from ..hub.repository import Repository
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from ..output_folder import SETTINGS_NAME, write_json
from ..settings.checks import check_settings
from ..settings.flags import Settings, parse_arguments
from .assembly import build_config, build_processor, build_trainer
from .push import PushEverySave
from .results import known_facts, measure, measured_energy, save_example, settings_record, summary, write_results
from .resume import (
    StoppedRun,
    check_output_dir,
    check_resumable,
    find_stopped_run,
    remove_old_evaluation,
    remove_old_run,
    step_of,
)
from .teacher import get_teacher
from .trainer import ViTScratchTrainer


@dataclass
class Job:
    """A run that has passed all checks.

    Args:
        settings: the settings, adapted to this machine.
        record: the content of training_args.json.
        splits: the data.
        load_seconds: time for loading the data, in seconds.
        config: config of the model.
        pretrained: the model to fine-tune, or None.
        stopped: the run to resume, or None.
        repository: repository on the Hub to push to, or None.
    """

    settings: Settings
    record: dict
    splits: datasets.DatasetDict
    load_seconds: float
    config: ViTScratchConfig
    pretrained: Pretrained | None
    stopped: StoppedRun | None
    repository: Repository | None

    @property
    def folder(self) -> Path:
        return Path(self.settings.training.output_dir)

    @property
    def checkpoint(self) -> str | None:
        return self.stopped.checkpoint if self.stopped else None

    @property
    def goes_on(self) -> bool:
        """Whether the resumed run is in this output folder."""
        return self.stopped is not None and self.stopped.folder.resolve() == self.folder.resolve()


def train(settings: Settings) -> dict:
    """Train and evaluate a model, and write the output folder.

    Returns: the content of all_results.json.

    Raises: ValueError or OSError, in one line, for any error that the user can correct.
    """
    state = PartialState()
    job = _prepare(settings)
    trainer = _build_trainer(job)
    facts = known_facts(job.settings, trainer, len(job.splits["train"])) | {
        "resumed_from_step": step_of(job.checkpoint) if job.checkpoint else 0,
        "load_seconds": round(job.load_seconds, 3),
    }
    if job.repository and job.settings.training.hub_strategy == HubStrategy.EVERY_SAVE:
        trainer.add_callback(PushEverySave(trainer, job.repository, facts))
    state.wait_for_everyone()  # no process writes before all have checked the folder
    if state.is_main_process:
        _begin_folder(job, facts["data"])
    facts |= _train(job, trainer)
    trainer.save_model()
    trainer.save_state()
    state.wait_for_everyone()
    results = facts | measure(job.settings.training, job.splits)
    if state.is_main_process:
        write_results(job.folder, trainer, results)
        print(summary(job.folder, results), flush=True)
    state.wait_for_everyone()
    if job.repository and state.is_main_process:
        print(f"Pushing {job.folder} to {job.repository.repo_id}", flush=True)
        print(f"Pushed: {job.repository.upload(job.folder)}", flush=True)
    return results


def _prepare(settings: Settings) -> Job:
    """Load the data and check all settings, before anything is written."""
    state = PartialState()
    check_settings(settings)
    repository = _repository(settings) if settings.training.push_to_hub else None
    settings = _on_this_machine(settings)
    transformers.logging.disable_progress_bar()  # progress bars of saved files; the Trainer's bar stays
    if state.is_main_process and settings.data.data == SAMPLE:
        print(SAMPLE_NOTICE, flush=True)
    stopped, pretrained = find_stopped_run(settings.training), None
    if settings.run.model_name_or_path:
        with state.main_process_first():
            pretrained = load_pretrained((stopped and stopped.checkpoint) or settings.run.model_name_or_path)
    start = time.perf_counter()
    with state.main_process_first():
        splits = settings.data.load_splits()
    load_seconds = time.perf_counter() - start
    config = build_config(settings, splits, pretrained)
    record = settings_record(settings)
    if stopped:
        check_resumable(config, record, stopped)
    settings = settings.with_training(
        push_to_hub=False,  # the Trainer would push the weights without average, without code, and with its own card
        # All processes need the same order of the images, but their other seeds differ.
        data_seed=settings.training.seed if settings.training.data_seed is None else settings.training.data_seed,
        **({} if "validation" in splits else {"eval_strategy": IntervalStrategy.NO}),
    )
    job = Job(settings, record, splits, load_seconds, config, pretrained, stopped, repository)
    if not job.goes_on:
        check_output_dir(settings)
    if repository and state.is_main_process:
        repository.check()  # before training, not hours later
    return job


def _repository(settings: Settings) -> Repository:
    training = settings.training
    return Repository(
        training.hub_model_id, bool(training.hub_private_repo), training.hub_revision, training.hub_token
    )


def _on_this_machine(settings: Settings) -> Settings:
    """Set up the CPU, and return the settings, without torch.compile if it cannot work."""
    set_up_cpu()
    if not settings.training.torch_compile or can_compile():
        return settings
    if PartialState().is_main_process:
        print(
            "torch.compile needs a C++ compiler (g++, clang++) and setuptools. One of them was not found, so training "
            "runs without torch.compile and is slower.",
            flush=True,
        )
    return settings.with_training(torch_compile=False, torch_compile_backend=None)


def _build_trainer(job: Job) -> ViTScratchTrainer:
    """The trainer of a new or a pre-trained model. The latter is removed from `job`."""
    settings, config, pretrained = job.settings, job.config, job.pretrained
    training, job.pretrained = settings.training, None  # so that only one copy of the model is in memory
    transformers.set_seed(training.seed)
    fastest = fastest_attention(config.num_tokens, training.device, training.bf16)
    config._attn_implementation = settings.run.attn_implementation or fastest
    model = pretrained.fit(config) if pretrained else ViTScratchForImageClassification(config)
    processor = build_processor(config, settings.data.crop_fraction, pretrained)
    if pretrained and not job.checkpoint and PartialState().is_main_process:
        print(pretrained.describe(config), flush=True)
    return build_trainer(model, processor, job.splits, settings)


def _begin_folder(job: Job, data: str) -> None:
    """Create the output folder, remove files of an earlier run, and write the settings of this run."""
    if job.settings.run.overwrite_output_dir and not job.goes_on:
        remove_old_run(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    remove_old_evaluation(job.folder)
    write_json(job.folder / SETTINGS_NAME, job.record)
    save_example(job.splits, data, job.folder)


def _train(job: Job, trainer: ViTScratchTrainer) -> dict:
    """Train the teacher, if there is one, then the model.

    Returns: metrics of the training, by their names in all_results.json.
    """
    settings, measured = job.settings, {}
    run, training = settings.run, settings.training
    if run.teacher_epochs:
        before = job.stopped.folder if job.stopped else None
        teacher, measured = get_teacher(job.config, trainer.processing_class, job.splits["train"], settings, before)
        trainer.learn_from(teacher, run.teacher_weight, run.teacher_temperature)
    # All processes have the same weights, but draw different augmentations.
    transformers.set_seed(training.seed + PartialState().process_index)
    metrics = trainer.train(resume_from_checkpoint=job.checkpoint).metrics
    metrics.pop("total_flos", None)  # a formula for language models, which would take pixels for tokens
    return measured | metrics | measured_energy(job.folder)


def main(argv: list[str] | None = None) -> None:
    """Run train.py. Errors that the user can correct end it with one line on stderr and exit code 2."""
    with exit_with_one_line("train.py", shown=os.environ.get("RANK", "0") == "0"):
        try:
            train(parse_arguments(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt:
            leave(
                "train.py: stopped. To resume from the last checkpoint, or from the last finished CNN of the teacher, "
                "pass --resume_from_checkpoint true."
            )
