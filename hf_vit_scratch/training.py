"""The main job: load the data, train, measure, and leave one folder with all of it."""

import csv
import json
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import Future, wait
from importlib import metadata
from pathlib import Path

import datasets
import transformers
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, IntervalStrategy

from . import data
from .arguments import AugmentationArguments, DataArguments, RunArguments, complete_settings, parse_arguments
from .building import build_config, build_processor, build_trainer, check_arguments
from .competition import COMPETITION, SAMPLE, SAMPLE_NOTICE
from .configuration_vit_scratch import ViTScratchConfig
from .device import can_compile, describe, fastest_attention, set_up_cpu
from .inference import load_model, predict_logits, write_submission
from .modeling_vit_scratch import ViTScratchForImageClassification
from .plots import plot_confusion_matrix, plot_curves
from .pretrained import load_pretrained, model_name
from .publish import (
    EVALUATION_NAME,
    RESULTS_NAME,
    ROBUSTNESS_PLOT,
    SETTINGS_NAME,
    WEIGHTS,
    WRONG_PLOT,
    Repository,
    leave,
    write_card,
)
from .teacher import TEACHER_NAME, get_teacher
from .trainer import ViTScratchTrainer, evaluate_logits

EXAMPLE_NAME = "example.png"
EMISSIONS_NAME = "emissions.csv"  # of codecarbon, with --report_to codecarbon


class PushEverySave(TrainerCallback):
    """Push at each save what a run would leave if it ended there, in the background: where it fails, training goes on.

    Args:
        facts: what all_results.json holds before anything is measured.
    """

    def __init__(self, trainer: ViTScratchTrainer, repository: Repository, facts: dict):
        self.trainer, self.repository, self.facts = trainer, repository, facts
        self.push: Future | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()
        if state.is_world_process_zero:
            for folder in Path(args.output_dir).glob(".push-*"):  # of a run that was killed
                shutil.rmtree(folder)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or state.global_step >= state.max_steps:  # the run itself pushes its end
            return
        if self.push and not self.push.done():
            if not args.hub_always_push:
                return
            wait([self.push])
        output, step = Path(args.output_dir), f"step {state.global_step} of {state.max_steps}"
        folder = Path(tempfile.mkdtemp(prefix=".push-", dir=output))

        def done(push: Future):
            shutil.rmtree(folder)
            if error := push.exception():
                print(f"Warning: {step} was not pushed, training goes on: {error}", file=sys.stderr, flush=True)

        self.trainer.save_model(str(folder))
        for name in (SETTINGS_NAME, EXAMPLE_NAME):
            if (output / name).exists():
                shutil.copy(output / name, folder)
        _write_results(folder, self.trainer, self.facts | self._measured(state, step), output.resolve().name)
        self.push = self.repository.submit(folder)
        self.push.add_done_callback(done)

    def _measured(self, state, step: str) -> dict:
        """What is known so far, by its names in all_results.json."""
        found = {"unfinished": step, "epoch": state.epoch, "train_runtime": time.perf_counter() - self.start}
        last = next((row for row in reversed(state.log_history) if "eval_accuracy" in row), {})
        if last.get("step") == state.global_step:  # or else it is of other weights
            found |= {f"validation_{key[5:]}": value for key, value in last.items() if key.startswith("eval_")}
        return found


def find_stopped_run(training: TrainingArguments) -> tuple[Path | None, str | None]:
    """The folder of the run to go on with, and its checkpoint: as given, or for `true` its newest whole one.

    Without a checkpoint where the run stopped before its first one, but has CNNs of its teacher; neither where no run
    is to go on.
    """
    wanted, output = training.resume_from_checkpoint, Path(training.output_dir)
    if wanted is None or wanted.lower() == "false":
        return None, None
    newest = wanted.lower() == "true"
    folders = output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if newest else [Path(wanted)]
    # trainer_state.json is written last: a checkpoint without it was cut off.
    whole = sorted((folder for folder in folders if (folder / "trainer_state.json").is_file()), key=_step_of)
    if whole:
        return whole[-1].parent, str(whole[-1])
    names = {file.name for file in output.glob("*")}
    if newest and {TEACHER_NAME, SETTINGS_NAME} <= names and "config.json" not in names:  # which a finished run has
        return output, None
    raise ValueError(
        f"there is no whole checkpoint to resume from in {output if newest else wanted}: "
        "start again with --overwrite_output_dir."
    )


def _step_of(checkpoint: str | Path) -> int:
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def _check_resumable(config: ViTScratchConfig, settings: dict, before: Path, checkpoint: str | None):
    """Refuse what would go on without a word: a model that fits in part, training images in the validation split."""
    file, where = before / SETTINGS_NAME, checkpoint or before
    written = complete_settings(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    kinds = ("data", "run", "augmentation", "training")
    then, now = ({k: v for kind in kinds for k, v in told.get(kind, {}).items()} for told in (written, settings))
    names = ("data", "validation_size", "split_seed", "fold", "num_folds", "model_name_or_path", "muon_learning_rate")
    names += ("teacher_epochs", "num_teachers", "teacher_weight", "teacher_temperature")
    if checkpoint is None:  # the CNNs to come are to be of one kind with those that are there
        names += ("seed", *settings["augmentation"])
    for name in names:
        if name in then and then[name] != now[name]:
            raise ValueError(f"cannot resume: {where} has {name} {then[name]!r}, this run {now[name]!r}.")
    if checkpoint is None:
        return
    old, new = ViTScratchConfig.from_pretrained(checkpoint), config
    for name in ViTScratchConfig.__annotations__:
        if getattr(old, name) != getattr(new, name):
            raise ValueError(
                f"cannot resume: {checkpoint} has {name} {getattr(old, name)!r}, this run {getattr(new, name)!r}."
            )
    if now["teacher_epochs"] and not (before / TEACHER_NAME).is_file():
        raise ValueError(f"cannot resume: {TEACHER_NAME}, the run's teacher, is not beside {checkpoint}.")
    if old.id2label != new.id2label:
        raise ValueError(f"cannot resume: {checkpoint} has other classes than this run.")


def _check_output_dir(run: RunArguments, training: TrainingArguments):
    """Refuse to write over a run, unless that is asked for, or over what is no run."""
    folder = Path(training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file.")
    names = {path.name for path in folder.glob("*")}
    if names & {SETTINGS_NAME, "config.json"} or any(name.startswith(PREFIX_CHECKPOINT_DIR) for name in names):
        if not run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a run already: go on with --resume_from_checkpoint true, replace it with "
                "--overwrite_output_dir, or give another --output_dir."
            )
    elif foreign := names & {"README.md", "submission.csv", "all_results.json"}:
        raise ValueError(f"{folder} holds a {min(foreign)} that is not of a run: give another --output_dir.")


def _settings(run, data_arguments, augmentation, training) -> dict:
    """All that the run was told, without tokens and without paths: it goes to the Hub with the model."""
    flags = json.loads(training.to_json_string())
    for name in ("output_dir", "logging_dir", "resume_from_checkpoint"):
        flags |= {name: Path(flags[name]).name} if flags.get(name) else {}
    return {
        "run": {**vars(run), "recipe": Path(run.recipe).stem, "model_name_or_path": _base_model(run)},
        "data": {**vars(data_arguments), "data": data.source_name(data_arguments.data)},
        "augmentation": vars(augmentation),
        "training": flags,
    }


def _base_model(run: RunArguments) -> str | None:
    return model_name(run.model_name_or_path) if run.model_name_or_path else None


def _write_json(file: Path, content: dict):
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _remove_old_evaluation(folder: Path):
    """It is of other weights than those that a run leaves."""
    for name in (EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT):
        (folder / name).unlink(missing_ok=True)


def _remove_old_run(folder: Path):
    """All that a new run, stopped or not, would be taken for if it stayed: weights, what was measured of them."""
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(checkpoint)
    files = (SETTINGS_NAME, RESULTS_NAME, EXAMPLE_NAME, EMISSIONS_NAME, TEACHER_NAME)
    files += ("config.json", "README.md", "submission.csv", "curves.png", "confusion_matrix.png")
    for name in (*files, *(file.name for pattern in WEIGHTS for file in folder.glob(pattern))):
        (folder / name).unlink(missing_ok=True)


def train(
    run: RunArguments,
    data_arguments: DataArguments,
    augmentation: AugmentationArguments,
    model_arguments,
    training: TrainingArguments,
) -> dict:
    """Run the whole job. Takes what [`parse_arguments`] gives; returns what is in all_results.json.

    Raises: ValueError or OSError, in one line, for anything that the user can put right.
    """
    state = PartialState()
    check_arguments(run, training)
    repository = _repository(training) if training.push_to_hub else None
    set_up_cpu()
    if training.torch_compile and not can_compile():
        training.torch_compile, training.torch_compile_backend = False, None
        if state.is_main_process:
            print("No C++ compiler was found (g++, clang++): training without torch.compile, slower.", flush=True)
    transformers.logging.disable_progress_bar()  # that of each file that is saved; the Trainer's own stays
    if state.is_main_process and data_arguments.data == SAMPLE:
        print(SAMPLE_NOTICE, flush=True)
    (before, checkpoint), pretrained = find_stopped_run(training), None
    if run.model_name_or_path:
        with state.main_process_first():
            pretrained = load_pretrained(checkpoint or run.model_name_or_path)
    start = time.perf_counter()
    with state.main_process_first():
        splits = data.load(
            data_arguments.data,
            image_column=data_arguments.image_column,
            label_column=data_arguments.label_column,
            validation_size=data_arguments.validation_size,
            seed=data_arguments.split_seed,
            fold=data_arguments.fold,
            num_folds=data_arguments.num_folds,
        )
    load_seconds = time.perf_counter() - start

    config = build_config(run, model_arguments, splits, data.source_name(data_arguments.data), pretrained)
    settings = _settings(run, data_arguments, augmentation, training)
    if before:
        _check_resumable(config, settings, before, checkpoint)
    goes_on = before is not None and before.resolve() == Path(training.output_dir).resolve()
    if not goes_on:
        _check_output_dir(run, training)
    if repository and state.is_main_process:
        repository.check()  # now, and not after hours of training
    training.push_to_hub = False  # the Trainer would push raw weights, without code, and a card of its own
    if "validation" not in splits:
        training.eval_strategy = IntervalStrategy.NO

    if training.data_seed is None:
        training.data_seed = training.seed  # one order of the images for all processes, whose other seeds differ
    transformers.set_seed(training.seed)
    fastest = fastest_attention(config.num_tokens, training.device, training.bf16)
    config._attn_implementation = run.attn_implementation or fastest
    model = pretrained.fit(config) if pretrained else ViTScratchForImageClassification(config)
    processor = build_processor(config, data_arguments.crop_fraction, pretrained)
    if pretrained and not checkpoint and state.is_main_process:
        print(pretrained.describe(config), flush=True)
    del pretrained  # two models would lie in memory
    trainer = build_trainer(model, processor, splits, run, augmentation, training)
    facts = {
        "data": data.source_name(data_arguments.data),
        "recipe": Path(run.recipe).stem,
        **({"base_model": _base_model(run)} if run.model_name_or_path else {}),
        "parameters": model.num_parameters(),
        "train_images": len(splits["train"]),
        "hardware": describe(training.device, state.num_processes),
        "resumed_from_step": _step_of(checkpoint) if checkpoint else 0,
        "load_seconds": round(load_seconds, 3),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "datasets")},
    }
    if repository and training.hub_strategy == HubStrategy.EVERY_SAVE:
        trainer.add_callback(PushEverySave(trainer, repository, facts))
    state.wait_for_everyone()  # nobody writes before all have looked
    if state.is_main_process:
        if run.overwrite_output_dir and not goes_on:
            _remove_old_run(Path(training.output_dir))
        Path(training.output_dir).mkdir(parents=True, exist_ok=True)
        _remove_old_evaluation(Path(training.output_dir))
        _write_json(Path(training.output_dir) / SETTINGS_NAME, settings)
        held_out = splits.get("validation", splits.get("test"))
        # Of public digits; an image of the user's own is not for a card.
        if held_out is not None and facts["data"] in (SAMPLE, COMPETITION):
            held_out[0]["image"].save(Path(training.output_dir) / EXAMPLE_NAME)
    if run.teacher_epochs:
        teacher, taught = get_teacher(config, processor, splits["train"], run, augmentation, training, before)
        trainer.learn_from(teacher, run.teacher_weight, run.teacher_temperature)
        facts |= taught
    # Same weights in all processes, but each augments its images in its own way.
    transformers.set_seed(training.seed + state.process_index)
    measured = trainer.train(resume_from_checkpoint=checkpoint).metrics
    measured.pop("total_flos", None)  # an estimate for language models, by the number of pixels in place of tokens
    results = {**facts, **measured, **_energy(Path(training.output_dir))}
    trainer.save_model()
    trainer.save_state()
    state.wait_for_everyone()
    results.update(_measure(training, splits))
    if state.is_main_process:
        _write_results(Path(training.output_dir), trainer, results)
        print(_summary(Path(training.output_dir), results), flush=True)
    state.wait_for_everyone()
    if repository and state.is_main_process:
        print(f"Pushing it to {repository.repo_id}", flush=True)
        print(f"Pushed: {repository.upload(training.output_dir)}", flush=True)
    return results


def _repository(training: TrainingArguments) -> Repository:
    return Repository(
        training.hub_model_id, bool(training.hub_private_repo), training.hub_revision, training.hub_token
    )


def _energy(folder: Path) -> dict:
    """What codecarbon measured, in kWh, where it was asked to: a line for each CNN of a teacher, one for the ViT."""
    if not (folder / EMISSIONS_NAME).exists():
        return {}
    with open(folder / EMISSIONS_NAME, newline="", encoding="utf-8") as stream:
        return {"energy_kwh": sum(float(row["energy_consumed"]) for row in csv.DictReader(stream))}


def _measure(training: TrainingArguments, splits: datasets.DatasetDict) -> dict:
    """Evaluate the folder as a user will load it, in fp32, and write the submission where the test has no labels."""
    model, processor = load_model(training.output_dir, training.device)
    results = {}
    for name in ("validation", "test"):
        if name not in splits:
            continue
        logits = predict_logits(model, processor, splits[name], training.per_device_eval_batch_size)
        if "label" in splits[name].column_names:
            measured = evaluate_logits(logits, splits[name]["label"][:])
            results.update({f"{name}_{key}": value for key, value in measured.items()})
        elif PartialState().is_main_process:
            write_submission(logits, model.config.id2label, Path(training.output_dir) / "submission.csv")
    return results


def _write_results(folder: Path, trainer: ViTScratchTrainer, results: dict, name: str | None = None):
    _write_json(folder / RESULTS_NAME, results)
    plot_curves(trainer.state.log_history, folder / "curves.png")
    if "validation_confusion_matrix" in results:
        names = list(trainer.model.config.id2label.values())
        plot_confusion_matrix(results["validation_confusion_matrix"], names, folder / "confusion_matrix.png")
    write_card(folder, trainer.model.config, results, name)


def _summary(folder: Path, results: dict) -> str:
    lines = [
        f"{results['parameters']:,} parameters, {results['train_images']:,} training images of {results['data']}, "
        f"{results['epoch']:g} epochs in {results['train_runtime'] / 60:.1f} minutes "
        f"({results['train_samples_per_second']:.0f} images/s)"
    ]
    for name in ("validation", "test"):
        if f"{name}_accuracy" in results:
            lines.append(
                f"{name} accuracy {results[f'{name}_accuracy']:.2%}: {results[f'{name}_errors']} wrong of "
                f"{results[f'{name}_num_images']:,}; macro F1 {results[f'{name}_macro_f1']:.4f}, "
                f"calibration error {results[f'{name}_calibration_error']:.4f}"
            )
    return "\n".join([*lines, f"All of it lies in {folder}"])


def main(argv: list[str] | None = None):
    """What train.py runs: one line on bad input, and exit code 2."""
    try:
        train(*parse_arguments(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        leave("train.py: stopped. --resume_from_checkpoint true goes on from the last checkpoint or CNN of a teacher.")
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            line = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_...", " ".join(str(error).split()))  # a token that was mistyped
            print(f"train.py: error: {line}", file=sys.stderr)
        raise SystemExit(2) from error
