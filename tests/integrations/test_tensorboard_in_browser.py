"""A watched run in a real TensorBoard; oracle: what Chromium draws, and what it complains of."""

import importlib.util
from pathlib import Path

import pytest
from integrations.trainings import lightning, loader, module, trainer

from ntkwatch import NTKMonitor

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_PLACE = Path(__file__).parents[2] / "docs" / "make_screenshots.py"
_SPEC = importlib.util.spec_from_file_location("make_screenshots", _PLACE)
shots = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shots)

pl = lightning()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        shots.find_chromium() is None,
        reason="no Chromium on the PATH and none named by the variable CHROMIUM",
    ),
    # Of packages that the server imports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def chromium():
    with shots.browser() as started:
        yield started


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Two watched runs, as a user leaves them, and the address of a server that shows them."""
    root = tmp_path_factory.mktemp("shown")
    monitors = []
    for name in ("one", "two"):
        watch = NTKMonitor(every_n_train_steps=2, on_error="raise")
        logger = pl.loggers.TensorBoardLogger(root, name=name)
        run = trainer(pl, root, [watch], logger=logger, max_epochs=2)
        run.fit(module(pl), loader(batch_size=8))
        monitors.append(watch)
    return monitors, shots.served(root)


@pytest.fixture(scope="module")
def visit(chromium, watched, request):
    with shots.Visit(chromium, watched[1], request.param) as open_page:
        yield open_page


def _texts(visit, selector):
    return [text.strip() for text in visit.page.locator(selector).all_inner_texts()]


@pytest.mark.parametrize("visit", list(shots.DRAWN), indirect=True, scope="module")
def test_every_page_draws_without_complaint_and_asks_no_other_machine(visit):
    assert visit.complaints == []
    assert visit.foreign == []


@pytest.mark.parametrize("visit", ["custom_scalars"], indirect=True, scope="module")
def test_the_charts_stand_in_groups_and_none_is_empty(visit):
    groups = _texts(visit, "tf-category-paginated-view .heading .name, .heading .light")
    wanted = ("regime (set Smoothing to 0)", "drift", "spectrum and stability", "parameters")
    assert groups == [f"ntk: {group}" for group in (*wanted, "cost")]
    charts = visit.page.locator("vz-line-chart2").count()
    assert charts >= 13
    # A curve of each run, and the shaded margin of each where there is one.
    margins = visit.page.locator("tf-custom-scalar-margin-chart-card")
    assert margins.count() == 4
    for chart in visit.page.locator("vz-line-chart2").all():
        curves = chart.locator("path").evaluate_all(
            "found => found.filter(p => (p.getAttribute('d') || '').length > 10).length"
        )
        assert curves >= 2


@pytest.mark.parametrize("visit", ["images"], indirect=True, scope="module")
def test_every_picture_is_there(visit):
    sizes = visit.page.locator("tf-image-loader img").evaluate_all(
        "found => found.map(i => [i.complete, i.naturalWidth, i.naturalHeight])"
    )
    assert len(sizes) == 2 * 3
    assert all(complete and width >= 600 and height >= 250 for complete, width, height in sizes)


@pytest.mark.parametrize("visit", ["text"], indirect=True, scope="module")
def test_the_verdict_is_a_page_with_a_table(visit, watched):
    monitors, _ = watched
    headings = _texts(visit, "tf-text-loader h2")
    assert monitors[0].verdict.label in headings
    assert visit.page.locator("tf-text-loader table").count() >= 2
    shown = _texts(visit, "tf-text-loader p")
    assert monitors[0].verdict.reason in shown


@pytest.mark.parametrize("visit", ["timeseries"], indirect=True, scope="module")
def test_margins_do_not_crowd_the_curves_of_the_run(visit):
    """TensorBoard opens the first groups only; ours of constants stays shut behind the curves."""
    names = _texts(visit, "metrics-card-group-toolbar .group-title")
    assert names.index("ntk") < names.index("ntk_margins")
