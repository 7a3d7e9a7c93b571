import pytest
from processes import Python

from hf_vit_scratch.console import exit_with_one_line


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_bad_input_is_one_line_without_a_token_and_exit_code_2(error, capsys):
    with pytest.raises(SystemExit) as stopped, exit_with_one_line("program"):
        raise error("it is\n  wrong: hf_abcdefghij1 too")
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "program: error: it is wrong: hf_... too\n")


def test_a_line_that_repeats_all_of_its_input_is_cut(capsys):
    with pytest.raises(SystemExit), exit_with_one_line("program"):
        raise ValueError("no such thing: " + "B " * 100_000)
    errors = capsys.readouterr().err
    assert errors.startswith("program: error: no such thing: B B") and errors.endswith(" ...\n")
    assert errors.count("\n") == 1 and len(errors) < 5000


def test_one_of_several_processes_speaks_for_all(capsys):
    with pytest.raises(SystemExit) as stopped, exit_with_one_line("program", shown=False):
        raise ValueError("it is wrong")
    assert stopped.value.code == 2 and capsys.readouterr() == ("", "")


def test_what_nobody_can_put_right_keeps_its_traceback():
    with pytest.raises(KeyError), exit_with_one_line("program"):
        {}["absent"]


def test_leaving_waits_for_no_thread():
    code = "import threading, time; from hf_vit_scratch.console import leave\n"
    code += "threading.Thread(target=time.sleep, args=(600,)).start(); print('first'); leave('stopped')"
    process = Python(code)
    assert process.communicate(timeout=60) == ("first\n", "stopped\n")
    assert process.returncode == 130
