"""The search for a size, and the studies of sizes and of the number of images.

Each training is a trial of an Optuna study. Finished trials are stored and not repeated. A `Spec` describes the
training of a trial: the search draws it, the two studies plan it.
"""

import dataclasses
import math
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import torch
import transformers
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm.auto import tqdm

from ..output_folder import read_json, write_json
from ..settings.flags import Settings
from ..training.callbacks import DivergedError
from .arguments import ExploreArguments
from .plans import PLANS
from .report import summary, write_findings, write_plots
from .search_space import draw, suggest
from .spec import Spec
from .trial import TrialRunner

STORAGE_NAME, STUDY_NAME = "trials.db", "study.json"
_STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
_STALE_SECONDS = 180  # a trial whose process sends no heartbeat for this long is repeated


class _FeasibleSampler(optuna.samplers.TPESampler):
    """TPE over valid sizes within the limits. Other sizes are drawn again and never trained."""

    def __init__(self, runner: TrialRunner):
        super().__init__(seed=runner.training.seed)
        self._runner = runner

    def infer_relative_search_space(self, study, trial):
        return self._runner.space

    def sample_relative(self, study, trial, search_space):
        for _ in range(100):
            params = super().sample_relative(study, trial, search_space)
            if not params:  # the first trials are drawn at random
                break
            if self._allows(params):
                return params
        # One seed per trial: a resumed search, or another process, would otherwise repeat the same draws.
        source = random.Random(f"{self._runner.training.seed} {trial.number}")
        while True:  # ends, since TrialRunner has checked that a valid size exists
            params = {name: draw(one, source) for name, one in search_space.items()}
            if self._allows(params):
                return params

    def _allows(self, params: dict) -> bool:
        return self._runner.allows(self._runner.fields(params))


class _Study:
    """The Optuna study of a [`TrialRunner`], with its findings.

    The search draws its trials. The two studies have a plan, which grows with the findings. Several processes, also on
    several machines, can share one storage.
    """

    def __init__(self, runner: TrialRunner, url: str):
        kind = runner.explore.study
        self.runner, self.plan, searching = runner, PLANS.get(kind), kind == "search"
        self._again = optuna.storages.RetryHeartbeatStaleTrialCallback()
        self._with_heartbeat: set[int] = set()
        try:
            self.storage = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=_STALE_SECONDS // 3,
                grace_period=_STALE_SECONDS,
                heartbeat_stale_trial_callback=self._again if searching else None,  # a plan still contains the trial
            )
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=f"vit-scratch {kind}, {runner.source}",
                sampler=_FeasibleSampler(runner) if searching else None,
                # Prunes a trial in the worst quarter, from the second of its five evaluations on.
                pruner=optuna.pruners.PercentilePruner(75.0, n_warmup_steps=2)
                if searching
                else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            stored = self.study.user_attrs.get("settings")
            if stored is None:
                self.study.set_user_attr("settings", runner.record)
        except (*_STORAGE_ERRORS, ImportError) as error:  # ImportError: the driver of the database is not installed
            raise _storage_error(url, error) from error
        if stored is not None:
            _check_same(stored, runner.record, "--output_dir or --storage")

    def findings(self) -> list[dict]:
        """The findings of finished trials, in the order of the trials."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self.study.get_trials(deepcopy=False, states=states)
        return [_finding(trial) for trial in trials if "spec" in trial.user_attrs and "twice" not in trial.user_attrs]

    def missing(self) -> list[Spec] | int:
        """The missing trainings: specs of the plan as known so far, or the number of trials of the search."""
        findings = self.findings()
        if self.plan is None:
            return max(0, self.runner.explore.trials - len(findings))
        found = {_key(finding["spec"]): finding["value"] for finding in findings}
        return [spec for spec in self.plan(self.runner, found) if spec.key not in found]

    def run(self) -> Iterator[None]:
        """Run the missing trainings, one after the other, and yield after each."""
        while missing := self.missing():
            if self._queue(missing):
                self._number = None
                try:
                    self.study.optimize(self._objective, n_trials=1)
                except KeyboardInterrupt:
                    if self._number is not None and self.plan is None:
                        trial = self.study.trials[self._number]
                        if trial.state == TrialState.FAIL and "spec" in trial.user_attrs:  # the spec was complete
                            self._again(self.study, trial)
                    raise
            else:  # other processes run the remaining trials; those without a heartbeat are repeated
                self._record_first_heartbeats()
                time.sleep(min(5, _STALE_SECONDS / 3))
                optuna.storages.fail_stale_trials(self.study)
            yield

    def _record_first_heartbeats(self) -> None:
        """Record one heartbeat for each running trial.

        Optuna never considers a trial as stale whose process was killed before its first heartbeat.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._with_heartbeat:
                self.storage.record_heartbeat(trial._trial_id)
                self._with_heartbeat.add(trial.number)

    def _queue(self, missing: list[Spec] | int) -> bool:
        """Enqueue a trial if needed. Returns whether there is one to run: False if others run all missing trials."""
        at_work = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        if any(trial.state == TrialState.WAITING for trial in at_work):
            return True
        if isinstance(missing, int):
            return missing > len(at_work)
        taken = {_key(trial.user_attrs["spec"]) for trial in at_work if "spec" in trial.user_attrs}
        free = next((spec for spec in missing if spec.key not in taken), None)
        if free is not None:
            self.study.enqueue_trial({}, user_attrs={"spec": dataclasses.asdict(free)})
        return free is not None

    def _objective(self, trial: optuna.Trial) -> float:
        self._number, searching = trial.number, self.plan is None
        if searching:
            drawn = {name: suggest(trial, name, one) for name, one in self.runner.space.items()}
            rate = drawn.pop("learning_rate")
            spec = Spec("ViT", self.runner.fields(drawn), rate, self.runner.training.seed)
            trial.set_user_attr("spec", dataclasses.asdict(spec))
        else:
            if "spec" not in trial.user_attrs:  # another process has taken the waiting trial
                raise optuna.TrialPruned
            spec = Spec(**trial.user_attrs["spec"])
            states = (TrialState.COMPLETE, TrialState.RUNNING)
            others = self.study.get_trials(deepcopy=False, states=states)
            before = [other for other in others if other.number < trial.number and "spec" in other.user_attrs]
            if any(_key(other.user_attrs["spec"]) == spec.key for other in before):
                trial.set_user_attr("twice", True)  # two processes have enqueued it at the same time
                raise optuna.TrialPruned
        try:
            measured = self.runner.train(spec, trial if searching else None)
        except (RuntimeError, MemoryError) as error:
            # A GPU raises OutOfMemoryError. A CPU raises a RuntimeError with this text.
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
    """The finding of a trial: its number, state, spec and results."""
    attributes = trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    return {
        "trial": trial.number,
        "state": "complete" if done else attributes.get("failed", "stopped early"),
        "spec": attributes["spec"],
        "value": trial.value if done else math.inf,
        **attributes.get("measured", {}),
    }


def _key(spec: dict) -> str:
    return Spec(**spec).key


def _check_same(stored: dict, settings: dict, others: str) -> None:
    """Raises: ValueError if an existing study has other settings than this one."""
    if stored != settings:
        before, now = ({**one, **one.get("recipe", {})} for one in (stored, settings))
        name = next(one for one in (now | before) if one != "recipe" and before.get(one) != now.get(one))
        raise ValueError(
            f"{others} holds a study with {name} {before.get(name)!r}, and this command asks for {now.get(name)!r}. "
            f"Choose another {others}."
        )


def _storage_error(url: str, error: Exception) -> ValueError:
    reason = " ".join(str(error.__cause__ or error).split())
    hint = ". Install the driver of that database." if isinstance(error, ImportError) else ""
    return ValueError(f"no trials can be stored in {url.rpartition('@')[2]}: {reason[:300]}{hint}")


def explore(explore: ExploreArguments, recipe: dict, settings: Settings) -> list[dict]:
    """Run or continue a search or a study, and write its report.

    The arguments are those that [`parse_exploration`] returns. After Ctrl-C the report covers the finished trials.

    Returns: the findings, one for each trial.

    Raises: ValueError or OSError, in one line, for any error that the user can correct.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    transformers.logging.set_verbosity_error()
    runner = TrialRunner(explore, recipe, settings)
    output = Path(settings.training.output_dir)
    url = explore.storage or f"sqlite:///{(output / STORAGE_NAME).resolve()}"
    study = _open_study(runner, output, url)
    try:
        with _interruptible() as check_interrupt:
            try:
                # `initial`: trials of an earlier call must not count for the estimate of the remaining time.
                with tqdm(desc=explore.study, unit="trial", initial=len(study.findings())) as bar:
                    _show(bar, study)
                    for _ in study.run():
                        check_interrupt()
                        write_findings(study.findings(), output, runner.record)
                        _show(bar, study)
            finally:
                findings = study.findings()
                write_findings(findings, output, runner.record)
                write_plots(findings, output, explore.study)
    except _STORAGE_ERRORS as error:
        raise _storage_error(url, error) from error
    return findings


def _open_study(runner: TrialRunner, output: Path, url: str) -> _Study:
    """Create the study of an output folder, or open the existing one. Raises: ValueError if its settings differ."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir {output} is a file. Choose another --output_dir.")
    record, existed = output / STUDY_NAME, output.exists()
    if record.is_file():
        _check_same(read_json(record), runner.record, "--output_dir")
    elif existed and any(output.iterdir()):
        raise ValueError(
            f"output_dir {output} holds files that do not belong to a study. Choose another --output_dir."
        )
    output.mkdir(parents=True, exist_ok=True)
    try:
        study = _Study(runner, url)
    except ValueError:
        if not existed:
            output.rmdir()
        raise
    write_json(record, runner.record)
    return study


def _show(bar: tqdm, study: _Study) -> None:
    findings, missing = study.findings(), study.missing()  # a plan grows with the findings
    bar.n = len(findings)
    bar.total = bar.n + (missing if isinstance(missing, int) else len(missing))
    bar.set_postfix_str(summary(findings))


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """A context with a function that raises KeyboardInterrupt if Ctrl-C was pressed.

    Python does not propagate a KeyboardInterrupt that is raised in a destructor. The function raises it again.
    """
    pressed = []

    def stop(*_):
        pressed.append(True)
        raise KeyboardInterrupt

    def check():
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield check
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
