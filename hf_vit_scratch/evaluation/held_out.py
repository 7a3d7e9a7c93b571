"""The models of one recipe, each asked about the rows that were held out from it, and measured together."""

import dataclasses
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..output_folder import (
    CONFIG_NAME,
    EVALUATION_NAME,
    RESULTS_NAME,
    ROBUSTNESS_PLOT,
    SETTINGS_NAME,
    WRONG_PLOT,
    read_json,
    write_json,
)
from ..settings.flags import TRAINING_OF_A_RECIPE, DataArguments, complete_settings
from .metrics import ClassifierMetrics, binomial_interval, compare
from .plots import plot_images, plot_robustness
from .prediction import load_model, predict_logits

# What makes runs one recipe: all that they were told, but for the rows held out, the seed and how they were watched.
_OF_A_RUN = (
    *("data", "fold", "num_folds", "validation_size", "split_seed"),
    *("overwrite_output_dir", "attn_implementation"),
)
_WRITTEN = {EVALUATION_NAME, ROBUSTNESS_PLOT, WRONG_PLOT}


@dataclasses.dataclass
class Run:
    """A finished run: its folder, what it was told, what it measured, and its config."""

    folder: str
    settings: dict
    results: dict
    config: ViTScratchConfig

    @property
    def recipe(self) -> dict:
        """All that runs of one recipe have in common, by name."""
        told = {**self.settings["run"], **self.settings["data"], **self.settings["augmentation"]}
        told |= {name: self.settings["training"].get(name) for name in TRAINING_OF_A_RECIPE}
        told |= {name: getattr(self.config, name) for name in ViTScratchConfig.__annotations__}
        return {name: value for name, value in told.items() if name not in _OF_A_RUN}


@dataclasses.dataclass
class Answers:
    """What a model says of the rows held out from it.

    Logits `(num_images, num_labels)` of the images as they are and corrupted; probabilities averaged over the views.
    """

    run: Run
    rows: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray
    logits: np.ndarray
    averaged: np.ndarray
    corrupted: dict[str, list[np.ndarray]]


def evaluate(models: list[str], source: str, output_dir: str, against: list[str] | None = None) -> dict:
    """Measure the models of one recipe on the rows held out from each; write evaluation.json and two pictures.

    Errors are pooled over the models, with their binomial interval; beside them stand negative log-likelihood,
    test-time augmentation, robustness, the rows that all models agree against, and a paired comparison with the models
    of another recipe. Where `output_dir` is itself a model of the recipe, its card is written anew with all this.

    Args:
        models: output folders of runs on `source` that differ in held-out rows and seed alone.
        source: the data they were trained on, as for [`data.load`].
        against: output folders of another recipe's runs, alike among themselves, compared where rows are shared.

    Returns: what is in evaluation.json.

    Raises: ValueError, in one line, where a folder is no run on this data, or the runs are not of one recipe.
    """
    output = Path(output_dir)
    given = [Path(folder).resolve() for folder in [*models, *(against or [])]]
    if repeated := next((folder for folder in given if given.count(folder) > 1), None):
        raise ValueError(f"{repeated} is given twice.")
    groups = [[_read_run(folder, source) for folder in folders] for folders in (models, against or [])]
    released = _read_run(output_dir, source) if (output / CONFIG_NAME).is_file() else None
    for runs in ([*groups[0], *([released] if released else [])], groups[1]):
        for run in runs[1:]:
            _check_same_recipe(run, runs[0])
    if released and "validation_accuracy" in released.results:
        raise ValueError(f"--output_dir {output} is a model with rows held out from it: give one trained on all rows.")
    elsewhere = output.exists() and not released
    if elsewhere and not (output.is_dir() and {path.name for path in output.iterdir()} <= _WRITTEN):
        raise ValueError(f"--output_dir {output} is neither new nor the folder of a model.")
    passes = 1 + len(SIDES) + sum(map(len, STRENGTHS.values()))
    with tqdm(total=passes * sum(map(len, groups)), desc="Asking the models") as progress:
        ours, theirs = ([_ask(run, source, progress) for run in runs] for runs in groups)
    pairs = _pair(ours, theirs)
    names = _recipe_names(*(runs[0] for runs in groups if runs))
    evaluation: dict = {
        "command": shlex.join(
            ["vit-scratch", "evaluate", "--model", *_last_parts(models)]
            + (["--against", *_last_parts(against)] if against else [])
            + ["--data", *_last_parts([source]), "--output_dir", output.resolve().name]
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
    # A model's folder may be pushed to the Hub, and images of the user's own are not for that.
    if not released or source_name(source) in (SAMPLE, COMPETITION):
        _plot_wrong(ours, output / WRONG_PLOT)
    if released:
        write_card(output, released.config, released.results)
    return evaluation


def summary(evaluation: dict) -> str:
    """A few lines of it, for a person."""
    lines = []
    for part in (evaluation, evaluation["against"]):
        if part:
            low, high = (100 * bound for bound in part["interval"])
            views = part["test_time_augmentation"]
            lines.append(
                f"{part['recipe']}: {part['errors']} wrong of {part['num_images']:,}, {100 * part['error_rate']:.3f}% "
                f"(95% interval {low:.3f} to {high:.3f}%), negative log-likelihood "
                f"{part['negative_log_likelihood']:.4f}; averaged over shifted views {views['errors']} wrong"
            )
    if evaluation["against"]:
        paired = evaluation["against"]["paired"]
        low, high = paired["nll_interval"]
        lines.append(
            f"paired on {paired['num_images']:,} images: only the first wrong {paired['only_ours_wrong']}, only the "
            f"second {paired['only_theirs_wrong']}"
            + ("" if paired["mcnemar_p"] is None else f" (McNemar p = {paired['mcnemar_p']:.2g})")
            + (
                f"; negative log-likelihood {paired['nll_difference']:+.4f} ({low:+.4f} to {high:+.4f})"
                if evaluation["label_smoothing"] == evaluation["against"]["label_smoothing"]
                else "; their likelihoods do not compare, since one was trained with more label smoothing"
            )
        )
    return "\n".join(lines)


def _last_parts(sources: list[str]) -> list[str]:
    """Without the folders that they lie in, which are nobody's business; the id of a data set on the Hub is whole."""
    return [Path(source).resolve().name if Path(source).expanduser().exists() else source for source in sources]


def _recipe_names(run: Run, other: Run | None = None) -> list[str]:
    """What the two are called: the second by what is different in it, where both were made of one recipe file."""
    names = [part.settings["run"]["recipe"] for part in (run, other) if part]
    if other and names[0] == names[1]:
        names[1] += " with " + ", ".join(f"{name} {value}" for name, value in _differences(other, run).items())
    return names


def _read_run(folder: str, source: str) -> Run:
    try:
        settings, results = (read_json(Path(folder) / name) for name in (SETTINGS_NAME, RESULTS_NAME))
        run = Run(folder, complete_settings(settings), results, ViTScratchConfig.from_pretrained(folder))
        trained_on = settings["data"]["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not the output folder of a finished run: {error}") from error
    if trained_on != source_name(source):
        raise ValueError(f"{folder} was trained on {trained_on}, but --data is {source_name(source)}.")
    return run


def _check_same_recipe(run: Run, other: Run) -> None:
    for name, value in _differences(run, other).items():
        difference = f"{name} is {value!r} in the one, {other.recipe[name]!r} in the other"
        raise ValueError(f"{run.folder} and {other.folder} are not of one recipe: {difference}.")


def _differences(run: Run, other: Run) -> dict:
    return {name: value for name, value in run.recipe.items() if value != other.recipe[name]}


def _ask(run: Run, source: str, progress: tqdm) -> Answers:
    names = {field.name for field in dataclasses.fields(DataArguments)}
    told = {name: value for name, value in run.settings["data"].items() if name in names}
    splits = DataArguments(**told | {"data": source}).load_splits()
    if "validation" not in splits:
        raise ValueError(f"{run.folder} was trained on all rows: there are none to ask it about.")
    expected, found = (run.results["train_images"], list(run.config.id2label.values())), splits["train"]
    if (len(found), found.features["label"].names) != expected:
        raise ValueError(f"{run.folder} was trained on other rows or classes than those of {source}.")
    split, classifier = splits["validation"], load_model(run.folder)

    def logits(change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> np.ndarray:
        found = predict_logits(classifier, split, change=change, show_progress=False).numpy()
        progress.update()
        return found

    as_they_are = logits()
    views = [as_they_are, *(logits(partial(shift, rows=rows, columns=columns)) for rows, columns in SIDES)]
    return Answers(
        run,
        row_numbers(split),
        pixel_array(split),
        known_labels(split),
        as_they_are,
        np.mean([softmax(view, axis=1) for view in views], axis=0),
        {
            kind: [logits(_corruption(kind, strength)) for strength in strengths]
            for kind, strengths in STRENGTHS.items()
        },
    )


def _corruption(kind: str, strength: float):
    generator = torch.Generator().manual_seed(0)  # the same directions and noise for all models
    return lambda images: corrupt(images.cpu(), kind, strength, generator).to(images.device)


def _measure(answers: list[Answers]) -> dict:
    """What is known of a recipe, from all its models together."""
    labels = np.concatenate([part.labels for part in answers])
    rows = np.concatenate([part.rows for part in answers])
    # Rows that several models were asked about, with other seeds, count once in the interval.
    distinct = len(np.unique(rows))

    def rate(scores: list[np.ndarray]) -> dict:
        wrong = int((np.concatenate(scores).argmax(axis=1) != labels).sum())
        low, high = binomial_interval(round(wrong * distinct / len(rows)), distinct)
        return {"errors": wrong, "error_rate": wrong / len(rows), "interval": [low, high]}

    metrics = ClassifierMetrics().compute(
        predictions=softmax(np.concatenate([part.logits for part in answers]), axis=1), references=labels
    )
    rates = [float((part.logits.argmax(axis=1) != part.labels).mean()) for part in answers]
    return {
        "parameters": answers[0].run.results["parameters"],
        "label_smoothing": answers[0].run.settings["training"]["label_smoothing_factor"],
        "num_images": len(rows),
        "distinct_images": distinct,
        **rate([part.logits for part in answers]),
        "error_rate_std": float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
        "accuracy": metrics["accuracy"],
        "macro_f1": metrics["macro_f1"],
        "negative_log_likelihood": metrics["negative_log_likelihood"],
        "calibration_error": metrics["calibration_error"],
        "confusion_matrix": metrics["confusion_matrix"],
        "models": [
            {
                "name": Path(part.run.folder).resolve().name,
                "fold": part.run.settings["data"]["fold"],
                "seed": part.run.settings["training"]["seed"],
                "num_images": len(part.labels),
                "errors": int((part.logits.argmax(axis=1) != part.labels).sum()),
                "negative_log_likelihood": float(_losses(part).mean()),
                "train_runtime": part.run.results["train_runtime"],
                "teacher_runtime": part.run.results.get("teacher_runtime", 0.0),
                "resumed_from_step": part.run.results["resumed_from_step"],
                "hardware": part.run.results["hardware"],
            }
            for part in answers
        ],
        "test_time_augmentation": rate([part.averaged for part in answers]),
        "robustness": {
            kind: [
                {"strength": strength, **rate([part.corrupted[kind][index] for part in answers])}
                for index, strength in enumerate(strengths)
            ]
            for kind, strengths in STRENGTHS.items()
        },
    }


def _losses(answers: Answers) -> np.ndarray:
    return -log_softmax(answers.logits, axis=1)[np.arange(len(answers.labels)), answers.labels]


def _pair(ours: list[Answers], theirs: list[Answers]) -> list[tuple[Answers, Answers]]:
    """Each of theirs with one of ours that was asked about the same rows; with several, in their order."""
    left, pairs = list(ours), []
    for other in theirs:
        one = next((part for part in left if np.array_equal(part.rows, other.rows)), None)
        if one is None:
            raise ValueError(f"{other.run.folder} has no partner in --model that the same rows were held out from.")
        left.remove(one)
        pairs.append((one, other))
    return pairs


def _compare(pairs: list[tuple[Answers, Answers]]) -> dict:
    ours, theirs = (np.concatenate([pair[index].logits for pair in pairs]) for index in (0, 1))
    labels, rows = (np.concatenate([getattr(one, name) for one, _ in pairs]) for name in ("labels", "rows"))
    return compare(ours, theirs, labels, rows)


def _agreed_against(answers: list[Answers], least: float = 0.5) -> list[dict]:
    """Rows that two or more models were asked about and all give one other class, with a probability above `least`.

    The surest first; a label that is wrong would look so. Rows count from 1.
    """
    said: dict[int, list] = {}
    for part in answers:
        probabilities = softmax(part.logits, axis=1)
        for row, label, p in zip(part.rows.tolist(), part.labels.tolist(), probabilities, strict=True):
            said.setdefault(row, []).append((label, int(p.argmax()), float(p.max())))
    names = list(answers[0].run.config.id2label.values())
    found = []
    for row, votes in said.items():
        (label, predicted, _), sure = votes[0], min(p for *_, p in votes)
        agreed = len(votes) > 1 and {vote[1] for vote in votes} == {predicted}
        if agreed and predicted != label and sure > least:
            labels = {"label": names[label], "predicted": names[predicted]}
            found.append({"row": row + 1, **labels, "models": len(votes), "least_probability": sure})
    return sorted(found, key=lambda entry: (-entry["models"], -entry["least_probability"]))


def _plot_wrong(answers: list[Answers], file: Path, most: int = 120) -> None:
    """The images that were classified wrongly, the surest mistakes first."""
    mistakes = []
    for part in answers:
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
