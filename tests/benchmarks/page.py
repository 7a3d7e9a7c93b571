"""The page of `vit-scratch demo`: how soon it is ready, how soon it answers, and how it looks.

    python tests/benchmarks/page.py
    python tests/benchmarks/page.py --screenshot hf_vit_scratch/demo/page.png

It starts the page and draws strokes on it in Chromium. An answer is timed in the browser, from the end of the stroke
(`pointerup`) to the frame that shows the answer. The second command takes the screenshot of the README.
"""

import argparse
import math
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "model_cards" / "vit-scratch-digits-small"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SERVE = """
import sys, time
import hf_vit_scratch.demo.server
print(time.time(), flush=True)
hf_vit_scratch.demo.server.serve(sys.argv[1:], "127.0.0.1")
"""
WATCH = """() => {
    const canvas = document.getElementById("canvas"), answer = document.getElementById("answer");
    window.times = [];
    let end = null;
    canvas.addEventListener("pointerup", (event) => { end = event.timeStamp; }, true);
    new MutationObserver(() => requestAnimationFrame(() => {
        if (end !== null) window.times.push(performance.now() - end);
        end = null;
    })).observe(answer, { childList: true });
}"""
SEVEN = [(0.3, 0.22), (0.7, 0.22), (0.45, 0.82)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="Default: %(default)s.")
    parser.add_argument("--strokes", type=int, default=50, help="Default: %(default)s.")
    parser.add_argument("--screenshot", help="Take the screenshot of the README into this file instead.")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)))
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 850})
        server = subprocess.Popen([sys.executable, "-c", SERVE, str(options.model)], stdout=subprocess.PIPE, text=True)
        try:
            imported = float(server.stdout.readline())
            address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
            if options.screenshot:
                take(page, address, options.screenshot)
            else:
                measure(page, address, imported, options.strokes)
        finally:
            browser.close()
            server.kill()
            server.wait()


def measure(page: Page, address: str, imported: float, strokes: int) -> None:
    """Print when the page could be drawn on, when its examples were there, and how soon it answered each stroke."""
    page.goto(address)
    page.get_by_text("Draw a digit").wait_for()
    ready = time.time() - imported
    page.locator("#pictures button").first.wait_for()
    examples = time.time() - imported
    page.evaluate(WATCH)
    for stroke in range(strokes):
        turn = 0.4 * math.sin(stroke)  # no two strokes alike
        draw(page, [(x + 0.1 * turn, y + 0.1 * turn) for x, y in SEVEN])
        while page.evaluate("window.times.length") <= stroke:
            time.sleep(0.01)
        page.locator("#clear").click()
    times = sorted(page.evaluate("window.times"))
    print("| what | time |\n| --- | --- |")
    print(f"| the page can be drawn on, after the imports | {ready:.2f} s |")
    print(f"| its examples are there, after the imports | {examples:.2f} s |")
    print(f"| answer after a stroke, median of {strokes} | {statistics.median(times):.0f} ms |")
    print(f"| answer after a stroke, the longest of {strokes} | {times[-1]:.0f} ms |")


def draw(page: Page, stroke: list[tuple[float, float]]) -> None:
    """Draw a stroke with the mouse. Its points are parts of the square."""
    box = page.locator("#canvas").bounding_box()
    (x, y), *others = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
    page.mouse.move(x, y)
    page.mouse.down()
    for x, y in others:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()


def take(page: Page, address: str, file: str) -> None:
    """The page with a digit that could be a 1 or a 7."""
    page.goto(address)
    page.locator("#pictures button").first.wait_for()
    draw(page, [(0.39, 0.27), (0.58, 0.2), (0.5, 0.84)])
    page.locator("#bars li").nth(9).wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=file, full_page=True)


if __name__ == "__main__":
    main()
