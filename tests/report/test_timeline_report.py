"""When features formed, on every page; oracles: the made-up numbers, plotly's own checker."""

import json
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from report.made_runs import (
    HOSTILE,
    LAYERS,
    STEPS,
    angles_of,
    feature_observations,
    lazy_observations,
    read_back,
)
from report.test_html import Page

from ntkwatch.report.comparison_figures import comparison_drawings
from ntkwatch.report.figures import run_drawings
from ntkwatch.report.gauge import gauges
from ntkwatch.report.html import render_html
from ntkwatch.report.json_report import render_json
from ntkwatch.report.markdown import render_markdown
from ntkwatch.report.matching import match
from ntkwatch.report.since_rows import layer_rows
from ntkwatch.report.text import render_text
from ntkwatch.report.words import number
from ntkwatch.watch.record.angles import KernelAngles
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.bands import Bands
from ntkwatch.watch.verdict.verdict import judge


@pytest.fixture
def formed(tmp_path):
    """Features formed until step 60; from there on next to nothing."""
    last = feature_observations()[-1]
    since = {"40": 0.41, "90": 0.031, "200": 0.012}
    angles = {"40": 0.15, "90": 0.011}
    later = replace(last, since=since, since_layer_angle=angles)
    history = read_back(tmp_path, (*feature_observations()[:-1], later))
    history.angles = angles_of()
    return history


def _verdict(history):
    verdict = judge(history)
    assert verdict.timeline.finding == "formed"
    assert verdict.timeline.formed_until == 90
    return verdict


def test_the_sentence_and_every_anchor_are_on_every_page(formed):
    verdict = _verdict(formed)
    sentence = verdict.timeline.sentence[1:]
    text = render_text(formed, verdict, title="run", width=200)
    markdown = render_markdown(formed, verdict, title="run")
    page = Page(render_html(formed, verdict, title="run")).text
    for rendered in (text, page):
        assert sentence in " ".join(rendered.split())
    assert "## When features formed" in markdown
    assert "| 90 | 0.0310 | 0.0110 |" in markdown
    assert "| 200 | 0.0120 | – |" in markdown
    assert "90 0.0310 0.0110" in " ".join(text.split())
    assert "90 0.0310 0.0110" in page
    plain = json.loads(render_json(formed, verdict, title="run"))["verdict"]["timeline"]
    assert plain["errors"]["90"] == 0.031
    assert plain["formed_until"] == 90


def test_each_layer_s_step_is_listed(formed):
    verdict = _verdict(formed)
    steps = verdict.timeline.layers
    assert set(steps) == set(LAYERS)
    text = render_text(formed, verdict, title="run")
    for name, step in steps.items():
        assert f"{name}: kept its shape since step {step}" in text


def test_a_layer_that_turned_up_to_the_end_is_not_said_to_have_kept_its_shape(formed):
    """The last kernel has its own shape, whatever came before: that is no finding."""
    last = formed.angles.steps[-1]
    timeline = replace(_verdict(formed).timeline, layers={"a": last, "b": 30, "c": None})
    assert layer_rows(timeline) == [
        ("a", "not known: it turned up to the end"),
        ("b", "step 30"),
        ("c", "–"),
    ]


def _drawn(history):
    return {drawing.id: drawing for drawing in run_drawings(history, judge(history))}


def test_the_map_holds_the_angles_and_the_sentence_stands_under_it(formed):
    drawing = _drawn(formed)["kernel-angles"]
    go.Figure(**drawing.plot)
    (trace,) = drawing.plot["data"]
    assert trace["x"] == trace["y"] == [str(step) for step in STEPS]
    expected = [[None if a is None else round(a, 4) for a in row] for row in angles_of().matrix]
    assert trace["z"] == expected
    assert expected[3][1] is expected[1][3] is None
    sentence = judge(formed).timeline.sentence
    assert drawing.caption.startswith(sentence[0].upper() + sentence[1:])


def test_the_map_of_layers_holds_their_angles_to_the_last_kernel(formed):
    drawing = _drawn(formed)["layer-map"]
    go.Figure(**drawing.plot)
    (trace,) = drawing.plot["data"]
    assert trace["y"] == list(LAYERS)
    assert trace["z"][0] == [round(a, 4) for a in angles_of().layers[LAYERS[0]]]


def test_a_run_that_did_not_turn_is_pale(formed):
    still = [tuple(0.001 for _ in range(i)) for i in range(len(STEPS))]
    formed.angles = KernelAngles(steps=STEPS, below=tuple(still))
    drawn = _drawn(formed)
    assert drawn["kernel-angles"].plot["data"][0]["zmax"] == Bands().feature_angle
    assert "layer-map" not in drawn


def test_without_angles_there_is_no_map(formed):
    formed.angles = None
    assert "kernel-angles" not in _drawn(formed)


def test_very_many_layers_are_thinned_to_those_that_turned_most(formed):
    names = [f"layer{k}" for k in range(60)]
    formed.angles = angles_of(names)
    drawing = _drawn(formed)["layer-map"]
    assert drawing.plot["data"][0]["y"] == names[20:]
    assert "Drawn: the 40 that turned most." in drawing.caption


def test_a_hostile_layer_opens_no_markup(formed):
    formed.angles = angles_of((HOSTILE, *LAYERS))
    last = formed[-1]
    formed.add(replace(last, layer_angle={HOSTILE: 0.9, **last.layer_angle}))
    verdict = judge(formed)
    page = render_html(formed, verdict, title="run")
    assert HOSTILE not in page
    assert not [tag for tag, attributes in Page(page).elements if "onerror" in attributes]
    assert HOSTILE not in render_markdown(formed, verdict, title="run")


def test_an_error_around_the_decayed_start_is_shown_beside_the_raw_one(formed):
    last = formed[-1]
    formed.add(
        replace(
            last,
            linearization_error=2.39,
            linearization_error_decayed=0.075,
            decayed_norm_ratio=0.83,
            output_change_decayed=1.0,
        )
    )
    verdict = judge(formed)
    gauge = gauges(formed[-1], verdict.bands)[0]
    assert gauge.value == "0.0750, weight decay followed"
    for render in (render_text, render_markdown, render_html):
        rendered = render(formed, verdict, title="run").replace("\\", "")
        assert "2.39" in rendered
        assert "0.075" in rendered
        assert number(0.83) in rendered
    names = [trace["name"] for trace in _drawn(formed)["linearization-error"].plot["data"]]
    assert "since the start, weight decay followed" in names


def test_runs_are_compared_by_the_error_that_their_verdicts_read(formed, tmp_path):
    """The raw error of a lazy run with decay would rank it as the richest."""
    lazy = read_back(tmp_path / "lazy", lazy_observations())
    decayed = History(
        lazy.run,
        tuple(
            replace(o, linearization_error=5.0, linearization_error_decayed=o.linearization_error)
            if o.step
            else o
            for o in lazy
        ),
    )
    runs = [(name, h, judge(h)) for name, h in (("rich", formed), ("decayed", decayed))]
    assert match(runs).order == (1, 0)
    (drawing,) = [d for d in comparison_drawings(runs) if d.id == "linearization-error"]
    (trace,) = [t for t in drawing.plot["data"] if t["name"] == "decayed"]
    assert max(trace["y"]) < 0.06
