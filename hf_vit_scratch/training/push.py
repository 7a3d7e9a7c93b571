"""Pushing a run to the Hub during training."""

import shutil
import sys
import tempfile
from concurrent.futures import Future, wait
from pathlib import Path

from transformers import TrainerCallback

from ..hub.repository import Repository
from ..output_folder import EXAMPLE_NAME, SETTINGS_NAME
from .checkpoints import write_failure
from .results import write_results
from .trainer import ViTScratchTrainer


class PushEverySave(TrainerCallback):
    """Push the averaged weights, card and results in the background, at each save. Failures do not stop the training.

    Args:
        trainer: the trainer of the run.
        repository: where to push.
        facts: the content of all_results.json as far as it is known before the training.
    """

    def __init__(self, trainer: ViTScratchTrainer, repository: Repository, facts: dict):
        self.trainer, self.repository, self.facts = trainer, repository, facts
        self.push: Future | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            for folder in Path(args.output_dir).glob(".push-*"):  # from a run that was killed
                shutil.rmtree(folder)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or state.global_step >= state.max_steps:  # the finished run is pushed later
            return
        if self.push and not self.push.done():
            if not args.hub_always_push:
                return
            wait([self.push])
        output, step = Path(args.output_dir), f"step {state.global_step} of {state.max_steps}"
        folder = Path(tempfile.mkdtemp(prefix=".push-", dir=output))

        def not_pushed(reason: object):
            print(f"Warning: {step} was not pushed, and training continues: {reason}", file=sys.stderr, flush=True)

        def done(push: Future):
            shutil.rmtree(folder)
            if error := push.exception():
                not_pushed(error)

        try:
            self.trainer.save_model(str(folder))
            for name in (SETTINGS_NAME, EXAMPLE_NAME):
                if (output / name).exists():
                    shutil.copy(output / name, folder)
            write_results(folder, self.trainer, self.facts | self._measured(state, step), output.resolve().name)
        except Exception as error:
            shutil.rmtree(folder)
            if not (reason := write_failure(error)):
                raise
            not_pushed(reason)
            return
        self.push = self.repository.submit(folder)
        self.push.add_done_callback(done)

    def _measured(self, state, step: str) -> dict:
        """Results so far, by their names in all_results.json."""
        results = {"unfinished": step, "epoch": state.epoch, "train_runtime": self.trainer.run_time.seconds}
        last = next((row for row in reversed(state.log_history) if "eval_accuracy" in row), {})
        if last.get("step") == state.global_step:  # otherwise other weights were evaluated
            results |= {f"validation_{key[5:]}": value for key, value in last.items() if key.startswith("eval_")}
        return results
