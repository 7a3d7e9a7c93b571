"""Metrics of a classifier, through `evaluate` and without the network."""

import datasets
import evaluate
import numpy as np
from sklearn import metrics


class ClassifierMetrics(evaluate.Metric):
    """Accuracy, macro F1, recall per class, confusion matrix, negative log-likelihood and calibration error.

    `compute(predictions=..., references=...)` takes probabilities `(num_images, num_classes)` and labels
    `(num_images,)`, and gives

    - `accuracy`, `macro_f1`: fractions. Classes that are neither there nor predicted are left out of the mean.
    - `errors`, `num_images`: counts.
    - `negative_log_likelihood`: mean of -log p(label), in nats.
    - `calibration_error`: expected calibration error, 15 bins of equal width (Guo et al., arXiv 1706.04599, eq. 3).
    - `recall_per_class`: a fraction, or None where the class is absent.
    - `confusion_matrix`: rows are true classes, columns predicted ones.
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


def _calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> float:
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))
