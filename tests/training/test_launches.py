import pytest
from helpers import TINY
from helpers import refused_by_train as refused


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], "DeepSpeed is not supported"),
        ({}, ["--deepspeed", "zero.json"], "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, [], "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, [], "FSDP1 is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, [], "FSDP2 needs `accelerate launch` or torchrun"),
    ],
)
def test_a_launch_that_would_not_do_what_it_says_is_refused(
    environment, flags, words, digits, tmp_path, capsys, monkeypatch
):
    for name, value in {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", **environment}.items():
        monkeypatch.setenv(name, value)
    line = refused(capsys, "--data", digits, *TINY, *flags, "--output_dir", str(tmp_path / "out"))
    assert words in line
    assert not (tmp_path / "out").exists()
