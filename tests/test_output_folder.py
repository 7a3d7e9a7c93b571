import json
import os

import pytest
from processes import Python

from hf_vit_scratch.output_folder import read_json, write_json, write_text, written_whole


def test_a_file_is_as_it_was_where_writing_it_fails(tmp_path):
    file = tmp_path / "results.json"
    write_json(file, {"accuracy": 0.5})
    with pytest.raises(ZeroDivisionError), written_whole(file) as partial:
        partial.write_text("half of")
        raise ZeroDivisionError
    assert json.loads(file.read_text()) == read_json(file) == {"accuracy": 0.5}
    with pytest.raises(TypeError):
        write_json(file, {"accuracy": object()})
    assert read_json(file) == {"accuracy": 0.5}
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_process_that_is_killed_while_it_writes_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "card.md"
    write_text(file, "whole")
    code = "import os, sys; from hf_vit_scratch.output_folder import written_whole\n"
    code += "with written_whole(sys.argv[1]) as partial: partial.write_text('half of'); os.kill(os.getpid(), 9)"
    process = Python(code, file)
    process.communicate()
    assert process.returncode == -9
    assert file.read_text() == "whole"
    write_text(file, "ä, new")
    assert file.read_bytes() == "ä, new".encode()
