"""Search for a size, and two fixed studies: which sizes are worth their cost, and what the number of images does.

Each training is a trial of an Optuna study: it is stored when it ends, and what is stored is not done again. What a
trial has to do is a `Spec`: a search draws it, a study has planned it.
"""

import dataclasses
import json
import math
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import torch
import transformers
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm.auto import tqdm

from .arguments import ExploreArguments
from .bounds import draw, suggest
from .findings import summary, write_findings, write_plots
from .trainer import DivergedError
from .trials import Explorer, Spec

STORAGE_NAME, SETTINGS_NAME = "trials.db", "study.json"
SEEDS = (1, 2, 3)
_FINALISTS = 3
_STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
_STALE_SECONDS = 180  # a trial whose process gives no sign of life for so long is done again


class _FeasibleSampler(optuna.samplers.TPESampler):
    """TPE over sizes that there are, within the limits: others are drawn again, and never tried."""

    def __init__(self, explorer: Explorer):
        super().__init__(seed=explorer.training.seed)
        self._explorer = explorer

    def infer_relative_search_space(self, study, trial):
        return self._explorer.space

    def sample_relative(self, study, trial, search_space):
        for _ in range(100):
            params = super().sample_relative(study, trial, search_space)
            if not params:  # the first trials are drawn at random
                break
            if self._allows(params):
                return params
        # Drawn anew for each trial: a search that goes on, or another process, would begin with the same ones again.
        source = random.Random(f"{self._explorer.training.seed} {trial.number}")
        while True:  # there is one: it was looked for before the study began
            params = {name: draw(one, source) for name, one in search_space.items()}
            if self._allows(params):
                return params

    def _allows(self, params: dict) -> bool:
        return self._explorer.allows(self._explorer.fields(params))


class _Study:
    """The Optuna study of an [`Explorer`], and what it has found.

    A search draws its trials; the other kinds have a plan, which grows with what is found. Several processes, also on
    several machines, can work on one storage.
    """

    def __init__(self, explorer: Explorer, url: str):
        kind = explorer.explore.study
        self.explorer, self.plan, searching = explorer, _PLANS.get(kind), kind == "search"
        self._again = optuna.storages.RetryHeartbeatStaleTrialCallback()
        self._signed: set[int] = set()
        try:
            self.storage = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=_STALE_SECONDS // 3,
                grace_period=_STALE_SECONDS,
                heartbeat_stale_trial_callback=self._again if searching else None,  # a plan has it still
            )
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=f"vit-scratch {kind}, {explorer.source}",
                sampler=_FeasibleSampler(explorer) if searching else None,
                # Hopeless: after two of five parts worse than three quarters of the others were there.
                pruner=optuna.pruners.PercentilePruner(75.0, n_warmup_steps=2)
                if searching
                else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            told = self.study.user_attrs.get("settings")
            if told is None:
                self.study.set_user_attr("settings", explorer.settings)
        except (*_STORAGE_ERRORS, ImportError) as error:  # a database may want a driver that is not installed
            raise _lost(url, error) from error
        if told is not None:
            _check_same(told, explorer.settings, "--output_dir or --storage")

    def findings(self) -> list[dict]:
        """What is finished, in the order of the trials."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self.study.get_trials(deepcopy=False, states=states)
        return [_finding(trial) for trial in trials if "spec" in trial.user_attrs and "twice" not in trial.user_attrs]

    def missing(self) -> list[Spec] | int:
        """What is left to do, as far as it is known: specs of the plan, or how many trials of the search."""
        findings = self.findings()
        if self.plan is None:
            return max(0, self.explorer.explore.trials - len(findings))
        found = {_key(finding["spec"]): finding["value"] for finding in findings}
        return [spec for spec in self.plan(self.explorer, found) if spec.key not in found]

    def run(self) -> Iterator[None]:
        """Train what is missing, one after another; gives control back after each."""
        while missing := self.missing():
            if self._queue(missing):
                self._number = None
                try:
                    self.study.optimize(self._objective, n_trials=1)
                except KeyboardInterrupt:
                    if self._number is not None and self.plan is None:
                        trial = self.study.trials[self._number]
                        if trial.state == TrialState.FAIL and "spec" in trial.user_attrs:  # all of it was drawn
                            self._again(self.study, trial)
                    raise
            else:  # other processes are at the rest, or were: a trial without a sign of life for long is done again
                self._give_a_first_sign()
                time.sleep(min(5, _STALE_SECONDS / 3))
                optuna.storages.fail_stale_trials(self.study)
            yield

    def _give_a_first_sign(self) -> None:
        """For each running trial, once: Optuna takes none for dead that was killed before it gave one itself."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._signed:
                self.storage.record_heartbeat(trial._trial_id)
                self._signed.add(trial.number)

    def _queue(self, missing: list[Spec] | int) -> bool:
        """See to it that a trial waits, unless others are at all that is missing."""
        at_work = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        if any(trial.state == TrialState.WAITING for trial in at_work):
            return True
        if self.plan is None:
            return missing > len(at_work)
        taken = {_key(trial.user_attrs["spec"]) for trial in at_work if "spec" in trial.user_attrs}
        free = next((spec for spec in missing if spec.key not in taken), None)
        if free is not None:
            self.study.enqueue_trial({}, user_attrs={"spec": dataclasses.asdict(free)})
        return free is not None

    def _objective(self, trial: optuna.Trial) -> float:
        self._number, searching = trial.number, self.plan is None
        if searching:
            drawn = {name: suggest(trial, name, one) for name, one in self.explorer.space.items()}
            rate = drawn.pop("learning_rate")
            spec = Spec("ViT", self.explorer.fields(drawn), rate, self.explorer.training.seed)
            trial.set_user_attr("spec", dataclasses.asdict(spec))
        else:
            if "spec" not in trial.user_attrs:  # another process was faster to take the one that waited
                raise optuna.TrialPruned
            spec = Spec(**trial.user_attrs["spec"])
            states = (TrialState.COMPLETE, TrialState.RUNNING)
            others = self.study.get_trials(deepcopy=False, states=states)
            before = [other for other in others if other.number < trial.number and "spec" in other.user_attrs]
            if any(_key(other.user_attrs["spec"]) == spec.key for other in before):
                trial.set_user_attr("twice", True)  # two processes have queued it at the same moment
                raise optuna.TrialPruned
        try:
            measured = self.explorer.train(spec, trial if searching else None)
        except (RuntimeError, MemoryError) as error:
            # On a GPU an error of its own; on a CPU any RuntimeError, with words like these.
            if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "not enough memory" not in str(error):
                raise
            trial.set_user_attr("failed", "out of memory")
            raise optuna.TrialPruned from error
        except DivergedError as error:
            trial.set_user_attr("failed", "diverged")
            raise optuna.TrialPruned from error
        if not math.isfinite(measured["negative_log_likelihood"]):
            trial.set_user_attr("failed", "diverged")
            raise optuna.TrialPruned
        trial.set_user_attr("measured", measured)
        return measured["negative_log_likelihood"]


def _finding(trial: FrozenTrial) -> dict:
    """A row: the trial's number and state, its spec, what was measured."""
    told = trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    return {
        "trial": trial.number,
        "state": "complete" if done else told.get("failed", "stopped early"),
        "spec": told["spec"],
        "value": trial.value if done else math.inf,
        **told.get("measured", {}),
    }


def _plan_sizes(explorer: Explorer, found: dict[str, float]) -> list[Spec]:
    """Learning rates for each width at a middle depth; the grid; the best few again, on the rows kept for that."""
    bounds, tuning, depths = explorer.bounds, {}, {}
    for width in bounds["hidden_size"]:
        drawn = ({"hidden_size": width, "num_hidden_layers": depth} for depth in bounds["num_hidden_layers"])
        sizes = [explorer.fields(one) for one in drawn]
        if sizes := [size for size in sizes if explorer.allows(size)]:
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


def _plan_data(explorer: Explorer, found: dict[str, float]) -> list[Spec]:
    """A learning rate for each family, all with as many tries; then each with ever more images, thrice."""
    rates = explorer.bounds["learning_rate"]
    tuning = {name: [Spec(name, fields, rate) for rate in rates] for name, fields in explorer.families.items()}
    plan = [spec for specs in tuning.values() for spec in specs]
    if any(spec.key not in found for spec in plan):
        return plan
    best = {name: min(specs, key=lambda spec: found[spec.key]) for name, specs in tuning.items()}
    return plan + [
        dataclasses.replace(spec, seed=seed, fraction=fraction, augmented=augmented, confirming=True)
        for seed in SEEDS
        for augmented in (True, False)
        for fraction in explorer.bounds["fraction"]
        for spec in best.values()
    ]


_PLANS = {"size": _plan_sizes, "data": _plan_data}


def _key(spec: dict) -> str:
    return Spec(**spec).key


def _check_same(told: dict, settings: dict, others: str) -> None:
    """Whether a study that is there has the settings of this one."""
    if told != settings:
        before, now = ({**one, **one.get("recipe", {})} for one in (told, settings))
        name = next(one for one in (now | before) if one != "recipe" and before.get(one) != now.get(one))
        raise ValueError(
            f"a study with {name} {before.get(name)!r} is there already, and this one has {now.get(name)!r}: give "
            f"another {others}."
        )


def _lost(url: str, error: Exception) -> ValueError:
    reason = " ".join(str(error.__cause__ or error).split())
    hint = ". Install the driver of that database." if isinstance(error, ImportError) else ""
    return ValueError(f"no trials can be stored in {url.rpartition('@')[2]}: {reason[:300]}{hint}")


def explore(explore: ExploreArguments, recipe: dict, *others) -> list[dict]:
    """Run a search or a study, or go on with one, and leave its report. Takes what [`parse_exploration`] gives.

    Returns: the findings, a trial each. After Ctrl-C the report is that of what is finished.

    Raises: ValueError or OSError, in one line, for anything that the user can put right.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    transformers.logging.set_verbosity_error()
    explorer = Explorer(explore, recipe, *others)
    output = Path(explorer.training.output_dir)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir {output} is a file.")
    settings, existed = output / SETTINGS_NAME, output.exists()
    if settings.is_file():
        _check_same(json.loads(settings.read_text(encoding="utf-8")), explorer.settings, "--output_dir")
    elif existed and any(output.iterdir()):
        raise ValueError(f"output_dir {output} holds something that is not of a study: give another.")
    output.mkdir(parents=True, exist_ok=True)
    url = explore.storage or f"sqlite:///{(output / STORAGE_NAME).resolve()}"
    try:
        study = _Study(explorer, url)
    except ValueError:
        if not existed:
            output.rmdir()
        raise
    settings.write_text(json.dumps(explorer.settings, indent=2) + "\n", encoding="utf-8")

    def report() -> list[dict]:
        findings = study.findings()
        write_findings(findings, output, explorer.settings)
        return findings

    def show(bar: tqdm, findings: list[dict]) -> None:
        missing = study.missing()  # of a plan, what is known so far
        bar.n = len(findings)
        bar.total = bar.n + (missing if isinstance(missing, int) else len(missing))
        bar.set_postfix_str(summary(findings))

    pressed = []

    def stop(*_):
        pressed.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        try:
            before_this = study.findings()  # of a study that goes on, which says nothing of the time that is left
            with tqdm(desc=explore.study, unit="trial", initial=len(before_this)) as bar:
                show(bar, before_this)
                for _ in study.run():
                    if pressed:  # what was raised where Python only prints it, in a destructor say, is raised again
                        raise KeyboardInterrupt
                    show(bar, report())
        finally:
            findings = report()
            write_plots(findings, output, explore.study)
    except _STORAGE_ERRORS as error:
        raise _lost(url, error) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
    return findings
