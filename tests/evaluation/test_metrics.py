import json
import math

import numpy as np
import pytest
import torch

from hf_vit_scratch.evaluation.metrics import ClassifierMetrics, binomial_interval, compare, reliability


def compute(probabilities, labels):
    return ClassifierMetrics().compute(predictions=np.array(probabilities), references=labels)


def test_counts_and_means_by_hand():
    results = compute([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], [0, 1, 1, 2])
    assert results["accuracy"] == 0.75
    assert (results["errors"], results["num_images"]) == (1, 4)
    assert results["recall_per_class"] == [1.0, 0.5, 1.0]
    assert results["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert results["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    expected = -(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.6)) / 4
    assert results["negative_log_likelihood"] == pytest.approx(expected, rel=1e-6)


def test_calibration_error_of_a_model_that_is_too_sure():
    """All say 0.9 (one bin) and 6 of 10 are right: off by 0.3."""
    assert compute([[0.9, 0.1]] * 10, [0] * 6 + [1] * 4)["calibration_error"] == pytest.approx(0.3, abs=1e-6)


def test_calibration_error_weighs_bins_by_their_images():
    results = compute([[0.95, 0.05]] * 30 + [[0.55, 0.45]] * 10, [0] * 30 + [1] * 10)
    assert results["calibration_error"] == pytest.approx((30 * 0.05 + 10 * 0.55) / 40, abs=1e-6)


def test_calibration_error_is_the_sum_over_fifteen_bins_by_hand():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(4, 0.4), 400).astype(np.float32)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    # Right in every other bin: bins that were merged would make up for each other.
    labels = np.where(np.ceil(confidence * 15) % 2 == 0, predicted, (predicted + 1) % 4)
    correct = predicted == labels
    by_hand = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            by_hand += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert by_hand > 0.3
    assert compute(probabilities, labels)["calibration_error"] == pytest.approx(by_hand, abs=1e-6)


def test_a_class_that_is_absent_has_no_recall_and_the_results_are_json():
    results = compute([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], [0, 1])
    assert results["recall_per_class"] == [1.0, 1.0, None]
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_a_probability_of_zero_gives_a_finite_likelihood():
    assert math.isfinite(compute([[1.0, 0.0]], [1])["negative_log_likelihood"])


def test_the_interval_of_no_errors_has_a_closed_form():
    """(1 - p)^n = 2.5% at its upper end."""
    assert binomial_interval(0, 200) == pytest.approx((0, 1 - 0.025 ** (1 / 200)))
    low, high = binomial_interval(60, 200)
    assert 0.23 < low < 0.3 < high < 0.37


def test_comparing_counts_what_only_one_gets_wrong():
    """Ours is wrong on the first row, theirs on the last five: McNemar's p is 2 (1 + 6) / 2^6."""
    labels = np.zeros(20, dtype=int)
    ours, theirs = np.tile([2.0, 0.0], (20, 1)), np.tile([1.0, 0.0], (20, 1))
    ours[0], theirs[-5:] = [0.0, 1.0], [0.0, 2.0]
    found = compare(ours, theirs, labels, np.arange(20))
    assert (found["only_ours_wrong"], found["only_theirs_wrong"]) == (1, 5)
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 6) / 2**6)
    losses = [torch.nn.functional.cross_entropy(*map(torch.from_numpy, (logits, labels))) for logits in (ours, theirs)]
    assert found["nll_difference"] == pytest.approx(float(losses[0] - losses[1]))
    low, high = found["nll_interval"]
    assert low < found["nll_difference"] < high < 0
    assert found["error_rate_difference"] == pytest.approx(-4 / 20)
    low, high = found["error_rate_interval"]
    assert low < -4 / 20 < high < 0.05
    # The same twice over, as with two seeds, says no more about the images.
    twice = compare(*(np.concatenate([part, part]) for part in (ours, theirs, labels, np.arange(20))))
    assert twice["num_images"] == 20 and twice["mcnemar_p"] is None
    assert twice["nll_interval"] == pytest.approx(found["nll_interval"])


def test_alike_classifiers_do_not_differ():
    logits = np.random.default_rng(0).normal(size=(30, 4))
    found = compare(logits, logits, np.arange(30) % 4, np.arange(30))
    assert (found["mcnemar_p"], found["nll_difference"], found["nll_interval"]) == (1.0, 0.0, [0.0, 0.0])


def test_reliability_by_hand():
    """Four bins: an empty one, one with an edge that belongs to it, and one that is right in one of three."""
    confidence = np.array([0.3, 0.5, 0.9, 0.8, 1.0])
    bins = reliability(confidence, np.array([True, False, True, False, False]), num_bins=4)
    assert bins["count"].tolist() == [0, 2, 0, 3]
    assert bins["confidence"].tolist() == pytest.approx([0, 0.4, 0, 0.9])
    assert bins["accuracy"].tolist() == pytest.approx([0, 0.5, 0, 1 / 3])
