"""Pushing an output folder or the files of a Space to the Hub: which files are uploaded, and how."""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub import CommitOperationDelete as Delete
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from ..console import leave
from ..output_folder import (
    CARD_NAME,
    CODE_NAMES,
    CONFIG_NAME,
    EVALUATION_NAME,
    PREPROCESSOR_NAME,
    RESULTS_NAME,
    SETTINGS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    WEIGHTS_PATTERNS,
    read_json,
)
from .model_folder import check_model, shard_names

_NEEDED = (CONFIG_NAME, PREPROCESSOR_NAME, *CODE_NAMES)
_PUSHED = (*_NEEDED, *WEIGHTS_PATTERNS, CARD_NAME, RESULTS_NAME, SETTINGS_NAME, EVALUATION_NAME, "*.png")
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_BUSY = (None, 429, 500, 502, 503, 504)
_WAITS = (1, 2, 4)  # seconds before each retry
_LONGEST_WAIT = 300  # seconds; if the Hub asks for a longer wait, the push fails with an error
_SNIPPET = re.compile(r'(pipeline\("image-classification", model=)"[^"]*"')
_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")  # one push at a time
_T = TypeVar("_T")


def files_to_push(folder: str | os.PathLike) -> list[Path]:
    """The files of a folder that are pushed: weights, configs, code, card, results and plots. No others are pushed.

    Raises:
        ValueError: the folder is not a complete model with its code, or holds a pickle.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Expected the output folder of a run.")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in files}
    if pickles := [path.name for path in files if path.suffix.lower() in _PICKLES]:
        raise ValueError(f"{folder} holds {', '.join(pickles)}: pickles can run any code when loaded. Remove them.")
    needed = {*_NEEDED, WEIGHTS_NAME}
    if WEIGHTS_INDEX_NAME in names:
        needed |= {*shard_names(read_json(folder / WEIGHTS_INDEX_NAME))}
        needed -= {WEIGHTS_NAME}
    if missing := sorted(needed - names):
        raise ValueError(f"{folder} lacks {', '.join(missing)}. Expected the output folder of a run.")
    try:
        check_model(str(folder))
    except ValueError as error:
        raise ValueError(f"{folder} is not a model that loads: {error}") from error
    return [path for path in files if any(fnmatch(path.name, pattern) for pattern in _PUSHED)]


class Repository:
    """A repository on the Hub, to which folders of models are pushed, or the files of a Space.

    Args:
        repo_id: USER/NAME. The repository is created if it does not exist.
        private: create it as private; a repository that is public is refused.
        revision: branch, created if it does not exist. Default: main.
        token: token with write access. Default: HF_TOKEN, or the token of `hf auth login`.
        kind: "model", or "space" for a Space that runs Gradio.

    Raises:
        ValueError: the name is not allowed, or there is no valid token.
    """

    def __init__(
        self,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        kind: str = "model",
    ):
        if repo_id.count("/") != 1:
            raise ValueError(f"the repository must be USER/NAME, got {repo_id!r}.")
        validate_repo_id(repo_id)
        token = token or get_token()
        if not token:
            raise ValueError("there is no token for the Hub. Run `hf auth login`, or set HF_TOKEN.")
        if not re.fullmatch(r"[!-~]+", token):  # the error of the HTTP library would print it
            raise ValueError("the token for the Hub holds spaces or invalid characters. Check HF_TOKEN.")
        self.repo_id, self.private, self.revision, self.kind = repo_id, private, revision, kind
        self.api = HfApi(token=token)
        disable_progress_bars()  # the bar of a failed upload is drawn again at exit, below the error

    def check(self) -> None:
        """Create the repository and check the write access, without uploading. Raises: OSError, in one line."""
        probe = [Add("config.json", b"{}")]  # only announced in the preupload request, not uploaded
        where = {"repo_type": self.kind, "revision": self.revision}
        self._run(lambda: self.api.preupload_lfs_files(self.repo_id, probe, **where))

    def submit(self, folder: str | os.PathLike) -> Future:
        """Push a folder in the background, after earlier pushes. The result of the future is the URL of the commit.

        The folder is not changed. The files go in one commit, or in none if the repository already has them.

        Raises: ValueError as [`files_to_push`]. The future raises OSError, in one line, for any failure of the push.
        """
        files = files_to_push(folder)
        # transformers could load old weight files instead of the new ones if their number of shards differs.
        return _worker.submit(
            self._run, lambda: self._commit({path.name: self._content(path) for path in files}, WEIGHTS_PATTERNS)
        )

    def upload(self, folder: str | os.PathLike) -> str:
        """Push a folder and wait for the end. Returns the URL of the commit. Raises: as `submit` and its future.

        Ctrl-C ends the program even if the connection is stalled.
        """
        options = ["--private"] * self.private + ([f"--revision {self.revision}"] if self.revision else [])
        command = " ".join(["vit-scratch push", str(folder), self.repo_id, *options])
        return _finished(self.submit(folder), f"{folder} is complete. To push it again: {command}")

    def upload_files(self, files: Mapping[str, Path | bytes], replaced: tuple[str, ...], command: str) -> str:
        """Push files in one commit, and wait for the end. Returns the URL of the commit.

        Args:
            files: by their names in the repository.
            replaced: patterns of names; files there that match one and are not among these are deleted.
            command: the command that pushes them again.

        Raises: OSError, in one line, for any failure of the push.
        """
        pushed = _worker.submit(self._run, lambda: self._commit(files, replaced))
        return _finished(pushed, f"To push again: {command}")

    def _commit(self, files: Mapping[str, Path | bytes], replaced: tuple[str, ...]) -> str:
        where = {"repo_type": self.kind, "revision": self.revision}
        there = [file.rfilename for file in self.api.repo_info(self.repo_id, **where).siblings]
        old = [name for name in there if any(fnmatch(name, pattern) for pattern in replaced)]
        changes = [Add(name, content) for name, content in files.items()]
        changes += [Delete(name) for name in old if name not in files]
        message = "Push with vit-scratch"
        return self.api.create_commit(self.repo_id, changes, commit_message=message, **where).commit_url

    def _content(self, path: Path) -> Path | bytes:
        """What to upload: the file, or the card with the id of the repository, instead of a folder, in its example."""
        if path.name != CARD_NAME:
            return path
        return _SNIPPET.sub(rf'\1"{self.repo_id}"', path.read_text(encoding="utf-8")).encode()

    def _run(self, action: Callable[[], _T]) -> _T:
        """Create repository and branch if needed, then run `action`. Raises: OSError, in one line, for any failure."""
        try:
            kind = {"repo_type": self.kind}
            new = {**kind, "private": self.private or None, "space_sdk": "gradio" if self.kind == "space" else None}
            self._with_retries(lambda: self.api.create_repo(self.repo_id, exist_ok=True, **new))
            if self.private and not self._with_retries(lambda: self.api.repo_info(self.repo_id, **kind)).private:
                raise ValueError("the repository exists and is public. Leave out --private, or choose another name")
            if self.revision:
                branch = {**kind, "branch": self.revision, "exist_ok": True}
                self._with_retries(lambda: self.api.create_branch(self.repo_id, **branch))
            return self._with_retries(action)
        except Exception as error:  # the exceptions of the client have no common base class
            raise OSError(f"cannot push to {self.repo_id}: {self._reason(error).rstrip('.')}.") from error

    def _with_retries(self, call: Callable[[], _T]) -> _T:
        """Run `call`, and retry API requests if the Hub is busy or the connection was lost.

        huggingface_hub itself retries only its uploads.
        """
        waits = iter(_WAITS)
        while True:
            try:
                return call()
            except HTTPError as error:
                wait = next(waits, None)
                response = getattr(error, "response", None)  # None: no response was received
                status, headers = (None, {}) if response is None else (response.status_code, response.headers)
                if wait and headers.get("Retry-After", "").isdecimal():
                    wait = int(headers["Retry-After"]) + 1
                url = (error if response is None else response).request.url
                again = status in _BUSY and re.search(r"/api/(?!.*/preupload/)", str(url))
                if not again or not wait or wait > _LONGEST_WAIT:
                    raise
                print(f"The Hub failed: {status or error}. Retrying in {wait} s.", file=sys.stderr, flush=True)
                time.sleep(wait)

    def _reason(self, error: BaseException) -> str:
        error = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # failed upload
        if not isinstance(error, HfHubHTTPError):
            return " ".join(str(error).split()) or type(error).__name__
        status, endpoint = error.response.status_code, self.api.endpoint
        if str(error.response.url).startswith(endpoint):  # the storage uses the same status codes for other reasons
            if status == 401:
                return "the Hub does not accept the token. Run `hf auth login`, or set HF_TOKEN"
            if status == 403:
                return self._refused(endpoint)
        message = error.server_message or error.response.reason_phrase
        after = error.response.headers.get("Retry-After")
        return f"{status} {message}" + (f", try again in {after} s" if after else "")

    def _refused(self, endpoint: str) -> str:
        try:
            user = self.api.whoami()
        except HTTPError:
            return "the token has no write access to it"
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            return f"the token of {user['name']} may only read. Create a write token at {endpoint}/settings/tokens"
        return f"user {user['name']}, the owner of the token, has no write access to it"


def _finished(pushed: Future, again: str) -> str:
    """The URL of the commit of a push. If it fails or is stopped, the line ends with `again`, what to do."""
    try:
        return pushed.result()
    except OSError as error:
        raise OSError(f"{error} {again}") from error
    except KeyboardInterrupt:
        leave(f"Stopped. {again}")
