"""Ten thousand observations of five hundred layers with hostile names, gaps and a divergence.

Oracles: a clock, the size of the file, and what Chromium sees and says.
"""

import time
from dataclasses import replace

import pytest
from report.made_runs import HOSTILE, observation, run_info
from report.test_in_browser import CHROMIUM, DESKTOP, PHONE, Visit, browser

from ntkwatch.report.html import render_comparison_html, render_html
from ntkwatch.report.kept_kernels import KernelPair
from ntkwatch.watch.record.angles import KernelAngles
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.verdict.verdict import judge

__all__ = ["browser"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]

OBSERVATIONS, LAYERS, SPIKE = 10_000, 500, 6_123
NAMES = [f"{'deep.' * 12}block.{i}.{HOSTILE if i % 7 == 0 else 'attention'}" for i in range(LAYERS)]


def _crowd() -> History:
    seen = []
    for k in range(OBSERVATIONS):
        o = observation(3 * k, error=0.7, angle=0.5, end=3 * OBSERVATIONS)
        angles = {n: o.layer_angle_median * (0.2 + i / LAYERS) for i, n in enumerate(NAMES)}
        seen.append(replace(o, layer_angle=angles, layer_relative_displacement=angles))
    seen[SPIKE] = replace(seen[SPIKE], effective_rank=60.0)
    places = [round(i * (OBSERVATIONS - 1) / 63) for i in range(64)]
    rows = {
        n: tuple((63 - i) / 63 * (0.2 + k / LAYERS) for i in range(64)) for k, n in enumerate(NAMES)
    }
    angles = KernelAngles(
        steps=tuple(seen[i].step for i in places),
        below=tuple(tuple(abs(i - j) / 64 for j in range(i)) for i in range(64)),
        layers=rows,
        medians=rows[NAMES[0]],
    )
    gaps = [Gap(step=30 * i + 1, reason=HOSTILE, kind="failed") for i in range(50)]
    gaps.append(Gap(step=3 * OBSERVATIONS, reason="loss is NaN", kind="diverged"))
    return History(run_info(), tuple(seen), tuple(gaps), angles=angles)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    np = pytest.importorskip("numpy")
    history, folder = _crowd(), tmp_path_factory.mktemp("crowded")
    verdict = judge(history)
    half = np.random.default_rng(0).normal(size=(800, 40))
    kernel = half @ half.T
    pair = KernelPair(start=0, end=9, then=kernel, now=2 * kernel, classes=None)
    pages, seconds = {}, {}
    for kind in ("run", "comparison"):
        began = time.perf_counter()
        if kind == "run":
            text = render_html(history, verdict, title=HOSTILE, kernels=pair)
        else:
            runs = [(HOSTILE, history, verdict), ("b" * 300, history, verdict)]
            text = render_comparison_html(runs, title=HOSTILE)
        seconds[kind] = time.perf_counter() - began
        pages[kind] = folder / f"{kind}.html"
        pages[kind].write_text(text, encoding="utf-8")
    return pages, seconds


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_it_renders_in_seconds_and_stays_under_six_megabytes(crowded, kind):
    pages, seconds = crowded
    assert seconds[kind] < 30
    assert pages[kind].stat().st_size < 6_000_000


@pytest.mark.parametrize("kind", ["run", "comparison"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_draws_everything_and_nothing_is_injected(browser, crowded, kind, device):
    page = crowded[0][kind]
    with Visit(browser, page, **device) as visit:
        visit.page.locator(".plot .main-svg").last.wait_for()
        places = visit.page.locator(".plot").count()
        layers = ".plot .main-svg .scatterlayer", ".plot .main-svg .heatmaplayer"
        assert visit.page.locator(", ".join(layers)).count() == places >= 8
        assert visit.page.evaluate("window.pwned") is None
        assert visit.page.locator("main img, main b").count() == 0
        sizes = visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1]
        assert visit.messages == []
        assert visit.requests == [page.as_uri()]


def test_a_spike_of_one_observation_in_ten_thousand_is_drawn(browser, crowded):
    with Visit(browser, crowded[0]["run"], **DESKTOP) as visit:
        top = "Math.max(...document.getElementById('plot-effective-rank').data[0].y)"
        assert visit.page.evaluate(top) == 60


def test_rows_whose_names_look_alike_are_rows_of_their_own(browser, crowded):
    """Names that are too long are cut in the middle, and plotly draws rows of one name as one."""
    with Visit(browser, crowded[0]["run"], **DESKTOP) as visit:
        rows = visit.page.evaluate("document.getElementById('plot-layer-map').data[0].y")
        assert len(rows) == len(set(rows)) == 40


def test_a_head_of_the_table_of_layers_sorts_it_both_ways(browser, crowded):
    with Visit(browser, crowded[0]["run"], **DESKTOP) as visit:
        head = visit.page.get_by_role("button", name="relative displacement")
        cells = "#layers tbody td:last-child"
        for order in ("descending", "ascending"):
            head.click()
            values = [float(v) for v in visit.page.locator(cells).all_inner_texts()]
            assert values == sorted(values, reverse=order == "descending")
            assert visit.page.locator(f"#layers th[aria-sort={order}]").count() == 1
        visit.page.get_by_role("button", name="layer", exact=True).click()
        names = visit.page.locator("#layers tbody th").all_inner_texts()
        compared = "names => [...names].sort((a, b) => b.localeCompare(a))"
        assert names == visit.page.evaluate(compared, names)
        assert visit.messages == []


def test_pictures_of_kernels_keep_their_axes_when_steps_turn_logarithmic(browser, crowded):
    with Visit(browser, crowded[0]["run"], **DESKTOP) as visit:
        visit.page.get_by_label("logarithmic").check()
        for name in ("kernel-then", "kernel-now"):
            axis = f"document.getElementById('plot-{name}')._fullLayout.xaxis.type"
            assert visit.page.evaluate(axis) == "linear"
        assert visit.messages == []
