"""The plans of the two studies: which trainings to run, given the results so far."""

import dataclasses
import math
from collections.abc import Callable

from .spec import Spec
from .trial import TrialRunner

SEEDS = (1, 2, 3)
_FINALISTS = 3

Plan = Callable[[TrialRunner, dict[str, float]], list[Spec]]


def plan_sizes(runner: TrialRunner, found: dict[str, float]) -> list[Spec]:
    """Plan the study of sizes, in three stages.

    1. For each width, all learning rates at the middle depth.
    2. All widths and depths, with the best learning rate of the width.
    3. The best three sizes with three seeds each, measured on the rows for confirming.

    Args:
        runner: bounds and limits.
        found: negative log-likelihood of each finished training, by `Spec.key`.

    Returns: the trainings of all stages that can be planned so far.
    """
    bounds, tuning, depths = runner.bounds, {}, {}
    for width in bounds["hidden_size"]:
        drawn = ({"hidden_size": width, "num_hidden_layers": depth} for depth in bounds["num_hidden_layers"])
        sizes = [runner.fields(one) for one in drawn]
        if sizes := [size for size in sizes if runner.allows(size)]:
            depths[width] = sizes
            tuning[width] = [Spec("ViT", sizes[len(sizes) // 2], rate) for rate in bounds["learning_rate"]]
    plan = [spec for specs in tuning.values() for spec in specs]
    if any(spec.key not in found for spec in plan):
        return plan
    rates = {width: min(specs, key=lambda spec: found[spec.key]).learning_rate for width, specs in tuning.items()}
    grid = [Spec("ViT", size, rates[width]) for width, sizes in depths.items() for size in sizes]
    plan += [spec for spec in grid if spec not in plan]
    if any(spec.key not in found for spec in plan):
        return plan
    finite = [spec for spec in grid if math.isfinite(found[spec.key])]
    finalists = sorted(finite, key=lambda spec: found[spec.key])[:_FINALISTS]
    return plan + [dataclasses.replace(one, seed=seed, confirming=True) for one in finalists for seed in SEEDS]


def plan_data(runner: TrialRunner, found: dict[str, float]) -> list[Spec]:
    """Plan the study of the number of images, in two stages.

    1. For each family (plain ViT, ViT with convolutional stem, CNN), all learning rates with all images.
    2. Each family with its best learning rate, for each fraction of the images, with and without augmentation, with
       three seeds each, measured on the rows for confirming.

    Arguments and return value are those of [`plan_sizes`].
    """
    rates = runner.bounds["learning_rate"]
    tuning = {name: [Spec(name, fields, rate) for rate in rates] for name, fields in runner.families.items()}
    plan = [spec for specs in tuning.values() for spec in specs]
    if any(spec.key not in found for spec in plan):
        return plan
    best = {name: min(specs, key=lambda spec: found[spec.key]) for name, specs in tuning.items()}
    return plan + [
        dataclasses.replace(spec, seed=seed, fraction=fraction, augmented=augmented, confirming=True)
        for seed in SEEDS
        for augmented in (True, False)
        for fraction in runner.bounds["fraction"]
        for spec in best.values()
    ]


PLANS: dict[str, Plan] = {"size": plan_sizes, "data": plan_data}
