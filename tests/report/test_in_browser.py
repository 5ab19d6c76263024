"""The pages in a real browser, with the network cut off; oracle: what Chromium sees and says."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from report.made_runs import (
    HOSTILE,
    LAYERS,
    angles_of,
    feature_observations,
    lazy_observations,
    read_back,
    renamed,
    run_info,
)

from ntkwatch.report.html import render_comparison_html, render_html
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.verdict.verdict import judge

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    (
        found
        for name in (
            os.environ.get("CHROMIUM", ""),
            "chromium",
            "chromium-browser",
            "google-chrome",
        )
        if name and (found := shutil.which(name))
    ),
    None,
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on the PATH and none named by the variable CHROMIUM"
    ),
]

DESKTOP = {"viewport": {"width": 1200, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A hostile run and a comparison with it, as files."""
    folder = tmp_path_factory.mktemp("pages")
    names = {"features.0": HOSTILE, "features.2": "encoder.layers.11.attention.output.dense." * 3}
    observations = tuple(
        replace(renamed(o, names), notes=(HOSTILE,), left_out={**o.left_out, "rkhs_norm": HOSTILE})
        for o in feature_observations()
    )
    info = replace(run_info(), probe={"classes": {HOSTILE: 64}}, model={"class": HOSTILE})
    rich = read_back(folder / "rich", observations, info=info, gaps=(Gap(step=2, reason=HOSTILE),))
    rich.angles = angles_of([names.get(name, name) for name in LAYERS])
    lazy = read_back(folder / "lazy", lazy_observations())
    runs = [(HOSTILE, rich, judge(rich)), ("lazy CNN", lazy, judge(lazy))]
    texts = {
        "run": render_html(rich, judge(rich), title=HOSTILE),
        "comparison": render_comparison_html(
            runs, title=HOSTILE, facts={HOSTILE: {HOSTILE: HOSTILE}}
        ),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


class Visit:
    """A page opened from its file, with everything it said and asked for."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**options)
        self.context.set_offline(True)
        self.requests, self.messages = [], []
        self.context.route("**/*", self._watch)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".plot .main-svg")

    def _watch(self, route):
        self.requests.append(route.request.url)
        if route.request.url.startswith("file://"):
            route.continue_()
        else:
            route.abort()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize("kind", ["run", "comparison"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_page_draws_every_plot_quietly_and_asks_for_nothing(browser, pages, kind, device):
    with Visit(browser, pages[kind], **device) as visit:
        places = visit.page.locator(".plot").count()
        assert places >= 8
        layers = (".plot .main-svg .scatterlayer", ".plot .main-svg .heatmaplayer")
        drawn = visit.page.locator(", ".join(layers)).count()
        assert drawn == places
        assert visit.page.locator(".plot .scatterlayer .js-line").count() >= places
        assert visit.messages == []
        assert visit.requests == [pages[kind].as_uri()]


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_hostile_names_are_shown_and_do_nothing(browser, pages, kind):
    with Visit(browser, pages[kind], **DESKTOP) as visit:
        _press_every_button_and_hover(visit.page)
        assert visit.page.evaluate("window.pwned") is None
        assert visit.page.locator("main img, main b").count() == 0
        assert HOSTILE in visit.page.inner_text("h1")
        assert visit.messages == []


def _press_every_button_and_hover(page):
    for button in page.locator(".legend button[data-traces]").all():
        button.click()
        button.click()
    for plot in page.locator(".plot").all():
        plot.hover(position={"x": 120, "y": 60})


def test_the_policy_stops_a_script_that_got_into_the_page(browser, pages, tmp_path):
    """The escape is the first wall; this looks at the second, with the first torn down."""
    text = pages["run"].read_text(encoding="utf-8")
    torn = tmp_path / "torn.html"
    inserted = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1><p id=in>in</p>"
    torn.write_text(text.replace("<main>", f"<main>{inserted}", 1), encoding="utf-8")
    with Visit(browser, torn, **DESKTOP) as visit:
        assert visit.page.inner_text("#in") == "in"
        assert visit.page.evaluate("window.pwned") is None
        assert len(visit.messages) >= 2  # the browser says what it refused


@pytest.mark.parametrize("kind", ["run", "comparison"])
@pytest.mark.parametrize("width", [320, 390, 768])
def test_the_body_never_scrolls_sideways(browser, pages, kind, width):
    device = {**PHONE, "viewport": {"width": width, "height": 800}}
    with Visit(browser, pages[kind], **device) as visit:
        sizes = visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert sizes == [width, width]


def test_a_legend_button_hides_its_curve_and_shows_it_again(browser, pages):
    with Visit(browser, pages["run"], **DESKTOP) as visit:
        lines = visit.page.locator("#plot-kernel-change .js-line")
        button = visit.page.locator("#figure-kernel-change .legend button").first
        before = lines.count()
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert lines.count() < before
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert lines.count() == before


def test_all_and_none_press_every_button_of_their_plot(browser, pages):
    with Visit(browser, pages["run"], **DESKTOP) as visit:
        figure = visit.page.locator("#figure-layer-angles")
        figure.get_by_role("button", name="none", exact=True).click()
        assert visit.page.locator("#plot-layer-angles .js-line").count() == 0
        figure.get_by_role("button", name="all", exact=True).click()
        assert figure.locator("button[aria-pressed=false]").count() == 0


def test_steps_can_be_read_on_a_logarithmic_axis(browser, pages):
    with Visit(browser, pages["comparison"], **DESKTOP) as visit:
        visit.page.get_by_label("logarithmic").check()
        kinds = visit.page.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p._fullLayout.xaxis.type)"
        )
        assert set(kinds) == {"log"}
        assert visit.messages == []


def test_a_map_of_single_steps_keeps_its_own_axis(browser, pages):
    with Visit(browser, pages["run"], **DESKTOP) as visit:
        visit.page.get_by_label("logarithmic").check()
        axis = "document.getElementById('plot-kernel-angles')._fullLayout.xaxis.type"
        assert visit.page.evaluate(axis) == "category"
        assert visit.messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_and_its_plots_follow_the_colour_scheme(browser, pages, scheme):
    with Visit(browser, pages["run"], color_scheme=scheme, **DESKTOP) as visit:
        dark = scheme == "dark"
        assert (_lightness(visit.page, "body", "background-color") < 0.5) == dark
        for text in (".plot .xtick text", ".plot .ytitle", ".plot .annotation-text", "h2", "td"):
            place = "fill" if text.startswith(".plot") else "color"
            assert (_lightness(visit.page, text, place) > 0.5) == dark, text


def test_a_dark_page_is_printed_dark_on_light(browser, pages):
    with Visit(browser, pages["run"], color_scheme="dark", **DESKTOP) as visit:
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert _lightness(visit.page, "body", "background-color") > 0.9
        assert _lightness(visit.page, ".plot .xtick text", "fill") < 0.5
        assert visit.page.locator(".steps").is_hidden()
        # A verdict that must not be cut leaves the first sheet to the title alone.
        broken = "getComputedStyle(document.querySelector('.verdict')).breakInside"
        assert visit.page.evaluate(broken) == "auto"
        assert len(visit.page.pdf(format="A4")) > 20_000


def _lightness(page, selector, place):
    """Mean of red, green and blue of a computed colour, in [0, 1]."""
    colour = page.locator(selector).first.evaluate(
        "(element, place) => getComputedStyle(element).getPropertyValue(place)", place
    )
    numbers = [float(part) for part in colour.strip("rgba()").split(",")[:3]]
    return sum(numbers) / 3 / 255
