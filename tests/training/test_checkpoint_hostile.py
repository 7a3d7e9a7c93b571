"""The state of a checkpoint that is damaged: it is resumed from, or refused in one line."""

import json

from hostile import Watch, changed, examples, files, shares
from hypothesis import given
from hypothesis import strategies as st

from hf_vit_scratch.settings.flags import parse_arguments
from hf_vit_scratch.training.resume import find_stopped_run, step_of

STATE = {"global_step": 40, "max_steps": 80, "epoch": 1.0, "log_history": [], "stateful_callbacks": {}}


@shares(fast=100)
def test_any_state_is_resumed_from_or_refused(cases, tmp_path):
    checkpoint, watch = tmp_path / "out" / "checkpoint-40", Watch(tmp_path)
    checkpoint.mkdir(parents=True)
    flags = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--resume_from_checkpoint"]
    trainings = [parse_arguments([*flags, wanted]).training for wanted in ("true", str(checkpoint))]
    texts = st.one_of(files([json.dumps(STATE).encode()]), changed(STATE).map(lambda each: json.dumps(each).encode()))

    @examples(cases)
    @given(texts)
    def holds(text: bytes):
        (checkpoint / "trainer_state.json").write_bytes(text)
        for training in trainings:
            watch.outcome(lambda training=training: step_of(find_stopped_run(training).checkpoint) and None)

    holds()
    assert watch.refused
    print("checkpoints:", watch)
