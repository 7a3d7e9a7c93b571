"""Which rows are trained on and which are held out: fractions, folds and three parts, all stratified by label."""

import datasets
import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

from .errors import DataError
from .pixels import known_labels

Parts = tuple[datasets.Dataset, datasets.Dataset]


def hold_out_fraction(train: datasets.Dataset, size: float, seed: int) -> Parts:
    """The rows to train on and a fraction `size` of the rows, held out; a seed always draws the same rows.

    Raises: DataError where a class is too rare for both parts to have an image of it.
    """
    names, labels = train.features["label"].names, np.asarray(train.data.column("label"))
    counts = np.bincount(labels, minlength=len(names))
    if (counts == 1).any():
        name = names[int(np.argmax(counts == 1))]
        raise DataError(f"Class {name!r} has one image only: a stratified validation split needs two of each class.")
    held_out, classes = int(np.ceil(size * len(train))), np.count_nonzero(counts)
    if not classes <= held_out <= len(train) - classes:
        problem = f"validation_size {size} of {len(train)} images takes {held_out}, leaving {len(train) - held_out}"
        raise DataError(f"{problem}: both parts need an image of each of the {classes} classes.")
    # The `train_test_split` of `datasets` writes its indices beside the data, which may be the user's folder.
    kept, drawn = train_test_split(np.arange(len(train)), test_size=size, stratify=labels, random_state=seed)
    return train.select(kept, keep_in_memory=True), train.select(drawn, keep_in_memory=True)


def hold_out_fold(train: datasets.Dataset, fold: int, num_folds: int, seed: int) -> Parts:
    """The rows to train on and one of `num_folds` equal parts, held out. `fold` counts from 1.

    The parts of a seed have no row in common, and together they are all rows.

    Raises: DataError for a fold that does not exist, or where a class has fewer images than there are folds.
    """
    names, labels = train.features["label"].names, known_labels(train)
    if num_folds < 2 or not 1 <= fold <= num_folds:
        raise DataError(f"fold is one of 1 to num_folds, which is at least 2; got fold {fold} of {num_folds}.")
    counts = np.bincount(labels, minlength=len(names))
    if (rare := (counts > 0) & (counts < num_folds)).any():
        name, count = names[int(np.argmax(rare))], counts[rare][0]
        raise DataError(f"Class {name!r} has {count} images: {num_folds} folds need as many of each class.")
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels)
    kept, held_out = list(folds)[fold - 1]
    return train.select(kept, keep_in_memory=True), train.select(held_out, keep_in_memory=True)


def three_parts(splits: datasets.DatasetDict, seed: int) -> datasets.DatasetDict:
    """`train`, `validation` for choices, and `confirm`, taken from train and as large, to confirm a choice once.

    Raises: ValueError where there is no validation split, or train is too small to give as many rows again.
    """
    if "validation" not in splits:
        raise ValueError("validation_size must be above 0: sizes are compared on rows held out from training.")
    kept, confirming = stratified_rows(known_labels(splits["train"]), len(splits["validation"]), seed)
    return datasets.DatasetDict(
        train=splits["train"].select(kept, keep_in_memory=True),
        validation=splits["validation"],
        confirm=splits["train"].select(confirming, keep_in_memory=True),
    )


def stratified_rows(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of two stratified parts, `size` of them in the second, each in ascending order.

    Raises: ValueError where a class has too few rows.
    """
    try:
        parts = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    except ValueError as error:
        raise ValueError(f"{len(labels)} images are too few for this: {error}") from error
    return np.sort(parts[0]), np.sort(parts[1])
