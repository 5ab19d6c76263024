"""Several runs side by side.

The oracle is a pair of runs whose numbers are known functions of their loss.
"""

import json
import math
from dataclasses import replace

import pytest
from report.made_runs import HOSTILE, feature_observations, lazy_observations, observation, run_info

from ntkwatch.errors import KernelMismatchError
from ntkwatch.report.comparison_json import render_comparison_json
from ntkwatch.report.comparison_markdown import render_comparison_markdown
from ntkwatch.report.comparison_text import render_comparison_text
from ntkwatch.report.html import render_comparison_html
from ntkwatch.report.matching import match
from ntkwatch.report.unlike import check_comparable, differences
from ntkwatch.report.words import MISSING
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.verdict import judge

FORMS = [
    render_comparison_text,
    render_comparison_markdown,
    render_comparison_json,
    render_comparison_html,
]


def _run(name, observations, info=None):
    history = History(info or run_info(), tuple(observations))
    return name, history, judge(history)


def _falling(name, rate, slope, *, start=2.0, steps=range(0, 101, 10)):
    """Loss ``start exp(-rate t)``; error ``slope ln(start / loss)``, a line in ln(loss)."""
    plain = observation(40, error=0.1, angle=0.1)
    made = [
        replace(
            plain,
            step=t,
            loss=start * math.exp(-rate * t),
            loss_start=start,
            linearization_error=slope * rate * t,
        )
        for t in steps
    ]
    return _run(name, made)


# Matching. ----------------------------------------------------------------------------------------


def test_runs_are_read_where_their_loss_is_the_same_and_not_their_step():
    """One falls three times as fast and is observed at other steps."""
    runs = [_falling("slow", 0.01, 0.3), _falling("fast", 0.03, 0.1, steps=range(0, 120, 7))]
    matching = match(runs)
    assert matching.levels[-1].level == math.exp(-1)  # as far as the slow one came
    assert len(matching.levels) == 5
    for level in matching.levels:
        gone = -math.log(level.level)
        slow, fast = level.runs
        assert slow.step == pytest.approx(gone / 0.01)
        assert fast.step == pytest.approx(gone / 0.03)
        assert slow.values["linearization_error"] == pytest.approx(0.3 * gone)
        assert fast.values["linearization_error"] == pytest.approx(0.1 * gone)
    assert matching.order == (1, 0)
    assert "laziest first: fast 0.100 (lazy band), slow 0.300 (transitional band)" in matching.said


def test_a_loss_that_rises_again_was_reached_all_the_same():
    name, history, verdict = _falling("a", 0.01, 0.3)
    risen = replace(history[-1], step=110, loss=1.9, linearization_error=9.0)
    bumpy = _run("bumpy", [*history, risen])
    assert match([(name, history, verdict), bumpy]).levels[-1].runs[1].step == 100


def test_nothing_is_read_between_observations_that_are_far_apart():
    """The loss falls by e between two looks, and nobody saw how: no line is drawn through it."""
    seen, missed = _falling("seen", 0.01, 0.3), _falling("missed", 0.01, 0.3, steps=(0, 20, 220))
    matching = match([seen, missed])
    first, *rest = [level.runs[1] for level in matching.levels]
    assert first.step == pytest.approx(20)
    assert first.values["linearization_error"] == pytest.approx(0.06)
    assert [reached.step for reached in rest] == [None] * 4
    assert {value for reached in rest for value in reached.values.values()} == {None}
    assert matching.order == ()
    assert "Of missed no linearization error is known" in matching.said
    for render in (render_comparison_text, render_comparison_markdown, render_comparison_html):
        page = " ".join(render([seen, missed], title="t").split())
        assert "more than halved between two observations" in page
    page = json.loads(render_comparison_json([seen, missed], title="t"))
    assert page["matching"]["levels"][-1]["runs"][1]["step"] is None
    text = render_comparison_text([seen, missed], title="t").split("At equal loss")[1]
    rows = [line.split() for line in text.splitlines() if line.split()[:1] == ["missed"]]
    assert [row[1] == MISSING for row in rows[:5]] == [False, True, True, True, True]
    unknown = _run("unknown", [replace(o, linearization_error=None) for o in seen[1]])
    assert "more than halved" not in match([seen, unknown]).said


def test_runs_that_start_at_other_losses_can_be_matched_by_the_loss_itself():
    runs = [_falling("a", 0.01, 0.3, start=2.0), _falling("b", 0.03, 0.3, start=4.0)]
    matching = match(runs, by="loss")
    assert matching.levels[-1].level == pytest.approx(2 * math.exp(-1))
    assert matching.levels[-1].runs[1].step == pytest.approx(math.log(2 * math.e) / 0.03)
    assert match(runs).levels[-1].level == pytest.approx(math.exp(-1))


def test_without_a_loss_or_a_shared_range_there_is_a_reason_instead():
    known = _falling("a", 0.01, 0.3)
    lost = _run("lost", [replace(o, loss=None) for o in known[1]])
    assert "The training loss of lost is unknown" in match([known, lost]).why_not
    high = _falling("high", 0.001, 0.3, start=9.0)
    assert "no loss that all runs passed" in match([known, high], by="loss").why_not


# Unlike kernels. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"probe": {"fingerprint": "other"}}, "probe: 9f2c41d07be3 in a, other in b"),
        ({"spec": {"outputs": "trace"}}, "kernel setting outputs: full in a, trace in b"),
        ({"spec": {"batchnorm": "running"}}, "batchnorm: probe in a, running in b"),
        ({"spec": {"dtype": "float64"}}, "dtype: float32 in a, float64 in b"),
        ({"spec": {"output_shape": [3]}}, "output_shape: unknown in a, "),
    ],
)
def test_kernels_of_different_kinds_are_refused_with_what_differs(change, says):
    info = run_info()
    key = next(iter(change))
    other = replace(info, **{key: {**getattr(info, key), **change[key]}})
    runs = [_run("a", lazy_observations()), _run("b", feature_observations(), other)]
    with pytest.raises(KernelMismatchError, match="--anyway"):
        check_comparable(runs)
    assert [says in said for said in differences(runs)] == [True]
    for render in FORMS:
        page = render(runs, title="t")
        assert "different kinds" in " ".join(page.split())


def test_long_lists_of_parameters_are_compared_by_what_one_lacks():
    info, names = run_info(), [f"layer.{i}.weight" for i in range(9)]
    one, two = (replace(info, spec={**info.spec, "params": p}) for p in (names, names[:-1]))
    runs = [_run("a", lazy_observations(), one), _run("b", lazy_observations(), two)]
    (said,) = differences(runs)
    assert (
        "9 in all, 1 of its own, such as layer.8.weight in a, 8 in all, 0 of its own in b" in said
    )


def test_a_sketched_kernel_is_not_compared_with_an_exact_one():
    sketched = [replace(o, unjudged="sketched and coupled") for o in feature_observations()]
    runs = [_run("a", lazy_observations()), _run("b", sketched)]
    with pytest.raises(KernelMismatchError, match="b: sketched and coupled"):
        check_comparable(runs)
    check_comparable([_run("c", sketched), runs[1]])


def test_kernels_of_one_kind_are_compared():
    check_comparable([_run("a", lazy_observations()), _run("b", feature_observations())])


# Forms. -------------------------------------------------------------------------------------------


def test_every_form_shows_every_level_and_the_same_order():
    runs = [_run("moved", feature_observations()), _run("kept", lazy_observations())]
    matching = match(runs)
    assert matching.order == (1, 0)
    page = json.loads(render_comparison_json(runs, title="t"))
    assert page["ntkwatch_comparison"] == 1
    assert page["matching"]["order"] == [1, 0]
    assert [level["level"] for level in page["matching"]["levels"]] == [
        level.level for level in matching.levels
    ]
    assert [run["verdict"]["strength"] for run in page["runs"]] == ["feature-learning", "lazy"]
    for render in (render_comparison_text, render_comparison_markdown, render_comparison_html):
        text = " ".join(render(runs, title="t").replace("\\", "").split())
        assert "laziest first: kept" in text
        assert "At equal loss" in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_and_long_names_stay_within_their_width(width):
    runs = [_run("x" * 300 + "a", lazy_observations()), _run("y" * 300, feature_observations())]
    text = render_comparison_text(runs, title="t" * 300, width=width)
    assert max(map(len, text.splitlines())) <= width


def test_hostile_names_form_no_markup_and_no_escape_sequences():
    runs = [_run(HOSTILE, lazy_observations()), _run("\x1b[31mred", feature_observations())]
    markdown = render_comparison_markdown(runs, title=HOSTILE)
    assert "<script" not in markdown
    assert "\x1b" not in markdown + render_comparison_text(runs, title=HOSTILE)
    assert json.loads(render_comparison_json(runs, title=HOSTILE))["runs"][0]["name"] == HOSTILE


def test_a_run_of_one_observation_and_an_empty_one_break_no_form():
    for few in ((), lazy_observations()[:1]):
        runs = [_run("few", few), _run("b", feature_observations())]
        for render in FORMS:
            assert render(runs, title="t")
