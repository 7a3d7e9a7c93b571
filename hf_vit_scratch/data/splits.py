"""Splits of the labelled rows into training and held-out rows, all stratified by label."""

import datasets
import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

from .errors import DataError
from .pixels import known_labels

Parts = tuple[datasets.Dataset, datasets.Dataset]


def hold_out_fraction(train: datasets.Dataset, size: float, seed: int) -> Parts:
    """The training rows, and a fraction `size` of the rows that is held out. The same seed draws the same rows.

    Raises: DataError if a class has too few images for both parts to contain it.
    """
    names, labels = train.features["label"].names, np.asarray(train.data.column("label"))
    counts = np.bincount(labels, minlength=len(names))
    if (counts == 1).any():
        name = names[int(np.argmax(counts == 1))]
        raise DataError(f"Class {name!r} has only one image, but a stratified validation split needs two per class.")
    held_out, classes = int(np.ceil(size * len(train))), np.count_nonzero(counts)
    if not classes <= held_out <= len(train) - classes:
        problem = f"validation_size {size} of {len(train)} images takes {held_out} and leaves {len(train) - held_out}"
        raise DataError(f"{problem}, but both parts need at least one image of each of the {classes} classes.")
    # Not the `train_test_split` of `datasets`: it writes its indices beside the data, possibly into the user's folder.
    kept, drawn = train_test_split(np.arange(len(train)), test_size=size, stratify=labels, random_state=seed)
    return train.select(kept, keep_in_memory=True), train.select(drawn, keep_in_memory=True)


def hold_out_fold(train: datasets.Dataset, fold: int, num_folds: int, seed: int) -> Parts:
    """The training rows, and the held-out fold number `fold`, counted from 1, of `num_folds` folds of equal size.

    The folds of one seed are disjoint, and each row is in one of them.

    Raises: DataError if the fold does not exist, or a class has fewer images than there are folds.
    """
    names, labels = train.features["label"].names, known_labels(train)
    if num_folds < 2 or not 1 <= fold <= num_folds:
        raise DataError(f"fold must be from 1 to num_folds, and num_folds at least 2; got fold {fold} of {num_folds}.")
    counts = np.bincount(labels, minlength=len(names))
    if (rare := (counts > 0) & (counts < num_folds)).any():
        name, count = names[int(np.argmax(rare))], counts[rare][0]
        need = f"{num_folds} folds need at least {num_folds} images per class"
        raise DataError(f"Class {name!r} has {count} images, but {need}.")
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(labels, labels)
    kept, held_out = list(folds)[fold - 1]
    return train.select(kept, keep_in_memory=True), train.select(held_out, keep_in_memory=True)


def three_parts(splits: datasets.DatasetDict, seed: int) -> datasets.DatasetDict:
    """The splits `train`, `validation` and `confirm`.

    Models are selected on `validation`. The selected models are measured on `confirm`, which has as many rows and is
    taken from train.

    Raises: ValueError if there is no validation split, or train has too few rows.
    """
    if "validation" not in splits:
        raise ValueError("validation_size must be above 0, because sizes are compared on held-out rows.")
    kept, confirming = stratified_rows(known_labels(splits["train"]), len(splits["validation"]), seed)
    return datasets.DatasetDict(
        train=splits["train"].select(kept, keep_in_memory=True),
        validation=splits["validation"],
        confirm=splits["train"].select(confirming, keep_in_memory=True),
    )


def stratified_rows(labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of two stratified parts, each in ascending order. The second part has `size` rows.

    Raises: ValueError if a class has too few rows.
    """
    try:
        parts = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    except ValueError as error:
        raise ValueError(f"{len(labels)} images are too few for a stratified split: {error}") from error
    return np.sort(parts[0]), np.sort(parts[1])
