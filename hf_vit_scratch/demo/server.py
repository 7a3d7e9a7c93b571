"""The server of the page: Gradio, with all doors closed that the page does not use."""

import json
import os
import threading
from collections.abc import Sequence
from importlib import resources
from string import Template

import gradio
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from .answers import FORMAT_NAMES, MAX_UPLOAD_BYTES, ShownModel, read_picture
from .examples import examples

_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
# What the page and Gradio's start ask for. Gradio has dozens of other routes: for uploads into a folder, for files,
# for addresses to fetch, for the code of an app.
_OPEN = {
    *(("GET", f"/{name}") for name in ("", *_FILES)),
    ("HEAD", "/"),
    ("GET", "/gradio_api/startup-events"),
    ("POST", "/gradio_api/run/classify"),
    ("POST", "/gradio_api/run/examples"),
}
_MAX_BODY_BYTES = MAX_UPLOAD_BYTES * 4 // 3 + 2**16  # a picture in base64, and the JSON around it
_HEADERS = {
    # The page loads nothing from elsewhere, whatever is written into it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Gate:
    """Lets through the requests that the page makes, with a body of a bounded size, and refuses all others."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        refusal = self._refusal(scope) if scope["type"] != "lifespan" else None
        await (refusal or self.app)(scope, receive, send)

    @staticmethod
    def _refusal(scope) -> Response | None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) not in _OPEN:
            return PlainTextResponse("There is no such page.", 404)
        length = dict(scope["headers"]).get(b"content-length", b"")
        if scope["method"] == "POST" and not length.isdigit():
            return PlainTextResponse("The length of the request is not known.", 411)
        if length.isdigit() and int(length) > _MAX_BODY_BYTES:
            return PlainTextResponse("The request is too large.", 413)
        return None


def build(models: Sequence[ShownModel]) -> gradio.Server:
    """The server with the page and its two functions, `classify(model, picture, drawn)` and `examples(model)`."""
    by_name, server = {model.name: model for model in models}, gradio.Server(middleware=[Middleware(Gate)])
    page, found, searching = _page(models), {}, threading.Lock()

    def examples_of(name: str) -> dict:
        with searching:  # two pages that are opened together wait for one search
            if name not in found:
                found[name] = examples(by_name[name])
            return found[name]

    def checked(name: object) -> str:
        if not isinstance(name, str) or name not in by_name:
            raise ValueError("This page does not have that model.")
        return name

    @server.api(name="classify", queue=False)
    def classify(model: str, picture: str, drawn: bool) -> dict:
        try:
            return by_name[checked(model)].answer(read_picture(picture), drawn is True)
        except ValueError as error:
            return {"refused": str(error)}

    @server.api(name="examples", queue=False)
    def examples_to_click(model: str) -> dict:
        try:
            return examples_of(checked(model))
        except ValueError as error:
            return {"refused": str(error)}

    @server.api_route("/", methods=["GET", "HEAD"])
    def main() -> Response:
        return HTMLResponse(page, headers=_HEADERS)

    for name, kind in _FILES.items():
        server.add_api_route(f"/{name}", _file(name, kind))
    return server


def _read(name: str) -> str:
    return (resources.files("hf_vit_scratch.demo") / name).read_text(encoding="utf-8")


def _file(name: str, kind: str):
    content, headers = _read(name), _HEADERS | {"Cache-Control": "no-cache"}
    # A new response each time, since Gradio compresses it in place.
    return lambda: Response(content, media_type=kind, headers=headers)


def _page(models: Sequence[ShownModel]) -> str:
    """page.html with what page.js has to know, as JSON in which no `<` can end the element around it."""
    about = {
        "models": [{"name": model.name, "draws": model.reads_digits} for model in models],
        "maxBytes": MAX_UPLOAD_BYTES,
    }
    text = json.dumps(about).replace("<", "\\u003c")
    return Template(_read("page.html")).substitute(about=text, formats=FORMAT_NAMES, most=MAX_UPLOAD_BYTES >> 20)


def serve(sources: Sequence[str], host: str | None = None, port: int | None = None) -> None:
    """Load the models, serve the page, and print its address. Returns when the program is interrupted.

    Args:
        sources: output folders of runs, or ids of repositories on the Hub. Code in them is not run.
        host: address to listen at. None: that of GRADIO_SERVER_NAME, which a Space sets, or 127.0.0.1.
        port: port to listen at. None: that of GRADIO_SERVER_PORT, or the first free one from 7860.

    Raises:
        ValueError: in one line, if a model cannot be loaded.
        OSError: in one line, if no port is free.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # telemetry, and the question whether there is a newer version
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    models = [ShownModel(source) for source in dict.fromkeys(sources)]
    server = build(models)
    _, address, _ = server.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD_BYTES,
        enable_monitoring=False,
    )
    print(f"The page is at {address} and ends with Ctrl-C.", flush=True)
    threading.Event().wait()
