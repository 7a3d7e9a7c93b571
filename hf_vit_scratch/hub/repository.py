"""Pushing an output folder to the Hub: what of it goes, and how."""

import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub import CommitOperationDelete as Delete
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from safetensors import SafetensorError, safe_open

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

_NEEDED = (CONFIG_NAME, PREPROCESSOR_NAME, *CODE_NAMES)
_PUSHED = (*_NEEDED, *WEIGHTS_PATTERNS, CARD_NAME, RESULTS_NAME, SETTINGS_NAME, EVALUATION_NAME, "*.png")
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_BUSY = (None, 429, 500, 502, 503, 504)
_WAITS = (1, 2, 4)  # seconds before each new try
_LONGEST_WAIT = 300  # seconds; where the Hub asks for more, the push fails and says so
_SNIPPET = re.compile(r'(pipeline\("image-classification", model=)"[^"]*"')
_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")  # one push after the other
_T = TypeVar("_T")


def files_to_push(folder: str | os.PathLike) -> list[Path]:
    """What of a folder goes to the Hub, by name: weights, configs, code, card, results, plots. All else stays.

    Raises:
        ValueError: the folder is not a whole model with its code, or a pickle lies in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: expected the output folder of a run.")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in files}
    if pickles := [path.name for path in files if path.suffix.lower() in _PICKLES]:
        raise ValueError(f"{folder} holds {', '.join(pickles)}: pickles run code where they are loaded. Remove it.")
    needed = {*_NEEDED, WEIGHTS_NAME}
    if WEIGHTS_INDEX_NAME in names:
        needed |= set(read_json(folder / WEIGHTS_INDEX_NAME)["weight_map"].values())
        needed -= {WEIGHTS_NAME}
    if missing := sorted(needed - names):
        raise ValueError(f"{folder} lacks {', '.join(missing)}: expected what a run or save_pretrained leaves.")
    for name in needed - {*_NEEDED}:
        try:
            with safe_open(folder / name, "np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is not whole safetensors: {error}.") from error
    return [path for path in files if any(fnmatch(path.name, pattern) for pattern in _PUSHED)]


class Repository:
    """A place on the Hub that folders are pushed to.

    Args:
        repo_id: USER/NAME; it is made where there is none.
        private: make it private, or refuse one that is public.
        revision: branch, made where there is none. Default: main.
        token: with write access. Default: that of `hf auth login`, or HF_TOKEN.

    Raises:
        ValueError: the name is not allowed, or there is no token.
    """

    def __init__(self, repo_id: str, private: bool = False, revision: str | None = None, token: str | None = None):
        if repo_id.count("/") != 1:
            raise ValueError(f"a repository is called USER/NAME, got {repo_id!r}.")
        validate_repo_id(repo_id)
        token = token or get_token()
        if not token:
            raise ValueError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN.")
        if not re.fullmatch(r"[!-~]+", token):  # the error of the HTTP library would show it
            raise ValueError("the token for the Hub holds spaces or characters that no token has.")
        self.repo_id, self.private, self.revision = repo_id, private, revision
        self.api = HfApi(token=token)
        disable_progress_bars()  # one that fails is drawn once more at exit, below the error

    def check(self) -> None:
        """Make the repository, and find out whether it may be written to. Raises OSError, in one line, if not."""
        probe = [Add("config.json", b"{}")]  # the Hub is asked how it would take it, and gets none
        self._guarded(lambda: self.api.preupload_lfs_files(self.repo_id, probe, revision=self.revision))

    def submit(self, folder: str | os.PathLike) -> Future:
        """Push in the background, after those that are under way. The result is the URL of the commit.

        The folder is only read. It goes in one commit, or in none where the repository has all of it.
        Raises: ValueError for a folder that cannot go. The future raises OSError, in one line, for all that fails.
        """
        files = files_to_push(folder)
        return _worker.submit(self._guarded, lambda: self._commit(files))

    def upload(self, folder: str | os.PathLike) -> str:
        """As `submit`, and wait for it: Ctrl-C ends the program, even if the connection is stalled."""
        options = ["--private"] * self.private + ([f"--revision {self.revision}"] if self.revision else [])
        command = " ".join(["vit-scratch push", str(folder), self.repo_id, *options])
        try:
            return self.submit(folder).result()
        except OSError as error:
            raise OSError(f"{error} {folder} is whole; go on with: {command}") from error
        except KeyboardInterrupt:
            leave(f"Stopped: {folder} is whole, and this completes the push: {command}")

    def _commit(self, files: list[Path]) -> str:
        head = self.api.model_info(self.repo_id, revision=self.revision)
        names = [path.name for path in files]
        # Weights that were sharded otherwise, or not at all, would be found by transformers in place of the new.
        there = [file.rfilename for file in head.siblings]
        old = [name for name in there if any(fnmatch(name, pattern) for pattern in WEIGHTS_PATTERNS)]
        changes = [Add(path.name, self._content(path)) for path in files]
        changes += [Delete(name) for name in old if name not in names]
        message = "Push with vit-scratch"
        return self.api.create_commit(self.repo_id, changes, commit_message=message, revision=self.revision).commit_url

    def _content(self, path: Path) -> Path | bytes:
        """The snippet of the card has the name of the folder until the repository is known."""
        if path.name != CARD_NAME:
            return path
        return _SNIPPET.sub(rf'\1"{self.repo_id}"', path.read_text(encoding="utf-8")).encode()

    def _guarded(self, action: Callable[[], _T]) -> _T:
        """Do it, once repository and branch are there. All that fails becomes an OSError of one line."""
        try:
            self._patiently(lambda: self.api.create_repo(self.repo_id, private=self.private or None, exist_ok=True))
            if self.private and not self._patiently(lambda: self.api.model_info(self.repo_id)).private:
                raise ValueError("it exists and is public, so --private cannot keep this from being seen")
            if self.revision:
                self._patiently(lambda: self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True))
            return self._patiently(action)
        except Exception as error:  # the client has no base class for what it raises
            raise OSError(f"cannot push to {self.repo_id}: {self._reason(error).rstrip('.')}.") from error

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Try again what the client does not: all but its uploads, where the Hub is busy or a connection was cut."""
        waits = iter(_WAITS)
        while True:
            try:
                return call()
            except HTTPError as error:
                wait = next(waits, None)
                response = getattr(error, "response", None)  # None: there was no answer
                status, headers = (None, {}) if response is None else (response.status_code, response.headers)
                if wait and headers.get("Retry-After", "").isdecimal():
                    wait = int(headers["Retry-After"]) + 1
                url = (error if response is None else response).request.url
                again = status in _BUSY and re.search(r"/api/(?!.*/preupload/)", str(url))
                if not again or not wait or wait > _LONGEST_WAIT:
                    raise
                print(f"The Hub: {status or error}. Trying again in {wait} s.", file=sys.stderr, flush=True)
                time.sleep(wait)

    def _reason(self, error: BaseException) -> str:
        error = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of an upload
        if not isinstance(error, HfHubHTTPError):
            return " ".join(str(error).split()) or type(error).__name__
        status, endpoint = error.response.status_code, self.api.endpoint
        if str(error.response.url).startswith(endpoint):  # not the storage, which has other rules
            if status == 401:
                return "the Hub does not know the token. Run `hf auth login`, or set HF_TOKEN"
            if status == 403:
                return self._refused(endpoint)
        said = error.server_message or error.response.reason_phrase
        after = error.response.headers.get("Retry-After")
        return f"{status} {said}" + (f", try again in {after} s" if after else "")

    def _refused(self, endpoint: str) -> str:
        try:
            user = self.api.whoami()
        except HTTPError:
            return "the token may not write there"
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            return f"the token of {user['name']} may only read. One that may write: {endpoint}/settings/tokens"
        return f"{user['name']}, whose token this is, may not write there"
