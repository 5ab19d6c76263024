"""Plots as data; oracle: plotly's own checker, the made-up numbers, WCAG's contrast formula."""

import html
import json
import math
import re
from dataclasses import replace
from importlib.resources import files

import plotly.graph_objects as go
import pytest
from report.made_runs import (
    HOSTILE,
    LAYERS,
    feature_observations,
    lazy_observations,
    observation,
    read_back,
    renamed,
)

from ntkwatch.report.colours import COLOURS, STRENGTH_COLOURS, run_colours
from ntkwatch.report.comparison_figures import comparison_drawings
from ntkwatch.report.curve import Curve, traces_of
from ntkwatch.report.drawing import Axis, draw
from ntkwatch.report.figures import run_drawings
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.verdict import Strength, judge


def _drawings(history):
    return {drawing.id: drawing for drawing in run_drawings(history, judge(history))}


def _traces(drawing):
    return {trace["name"]: trace for trace in drawing.plot["data"]}


@pytest.fixture
def rich(tmp_path):
    return read_back(tmp_path, feature_observations())


@pytest.fixture
def lazy(tmp_path):
    return read_back(tmp_path / "lazy", lazy_observations())


def test_plotly_accepts_every_drawing_of_a_run(rich):
    drawings = _drawings(rich)
    assert list(drawings) == [
        "linearization-error",
        "layer-angles",
        "kernel-change",
        "top-eigenvalues",
        "displacement",
        "target-alignment",
        "effective-rank",
        "loss",
    ]
    for drawing in drawings.values():
        go.Figure(**drawing.plot)  # raises at any property that it does not know


def test_plotly_accepts_every_drawing_of_a_comparison(rich, lazy):
    drawings = comparison_drawings([("a", rich, judge(rich)), ("b", lazy, judge(lazy))])
    for drawing in drawings:
        go.Figure(**drawing.plot)
    assert "error-against-loss" in [drawing.id for drawing in drawings]


def test_drawn_values_are_the_observed_ones(rich):
    trace = _traces(_drawings(rich)["linearization-error"])["since the start"]
    seen = [(o.step, o.linearization_error) for o in rich if o.linearization_error is not None]
    assert trace["x"] == [step for step, _ in seen]
    assert trace["y"] == pytest.approx([error for _, error in seen], rel=1e-5)


def test_the_bands_of_the_verdict_are_shaded_without_holes(rich):
    bands = judge(rich).bands
    shapes = _drawings(rich)["linearization-error"].plot["layout"]["shapes"]
    edges = [(shape["y0"], shape["y1"]) for shape in shapes]
    assert [high for _, high in edges[:-1]] == [low for low, _ in edges[1:]]
    assert [high for _, high in edges[:-1]] == [bands.lazy_error, bands.feature_error]


def test_every_value_and_every_band_lies_within_a_logarithmic_axis(rich, lazy):
    for history in (rich, lazy):
        plot = _drawings(history)["linearization-error"].plot
        low, high = (10**end for end in plot["layout"]["yaxis"]["range"])
        for trace in plot["data"]:
            assert all(low <= y <= high for y in trace["y"] if y is not None)
        assert low < 0.15 < 0.35 < high


def test_the_name_of_a_band_keeps_off_the_end_of_the_curve(rich):
    layout = _drawings(rich)["linearization-error"].plot["layout"]
    heights = {note["text"]: note["y"] for note in layout["annotations"]}
    bottom, top = layout["yaxis"]["range"]
    assert heights["lazy"] < heights["transitional"] < heights["feature-learning"]
    for height in heights.values():
        away = abs(height - math.log10(rich[-1].linearization_error)) / (top - bottom)
        assert away > 0.05  # of the axis: the height of a line of text


def test_an_interval_is_drawn_around_its_curve(rich):
    traces = _traces(_drawings(rich)["linearization-error"])
    outline = traces["since the start, interval"]
    last = rich[-1]
    at_end = [y for x, y in zip(outline["x"], outline["y"], strict=True) if x == last.step]
    assert sorted(at_end) == pytest.approx(sorted(last.intervals["linearization_error"]), rel=1e-4)


def test_every_layer_has_a_button_that_shows_its_own_traces(rich):
    drawing = _drawings(rich)["layer-angles"]
    buttons = {entry.name: entry for entry in drawing.legend}
    for layer in LAYERS:
        names = {drawing.plot["data"][index]["name"] for index in buttons[layer].traces}
        assert names == {layer}


def test_of_hundreds_of_layers_the_extremes_are_drawn_and_the_caption_says_so(tmp_path):
    *earlier, last = feature_observations()
    angles = {f"block.{i}": 0.001 * (i + 1) for i in range(300)}
    drawing = _drawings(read_back(tmp_path, (*earlier, replace(last, layer_angle=angles))))[
        "layer-angles"
    ]
    names = {entry.name for entry in drawing.legend}
    assert {"block.0", "block.299"} <= names
    assert "block.150" not in names
    assert "64 of 306 layers" in drawing.caption


def test_a_curve_of_many_points_keeps_its_spike_and_its_ends():
    points = [(float(x), 1.0 + 1e-4 * math.sin(x), None) for x in range(50_000)]
    points[31_415] = (31_415.0, 77.0, None)
    points[27_182] = (27_182.0, 0.01, None)
    (trace,) = traces_of(Curve(name="loss", points=tuple(points)), log=True)
    assert len(trace["x"]) <= 600
    assert {77.0, 0.01} <= set(trace["y"])
    assert (trace["x"][0], trace["x"][-1]) == (0.0, 49_999.0)


def test_zeros_that_a_logarithmic_axis_cannot_show_are_counted_in_the_caption():
    points = ((0.0, 0.0, None), (1.0, 0.0, None), (2.0, 0.5, None))
    drawing = draw(
        [Curve(name="error", points=points)],
        Axis(title="error", log=True),
        id="error",
        title="Error",
        caption="How far.",
    )
    assert drawing.plot["data"][0]["y"] == [0.5]
    assert drawing.caption.endswith("below this logarithmic axis: 1 of the values.")


@pytest.mark.parametrize(("top", "ticks"), [(1e3, None), (3e4, "D2"), (1e7, 1)])
def test_a_logarithmic_axis_has_labels_that_do_not_run_into_each_other(top, ticks):
    points = ((0.0, 1e3 / 1.1, None), (1.0, top, None))
    drawing = draw(
        [Curve(name="x", points=points)], Axis(title="x", log=True), id="x", title="x", caption="x"
    )
    assert drawing.plot["layout"]["yaxis"].get("dtick") == ticks


def test_a_loss_that_goes_negative_gets_a_linear_axis(tmp_path):
    observations = tuple(replace(o, loss=1.0 - o.step / 100) for o in lazy_observations())
    plot = _drawings(read_back(tmp_path, observations))["loss"].plot
    assert plot["layout"]["yaxis"]["type"] == "linear"
    assert min(plot["data"][0]["y"]) == -11


def test_numbers_that_are_not_finite_are_not_drawn():
    observations = tuple(replace(o, loss=math.nan) for o in lazy_observations())
    infinite = replace(observations[5], relative_kernel_change=math.inf)
    drawings = _drawings(History(observations=(*observations[:5], infinite, *observations[6:])))
    assert "loss" not in drawings
    json.dumps([drawing.plot for drawing in drawings.values()], allow_nan=False)
    assert infinite.step not in drawings["kernel-change"].plot["data"][-2]["x"]


def test_plotly_reads_no_markup_in_a_name(tmp_path):
    names = {"features.0": HOSTILE[:40], "features.2": "a<br>b &amp; <b>c</b>"}
    history = read_back(tmp_path, tuple(renamed(o, names) for o in feature_observations()))
    drawing = _drawings(history)["layer-angles"]
    shown = [trace["name"] for trace in drawing.plot["data"]]
    assert [name for name in shown if re.search(r"[<>]|&(?!lt;|gt;|amp;)", name)] == []
    assert {HOSTILE[:40], "a<br>b &amp; <b>c</b>"} <= {html.unescape(name) for name in shown}


def test_one_observation_is_drawn_without_what_needs_two(tmp_path):
    drawings = _drawings(read_back(tmp_path, (observation(0, error=0.1, angle=0.1),)))
    assert "linearization-error" not in drawings
    assert "loss" in drawings


def test_nothing_observed_draws_nothing():
    assert _drawings(History()) == {}
    assert comparison_drawings([]) == []


def test_error_against_loss_is_drawn_over_the_loss_ratio(rich):
    drawings = comparison_drawings([("a", rich, judge(rich))])
    (drawing,) = [drawing for drawing in drawings if drawing.id == "error-against-loss"]
    last = rich[-1]
    curve = drawing.plot["data"][-1]
    assert curve["x"][-1] == pytest.approx(last.loss / last.loss_start)
    assert curve["y"][-1] == pytest.approx(last.linearization_error, rel=1e-5)
    assert drawing.plot["layout"]["xaxis"]["autorange"] == "reversed"


def test_runs_with_different_verdicts_wear_the_colours_of_their_verdicts():
    lazy, rich = Strength.LAZY, Strength.FEATURE_LEARNING
    assert run_colours([rich, lazy]) == [STRENGTH_COLOURS[rich], STRENGTH_COLOURS[lazy]]


def test_runs_with_the_same_verdict_still_differ_in_colour():
    colours = run_colours([Strength.LAZY] * 3)
    assert len(set(colours)) == 3
    assert not set(colours) & set(STRENGTH_COLOURS.values())


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_colour_stands_out_from_the_page_in_light_and_dark(theme):
    style = files("ntkwatch.report").joinpath("templates/style.css").read_text()
    cards = re.findall(r"--card: (#[0-9a-f]{6})", style)
    for colour in (*COLOURS, *STRENGTH_COLOURS.values()):
        assert _contrast(colour, cards[theme]) >= 3  # WCAG 2.1, graphical objects


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_colour_is_readable_on_its_card(theme):
    style = files("ntkwatch.report").joinpath("templates/style.css").read_text()
    card = re.findall(r"--card: (#[0-9a-f]{6})", style)[theme]
    for ink in ("ink", "quiet", "lazy-ink", "transitional-ink", "feature-ink", "none-ink"):
        colour = re.findall(rf"--{ink}: (#[0-9a-f]{{6}})", style)[theme]
        assert _contrast(colour, card) >= 4.5  # WCAG 2.1, text


def _contrast(one, other):
    """(L1 + 0.05) / (L2 + 0.05) with relative luminance as WCAG 2.1 defines it."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
