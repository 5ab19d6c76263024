"""What watching took, on every page; oracle: a cost made up by hand."""

import json
from dataclasses import replace

import pytest
from report.made_runs import lazy_observations, read_back

from ntkwatch.report.html import render_html
from ntkwatch.report.json_report import render_json
from ntkwatch.report.markdown import render_markdown
from ntkwatch.report.text import render_text
from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import NOT_TAKEN
from ntkwatch.watch.verdict.verdict import judge

WHOLE = Cost(seconds=3.9, elapsed=130.0, share=0.03, promised=0.02, observations=19, brief=2)
FORMS = (render_html, render_markdown, render_text)


@pytest.fixture
def history(tmp_path):
    """Nineteen observations of 0.25 s each, two of them brief."""
    seen = [replace(o, seconds=0.25) for o in lazy_observations()]
    for place in (5, 9):
        seen[place] = replace(seen[place], left_out={"kernel": NOT_TAKEN})
    return read_back(tmp_path, tuple(seen))


def _shown(render, history):
    words = render(history, judge(history), title="run").replace("\\", "")
    for mark in ("<dt>", "</dt>", "<dd>", "</dd>"):
        words = words.replace(mark, " ")
    return " ".join(words.split())


@pytest.mark.parametrize("render", FORMS)
def test_the_cost_of_a_run_is_on_every_page(history, render):
    history.cost = WHOLE
    shown = _shown(render, history)
    for words in ("19, 2 of them brief", "3.90 s", "2 min 10 s", "3.0%", "2.0%, exceeded"):
        assert words in shown


@pytest.mark.parametrize("render", FORMS)
def test_a_run_that_has_not_ended_shows_its_share_so_far(history, render):
    last = replace(history[-1], overhead_share=0.0123, overhead_seconds=1.0)
    shown = _shown(render, History(history.run, (*history.observations[:-1], last)))
    assert "share of the time so far" in shown
    assert "1.2%" in shown


def test_a_share_is_not_rounded_to_nothing(history):
    history.cost = replace(WHOLE, share=0.0002, promised=None)
    shown = _shown(render_text, history)
    assert "share of the time: below 0.1%" in shown
    assert "no limit" in shown


def test_json_has_every_number_of_it(history):
    def cost():
        return json.loads(render_json(history, judge(history), title="run"))["cost"]

    alone = {"observations": 19, "brief": 2, "seconds": 19 * 0.25, "slowest_seconds": 0.25}
    unknown = dict.fromkeys(("watching_seconds", "elapsed_seconds", "share", "promised"))
    assert cost() == alone | unknown
    history.cost = WHOLE
    whole = {"watching_seconds": 3.9, "elapsed_seconds": 130.0, "share": 0.03, "promised": 0.02}
    assert cost() == alone | whole
