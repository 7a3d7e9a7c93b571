"""Search for a size, and two fixed studies: which sizes are worth their cost, and what the number of images does.

Each training is a trial of an Optuna study: it is stored when it ends, and what is stored is not done again. What a
trial has to do is a `Spec`: a search draws it, a study has planned it.
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
_STALE_SECONDS = 180  # a trial whose process gives no sign of life for this long is done again


class _FeasibleSampler(optuna.samplers.TPESampler):
    """TPE over sizes that there are, within the limits: others are drawn again, and never tried."""

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
        # Drawn anew for each trial: a search that goes on, or another process, would begin with the same ones again.
        source = random.Random(f"{self._runner.training.seed} {trial.number}")
        while True:  # there is one: it was looked for before the study began
            params = {name: draw(one, source) for name, one in search_space.items()}
            if self._allows(params):
                return params

    def _allows(self, params: dict) -> bool:
        return self._runner.allows(self._runner.fields(params))


class _Study:
    """The Optuna study of a [`TrialRunner`], and what it has found.

    A search draws its trials; the other kinds have a plan, which grows with what is found. Several processes, also on
    several machines, can work on one storage.
    """

    def __init__(self, runner: TrialRunner, url: str):
        kind = runner.explore.study
        self.runner, self.plan, searching = runner, PLANS.get(kind), kind == "search"
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
                study_name=f"vit-scratch {kind}, {runner.source}",
                sampler=_FeasibleSampler(runner) if searching else None,
                # Hopeless: after two of five parts worse than three quarters of the others were there.
                pruner=optuna.pruners.PercentilePruner(75.0, n_warmup_steps=2)
                if searching
                else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            told = self.study.user_attrs.get("settings")
            if told is None:
                self.study.set_user_attr("settings", runner.record)
        except (*_STORAGE_ERRORS, ImportError) as error:  # a database may want a driver that is not installed
            raise _lost(url, error) from error
        if told is not None:
            _check_same(told, runner.record, "--output_dir or --storage")

    def findings(self) -> list[dict]:
        """What is finished, in the order of the trials."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self.study.get_trials(deepcopy=False, states=states)
        return [_finding(trial) for trial in trials if "spec" in trial.user_attrs and "twice" not in trial.user_attrs]

    def missing(self) -> list[Spec] | int:
        """What is left to do, as far as it is known: specs of the plan, or how many trials of the search."""
        findings = self.findings()
        if self.plan is None:
            return max(0, self.runner.explore.trials - len(findings))
        found = {_key(finding["spec"]): finding["value"] for finding in findings}
        return [spec for spec in self.plan(self.runner, found) if spec.key not in found]

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
            measured = self.runner.train(spec, trial if searching else None)
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


def _key(spec: dict) -> str:
    return Spec(**spec).key


def _check_same(told: dict, settings: dict, others: str) -> None:
    """Whether a study that is there has the settings of this one."""
    if told != settings:
        before, now = ({**one, **one.get("recipe", {})} for one in (told, settings))
        name = next(one for one in (now | before) if one != "recipe" and before.get(one) != now.get(one))
        raise ValueError(
            f"{others} holds a study with {name} {before.get(name)!r}, and this command asks for {now.get(name)!r}. "
            f"Choose another {others}."
        )


def _lost(url: str, error: Exception) -> ValueError:
    reason = " ".join(str(error.__cause__ or error).split())
    hint = ". Install the driver of that database." if isinstance(error, ImportError) else ""
    return ValueError(f"no trials can be stored in {url.rpartition('@')[2]}: {reason[:300]}{hint}")


def explore(explore: ExploreArguments, recipe: dict, settings: Settings) -> list[dict]:
    """Run a search or a study, or go on with one, and leave its report. Takes what [`parse_exploration`] returns.

    Returns: the findings, one for each trial. After Ctrl-C the report is that of what is finished.

    Raises: ValueError or OSError, in one line, for anything that the user can put right.
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
                # Trials of an earlier call say nothing of the time that is left.
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
        raise _lost(url, error) from error
    return findings


def _open_study(runner: TrialRunner, output: Path, url: str) -> _Study:
    """The study of an output folder, a new one or the one that is there if its settings are the same."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir {output} is a file.")
    record, existed = output / STUDY_NAME, output.exists()
    if record.is_file():
        _check_same(read_json(record), runner.record, "--output_dir")
    elif existed and any(output.iterdir()):
        raise ValueError(f"output_dir {output} holds files that are not of a study: choose another --output_dir.")
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
    findings, missing = study.findings(), study.missing()  # a plan grows with what is found
    bar.n = len(findings)
    bar.total = bar.n + (missing if isinstance(missing, int) else len(missing))
    bar.set_postfix_str(summary(findings))


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Give a function that raises KeyboardInterrupt if Ctrl-C was pressed.

    Python only prints an exception that is raised in a destructor, say: whoever calls the function gets it again.
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
