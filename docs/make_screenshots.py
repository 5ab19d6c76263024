"""Takes ``docs/tensorboard-*.png``: ``python docs/make_screenshots.py [DEMO_FOLDER]``.

It runs the demo where no folder of one is given, serves it with TensorBoard to this machine alone
and opens it in a Chromium without a window. The slow tests look at runs through the same functions.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from tensorboard import program

FOLDER = Path(__file__).parent
# What each page of TensorBoard holds once it is drawn.
DRAWN = {
    "custom_scalars": "vz-line-chart2 path",
    "timeseries": "scalar-card line-chart canvas",
    "scalars": "vz-line-chart2 path, scalar-card line-chart canvas",
    "images": "tf-image-loader img",
    "text": "tf-text-loader h2",
    "histograms": "vz-histogram-timeseries path",
    "distributions": "vz-distribution-chart path",
}
# Page, height of the window in pixels.
_SHOTS = {"custom_scalars": 1130, "images": 1130, "text": 800}
_WIDTH = 1280
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_LARGEST = 200_000  # bytes
_LONGEST, _SETTLED = 120_000, 2_000  # milliseconds


def find_chromium() -> str | None:
    """Return a Chromium: the one that the variable CHROMIUM names, or one on the PATH."""
    names = (os.environ.get("CHROMIUM", ""), *_NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def served(folder: Path) -> str:
    """Serve a log folder until this process ends, and return the address."""
    server = program.TensorBoard()
    about = ("--logdir", str(folder), "--host", "127.0.0.1", "--port", "0")
    server.configure(argv=[None, *about, "--load_fast", "false", "--reload_interval", "0"])
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    return server.launch()


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=find_chromium(), args=_FLAGS)
        yield started
        started.close()


class Visit:
    """A page of TensorBoard once it is drawn, with what it complained of and what it asked for.

    Args:
        chromium: From ``browser``.
        address: From ``served``.
        name: Of the page, as in ``DRAWN``.
        height: Of the window, in pixels.

    Attributes:
        page: In the browser.
        complaints: Errors, and answers that were none.
        foreign: Addresses on other machines that were asked for.
    """

    def __init__(self, chromium: Any, address: str, name: str, height: int = 1000) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self._context = chromium.new_context(viewport={"width": _WIDTH, "height": height})
        self.page = self._context.new_page()
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", self._check)
        self.page.on("request", lambda asked: self._look_at(asked.url, address))
        # Smoothing is on by default, and it bends sparse curves.
        self.page.goto(f"{address}?darkMode=false&smoothing=0#{name}&_smoothingWeight=0")
        self.page.wait_for_selector(DRAWN[name], timeout=_LONGEST, state="attached")
        self.page.wait_for_load_state("networkidle", timeout=_LONGEST)
        self.page.wait_for_timeout(_SETTLED)

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _check(self, answer: Any) -> None:
        if answer.status >= 400:
            self.complaints.append(f"{answer.status} {answer.url}")

    def _look_at(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.foreign.append(url)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()


def _make(folder: Path) -> None:
    # From within, so that the pictures show no path of the machine that they were taken on.
    with chdir(folder.parent), browser() as chromium:
        address = served(Path(folder.name))
        for name, height in _SHOTS.items():
            with Visit(chromium, address, name, height) as visit:
                if name == "images":
                    visit.page.get_by_text("Show actual image size").click()
                    visit.page.wait_for_timeout(_SETTLED)
                place = FOLDER / f"tensorboard-{name.replace('_', '-')}.png"
                visit.page.screenshot(path=place)
                _shrink(place)


def _shrink(place: Path) -> None:
    """Leave out what no eye needs: the transparency, and colours where the file is large."""
    with Image.open(place) as image:
        plain = image.convert("RGB")
    plain.save(place, optimize=True)
    if place.stat().st_size > _LARGEST:
        plain.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(place, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _make(Path(sys.argv[1]))
    else:
        from ntkwatch.demo import run_demo

        with tempfile.TemporaryDirectory() as scratch:
            run_demo(Path(scratch) / "demo")
            _make(Path(scratch) / "demo")
