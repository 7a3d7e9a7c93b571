"""The results of a run: metrics, plots, model card, submission and summary."""

import csv
import json
from importlib import metadata
from pathlib import Path

import datasets
from accelerate import PartialState
from transformers import TrainingArguments

from ..conversion.pretrained import model_name
from ..data.digit_recognizer import COMPETITION, SAMPLE
from ..data.sources import source_name
from ..device import describe
from ..evaluation.classifier import load_model
from ..evaluation.plots import plot_confusion_matrix, plot_curves
from ..evaluation.prediction import predict_logits, write_predictions
from ..hub.card import write_card
from ..output_folder import (
    CONFUSION_PLOT,
    CURVES_PLOT,
    EMISSIONS_NAME,
    EXAMPLE_NAME,
    RESULTS_NAME,
    SUBMISSION_NAME,
    write_json,
)
from ..settings.flags import RunArguments, Settings
from .trainer import ViTScratchTrainer


def settings_record(settings: Settings) -> dict:
    """The content of training_args.json: the settings without tokens and paths, as the file goes to the Hub."""
    flags = json.loads(settings.training.to_json_string())
    for name in ("output_dir", "logging_dir", "resume_from_checkpoint"):
        flags |= {name: Path(flags[name]).name} if flags.get(name) else {}
    flags["num_processes"] = PartialState().num_processes * max(1, settings.training.n_gpu)
    run = settings.run
    return {
        "run": {**vars(run), "recipe": _recipe_name(run), "model_name_or_path": _base_model(run)},
        "data": {**vars(settings.data), "data": source_name(settings.data.data)},
        "augmentation": vars(settings.augmentation),
        "training": flags,
    }


def _recipe_name(run: RunArguments) -> str | None:
    return Path(run.recipe).stem if run.recipe else None


def _base_model(run: RunArguments) -> str | None:
    return model_name(run.model_name_or_path) if run.model_name_or_path else None


def known_facts(settings: Settings, trainer: ViTScratchTrainer, train_images: int) -> dict:
    """Facts that are known before the training, by their names in all_results.json."""
    run = settings.run
    return {
        "data": source_name(settings.data.data),
        "recipe": _recipe_name(run),
        **({"base_model": _base_model(run)} if run.model_name_or_path else {}),
        "parameters": trainer.model.num_parameters(),
        "train_images": train_images,
        "hardware": describe(settings.training.device, PartialState().num_processes),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "datasets")},
    }


def save_example(splits: datasets.DatasetDict, data: str, folder: Path) -> None:
    """Save a held-out image for the card if `data` is public; images of the user must not be published."""
    held_out = splits.get("validation", splits.get("test"))
    if held_out is not None and data in (SAMPLE, COMPETITION):
        held_out[0]["image"].save(folder / EXAMPLE_NAME)


def measured_time(trainer: ViTScratchTrainer, train_images: int, metrics: dict) -> dict:
    """The metrics of a resumed training that are of the whole run, with the part before the checkpoint.

    `train_runtime` then includes `earlier_runtime`, both in seconds. Time between the checkpoint and the stop of the
    run is not included, since its steps are trained again.

    Args:
        train_images: number of training images, for the speed.
        metrics: metrics of the Trainer, which are of the steps after the checkpoint alone.

    Returns: the metrics that differ. Empty if the run was not resumed, or an older version wrote the checkpoint.
    """
    clock, state = trainer.run_time, trainer.state
    if not clock.earlier:
        return {}
    seconds = clock.earlier + metrics["train_runtime"]
    logged, total, last = [entry for entry in state.log_history if "loss" in entry], 0.0, 0
    for entry in logged:
        total, last = total + entry["loss"] * (entry["step"] - last), entry["step"]
    return {
        "train_runtime": seconds,
        "earlier_runtime": clock.earlier,
        "train_samples_per_second": train_images * state.epoch / seconds,
        "train_steps_per_second": state.global_step / seconds,
        **({"train_loss": total / last} if last else {}),
    }


def measured_energy(folder: Path) -> dict:
    """The energy of a run in kWh, if codecarbon measured it: the sum over the CNNs of the teacher and the ViT."""
    if not (folder / EMISSIONS_NAME).exists():
        return {}
    with open(folder / EMISSIONS_NAME, newline="", encoding="utf-8") as stream:
        return {"energy_kwh": sum(float(row["energy_consumed"]) for row in csv.DictReader(stream))}


def measure(training: TrainingArguments, splits: datasets.DatasetDict) -> dict:
    """Evaluate the saved model in fp32, and write a submission, with the classes of fp32, if test is unlabelled.

    Returns: the metrics by their names in all_results.json, `validation_...` and `test_...`.
    """
    from ..evaluation.metrics import evaluate_logits  # late: evaluate takes seconds to import

    classifier = load_model(training.output_dir, training.device)
    results = {}
    for name in ("validation", "test"):
        if name not in splits:
            continue
        labelled = "label" in splits[name].column_names
        size = training.per_device_eval_batch_size
        logits = predict_logits(classifier, splits[name], size, only_classes=not labelled)
        if labelled:
            measured = evaluate_logits(logits, splits[name]["label"][:])
            results.update({f"{name}_{key}": value for key, value in measured.items()})
        elif PartialState().is_main_process:
            id2label = classifier.model.config.id2label
            write_predictions(logits, splits[name], id2label, Path(training.output_dir) / SUBMISSION_NAME)
    return results


def write_results(folder: Path, trainer: ViTScratchTrainer, results: dict, name: str | None = None) -> None:
    """Write all_results.json, the plots and the card of a finished or running training into a folder.

    `name` is the name of the model in the card. Default: name of the folder.
    """
    write_json(folder / RESULTS_NAME, results)
    plot_curves(trainer.state.log_history, folder / CURVES_PLOT)
    config = trainer.model.config
    if "validation_confusion_matrix" in results:
        names = list(config.id2label.values())
        plot_confusion_matrix(results["validation_confusion_matrix"], names, folder / CONFUSION_PLOT)
    write_card(folder, config, results, name)


def summary(folder: Path, results: dict) -> str:
    """The final lines that a run prints."""
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
    return "\n".join([*lines, f"Model, results and card are in {folder}"])
