"""Digits of the sample to click: one of each that the model reads, and a few that it gets wrong."""

import numpy as np

from ..data import load
from ..data.digit_recognizer import COMPETITION, SAMPLE, saw_sample
from ..data.pixels import known_labels
from ..evaluation.prediction import predict_logits
from ..model.configuration_vit_scratch import ViTScratchConfig
from .answers import ShownModel, data_uri

MOST_WRONG = 4
_IN_THE_COMPETITION = 3005  # rows of the sample that train.csv holds too, pixel for pixel
_AT_ONCE = 1000  # rows that are predicted before it is asked whether enough of them are wrong


def examples(model: ShownModel) -> dict:
    """The examples of a model that reads digits; others have none.

    Returns:
        `pictures`, a list of `{"picture": data URI, "label": ..., "read_as": ...}`, those that the model gets wrong
        last; and `note`, what their place in its training says about them.
    """
    if not model.reads_digits:
        return {"pictures": [], "note": ""}
    split = load(SAMPLE, validation_size=0)["train"]
    labels = known_labels(split)
    order = np.random.default_rng(0).permutation(len(labels))  # the sample is sorted by digit
    right, wrong = {}, []
    for start in range(0, len(order), _AT_ONCE):
        rows = order[start : start + _AT_ONCE]
        read = predict_logits(model.classifier, split.select(rows), show_progress=False).argmax(dim=-1).numpy()
        for row in rows[read == labels[rows]]:
            right.setdefault(int(labels[row]), row)
        wrong += list(rows[read != labels[rows]])
        if len(wrong) >= MOST_WRONG:
            break
    found = []
    for row in [*(right[label] for label in sorted(right)), *wrong[:MOST_WRONG]]:
        picture = split[int(row)]["image"]
        # Asked again in the way of a click, so that the page never says two things of one picture.
        read_as = model.answer(picture)["label"]
        found.append({"picture": data_uri(picture), "label": str(labels[row]), "read_as": read_as})
    found.sort(key=lambda one: one["label"] != one["read_as"])
    return {"pictures": found, "note": note(model.classifier.model.config)}


def note(config: ViTScratchConfig) -> str:
    """What the training data of a model say about the examples."""
    if saw_sample(config):
        return "This model was trained on the digits that these were chosen from. Expect more mistakes with yours."
    if COMPETITION in (config.training_data or []):
        return (
            f"This model was trained on the competition's train.csv, which holds {_IN_THE_COMPETITION:,} of the 5,000 "
            "digits that these were chosen from. Expect more mistakes with yours."
        )
    return ""
