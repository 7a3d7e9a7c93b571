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

from ..console import Stopped, exit_with_one_line, leave, out_of_memory
from ..conversion.pretrained import Pretrained, load_pretrained
from ..data.digit_recognizer import SAMPLE, SAMPLE_NOTICE
from ..data.errors import notice
from ..device import can_compile, set_up_cpu
from ..hub.repository import Repository
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from ..output_folder import RESULTS_NAME, SETTINGS_NAME, Lock, read_json, write_json
from ..settings.checks import check_settings
from ..settings.flags import Settings, parse_arguments
from .assembly import build_config, build_processor, build_trainer
from .checkpoints import free_space, is_of_the_disk, write_failure
from .interrupts import Interrupts, StopAfterSave
from .push import PushEverySave
from .ranks import watched_ranks
from .results import (
    known_facts,
    measure,
    measured_energy,
    measured_time,
    save_example,
    settings_record,
    summary,
    write_results,
)
from .resume import (
    StoppedRun,
    check_output_dir,
    check_resumable,
    check_same_stream,
    find_stopped_run,
    is_finished,
    remove_leftovers,
    remove_old_run,
    seal,
    step_of,
    what_there_is,
)
from .sharding import check_launch, is_wanted
from .short_attention import attention_for_training
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
        lock: keeps other runs out of the output folder.
    """

    settings: Settings
    record: dict
    splits: datasets.DatasetDict
    load_seconds: float
    config: ViTScratchConfig
    pretrained: Pretrained | None
    stopped: StoppedRun | None
    repository: Repository | None
    lock: Lock

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

    SIGTERM and Ctrl-C end the training after a checkpoint, with a KeyboardInterrupt whose note says how to go on.

    Returns: the content of all_results.json.

    Raises: ValueError or OSError, in one line, for any error that the user can correct; MemoryError, in one line, if
        the memory of the machine or the device is not sufficient.
    """
    interrupts, lock = Interrupts(), Lock(Path(settings.training.output_dir))
    try:
        with interrupts.handled():
            return _train_in(settings, interrupts, lock)
    except KeyboardInterrupt as stop:
        stop.add_note(what_there_is(lock.folder, interrupts.begun))
        raise
    except Exception as error:
        if interrupts.received:  # as when a signal has ended the workers of a DataLoader too
            stop = Stopped(interrupts.received)
            stop.add_note(what_there_is(lock.folder, interrupts.begun))
            raise stop from error
        if text := _in_one_line(error, settings, lock.folder, interrupts.begun):
            raise (MemoryError if out_of_memory(error) else OSError)(text) from error
        raise
    finally:
        lock.release()


def _in_one_line(error: Exception, settings: Settings, folder: Path, begun: bool) -> str:
    """What the machine has done to a run, and what to do about it. Empty for other exceptions."""
    training, text, way_on = settings.training, str(error), what_there_is(folder, begun)
    if reason := out_of_memory(error):
        return (
            f"{reason} Ways out: a per_device_train_batch_size below {training.per_device_train_batch_size}, with "
            "more gradient_accumulation_steps for the same images per step; bf16 true; gradient_checkpointing true; "
            "and if an evaluation was running, a per_device_eval_batch_size below "
            f"{training.per_device_eval_batch_size}. {way_on}"
        )
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
        return (
            f"{text} The system ends a worker if memory or shared memory (/dev/shm) is not sufficient: choose a "
            f"dataloader_num_workers below {training.dataloader_num_workers}. {way_on}"
        )
    if begun and is_of_the_disk(error):
        file = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{file}{write_failure(error)} ({free_space(folder)}). {way_on}"
    return ""


def _train_in(settings: Settings, interrupts: Interrupts, lock: Lock) -> dict:
    state = PartialState()
    job = _prepare(settings, lock)
    if job.goes_on and is_finished(settings, job.stopped):
        return _leave_finished(job)
    trainer = _build_trainer(job)
    trainer.add_callback(StopAfterSave(interrupts))
    if job.checkpoint and settings.data.streaming:
        batches = trainer.get_train_dataloader().dataset
        check_same_stream(batches.division(settings.training.dataloader_num_workers), job.checkpoint)
    facts = known_facts(job.settings, trainer, len(job.splits["train"])) | {
        "resumed_from_step": step_of(job.checkpoint) if job.checkpoint else 0,
        "load_seconds": round(job.load_seconds, 3),
    }
    if job.repository and job.settings.training.hub_strategy == HubStrategy.EVERY_SAVE:
        if trainer.is_fsdp_enabled:
            raise ValueError("hub_strategy every_save is not supported with FSDP2: use end.")
        trainer.add_callback(PushEverySave(trainer, job.repository, facts))
    state.wait_for_everyone()  # no process writes before all have checked the folder
    if state.is_main_process:
        _begin_folder(job, facts["data"])
    interrupts.begun = True
    facts |= _train(job, trainer)
    trainer.save_model()
    trainer.save_state()
    state.wait_for_everyone()
    results = facts | measure(job.settings.training, job.splits)
    if state.is_main_process:
        write_results(job.folder, trainer, results)
        seal(job.folder)
        print(summary(job.folder, results), flush=True)
    state.wait_for_everyone()
    _push(job)
    return results


def _leave_finished(job: Job) -> dict:
    """Report a run that was resumed after its end. Nothing is trained or written."""
    results = read_json(job.folder / RESULTS_NAME)
    if PartialState().is_main_process:
        print(f"The run in {job.folder} is finished, and nothing is changed.", flush=True)
        print(summary(job.folder, results), flush=True)
    _push(job)
    return results


def _push(job: Job) -> None:
    if job.repository and PartialState().is_main_process:
        print(f"Pushing {job.folder} to {job.repository.repo_id}", flush=True)
        print(f"Pushed: {job.repository.upload(job.folder)}", flush=True)


def _prepare(settings: Settings, lock: Lock) -> Job:
    """Load the data and check all settings, before anything is written."""
    state = PartialState()
    check_settings(settings)
    if state.is_main_process and lock.file.exists():  # a run that is going on is not to be read either
        lock.acquire()
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
        # The CNNs of the teacher count on from it.
        data_seed=settings.training.seed if settings.training.data_seed is None else settings.training.data_seed,
        **({} if "validation" in splits else {"eval_strategy": IntervalStrategy.NO}),
    )
    job = Job(settings, record, splits, load_seconds, config, pretrained, stopped, repository, lock)
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
    sharded = is_wanted(settings.training)
    if not settings.training.torch_compile or (can_compile() and not sharded):
        return settings
    if PartialState().is_main_process:
        reason = "torch.compile needs a C++ compiler (g++, clang++) and setuptools. One of them was not found"
        reason = "torch.compile is not supported with FSDP2" if sharded else reason
        print(f"{reason}, so training runs without torch.compile and is slower.", flush=True)
    return settings.with_training(torch_compile=False, torch_compile_backend=None)


def _build_trainer(job: Job) -> ViTScratchTrainer:
    """The trainer of a new or a pre-trained model. The latter is removed from `job`."""
    settings, config, pretrained = job.settings, job.config, job.pretrained
    training, job.pretrained = settings.training, None  # so that only one copy of the model is in memory
    transformers.set_seed(training.seed)
    fastest = attention_for_training(config.num_tokens, training.device, training.bf16, training.torch_compile)
    config._attn_implementation = settings.run.attn_implementation or fastest
    model = pretrained.fit(config) if pretrained else ViTScratchForImageClassification(config)
    model.vit.requires_grad_(not settings.run.freeze_encoder)
    processor = build_processor(config, settings.data.crop_fraction, pretrained)
    if pretrained and not job.checkpoint and PartialState().is_main_process:
        print(pretrained.describe(config), flush=True)
    trainer = build_trainer(model, processor, job.splits, settings)
    if not getattr(trainer.train_dataset, "is_decoded", False) and training.dataloader_num_workers == 0:
        notice(
            "The training process decodes the images itself, between its steps. --dataloader_num_workers 2 leaves "
            "this to two other processes."
        )
    return trainer


def _begin_folder(job: Job, data: str) -> None:
    """Create the output folder, remove files of an earlier run, and write the settings of this run."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.lock.acquire()
    if not job.goes_on:
        check_output_dir(job.settings)  # again, since another run may have begun and ended here since
    if job.settings.run.overwrite_output_dir and not job.goes_on:
        remove_old_run(job.folder)
    remove_leftovers(job.folder)
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
    # All processes have the same weights, but draw different dropout.
    transformers.set_seed(training.seed + PartialState().process_index)
    metrics = trainer.train(resume_from_checkpoint=job.checkpoint).metrics
    metrics.pop("total_flos", None)  # a formula for language models, which would take pixels for tokens
    metrics |= measured_time(trainer, len(job.splits["train"]), metrics)
    return measured | metrics | measured_energy(job.folder)


def main(argv: list[str] | None = None) -> None:
    """Run train.py. Errors that the user can correct end it with one line on stderr and exit code 2."""
    shown = os.environ.get("RANK", "0") == "0"
    with exit_with_one_line("train.py", shown):
        try:
            check_launch()
            settings = parse_arguments(sys.argv[1:] if argv is None else argv)
            with watched_ranks(settings.training.ddp_timeout):
                train(settings)
        except KeyboardInterrupt as stop:
            reason = f"stopped by {stop}" if isinstance(stop, Stopped) else "stopped"
            leave(" ".join([f"train.py: {reason}.", *getattr(stop, "__notes__", [])]) if shown else "")
