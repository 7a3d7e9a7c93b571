"""Evaluate the models of one recipe: each predicts the rows that were held out from its training."""

import dataclasses
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_type_hints

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from tqdm.auto import tqdm

from ..data.corruption import SIDES, STRENGTHS, corrupt, shift
from ..data.digit_recognizer import COMPETITION, SAMPLE
from ..data.pixels import known_labels, pixel_array, row_numbers
from ..data.sources import source_name
from ..device import best_device, describe
from ..hub.card import write_card
from ..hub.model_folder import read_config
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..output_folder import (
    CONFIG_NAME,
    EVALUATION_NAME,
    RESULTS_NAME,
    ROBUSTNESS_PLOT,
    SETTINGS_NAME,
    WRONG_PLOT,
    read_json,
    real_path,
    write_json,
)
from ..settings.flags import TRAINING_OF_A_RECIPE, DataArguments, complete_settings
from .classifier import load_model
from .metrics import ClassifierMetrics, binomial_interval, compare
from .plots import plot_images, plot_robustness
from .prediction import predict_logits

# Settings that may differ between runs of one recipe: the held-out rows, and how a run is executed.
_OF_A_RUN = (
    *("data", "fold", "num_folds", "validation_size", "split_seed"),
    *("overwrite_output_dir", "attn_implementation"),
)
# The types of what is read from the settings of the Trainer and from the results.
_TRAINING_KINDS = {"seed": int, "label_smoothing_factor": float}
_RESULT_KINDS = {"parameters": int, "train_images": int, "train_runtime": float, "resumed_from_step": int}
_RESULT_KINDS |= {"hardware": str}
_WRITTEN = {EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT}


@dataclasses.dataclass
class Run:
    """A finished run: its folder, its settings (training_args.json), its results (all_results.json) and its config."""

    folder: str
    settings: dict
    results: dict
    config: ViTScratchConfig

    @property
    def recipe(self) -> dict:
        """The settings and config fields, by name, that runs of one recipe share."""
        values = {**self.settings["run"], **self.settings["data"], **self.settings["augmentation"]}
        values |= {name: self.settings["training"].get(name) for name in TRAINING_OF_A_RECIPE}
        values |= {name: getattr(self.config, name) for name in ViTScratchConfig.__annotations__}
        return {name: value for name, value in values.items() if name not in _OF_A_RUN}


@dataclasses.dataclass
class Predictions:
    """The predictions of a model for the rows that were held out from its training.

    Args:
        run: the run that trained the model.
        rows: row numbers in the training data, from 0, `(num_images,)`.
        images: uint8 `(num_images, height, width, channels)`, or None if they differ in size or are large.
        labels: `(num_images,)`.
        logits: of the unchanged images, `(num_images, num_labels)`.
        averaged: probabilities averaged over the image and its shifted views, `(num_images, num_labels)`.
        corrupted: logits for each kind and strength of corruption, each `(num_images, num_labels)`.
    """

    run: Run
    rows: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray
    logits: np.ndarray
    averaged: np.ndarray
    corrupted: dict[str, list[np.ndarray]]


def evaluate(models: list[str], source: str, output_dir: str, against: list[str] | None = None) -> dict:
    """Evaluate the models of one recipe on their held-out rows. Writes evaluation.json and up to two plots.

    Errors are pooled over the models, with a binomial interval. Negative log-likelihood, calibration error, test-time
    augmentation, robustness to corruptions, and rows whose label all models contradict are reported too.

    Args:
        models: output folders of runs on `source` that differ only in held-out rows and seed.
        source: the data they were trained on, as for [`data.load`].
        output_dir: a new folder, the folder of an earlier evaluation, or the folder of a model of the same recipe that
            was trained on all rows. The model card in this folder is then rewritten with the figures.
        against: output folders of runs of another recipe. Each is compared with one of `models` that has the same
            held-out rows.

    Returns: the content of evaluation.json.

    Raises: ValueError, in one line, if a folder is not a run on this data, or runs are not of one recipe.
    """
    output = Path(output_dir)
    given = [real_path(folder) for folder in [*models, *(against or [])]]
    if repeated := next((folder for folder in given if given.count(folder) > 1), None):
        raise ValueError(f"{repeated} is given twice. Name each folder once.")
    groups = [[_read_run(folder, source) for folder in folders] for folders in (models, against or [])]
    released = _read_run(output_dir, source) if (output / CONFIG_NAME).is_file() else None
    for runs in ([*groups[0], *([released] if released else [])], groups[1]):
        for run in runs[1:]:
            _check_same_recipe(run, runs[0])
    if released and "validation_accuracy" in released.results:
        raise ValueError(f"--output_dir {output} is a model with held-out rows: use one trained on all rows.")
    other_folder = output.exists() and not released
    if other_folder and not (output.is_dir() and {path.name for path in output.iterdir()} <= _WRITTEN):
        raise ValueError(f"--output_dir {output} is neither new nor the folder of a model. Choose another one.")
    passes = 1 + len(SIDES) + sum(map(len, STRENGTHS.values()))
    with tqdm(total=passes * sum(map(len, groups)), desc="Predicting") as progress:
        ours, theirs = ([_predict_held_out(run, source, progress) for run in runs] for runs in groups)
    pairs = _pair(ours, theirs)
    names = _recipe_names(*(runs[0] for runs in groups if runs))
    evaluation: dict = {
        "command": shlex.join(
            ["vit-scratch", "evaluate", "--model", *_last_parts(models)]
            + (["--against", *_last_parts(against)] if against else [])
            + ["--data", *_last_parts([source]), "--output_dir", real_path(output).name]
        ),
        "hardware": describe(best_device()),
        "recipe": names[0],
        **_measure(ours),
        "against": {"recipe": names[1], **_measure(theirs), "paired": _compare(pairs)} if theirs else None,
        "agreed_against": _agreed_against(ours + theirs),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name in _WRITTEN:
        (output / name).unlink(missing_ok=True)
    write_json(output / EVALUATION_NAME, evaluation)
    plot_robustness([part for part in (evaluation, evaluation["against"]) if part], output / ROBUSTNESS_PLOT)
    # The folder of a model may be pushed to the Hub, so it must not hold images of the user.
    if not released or source_name(source) in (SAMPLE, COMPETITION):
        _plot_wrong(ours, output / WRONG_PLOT)
    if released:
        write_card(output, released.config, released.results)
    return evaluation


def summary(evaluation: dict) -> str:
    """A summary of the content of evaluation.json, in one to three lines."""
    lines = []
    for part in (evaluation, evaluation["against"]):
        if part:
            low, high = (100 * bound for bound in part["interval"])
            views = part["test_time_augmentation"]
            lines.append(
                f"{part['recipe']}: {part['errors']} wrong of {part['num_images']:,}, {100 * part['error_rate']:.3f}% "
                f"(95% interval {low:.3f} to {high:.3f}%), negative log-likelihood "
                f"{part['negative_log_likelihood']:.4f}; {views['errors']} wrong when averaged over shifted views"
            )
    if evaluation["against"]:
        paired = evaluation["against"]["paired"]
        low, high = paired["nll_interval"]
        lines.append(
            f"paired on {paired['num_images']:,} images: {paired['only_ours_wrong']} wrong only with the first recipe "
            f"and {paired['only_theirs_wrong']} only with the second"
            + ("" if paired["mcnemar_p"] is None else f" (McNemar p = {paired['mcnemar_p']:.2g})")
            + (
                f"; difference in negative log-likelihood {paired['nll_difference']:+.4f} ({low:+.4f} to {high:+.4f})"
                if evaluation["label_smoothing"] == evaluation["against"]["label_smoothing"]
                else "; their likelihoods cannot be compared, since one was trained with more label smoothing"
            )
        )
    return "\n".join(lines)


def _last_parts(sources: list[str]) -> list[str]:
    """Paths without their parent folders, which must not be published; ids of data sets on the Hub unchanged."""
    return [real_path(source).name if real_path(source).exists() else source for source in sources]


def _recipe_names(run: Run, other: Run | None = None) -> list[str]:
    """Names of the recipes. If both runs used one recipe file, the second name also lists what is different."""
    names = [part.settings["run"]["recipe"] for part in (run, other) if part]
    if other and names[0] == names[1]:
        names[1] += " with " + ", ".join(f"{name} {value}" for name, value in _differences(other, run).items())
    return names


def _read_run(folder: str, source: str) -> Run:
    try:
        settings, results = (read_json(Path(folder) / name) for name in (SETTINGS_NAME, RESULTS_NAME))
        read_config(folder)
        run = Run(folder, complete_settings(settings), results, ViTScratchConfig.from_pretrained(folder))
        _check_kinds(run)
        trained_on = settings["data"]["data"]
    except Exception as error:  # a damaged file may hold anything
        problem = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder} is not the output folder of a finished run: {problem}") from error
    if trained_on != source_name(source):
        raise ValueError(f"{folder} was trained on {trained_on}, but --data is {source_name(source)}.")
    return run


def _check_kinds(run: Run) -> None:
    """Raises: ValueError if a value of training_args.json or all_results.json that is used here has the wrong type."""
    kinds = get_type_hints(DataArguments)
    values = [(name, run.settings["data"].get(name), kind) for name, kind in kinds.items()]
    values += [(name, run.settings["training"].get(name), kind) for name, kind in _TRAINING_KINDS.items()]
    values += [(name, run.results.get(name), kind) for name, kind in _RESULT_KINDS.items()]
    values += [("recipe", run.settings["run"].get("recipe"), str)]
    for name, value, kind in values:
        if not isinstance(value, kind | int if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{name} must be of the type {getattr(kind, '__name__', kind)}, got {value!r:.80}.")


def _check_same_recipe(run: Run, other: Run) -> None:
    for name, value in _differences(run, other).items():
        difference = f"{name} is {value!r} in the first and {other.recipe[name]!r} in the second"
        raise ValueError(f"{run.folder} and {other.folder} are not of one recipe: {difference}.")


def _differences(run: Run, other: Run) -> dict:
    return {name: value for name, value in run.recipe.items() if value != other.recipe[name]}


def _predict_held_out(run: Run, source: str, progress: tqdm) -> Predictions:
    names = {field.name for field in dataclasses.fields(DataArguments)}
    arguments = {name: value for name, value in run.settings["data"].items() if name in names}
    splits = DataArguments(**arguments | {"data": source}).load_splits()
    if "validation" not in splits:
        raise ValueError(f"{run.folder} was trained on all rows, so it has no held-out rows to be evaluated on.")
    expected, train = (run.results["train_images"], list(run.config.id2label.values())), splits["train"]
    if (len(train), train.features["label"].names) != expected:
        raise ValueError(f"{run.folder} was trained on other rows or classes than {source} has.")
    split, classifier = splits["validation"], load_model(run.folder)

    def logits(change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> np.ndarray:
        predicted = predict_logits(classifier, split, change=change, show_progress=False).numpy()
        progress.update()
        return predicted

    unchanged = logits()
    views = [unchanged, *(logits(partial(shift, rows=rows, columns=columns)) for rows, columns in SIDES)]
    return Predictions(
        run,
        row_numbers(split),
        pixel_array(split),
        known_labels(split),
        unchanged,
        np.mean([softmax(view, axis=1) for view in views], axis=0),
        {
            kind: [logits(_corruption(kind, strength)) for strength in strengths]
            for kind, strengths in STRENGTHS.items()
        },
    )


def _corruption(kind: str, strength: float):
    generator = torch.Generator().manual_seed(0)  # the same directions and noise for all models
    return lambda images: corrupt(images.cpu(), kind, strength, generator).to(images.device)


def _measure(predictions: list[Predictions]) -> dict:
    """The figures of a recipe, pooled over its models, by their names in evaluation.json."""
    labels = np.concatenate([part.labels for part in predictions])
    rows = np.concatenate([part.rows for part in predictions])
    # A row that models of several seeds predicted counts once in the interval.
    distinct = len(np.unique(rows))

    def rate(scores: list[np.ndarray]) -> dict:
        wrong = int((np.concatenate(scores).argmax(axis=1) != labels).sum())
        low, high = binomial_interval(round(wrong * distinct / len(rows)), distinct)
        return {"errors": wrong, "error_rate": wrong / len(rows), "interval": [low, high]}

    metrics = ClassifierMetrics().compute(
        predictions=softmax(np.concatenate([part.logits for part in predictions]), axis=1), references=labels
    )
    rates = [float((part.logits.argmax(axis=1) != part.labels).mean()) for part in predictions]
    return {
        "parameters": predictions[0].run.results["parameters"],
        "label_smoothing": predictions[0].run.settings["training"]["label_smoothing_factor"],
        "num_images": len(rows),
        "distinct_images": distinct,
        **rate([part.logits for part in predictions]),
        "error_rate_std": float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
        "accuracy": metrics["accuracy"],
        "macro_f1": metrics["macro_f1"],
        "negative_log_likelihood": metrics["negative_log_likelihood"],
        "calibration_error": metrics["calibration_error"],
        "confusion_matrix": metrics["confusion_matrix"],
        "models": [
            {
                "name": real_path(part.run.folder).name,
                "fold": part.run.settings["data"]["fold"],
                "seed": part.run.settings["training"]["seed"],
                "num_images": len(part.labels),
                "errors": int((part.logits.argmax(axis=1) != part.labels).sum()),
                "negative_log_likelihood": float(_losses(part).mean()),
                "train_runtime": part.run.results["train_runtime"],
                "teacher_runtime": part.run.results.get("teacher_runtime", 0.0),
                # The step from which the time counts: from the first, if the time before a resume is included.
                "resumed_from_step": (
                    0 if part.run.results.get("earlier_runtime") else part.run.results["resumed_from_step"]
                ),
                "hardware": part.run.results["hardware"],
            }
            for part in predictions
        ],
        "test_time_augmentation": rate([part.averaged for part in predictions]),
        "robustness": {
            kind: [
                {"strength": strength, **rate([part.corrupted[kind][index] for part in predictions])}
                for index, strength in enumerate(strengths)
            ]
            for kind, strengths in STRENGTHS.items()
        },
    }


def _losses(part: Predictions) -> np.ndarray:
    return -log_softmax(part.logits, axis=1)[np.arange(len(part.labels)), part.labels]


def _pair(ours: list[Predictions], theirs: list[Predictions]) -> list[tuple[Predictions, Predictions]]:
    """Pair each of `theirs` with the first unpaired of `ours` that predicted the same rows."""
    left, pairs = list(ours), []
    for other in theirs:
        one = next((part for part in left if np.array_equal(part.rows, other.rows)), None)
        if one is None:
            raise ValueError(
                f"{other.run.folder} has no partner in --model: no model there has the same held-out rows."
            )
        left.remove(one)
        pairs.append((one, other))
    return pairs


def _compare(pairs: list[tuple[Predictions, Predictions]]) -> dict:
    ours, theirs = (np.concatenate([pair[index].logits for pair in pairs]) for index in (0, 1))
    labels, rows = (np.concatenate([getattr(one, name) for one, _ in pairs]) for name in ("labels", "rows"))
    return compare(ours, theirs, labels, rows)


def _agreed_against(predictions: list[Predictions], least: float = 0.5) -> list[dict]:
    """Rows whose label may be wrong: at least two models predict them, and all agree on one other class.

    Each model gives this class a probability above `least`. Rows count from 1. Rows with the most models come first,
    then rows with the highest minimum probability.
    """
    votes_by_row: dict[int, list] = {}
    for part in predictions:
        probabilities = softmax(part.logits, axis=1)
        for row, label, p in zip(part.rows.tolist(), part.labels.tolist(), probabilities, strict=True):
            votes_by_row.setdefault(row, []).append((label, int(p.argmax()), float(p.max())))
    names = list(predictions[0].run.config.id2label.values())
    suspects = []
    for row, votes in votes_by_row.items():
        (label, predicted, _), probability = votes[0], min(p for *_, p in votes)
        agreed = len(votes) > 1 and {vote[1] for vote in votes} == {predicted}
        if agreed and predicted != label and probability > least:
            labels = {"label": names[label], "predicted": names[predicted]}
            suspects.append({"row": row + 1, **labels, "models": len(votes), "least_probability": probability})
    return sorted(suspects, key=lambda entry: (-entry["models"], -entry["least_probability"]))


def _plot_wrong(predictions: list[Predictions], file: Path, most: int = 120) -> None:
    """Plot the wrongly classified images, those with the highest predicted probability first."""
    mistakes = []
    for part in predictions:
        if part.images is None:
            continue
        names, probabilities = list(part.run.config.id2label.values()), softmax(part.logits, axis=1)
        for index in np.flatnonzero(part.logits.argmax(axis=1) != part.labels):
            p, predicted = probabilities[index].max(), probabilities[index].argmax()
            title = f"row {part.rows[index] + 1}\n{names[part.labels[index]]} → {names[predicted]} {p:.2f}"
            mistakes.append((p, title, part.images[index]))
    mistakes.sort(key=lambda mistake: -mistake[0])
    if not mistakes:
        return
    plot_images([image for *_, image in mistakes[:most]], [title for _, title, _ in mistakes[:most]], file)
