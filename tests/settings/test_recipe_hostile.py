"""Recipes that nobody should have written: what comes of each is a run's settings, or a line with recipe and key."""

import pytest
import yaml
from helpers import refused_by_train
from hostile import VALUES, Watch, changed, examples, files, shares
from hypothesis import given
from hypothesis import strategies as st

from hf_vit_scratch.exploration.arguments import parse_size
from hf_vit_scratch.settings.checks import check_settings
from hf_vit_scratch.settings.flags import all_flags, parse_arguments

WHOLE = {
    **{"size": "digits-tiny", "learning_rate": "3e-3", "num_train_epochs": 3, "image_size": [28, 28], "bf16": False},
    **{"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}, "report_to": "none"},
}
NAMES = tuple(sorted(all_flags().keys() - {"help", "push_to_hub", "hub_token", "output_dir", "logging_dir"}))
FLAGS = ["--use_cpu", "true"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate: 1e-3\ndeepspeed: 0\n", ["deepspeed", "a mapping or the path of a JSON file, got 0"]),
        ("lr_scheduler_kwargs: eager\n", ["lr_scheduler_kwargs", "a mapping, got 'eager'"]),
        ("lr_scheduler_kwargs: {foo: 1}\n", ["lr_scheduler_kwargs", "foo"]),
        ("gradient_checkpointing_kwargs: {foo: 1}\n", ["gradient_checkpointing_kwargs", "foo"]),
        ("accelerator_config: {foo: 1}\n", ["accelerator_config", "foo"]),
        ("fsdp_config: [1]\n", ["fsdp_config", "[1]"]),
        ("optim_args: x\n", ["optim_args", "'x'"]),
        ("seed: 1\nlr_scheduler_kwargs: " + "[" * 5000, ["'lr_scheduler_kwargs'", "nested more than 8 levels"]),
        (
            "lr_scheduler_kwargs: " + "{a: " * 20 + "1" + "}" * 20,
            ["'lr_scheduler_kwargs'", "nested more than 8 levels"],
        ),
        ("seed: &s 1\n", ["'seed'", "an anchor or an alias (s)"]),
        ("image_size: [1, 2]\nhidden_size: *s\n", ["'hidden_size'", "an anchor or an alias (s)"]),
        ("seed: !!python/name:os.system\n", ["'seed'", "the tag"]),
        ("seed: 1\nseed: 2\n", ["'seed'", "stands twice"]),
        ("learning_rate: .nan\n", ["learning_rate", "nan"]),
        ("weight_decay: nan\n", ["weight_decay", "finite number, got nan"]),
        ("hidden_size: [16, 32]\n", ["hidden_size", "one number, text, true or false, got [16, 32]"]),
        ("hidden_size: {a: 1}\n", ["hidden_size", "{'a': 1}"]),
        ("image_size: [28, [28]]\n", ["image_size", "[28, [28]]"]),
        ("hidden_size: wide\n", ["hidden_size", "'wide'"]),
        ("seed: " + "9" * 5000, ["'seed'", "digits"]),
        ("seed: 2001-01-01\n", ["seed", "2001"]),
        ("hiden_size: 16\n", ["hiden_size", "unknown"]),
        ("seed: 1\n? [a, b]\n: 2\n", ["'...'"]),
        ("learning_rate: [1, 2\nseed: 3", ["'learning_rate'", "is not YAML"]),
        ("seed: \x01", ["is not YAML"]),
        ("", ["a mapping of flags to values, got NoneType"]),
        ("# " + "x" * 2**18, ["more than 262,144 bytes"]),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_recipe_that_cannot_be_used_is_refused_with_its_name_and_the_key(text, words, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    line = refused_by_train(capsys, "--recipe", str(recipe), "--output_dir", str(tmp_path / "out"), *FLAGS)
    for part in (f"recipe {recipe}", *words):
        assert part in line, line
    assert not (tmp_path / "out").exists() and len(line) < 1000


def test_a_flag_of_the_command_line_is_not_blamed_on_the_recipe(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(WHOLE))
    for flags in (["--accelerator_config", "{"], ["--lr_scheduler_kwargs", "eager"], ["--weight_decay", "nan"]):
        line = refused_by_train(capsys, "--recipe", str(recipe), *FLAGS, *flags)
        assert flags[0].lstrip("-") in line and "recipe" not in line


@pytest.mark.parametrize("name", ["num_train_epochs", "per_device_train_batch_size", "dataloader_num_workers", "seed"])
def test_numbers_with_which_a_run_would_not_end_are_refused(name, capsys):
    for value in (-2, 10**12):
        assert f"{name} must be from" in refused_by_train(capsys, *FLAGS, "--data", "nowhere", f"--{name}={value}")


@shares(fast=150)
def test_any_recipe_is_read_or_refused(cases, tmp_path):
    recipe = tmp_path / "mine.yaml"
    watch = Watch(tmp_path)
    signs = (b"&a ", b"*a", b"[", b"{", b"- ", b"!!x ", b"? ", b"\t")
    words = tuple(f"{name}: ".encode() for name in NAMES[::7]) + signs
    texts = files([yaml.safe_dump(WHOLE).encode(), b"size: B/16\nimage_size: 32\n"], words)
    mappings = changed(WHOLE, NAMES).map(lambda content: yaml.safe_dump(content, allow_unicode=True).encode())
    pairs = st.tuples(st.sampled_from(NAMES), VALUES).map(lambda pair: yaml.safe_dump(dict([pair])).encode())

    @examples(cases)
    @given(st.one_of(texts, mappings, pairs))
    def holds(content: bytes):
        recipe.write_bytes(content)

        def read():
            check_settings(parse_arguments(["--recipe", str(recipe), *FLAGS, "--output_dir", str(tmp_path / "out")]))

        if line := watch.outcome(read):
            assert "recipe" in line or any(name in line for name in NAMES), line
        watch.outcome(lambda: parse_size(["--recipe", str(recipe)]) and None)
        assert not (tmp_path / "out").exists()

    holds()
    assert 0 < watch.refused < watch.cases
    print("recipes:", watch)
