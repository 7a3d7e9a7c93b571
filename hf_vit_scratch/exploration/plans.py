"""The plans of the two studies: which trainings to make, as far as what is found so far tells."""

import dataclasses
import math
from collections.abc import Callable

from .spec import Spec
from .trial import TrialRunner

SEEDS = (1, 2, 3)
_FINALISTS = 3

Plan = Callable[[TrialRunner, dict[str, float]], list[Spec]]


def plan_sizes(runner: TrialRunner, found: dict[str, float]) -> list[Spec]:
    """Learning rates for each width at a middle depth; the grid; the best few again, on the rows kept for that."""
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
    """A learning rate for each family, all with as many tries; then each with ever more images, thrice."""
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
