"""To the Hub and back, with the real client, against the Hub on loopback; and once, by hand, against the real one."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, TINY, blocks
from huggingface_hub import get_token
from PIL import Image
from processes import Python
from safetensors.torch import load_file, save_file

from hf_vit_scratch.hub.repository import files_to_push

CODE = [f"{room}_vit_scratch.py" for room in ("configuration", "modeling", "image_processing", "digits")]
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json", *CODE}
PUSHED = MODEL | {"README.md", "all_results.json", "training_args.json", "curves.png", "confusion_matrix.png"}
PUSHED |= {"example.png"}
REPO = "alice/digits"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(hub, repo: str = REPO, revision: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.files(repo, revision).items() if name != ".gitattributes"}


def start(environment: dict[str, str], code: str, *arguments, package: bool = True) -> Python:
    """A process with the package, or in which no installed one is found either."""
    code = code if package else f"import sys\nsys.modules['hf_vit_scratch'] = None\n{code}"
    environment = environment | {"PYTHONPATH": str(REPOSITORY) if package else "", "CUDA_VISIBLE_DEVICES": ""}
    return Python(code, *arguments, environment=environment)


def vit_scratch(environment: dict[str, str], *arguments) -> Python:
    return start(environment, "from hf_vit_scratch.cli import main; main()", *arguments)


def finish(process: Python, code: int = 0) -> tuple[str, str]:
    """Output, and the last line of the errors. No token is in either."""
    output, errors = process.communicate(timeout=90)
    assert process.returncode == code, errors
    assert "Loopback" not in output + errors
    return output, (errors.strip().splitlines() or [""])[-1]


@pytest.fixture
def digit(tmp_path) -> Path:
    Image.fromarray(blocks(torch.tensor([7]).numpy(), seed=5)[0]).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def other_weights(run_folder, tmp_path) -> Path:
    """The same run with another head."""
    folder = shutil.copytree(run_folder, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += torch.arange(10.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# ---- what goes


def test_what_is_pushed_is_whole_and_twice_makes_no_second_commit(hub, run_folder, tmp_path):
    before, environment = contents(run_folder), hub.environment()
    listed, _ = finish(vit_scratch(environment, "push", run_folder, REPO, "--dry_run"))
    assert hub.requests == [] and set(re.findall(r"([\d,]+) bytes  (\S+\.\S+)", listed)) == {
        (f"{(run_folder / name).stat().st_size:,}", name) for name in PUSHED
    }
    assert "submission.csv" in listed.splitlines()[-1]

    first, _ = finish(vit_scratch(environment, "push", run_folder, REPO, "--private"))
    (commit, _) = hub.commits(REPO)
    size = sum((run_folder / name).stat().st_size for name in PUSHED)
    lines = [f"Pushing {len(PUSHED)} files, {size:,} bytes, to {REPO}"]
    lines += [f"Pushed: {hub.endpoint}/{REPO}/commit/{commit.oid}"]
    assert first.splitlines() == lines and hub.repositories[REPO].private
    assert finish(vit_scratch(environment, "push", run_folder, REPO))[0] == first
    assert len(hub.commits(REPO)) == 2  # and the Hub's own

    landed = pushed(hub)
    assert landed.keys() == PUSHED
    # All is as it lies there, but for the snippet of the card, which has got the name.
    assert {name for name in PUSHED if landed[name] != before[name]} == {"README.md"}
    assert f'model="{REPO}", trust_remote_code=True' in landed["README.md"].decode()
    assert "AutoImageProcessor" in json.loads(landed["config.json"])["auto_map"]
    assert not [name for name, data in landed.items() if b"Loopback" in data or bytes(run_folder.parent) in data]

    # A branch, where weights in one file take the place of weights in several.
    shards = tmp_path / "shards"
    shutil.copytree(run_folder, shards, ignore=shutil.ignore_patterns("checkpoint-*", "model.safetensors"))
    weights = load_file(run_folder / "model.safetensors")
    for index, names in enumerate((list(weights)[:5], list(weights)[5:]), start=1):
        file = shards / f"model-0000{index}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, file, metadata={"format": "pt"})
    where = {name: f"model-0000{1 + (index >= 5)}-of-00002.safetensors" for index, name in enumerate(weights)}
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    finish(vit_scratch(environment, "push", shards, REPO, "--revision", "next/one"))
    sharded = pushed(hub, revision="next/one").keys()
    assert sharded ^ PUSHED == {"model.safetensors", index.name, *where.values()}
    finish(vit_scratch(environment, "push", run_folder, REPO, "--revision", "next/one"))
    assert pushed(hub, revision="next/one") == landed == pushed(hub)
    assert contents(run_folder) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pytorch_model.bin", b"x", "holds pytorch_model.bin: pickles"),
        ("training_args.bin", b"x", "holds training_args.bin: pickles"),
        ("optimizer.PT", b"x", "holds optimizer.PT: pickles"),
        ("model.safetensors", b"\x80\x02}q\x00.", "model.safetensors is not a complete safetensors file"),
        ("model.safetensors", None, "lacks model.safetensors"),
        ("modeling_vit_scratch.py", None, "lacks modeling_vit_scratch.py"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
            "lacks model-0",
        ),
    ],
)
def test_a_folder_that_cannot_go_is_refused_by_name(run_folder, tmp_path, name, content, words):
    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        files_to_push(folder)


# ---- what lands

FRESH = """
import json, os, sys
from pathlib import Path
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

repo, old, new, image, marker = sys.argv[1:]
trusted = {"trust_remote_code": True}

def classify(**pinned):
    model = AutoModelForImageClassification.from_pretrained(repo, **trusted, **pinned)
    processor = AutoImageProcessor.from_pretrained(repo, **trusted, **pinned)
    with torch.inference_mode():
        return model(**processor(Image.open(image), return_tensors="pt")).logits[0].tolist()

found = {"main": classify(), "old": classify(revision=old), "both": classify(revision=old, code_revision=old)}
found["config"] = AutoConfig.from_pretrained(repo, **trusted).model_type
found["hidden"] = list(AutoModel.from_pretrained(repo, **trusted)(torch.zeros(1, 1, 28, 28)).last_hidden_state.shape)
found["pipeline"] = pipeline("image-classification", model=repo, **trusted)(image)
found["old pipeline"] = pipeline("image-classification", model=repo, revision=old, **trusted)(image)
os.chdir(Path(image).parent)
(snippet,) = ModelCard.load(repo).text.split("```python")[1:]
exec(snippet.split("```")[0], {"print": lambda result: found.update(snippet=result)})

# Now the code of the branch is another one.
swapped = f"open({marker!r}, 'w')\\nraise RuntimeError('the swapped code was run')"
HfApi().upload_file(path_or_fileobj=swapped.encode(), path_in_repo="modeling_vit_scratch.py", repo_id=repo)
for cache in ("warm", "empty"):
    kept = {} if cache == "warm" else {"cache_dir": f"{marker}-cache"}
    found[f"pinned {cache}"] = classify(revision=new, **kept)
    found[f"pinned both {cache}"] = classify(revision=new, code_revision=new, **kept)
found["marker of pinned"] = Path(marker).exists()
try:
    classify()
except Exception as error:
    found["unpinned"] = str(error)
found["marker of main"] = Path(marker).exists()
found["imported"] = [name for name, module in sys.modules.items() if name.startswith("hf_vit_scratch") and module]
print(json.dumps(found))
"""


def test_a_repository_is_all_that_a_fresh_python_needs(hub, run_folder, other_weights, digit, tmp_path):
    from hf_vit_scratch.evaluation.classifier import load_model

    expected = []
    for folder in (run_folder, other_weights):
        finish(vit_scratch(hub.environment(), "push", folder, REPO))
        model, processor = load_model(folder, torch.device("cpu"))
        with torch.inference_mode():
            expected.append(model(**processor(Image.open(digit), return_tensors="pt")).logits[0])
    new, old, _ = (commit.oid for commit in hub.commits(REPO))
    old_download, new_download = tmp_path / "old", tmp_path / "new"
    for revision, folder in ((old, old_download), (new, new_download)):
        command = ["-m", "huggingface_hub.cli.hf", "download", REPO, "--revision", revision, "--local-dir", folder]
        subprocess.run([sys.executable, *command], env=hub.environment(token=None), check=True, capture_output=True)
        names = {path.name for path in folder.iterdir() if path.is_file()}
        assert names == PUSHED | {".gitattributes"}
    assert (old_download / "model.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()
    assert (new_download / "model.safetensors").read_bytes() == (other_weights / "model.safetensors").read_bytes()

    marker = tmp_path / "was_run"
    environment = hub.environment()
    process = start(environment, FRESH, REPO, old, new, digit, marker, package=False)
    found = json.loads(finish(process)[0].splitlines()[-1])
    for name in ("old", "both"):
        torch.testing.assert_close(torch.tensor(found[name]), expected[0], atol=1e-5, rtol=1e-5)
    for name in ("main", *(f"pinned{both} {cache}" for both in ("", " both") for cache in ("warm", "empty"))):
        torch.testing.assert_close(torch.tensor(found[name]), expected[1], atol=1e-5, rtol=1e-5)
    assert (found["config"], found["hidden"], found["imported"]) == ("vit_scratch", [1, 17, 16], [])
    for name, logits in (("old pipeline", expected[0]), ("pipeline", expected[1]), ("snippet", expected[1])):
        best, probabilities = found[name][0], logits.softmax(dim=-1)
        assert best["label"] == str(int(probabilities.argmax()))
        assert best["score"] == pytest.approx(float(probabilities.max()), abs=1e-4)
    assert not found["marker of pinned"] and found["marker of main"] and "unpinned" in found

    # The package runs the weights of the same repository with its own code, and none of what lies there now.
    marker.unlink()
    environment = hub.environment(token=None)
    predict = ["predict", digit, "--model", REPO, "--json"]
    online, _ = finish(vit_scratch(environment, *predict))
    label = json.loads(online)["predictions"][0]["label"]
    assert label == str(int(expected[1].argmax())) and not marker.exists()
    warm = vit_scratch(environment | {"HF_HUB_OFFLINE": "1"}, *predict)
    empty = vit_scratch(hub.environment() | {"HF_HUB_OFFLINE": "1"}, *predict)
    assert finish(warm)[0] == online
    output, line = finish(empty, code=2)
    assert output == "" and line.startswith(f"vit-scratch: error: cannot load a model from {REPO}:")


# ---- what fails


def test_each_fault_is_one_clear_line_and_a_second_push_completes_it(hub, run_folder, other_weights):
    folder, before = run_folder, contents(run_folder)

    def push(environment, *arguments, code=2) -> str:
        return finish(vit_scratch(environment, "push", folder, *(arguments or (REPO,))), code)[1]

    alice = hub.environment()
    faults = {
        "there is no token": (hub.environment(token=None), REPO),
        "the token of alice may only read": (hub.environment(token=hub.read_token), REPO),
        "user bob, the owner of the token, has no write access": (hub.environment(token=hub.other_token), REPO),
        "the Hub does not accept the token": (hub.environment(token="hf_LoopbackOfNobody"), REPO),
        "holds spaces or invalid characters": (hub.environment(token="hf_Loopback\x01OfAlice"), REPO),
        "user alice, the owner of the token, has no write access": (alice, "bob/digits"),
        "'alice/--digits'": (alice, "alice/--digits"),
        "the repository must be USER/NAME, got 'digits'": (alice, "digits"),
        "offline mode": (alice | {"HF_HUB_OFFLINE": "1"}, REPO),
        "Connection refused": (alice | {"HF_ENDPOINT": "http://127.0.0.1:9"}, REPO),
        "unrecognized arguments: --token hf_...": (alice, REPO, "--token", hub.token),
    }
    processes = {words: vit_scratch(call[0], "push", folder, *call[1:]) for words, call in faults.items()}
    for words, process in processes.items():
        _, line = finish(process, code=2)
        assert words in line and line.startswith("vit-scratch: error:"), (words, line)
    assert not hub.repositories

    # The weights are cut, and the second time the signature of the URL has run out: else the client would succeed.
    oid = hashlib.sha256(before["model.safetensors"]).hexdigest()
    hub.fault("PUT", oid, after_bytes=10_000)
    hub.fault("PUT", oid, after_bytes=10_000, status=403)
    line = push(alice)
    assert f"403 A fault of the test. {folder} is complete. To push it again: vit-scratch push {folder} {REPO}" in line
    assert len(hub.commits(REPO)) == 1

    # A read-only token is not found out by making what is there; a public repository is not made private.
    assert "may only read" in push(hub.environment(token=hub.read_token))
    assert "is public" in push(alice, REPO, "--private")
    hub.fault("POST", "/api/repos/create", status=429, headers={"Retry-After": "3600"})
    assert "429 A fault of the test, try again in 3600 s" in push(alice)

    # Ctrl-C does not wait for a connection that is stalled.
    stalled = hub.fault("PUT", oid, after_bytes=10_000, hang=60)
    process = vit_scratch(alice, "push", folder, REPO)
    assert stalled.reached.wait(60)
    process.send_signal(signal.SIGINT)
    _, line = finish(process, code=130)
    assert line == f"Stopped. {folder} is complete. To push it again: vit-scratch push {folder} {REPO}"
    stalled.release.set()
    assert len(hub.commits(REPO)) == 1

    # What passes is waited for, in all that the client gives up at once.
    hub.fault("POST", "/api/repos/create", status=429, headers={"Retry-After": "0"})
    hub.fault("POST", "/commit/", status=500, times=2)
    hub.fault("POST", "/api/validate-yaml", after_bytes=1)  # cut
    push(alice, code=0)
    assert pushed(hub).keys() == PUSHED and len(hub.commits(REPO)) == 2
    assert pushed(hub)["model.safetensors"] == before["model.safetensors"]
    assert not any(fault.times for fault in hub.faults) and contents(folder) == before


# ---- a run that pushes

RUN = """
import os, sys
from pathlib import Path
from hf_vit_scratch import ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.training import main

folder, read_token, *flags = sys.argv[1:]
push = ["--push_to_hub", "--hub_model_id"]

def stopped(*arguments):
    try:
        main([*flags, *arguments])
    except SystemExit as error:
        return error.code

every = ["--hub_strategy", "every_save", "--hub_always_push", "true", "--save_steps", "3", "--eval_steps", "3"]
print("codes", stopped(*push, "alice/run", *every, "--save_total_limit", "9", "--output_dir", f"{folder}/run"))
print("codes", stopped(*push, "alice/late", "--output_dir", f"{folder}/late", "--hub_private_repo", "true"))
print("codes", stopped(*push, "alice/late", "--output_dir", f"{folder}/none", "--hub_token", read_token))
print("codes", stopped(*push, "alice/late", "--output_dir", f"{folder}/none", "--hub_strategy", "checkpoint"))
model = ViTScratchForImageClassification.from_pretrained(f"{folder}/run")
model.push_to_hub("alice/direct")
ViTScratchImageProcessor.from_pretrained(f"{folder}/run").push_to_hub("alice/direct")
"""


def test_a_run_pushes_what_is_whole_at_each_save_and_at_its_end(hub, run_folder, tmp_path):
    hub.fault("POST", "/api/models/alice/run/commit/", status=403)
    hub.fault("POST", "/api/models/alice/late/commit/", status=400)
    flags = ["--data", run_folder.parent / "digits.zip", *TINY]
    own = PUSHED - {"example.png"}  # for this process the zip is not the competition's: no image of it is pushed
    environment = hub.environment() | {"HF_DATASETS_OFFLINE": "1"}
    process = start(environment, RUN, tmp_path, hub.read_token, *flags)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert re.findall(r"codes (\S+)", output) == ["None", "2", "2", "2"], errors
    assert "Loopback" not in output + errors
    run, late = tmp_path / "run", tmp_path / "late"

    # 12 steps, saved at 3, 6, 9 and 12; the first push failed, and the last is that of the finished run.
    assert (
        "Warning: step 3 of 12 was not pushed, and training continues: cannot push to alice/run: user alice" in errors
    )
    last, at_9, at_6, _ = hub.commits("alice/run")
    for step, commit in ((6, at_6), (9, at_9)):
        files = pushed(hub, "alice/run", commit.oid)
        assert files.keys() == own - {"confusion_matrix.png"}
        weights = tmp_path / "pushed.safetensors"
        weights.write_bytes(files["model.safetensors"])
        average = load_file(run / f"checkpoint-{step}" / "average.safetensors")
        assert all(torch.equal(tensor, average[name]) for name, tensor in load_file(weights).items())
        card, results = files["README.md"].decode(), json.loads(files["all_results.json"])
        assert f"after step {step} of 12" in card and 'model="alice/run"' in card and "\n# run\n" in card
        assert results["validation_num_images"] == 20 and results["epoch"] == step / 6
    files = pushed(hub, "alice/run", last.oid)
    assert files.keys() == own and b"Unfinished" not in files["README.md"]
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert not list(run.glob(".push-*")) and not list(run.rglob("training_args.bin"))

    # What could not be pushed is whole, says how to go on, and goes on.
    assert {path.name for path in late.iterdir() if path.is_file()} >= own | {"submission.csv"}
    line = next(line for line in errors.splitlines() if "alice/late" in line)
    assert line.startswith("train.py: error: cannot push to alice/late: 400 A fault of the test.")
    assert line.endswith(f"{late} is complete. To push it again: vit-scratch push {late} alice/late --private")
    finish(vit_scratch(environment, "push", late, "alice/late", "--private"))
    assert pushed(hub, "alice/late").keys() == own and hub.repositories["alice/late"].private

    # What may not be pushed is not trained.
    assert "train.py: error: cannot push to alice/late: the token of alice may only read" in errors
    assert "train.py: error: hub_strategy checkpoint uploads optimizer states: use end or every_save." in errors
    assert not (tmp_path / "none").exists()

    direct = pushed(hub, "alice/direct")
    assert direct.keys() == MODEL | {"README.md"}
    assert {name: direct[name] for name in CODE} == {name: (run / name).read_bytes() for name in CODE}
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads(direct[name])["auto_map"]["AutoImageProcessor"].startswith("image_processing_vit_scratch.")

    every_file = [data for repo in hub.repositories.values() for data in repo.objects.values()]
    every_file += [blob.content for repo in hub.repositories for c in hub.commits(repo) for blob in c.files.values()]
    every_file += [*contents(run).values(), *contents(late).values()]
    secrets = (b"Loopback", bytes(tmp_path))
    public = [data for repo in hub.repositories for data in pushed(hub, repo).values()]
    assert not [data for data in every_file if secrets[0] in data] and not [d for d in public if secrets[1] in d]


# ---- the real Hub

ROUND = """
import sys
from huggingface_hub import HfApi, snapshot_download
from transformers import pipeline

repo, image = sys.argv[1:]
print(snapshot_download(repo))
print(pipeline("image-classification", model=repo, trust_remote_code=True)(image)[0]["label"])
"""


@pytest.mark.hub
def test_the_real_hub(run_folder, digit, tmp_path):
    """`pytest -m hub`, by somebody who is logged in: a private repository is pushed, pulled, compared and deleted."""
    token = get_token()
    assert token, "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
    ours = re.compile(r"(HF|TRANSFORMERS)_")  # the offline mode and the caches of the tests
    environment = {name: value for name, value in os.environ.items() if not ours.match(name)}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": token}
    api = start(environment, "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])")
    repo = f"{finish(api)[0].strip()}/hf-vit-scratch-test-{uuid.uuid4().hex[:8]}"
    try:
        first, _ = finish(vit_scratch(environment, "push", run_folder, repo, "--private"))
        assert finish(vit_scratch(environment, "push", run_folder, repo, "--private"))[0] == first
        folder, label = finish(start(environment, ROUND, repo, digit, package=False))[0].splitlines()
        names = {path.name for path in Path(folder).iterdir()}
        assert names == PUSHED | {".gitattributes"}
        for name in PUSHED - {"README.md"}:
            assert (Path(folder) / name).read_bytes() == (run_folder / name).read_bytes()
        predicted, _ = finish(vit_scratch(environment, "predict", digit, "--model", repo))
        assert label == predicted.split("\t")[1] == "7"
    finally:
        delete = "import sys; from huggingface_hub import HfApi; HfApi().delete_repo(sys.argv[1], missing_ok=True)"
        finish(start(environment, delete, repo))
