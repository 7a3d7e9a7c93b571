"""Metrics of a classifier, as an `evaluate.Metric` that works offline, and the paired comparison of two."""

import datasets
import evaluate
import numpy as np
import torch
from scipy import stats
from scipy.special import log_softmax
from sklearn import metrics


class ClassifierMetrics(evaluate.Metric):
    """Accuracy, macro F1, recall per class, confusion matrix, negative log-likelihood and calibration error.

    `compute(predictions=..., references=...)` takes probabilities `(num_images, num_classes)` and labels
    `(num_images,)`, and returns

    - `accuracy`, `macro_f1`: fractions. The mean of F1 leaves out classes that are neither present nor predicted.
    - `errors`, `num_images`: counts.
    - `negative_log_likelihood`: mean of -log p(label), in nats.
    - `calibration_error`: expected calibration error, 15 bins of equal width (Guo et al., arXiv 1706.04599, eq. 3).
    - `recall_per_class`: a fraction for each class, or None if no image has the class.
    - `confusion_matrix`: counts; rows are true classes, columns are predicted classes.
    """

    def __init__(self, **kwargs):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self):
        features = {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="How well the probabilities of a classifier fit the labels.",
            citation="",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references):
        probabilities, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        classes = np.arange(probabilities.shape[1])
        correct = predicted == labels
        recall = metrics.recall_score(labels, predicted, labels=classes, average=None, zero_division=np.nan)
        likelihood = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny)
        return {
            "accuracy": float(correct.mean()),
            "macro_f1": float(metrics.f1_score(labels, predicted, average="macro")),
            "errors": int((~correct).sum()),
            "num_images": len(labels),
            "negative_log_likelihood": float(-np.log(likelihood).mean()),
            "calibration_error": _calibration_error(confidence, correct),
            "recall_per_class": [None if np.isnan(value) else float(value) for value in recall],
            "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
        }


def evaluate_logits(logits: torch.Tensor, labels: list[int]) -> dict:
    """All metrics of [`ClassifierMetrics`] for logits `(num_images, num_labels)` and labels `(num_images,)`."""
    probabilities = logits.double().softmax(dim=-1).float().numpy()
    return ClassifierMetrics().compute(predictions=probabilities, references=labels)


def reliability(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> dict[str, np.ndarray]:
    """What a reliability diagram shows (Guo et al., arXiv 1706.04599, section 2): accuracy by confidence.

    Args:
        confidence: probability of the predicted class, `(num_images,)`.
        correct: whether it is the true class, `(num_images,)`.
        num_bins: number of bins of equal width from 0 to 1. A bin includes its upper end.

    Returns:
        `count`, and the mean `confidence` and the `accuracy` of the images of each bin, 0 for an empty bin; each
        `(num_bins,)`.
    """
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, correct)]
    means = [total / np.maximum(count, 1) for total in sums]
    return {"count": count, "confidence": means[0], "accuracy": means[1]}


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    bins = reliability(confidence, correct)
    return float((bins["count"] * np.abs(bins["accuracy"] - bins["confidence"])).sum() / len(confidence))


def binomial_interval(errors: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) confidence interval of an error rate, `(low, high)`, as fractions."""
    interval = stats.binomtest(errors, num_images).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def compare(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, rows: np.ndarray, num_resamples=2000) -> dict:
    """Compare two classifiers on the same images. Differences are ours minus theirs: below 0, ours is better.

    Args:
        ours, theirs: logits `(num_images, num_classes)`.
        labels: `(num_images,)`.
        rows: id of each image, `(num_images,)`. An image that was predicted by models of several seeds occurs several
            times, and counts once in all intervals.
        num_resamples: number of bootstrap resamples of the images, drawn with a fixed seed.

    Returns:
        `num_images`: number of distinct images. `only_ours_wrong`, `only_theirs_wrong`: counts. `mcnemar_p`: p-value
        of the exact two-sided McNemar test, or None if images occur several times. `error_rate_difference`: as a
        fraction. `nll_difference`: difference of the means of -log p(label), in nats. `error_rate_interval`,
        `nll_interval`: their 95% bootstrap intervals over the images.
    """
    each = np.arange(len(labels))
    wrong, losses = zip(
        *((logits.argmax(axis=1) != labels, -log_softmax(logits, axis=1)[each, labels]) for logits in (ours, theirs)),
        strict=True,
    )
    only_ours, only_theirs = int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())
    images, image_of, times = np.unique(rows, return_inverse=True, return_counts=True)
    mcnemar = stats.binomtest(only_ours, only_ours + only_theirs).pvalue if only_ours + only_theirs else 1.0
    results = {
        "num_images": len(images),
        "only_ours_wrong": only_ours,
        "only_theirs_wrong": only_theirs,
        "mcnemar_p": float(mcnemar) if times.max() == 1 else None,
    }
    for name, (one, other) in {"error_rate": wrong, "nll": losses}.items():
        difference = np.bincount(image_of, weights=one.astype(float) - other) / times
        random = np.random.default_rng(0)  # the same resamples for both differences
        means = [difference[random.integers(0, len(images), len(images))].mean() for _ in range(num_resamples)]
        results |= {f"{name}_difference": float(difference.mean())}
        results |= {f"{name}_interval": np.percentile(means, [2.5, 97.5]).tolist()}
    return results
