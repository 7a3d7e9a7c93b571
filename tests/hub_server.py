"""A Hugging Face Hub on loopback, for tests that run the real client of `huggingface_hub` in processes of their own.

It speaks the part of the HTTP API that `huggingface_hub` uses for models and Spaces, keeps them in memory as git
objects whose hashes it computes itself, and can be told to misbehave. Large files are on a second port, as they are on
another host in reality, so a client that sends its token to the storage is seen.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

# What a new repository on the Hub tracks with LFS.
_LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*"
).split()
_LFS_LINE = "{} filter=lfs diff=lfs merge=lfs -text\n"
_LFS_ABOVE = 10 * 1024**2  # bytes: a larger file is LFS, whatever its name
_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_][\w.-]{0,94}(?<![.-])", re.ASCII)

Response = tuple[int, dict[str, str], bytes]


def _git_hash(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file of a commit. What git knows of an LFS file is a pointer."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @cached_property
    def oid(self) -> str:
        return _git_hash("blob", self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True, eq=False)
class Commit:
    files: dict[str, Blob]
    parent: "Commit | None"
    author: str
    title: str
    message: str = ""

    @cached_property
    def oid(self) -> str:
        # Not git's hash, which nobody computes on the other side: only as unique.
        content = {path: blob.oid for path, blob in sorted(self.files.items())}
        parent = self.parent and self.parent.oid
        return _git_hash("commit", json.dumps([content, parent, self.author, self.title, self.message]).encode())

    @property
    def folders(self) -> set[str]:
        return {str(folder) for path in self.files for folder in PurePosixPath(path).parents} - {"."}

    def history(self) -> Iterator["Commit"]:
        commit = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repository:
    id: str
    private: bool
    branches: dict[str, Commit]
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS: content by SHA-256
    parts: dict[tuple[str, str], bytes] = field(default_factory=dict)  # of LFS objects that come in several

    def at(self, revision: str) -> Commit:
        known = {commit.oid: commit for head in self.branches.values() for commit in head.history()} | self.branches
        if revision not in known:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return known[revision]


@dataclass
class Request:
    """What the log keeps of a request. The path is as it was sent, percent-encoded, without the query."""

    method: str
    path: str
    query: dict[str, list[str]] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    status: int | None = None  # None: never answered

    @property
    def authorized(self) -> bool:
        return "Authorization" in self.headers

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path the pattern is found in, in place of an answer.

    With `status` the request is read and refused. Without, the connection is cut after so many bytes of the body, or,
    with `hang`, nothing more is read for so many seconds or until `release` is set, and then all goes on. Shorter
    bodies do not count: that tells the weights from smaller files.
    """

    method: str
    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int = 0
    hang: float = 0
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def meets(self, request: Request, length: int) -> bool:
        named = self.method == request.method and re.search(self.pattern, request.path)
        return bool(self.times and length >= self.after_bytes and named)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", commit: Commit | None = None, **body):
        super().__init__(message)
        headers = {"X-Error-Message": message.encode("ascii", "replace").decode()}
        headers |= ({"X-Error-Code": code} if code else {}) | ({"X-Repo-Commit": commit.oid} if commit else {})
        self.response = _json({"error": message, **body}, status, headers)


def _json(value, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode()


def _file(content: bytes, request: Request, headers: dict[str, str]) -> Response:
    """The content, or the range of it that was asked for."""
    headers, size = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}, len(content)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if not match or not any(match.groups()):
        return 200, headers, content
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end:
        return 416, headers | {"Content-Range": f"bytes */{size}"}, b""
    return 206, headers | {"Content-Range": f"bytes {start}-{end}/{size}"}, content[start : end + 1]


_ROUTES: list[tuple[str, re.Pattern, str, Callable[..., Response]]] = []
# A Space is kept as spaces/USER/NAME, which is also its place in the URLs of files.
_REPO = r"(?P<repo>(?:spaces/[^/]+/[^/]+)|[^/]+(?:/[^/]+)?)"
_API = rf"/api/(?:models/|(?=spaces/)){_REPO}"
_REVISION, _OBJECT = "(?P<revision>[^/]+)", rf"/lfs/{_REPO}/(?P<oid>[0-9a-f]{{64}})"


def _route(method: str, pattern: str, access: str = "read"):
    """Who gets in: "read" and "write" look at the repository and the token, "signed" at the URL, "open" at nothing."""

    def add(function):
        _ROUTES.append((method, re.compile(pattern), access, function))
        return function

    return add


class Hub:
    """A running server. `tokens`, `faults`, `page_size` and `multipart_above` are there to be changed by a test."""

    token, read_token, other_token = "hf_LoopbackWriteOfAlice", "hf_LoopbackReadOfAlice", "hf_LoopbackWriteOfBob"

    def __init__(self, folder: Path):
        self.folder = folder  # for the homes that `environment` makes; the repositories are in memory
        self.tokens = {self.token: ("alice", "write"), self.read_token: ("alice", "read")}
        self.tokens[self.other_token] = ("bob", "write")
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # tracebacks: faults of this server that nobody asked for
        self.page_size = 1000  # entries of a folder in one answer
        self.multipart_above: int | None = None  # bytes: larger LFS objects come in parts of that size
        self._secret = secrets.token_hex()
        self._lock = threading.Lock()
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
        # Clients tell hosts apart by their names: some by the name alone, some by name and port.
        self.endpoint, self.storage = (
            f"http://{name}:{server.server_port}"
            for name, server in zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        )

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    # What a test asks for

    def stop(self) -> None:
        """Refuse new connections."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def environment(self, token: str | None = token) -> dict[str, str]:
        """Variables for a process that takes this for the Hub; each call makes a new, empty home and cache."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ours = re.compile(r"(HF|HUGGING\w*|TRANSFORMERS)_|\w+_proxy$", re.IGNORECASE)
        return {name: value for name, value in os.environ.items() if not ours.match(name)} | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": tempfile.mkdtemp(prefix="home", dir=self.folder),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # it asks PyPI
            **({"HF_TOKEN": token} if token else {}),
        }

    def fault(self, method: str, pattern: str, **how) -> Fault:
        self.faults.append(Fault(method, pattern, **how))
        return self.faults[-1]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.repositories[repo].at(revision).files.items()}

    def commits(self, repo: str, revision: str = "main") -> list[Commit]:
        """The newest first. The last one is the Hub's own, with .gitattributes."""
        return list(self.repositories[repo].at(revision).history())

    # What the server does with a request

    def take_fault(self, request: Request, length: int) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            fault = next((fault for fault in self.faults if fault.meets(request, length)), None)
            if fault:
                fault.times -= 1
            return fault

    def answer(self, request: Request) -> Response:
        try:
            with self._lock:
                return self._dispatch(request)
        except Refusal as refusal:
            return refusal.response
        except Exception:
            self.errors.append(traceback.format_exc())
            return _json({"error": "The test server failed, see hub.errors"}, 500)

    def _dispatch(self, request: Request) -> Response:
        method = request.method.replace("HEAD", "GET")
        for route, pattern, access, function in _ROUTES:
            if route == method and (match := pattern.fullmatch(request.path)):
                groups = {name: unquote(value) for name, value in match.groupdict(default="").items()}
                user = None if access == "signed" else self._user(request)
                if access == "signed" and request.query.get("signature") != [self._signature(method, request.path)]:
                    raise Refusal(403, "The request signature does not match.")
                if "repo" in groups:
                    groups["repo"] = self._repository(groups["repo"], user, access)
                return function(self, request, user, **groups)
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _user(self, request: Request) -> tuple[str, str] | None:
        if not request.authorized:
            return None
        token = request.headers["Authorization"].removeprefix("Bearer ")
        if token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def _repository(self, name: str, user: tuple[str, str] | None, access: str) -> Repository:
        owner = name.removeprefix("spaces/").partition("/")[0]
        repo, own = self.repositories.get(name), user is not None and user[0] == owner
        if repo is None or access != "signed" and repo.private and not own or access == "write" and user is None:
            if user is None:
                # The real Hub sends no code here, but the client knows the answer by its URL if it begins with https.
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if access == "write" and not own:
            raise Refusal(403, "Authorization error.")
        if access == "write" and user[1] != "write":
            raise Refusal(403, "you must use a write token to upload to a repository.")
        return repo

    def _signature(self, method: str, path: str) -> str:
        return hashlib.sha256(f"{self._secret} {method} {path}".encode()).hexdigest()

    def _signed(self, method: str, repo: Repository, oid: str, part: str = "") -> str:
        path = f"/lfs/{quote(repo.id)}/{oid}{part}"
        return f"{self.storage}{path}?signature={self._signature(method, path)}"

    @_route("GET", "/api/whoami-v2", "open")
    def _whoami(self, request, user):
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": user[1]}
        auth = {"type": "access_token", "accessToken": token}
        return _json({"type": "user", "name": user[0], "fullname": user[0], "orgs": [], "auth": auth})

    def _named_in(self, request: Request, user: tuple[str, str] | None, verb: str) -> str:
        """The id of a repository that is in the body and belongs to the user."""
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        body = json.loads(request.body)
        namespace, name = body.get("organization") or user[0], body["name"]
        kind = body.get("type") or "model"
        if kind not in ("model", "space"):
            raise Refusal(400, "This server has models and Spaces only.")
        if kind == "space" and verb == "create" and body.get("sdk") != "gradio":
            raise Refusal(400, "This server has Spaces with Gradio only.")
        if not _NAME.fullmatch(name):
            raise Refusal(400, f"Invalid repo name: {name}")
        if user != (namespace, "write"):
            raise Refusal(403, f'You don\'t have the rights to {verb} a model under the namespace "{namespace}"')
        return f"spaces/{namespace}/{name}" if kind == "space" else f"{namespace}/{name}"

    @_route("POST", "/api/repos/create", "open")
    def _create(self, request, user):
        name, body = self._named_in(request, user, "create"), json.loads(request.body)
        url = f"{self.endpoint}/{name}"
        if name in self.repositories:
            raise Refusal(409, "You already created this model repo", url=url)
        attributes = Blob("".join(map(_LFS_LINE.format, _LFS_PATTERNS)).encode())
        first = Commit({".gitattributes": attributes}, None, user[0], "initial commit")
        self.repositories[name] = Repository(name, body.get("visibility") == "private", {"main": first})
        return _json({"url": url, "name": name})

    @_route("DELETE", "/api/repos/delete", "open")
    def _delete(self, request, user):
        if self.repositories.pop(self._named_in(request, user, "delete"), None) is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return 200, {}, b"OK"

    @_route("GET", rf"{_API}(?:/revision/{_REVISION})?")
    def _info(self, request, user, repo, revision):
        commit = repo.at(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        for sibling in siblings if request.flag("blobs") else ():
            blob = commit.files[sibling["rfilename"]]
            sibling |= {"size": len(blob.content), "blobId": blob.oid}
            if blob.lfs:
                sibling["lfs"] = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
        name = repo.id.removeprefix("spaces/")
        info = {"id": name, "modelId": name, "author": name.partition("/")[0], "private": repo.private}
        info |= {"sha": commit.oid, "siblings": siblings, "gated": False, "tags": []}
        # Of the card no more than pipeline() asks for: these two have one word each.
        card = commit.files.get("README.md", Blob(b"")).content.decode()
        return _json(info | dict(re.findall(r"^(pipeline_tag|library_name): *(\S+)$", card, re.MULTILINE)))

    @staticmethod
    def _entries(commit: Commit) -> list[dict]:
        found = [
            {"type": "directory", "oid": _git_hash("tree", path.encode()), "size": 0, "path": path}
            for path in commit.folders
        ]
        for path, blob in commit.files.items():
            size = len(blob.content)
            found.append({"type": "file", "oid": blob.oid, "size": size, "path": path})
            if blob.lfs:
                found[-1]["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
        return sorted(found, key=lambda entry: entry["path"])

    @_route("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?")
    def _tree(self, request, user, repo, revision, path):
        commit = repo.at(revision)
        if path and path not in commit.folders:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound", commit)
        prefix = f"{path}/" if path else ""
        found = [entry for entry in self._entries(commit) if entry["path"].startswith(prefix)]
        if not request.flag("recursive"):
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(prefix)]
        start = int(request.query.get("cursor", ["0"])[0])
        headers, end = {}, start + self.page_size
        if end < len(found):
            query = urlencode(request.query | {"cursor": [end]}, doseq=True)
            headers["Link"] = f'<{self.endpoint}{request.path}?{query}>; rel="next"'
        return _json(found[start:end], headers=headers)

    @_route("POST", rf"{_API}/paths-info/{_REVISION}")
    def _paths_info(self, request, user, repo, revision):
        paths = parse_qs(request.body.decode()).get("paths", [])
        return _json([entry for entry in self._entries(repo.at(revision)) if entry["path"] in paths])

    @_route("GET", rf"{_API}/refs")
    def _refs(self, request, user, repo):
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": head.oid}
            for name, head in repo.branches.items()
        ]
        return _json({"branches": branches, "converts": [], "tags": []})

    @_route("POST", rf"{_API}/branch/(?P<branch>[^/]+)", "write")
    def _branch(self, request, user, repo, branch):
        if branch in repo.branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        if branch.startswith("refs/") or not re.fullmatch(r"(?!.*\.\.)[\w][\w./-]*", branch):
            raise Refusal(400, f"Invalid reference for a branch: {branch}")
        repo.branches[branch] = repo.at(json.loads(request.body).get("startingPoint", "main"))
        return _json({})

    @_route("POST", "/api/validate-yaml", "open")
    def _validate_yaml(self, request, user):
        warning = {"message": "empty or missing yaml metadata in repo card"}
        has_metadata = json.loads(request.body)["content"].startswith("---\n")
        return _json({"errors": [], "warnings": [] if has_metadata else [warning]})

    @staticmethod
    def _tracked(commit: Commit, path: str) -> bool:
        lines = commit.files.get(".gitattributes", Blob(b"")).content.decode().splitlines()
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        return any(fnmatch(path, pattern) or fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)

    @_route("POST", rf"{_API}/preupload/{_REVISION}", "write")
    def _preupload(self, request, user, repo, revision):
        commit, files = repo.at(revision), []
        for file in json.loads(request.body)["files"]:
            path, binary = file["path"], b"\0" in base64.b64decode(file["sample"])
            lfs = binary or file["size"] > _LFS_ABOVE or self._tracked(commit, path)
            oid = commit.files[path].etag if path in commit.files else None
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": files, "commitOid": commit.oid})

    @_route("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "write")
    def _lfs_batch(self, request, user, repo):
        body, objects, parted = json.loads(request.body), [], False
        for oid, size in ((entry["oid"], entry["size"]) for entry in body["objects"]):
            objects.append({"oid": oid, "size": size, "authenticated": True})
            if oid in repo.objects:
                continue  # no actions: the client need not send it
            method, header = "PUT", {}
            if self.multipart_above and size > self.multipart_above and "multipart" in body["transfers"]:
                parts = range(1, -(-size // self.multipart_above) + 1)
                header = {str(part): self._signed("PUT", repo, oid, f"/{part}") for part in parts}
                method, header["chunk_size"], parted = "POST", str(self.multipart_above), True
            upload = {"href": self._signed(method, repo, oid), "header": header}
            verify = {"href": f"{self.endpoint}/{repo.id}.git/info/lfs/verify", "header": {}}
            objects[-1]["actions"] = {"upload": upload, "verify": verify}
        return _json({"transfer": "multipart" if parted else "basic", "objects": objects})

    @_route("PUT", _OBJECT, "signed")
    def _lfs_put(self, request, user, repo, oid):
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have the promised SHA-256.")
        repo.objects[oid] = request.body
        return 200, {"ETag": f'"{oid}"'}, b""

    @_route("PUT", rf"{_OBJECT}/(?P<part>\d+)", "signed")
    def _lfs_put_part(self, request, user, repo, oid, part):
        repo.parts[oid, part] = request.body
        return 200, {"ETag": f'"{hashlib.sha256(request.body).hexdigest()}"'}, b""

    @_route("POST", _OBJECT, "signed")
    def _lfs_complete(self, request, user, repo, oid):
        parts = json.loads(request.body)["parts"]
        request.body = b"".join(repo.parts.pop((oid, str(part["partNumber"]))) for part in parts)
        return self._lfs_put(request, user, repo, oid)

    @_route("POST", rf"/{_REPO}\.git/info/lfs/verify", "write")
    def _lfs_verify(self, request, user, repo):
        body = json.loads(request.body)
        if len(repo.objects.get(body["oid"], b"")) != body["size"]:
            raise Refusal(404, "The object was not uploaded.")
        return _json({})

    @_route("GET", _OBJECT, "signed")
    def _lfs_get(self, request, user, repo, oid):
        return _file(repo.objects[oid], request, {"ETag": f'"{oid}"'})

    @_route("POST", rf"{_API}/commit/{_REVISION}", "write")
    def _commit(self, request, user, repo, revision):
        parent, header = repo.at(revision), {}
        if revision not in repo.branches or request.flag("create_pr"):
            raise Refusal(400, "This server commits to branches only.")
        files, attributes = dict(parent.files), ""
        for line in request.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in repo.objects:
                    message = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
                    raise Refusal(400, f"{message} Offending file: {value['path']}")
                files[value["path"]] = Blob(repo.objects[value["oid"]], lfs=True)
                if not self._tracked(parent, value["path"]):
                    attributes += _LFS_LINE.format(value["path"])
            else:  # deletedFile, deletedFolder
                path, folder = value["path"].removesuffix("/"), key == "deletedFolder"
                gone = [name for name in files if (name.startswith(f"{path}/") if folder else name == path)]
                if not gone:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                files = {name: blob for name, blob in files.items() if name not in gone}
        if header.get("parentCommit", parent.oid) != parent.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        if attributes:
            files[".gitattributes"] = Blob(files[".gitattributes"].content + attributes.encode())
        commit = Commit(files, parent, user[0], header["summary"], header.get("description", ""))
        repo.branches[revision] = commit
        url = f"{self.endpoint}/{repo.id}/commit/{commit.oid}"
        return _json({"success": True, "commitOid": commit.oid, "commitUrl": url})

    @_route("GET", rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)")
    def _resolve(self, request, user, repo, revision, path):
        commit = repo.at(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit)
        blob, headers = commit.files[path], {"X-Repo-Commit": commit.oid}
        if not blob.lfs:
            return _file(blob.content, request, headers | {"ETag": f'"{blob.oid}"'})
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        return 302, headers | {"Location": self._signed("GET", repo, blob.sha256)}, b""


class _Server(ThreadingHTTPServer):
    hub: Hub

    def handle_error(self, request, client_address) -> None:
        # A client that is gone is what some tests are about.
        if not isinstance(error := sys.exc_info()[1], OSError):
            self.hub.errors.append("".join(traceback.format_exception(error)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets, and the second would wait for the first
    server: _Server

    def _answer(self) -> None:
        hub, url, length = self.server.hub, urlsplit(self.path), int(self.headers.get("Content-Length", 0))
        request = Request(self.command, url.path, parse_qs(url.query), self.headers)
        fault = hub.take_fault(request, length)
        if fault and fault.status is None:
            request.body = self.rfile.read(fault.after_bytes)
            fault.reached.set()
            if not fault.hang:
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            fault.release.wait(fault.hang)
        request.body += self.rfile.read(length - len(request.body))
        if len(request.body) < length:
            raise ConnectionAbortedError  # the client is gone
        if fault and fault.status:
            fault.reached.set()
            status, headers, body = _json({"error": "A fault of the test"}, fault.status, fault.headers)
        else:
            status, headers, body = hub.answer(request)
        request.status = status
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_) -> None:
        pass  # the log is hub.requests
