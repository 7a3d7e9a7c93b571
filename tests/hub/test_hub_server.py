"""The Hub on loopback, as the real client sees it: in processes of its own, with nothing of it replaced."""

import hashlib
import inspect
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hub_server import Blob

WEIGHTS = 400_000  # bytes


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small model: text, a picture and weights."""
    folder = tmp_path / "model"
    (folder / "plots").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "vit_scratch"}')
    (folder / "README.md").write_text(
        "---\nlibrary_name: transformers\npipeline_tag: image-classification\n---\n# Card"
    )
    (folder / "plots" / "curves.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    write_weights(folder, seed=0)
    return folder


def write_weights(folder: Path, seed: int) -> None:
    tensors = {"weight": {"dtype": "U8", "shape": [WEIGHTS], "data_offsets": [0, WEIGHTS]}}
    header = json.dumps(tensors).encode()
    content = np.random.default_rng(seed).bytes(WEIGHTS)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)


def contents(folder: str | Path) -> dict[str, bytes]:
    """Files by name, without what the client or the Hub add."""
    files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in files.items() if not name.startswith((".cache", ".gitattributes"))
    }


def hear_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(environment: dict[str, str], function, *arguments) -> subprocess.Popen:
    """A process that runs a function of this file and prints what it returns."""
    call = f"import json, sys\nprint(json.dumps({function.__name__}(*sys.argv[1:])))"
    command = [sys.executable, "-c", f"{inspect.getsource(function)}\n{call}", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts what runs in the background, as these tests may, with Ctrl-C ignored, and children inherit it.
    return subprocess.Popen(command, env=environment, preexec_fn=hear_ctrl_c, **pipes)


def run(environment: dict[str, str], function, *arguments):
    process = start(environment, function, *arguments)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def push(folder):
    from huggingface_hub import HfApi

    HfApi().create_repo("alice/model", exist_ok=True)
    return HfApi().upload_folder(folder_path=folder, repo_id="alice/model").oid


def push_twice_and_pull(folder):
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    api, repo = HfApi(), "alice/model"
    assert api.create_repo(repo).repo_id == api.create_repo("model", exist_ok=True).repo_id == repo
    first = api.upload_folder(folder_path=folder, repo_id=repo)
    second = api.upload_folder(folder_path=folder, repo_id=repo)
    info = api.model_info(repo, files_metadata=True)
    header = api.get_safetensors_metadata(repo)  # reads a range
    return {
        "user": api.whoami()["name"],
        "commits": [first.oid, second.oid, info.sha],
        "card": [info.pipeline_tag, info.library_name, info.private],
        "lfs": sorted(file.rfilename for file in info.siblings if file.lfs),
        "sizes": {file.rfilename: file.size for file in info.siblings},
        "tree": [entry.path for entry in api.list_repo_tree(repo, recursive=True)],
        "plots": [entry.path for entry in api.list_repo_tree(repo, "plots")],
        "paths": [type(entry).__name__ for entry in api.get_paths_info(repo, ["plots", "config.json", "none"])],
        "shape": header.files_metadata["model.safetensors"].tensors["weight"].shape,
        "snapshot": snapshot_download(repo),
        "weights": hf_hub_download(repo, "model.safetensors", cache_dir=f"{folder}-fresh"),
        "missing": api.file_exists(repo, "pytorch_model.bin"),
    }


def revisions_and_rights(folder, read_token, other_token):
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import HfHubHTTPError

    api, repo = HfApi(), "alice/model"
    head = api.model_info(repo).sha
    api.create_branch(repo, branch="next/one")
    pushed = api.upload_folder(folder_path=folder, repo_id=repo, revision="next/one").oid
    main = api.upload_folder(folder_path=folder, repo_id=repo, path_in_repo="copy", parent_commit=head).oid
    api.delete_folder("copy", repo)
    api.create_repo("alice/secret", private=True)
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="x.bin", repo_id="alice/secret")
    api.create_repo("alice/gone")
    api.delete_repo("alice/gone")

    reader, other, nobody, wrong = (HfApi(token=token) for token in (read_token, other_token, False, "hf_wrong"))
    upload = dict(path_or_fileobj=b"", path_in_repo="x", repo_id=repo)
    attempts = {
        "private, no token": lambda: nobody.hf_hub_download("alice/secret", "x.bin"),
        "private, other": lambda: other.model_info("alice/secret"),
        "private, snapshot": lambda: nobody.snapshot_download("alice/secret"),
        "deleted": lambda: api.model_info("alice/gone"),
        "no such revision": lambda: api.snapshot_download(repo, revision="no-such"),
        "no such file": lambda: api.hf_hub_download(repo, "no-such"),
        "no such folder": lambda: list(api.list_repo_tree(repo, "no-such")),
        "wrong token": lambda: wrong.whoami(),
        "wrong token, public": lambda: wrong.model_info(repo),
        "create, no token": lambda: nobody.create_repo("alice/new"),
        "create, reader": lambda: reader.create_repo("alice/new"),
        "create, other": lambda: other.create_repo("alice/new"),
        "create, again": lambda: api.create_repo(repo),
        "upload, no token": lambda: nobody.upload_file(**upload),
        "upload, reader": lambda: reader.upload_file(**upload),
        "upload, other": lambda: other.upload_file(**upload),
        "upload, no such branch": lambda: api.upload_file(**upload, revision="no-such"),
        "upload, stale": lambda: api.upload_file(**upload, parent_commit=head),
        "branch, again": lambda: api.create_branch(repo, branch="next/one"),
        "branch, invalid": lambda: api.create_branch(repo, branch="refs/pr/1"),
    }
    refused = {}
    for name, attempt in attempts.items():
        try:
            refused[name] = attempt() and None
        except HfHubHTTPError as error:
            refused[name] = [type(error).__name__, error.response.status_code]
    return {
        "refused": refused,
        "read again": reader.create_repo(repo, exist_ok=True).repo_id,
        "head": head,
        "main": main,
        "branches": {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).branches},
        "pushed": pushed,
        "old": snapshot_download(repo, revision=head),
        "new": snapshot_download(repo, revision="next/one"),
        "files": api.list_repo_files(repo),
    }


def test_hashes_are_those_of_git():
    assert Blob(b"Hello, World!").oid == "b45ef6fec89518d314f546fd6c3025367b721684"
    assert Blob(b"Hello, World!", lfs=True).pointer.startswith(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:"
    )


def test_round_trip(hub, folder, tmp_path):
    hub.page_size, hub.multipart_above = 3, 150_000
    environment = hub.environment()
    found = run(environment, push_twice_and_pull, folder)

    first, again, head = found["commits"]
    assert first == again == head and [commit.title for commit in hub.commits("alice/model")][1:] == ["initial commit"]
    assert found["user"] == "alice" and found["card"] == ["image-classification", "transformers", False]
    assert found["lfs"] == ["model.safetensors", "plots/curves.png"] and found["shape"] == [WEIGHTS]
    expected = contents(folder)
    assert {name: found["sizes"][name] for name in expected} == {name: len(data) for name, data in expected.items()}
    assert found["tree"] == sorted([*expected, ".gitattributes", "plots"]) and found["plots"] == ["plots/curves.png"]
    assert found["paths"] == ["RepoFile", "RepoFolder"] and found["missing"] is False
    assert contents(found["snapshot"]) == expected
    assert Path(found["weights"]).read_bytes() == expected["model.safetensors"]
    assert hub.files("alice/model", head) == expected | {".gitattributes": hub.files("alice/model")[".gitattributes"]}

    storage = [request for request in hub.requests if request.path.startswith("/lfs/")]
    assert len([request for request in storage if request.method == "PUT"]) == 4  # weights in 3 parts, picture
    assert {request.status for request in storage} == {200, 206} and not any(request.authorized for request in storage)
    assert len([request for request in hub.requests if "/commit/" in request.path]) == 1

    # Another version, on a branch and in a folder of main; and who may not.
    write_weights(folder, seed=1)
    found = run(environment, revisions_and_rights, folder, hub.read_token, hub.other_token)
    assert found["head"] == head and contents(found["old"]) == expected and contents(found["new"]) == contents(folder)
    assert found["branches"] == {"main": hub.commits("alice/model")[0].oid, "next/one": found["pushed"]}
    assert hub.files("alice/model", found["main"])["copy/model.safetensors"] == contents(folder)["model.safetensors"]
    assert "copy/model.safetensors" not in found["files"] and "model.safetensors" in found["files"]
    assert found["read again"] == "alice/model"  # as on the real Hub: create_repo is no proof of a right to write
    assert found["refused"] == {
        "private, no token": ["RepositoryNotFoundError", 401],
        "private, other": ["RepositoryNotFoundError", 404],
        "private, snapshot": ["RepositoryNotFoundError", 401],
        "deleted": ["RepositoryNotFoundError", 404],
        "no such revision": ["RevisionNotFoundError", 404],
        "no such file": ["RemoteEntryNotFoundError", 404],
        "no such folder": ["RemoteEntryNotFoundError", 404],
        "wrong token": ["HfHubHTTPError", 401],
        "wrong token, public": ["HfHubHTTPError", 401],
        "create, no token": ["HfHubHTTPError", 401],
        "create, reader": ["HfHubHTTPError", 403],
        "create, other": ["HfHubHTTPError", 403],
        "create, again": ["HfHubHTTPError", 409],
        "upload, no token": ["RepositoryNotFoundError", 401],
        "upload, reader": ["HfHubHTTPError", 403],
        "upload, other": ["HfHubHTTPError", 403],
        "upload, no such branch": ["RevisionNotFoundError", 404],
        "upload, stale": ["HfHubHTTPError", 412],
        "branch, again": ["HfHubHTTPError", 409],
        "branch, invalid": ["BadRequestError", 400],
    }

    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "download", "alice/model", "--revision", head]
    subprocess.run(
        [*command, "--local-dir", tmp_path / "cli"], env=hub.environment(token=None), check=True, timeout=60
    )
    assert contents(tmp_path / "cli") == expected


def test_faults(hub, folder):
    weights = contents(folder)["model.safetensors"]
    oid = hashlib.sha256(weights).hexdigest()

    # The client would try again and succeed: the second time, the signature of the URL has run out.
    hub.fault("PUT", "/lfs/alice/model", after_bytes=100_000)
    hub.fault("PUT", "/lfs/alice/model", after_bytes=100_000, status=403)
    cut = start(hub.environment(), push, folder)
    _, errors = cut.communicate(timeout=60)
    assert cut.returncode == 1 and "403 Forbidden" in errors
    assert [request.status for request in hub.requests if request.path.endswith(oid)] == [None, 403]
    assert len(hub.commits("alice/model")) == 1 and oid not in hub.repositories["alice/model"].objects

    # Two files are uploaded in threads. Ctrl-C waits for these, and then there is no commit.
    fault = hub.fault("PUT", "/lfs/alice/model", after_bytes=100_000, hang=60)
    interrupted = start(hub.environment(), push, folder)
    assert fault.reached.wait(60)
    interrupted.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        interrupted.wait(1)
    fault.release.set()
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode != 0 and "KeyboardInterrupt" in errors and len(hub.commits("alice/model")) == 1

    hub.requests.clear()
    hub.fault("POST", "/preupload/", status=500, times=2)
    hub.fault("POST", "/objects/batch", status=429, headers={"Retry-After": "0"})
    assert run(hub.environment(), push, folder) == hub.commits("alice/model")[0].oid
    assert hub.files("alice/model")["model.safetensors"] == weights and len(hub.commits("alice/model")) == 2
    assert [request.status for request in hub.requests if "/preupload/" in request.path] == [500, 500, 200]
    assert [request.status for request in hub.requests if "/objects/batch" in request.path] == [429, 200]
    assert not any(fault.times for fault in hub.faults)


def test_what_the_client_does_not_send(hub):
    def send(path, *values, **headers):
        body = "\n".join(map(json.dumps, values)).encode()
        headers["Authorization"] = f"Bearer {hub.token}"
        try:
            request = urllib.request.Request(hub.endpoint + path, body if values else None, headers)
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    for name in ("a--b", "a..b", ".a", "a.git", "é", "a b", "a" * 97, ""):
        assert send("/api/repos/create", {"name": name, "organization": "alice"})[0] == 400, name
    assert send("/api/repos/create", {"name": "model"})[0] == 200

    header = {"key": "header", "value": {"summary": "weights that nobody uploaded"}}
    pointer = {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    status, _, body = send("/api/models/alice/model/commit/main", header, pointer)
    assert status == 400 and b"x.bin" in body and len(hub.commits("alice/model")) == 1
    assert send(f"/lfs/alice/model/{'0' * 64}?signature=guessed")[0] == 403

    path, content = "/alice/model/resolve/main/.gitattributes", hub.files("alice/model")[".gitattributes"]
    for value, expected in (
        ("0-9", content[:10]),
        ("10-", content[10:]),
        ("-5", content[-5:]),
        ("5-9999", content[5:]),
    ):
        status, headers, body = send(path, Range=f"bytes={value}")
        assert status == 206 and body == expected and headers["Content-Range"].endswith(f"/{len(content)}")
    assert send(path, Range="bytes=9999-")[0] == 416
    assert send(path)[:1] + send(path)[2:] == (200, content)

    hub.stop()
    with pytest.raises(urllib.error.URLError, match="refused"):
        send(path)
