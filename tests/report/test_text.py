"""The terminal page; oracle: what a reader searches for, line widths, and the made-up numbers."""

import re
import textwrap
from dataclasses import replace

import pytest
from report.made_runs import (
    LAYERS,
    feature_observations,
    lazy_observations,
    observation,
    read_back,
    renamed,
)

from ntkwatch.report.text import render_text
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.verdict.verdict import judge

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def _text(history, **options):
    return render_text(history, judge(history), title="logs/version_0", **options)


@pytest.fixture
def rich(tmp_path):
    return read_back(tmp_path, feature_observations())


def test_the_verdict_comes_before_every_number(rich):
    lines = _text(rich).splitlines()
    assert lines[0] == "ntkwatch: logs/version_0"
    assert lines[2] == "Verdict: feature-learning"
    assert [line for line in lines[:2] if re.search(r"\d\.\d", line)] == []


def test_reason_evidence_and_next_step_are_all_there(rich):
    verdict = judge(rich)
    unwrapped = " ".join(_text(rich).split())
    for sentence in (verdict.reason, verdict.next_step, *verdict.evidence):
        assert " ".join(sentence.split()) in unwrapped


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_than_the_terminal(rich, width):
    assert max(len(line) for line in _text(rich, width=width).splitlines()) <= width


def test_all_columns_of_an_ordinary_run_fit_side_by_side_in_100_columns(rich):
    table = [line.split() for line in _text(rich).splitlines() if re.match(r" +1200 ", line)]
    assert [len(row) for row in table] == [12]


def test_a_narrow_terminal_gets_every_column_in_blocks_that_begin_with_the_step(rich):
    table = [
        line.split() for line in _text(rich, width=60).splitlines() if re.match(r" +1200 ", line)
    ]
    assert len(table) > 1
    assert sum(len(row) - 1 for row in table) == 11


def test_plain_text_has_no_escape_character(rich):
    assert "\x1b" not in _text(rich, colour=False)


def test_colour_adds_escapes_and_changes_no_word(rich):
    coloured = _text(rich, colour=True)
    assert coloured != _text(rich)
    assert ESCAPES.sub("", coloured) == _text(rich)


def test_names_cannot_move_the_cursor_or_break_a_line(tmp_path):
    names = {"features.0": "\x1b[2Jgone\r\nVerdict: fake", "features.2": "right\u202eleft"}
    observations = tuple(renamed(o, names) for o in lazy_observations())
    history = read_back(tmp_path, observations, gaps=(Gap(step=3, reason="\x1b[31mred\x07"),))
    text = _text(history, colour=False)
    assert not set(text) & set("\x1b\x07\r\u202e")
    assert [line for line in text.splitlines() if line.startswith("Verdict: fake")] == []


def test_a_layer_with_a_very_long_name_keeps_its_row_narrow(tmp_path):
    names = {"features.0": "encoder." * 60 + "weight"}
    history = read_back(tmp_path, tuple(renamed(o, names) for o in lazy_observations()))
    assert max(len(line) for line in _text(history).splitlines()) <= 100


def test_layers_are_listed_with_angle_and_displacement(rich):
    text = _text(rich)
    for layer in LAYERS:
        assert re.search(
            rf"^  {re.escape(layer)} +\d\.\d+ +(lazy|transitional|feature)", text, re.M
        )


def test_of_many_layers_the_rest_is_counted(tmp_path):
    *earlier, last = feature_observations()
    angles = {f"block.{i}": 0.01 * i for i in range(50)}
    text = _text(read_back(tmp_path, (*earlier, replace(last, layer_angle=angles))))
    assert "block.49" in text
    assert "block.29" not in text
    assert "... and 30 more layers" in text


def test_missing_numbers_gaps_and_problems_are_named_with_their_reasons(tmp_path):
    observations = tuple(
        replace(o, target_alignment=None, left_out={**o.left_out, "target_alignment": "no targets"})
        for o in lazy_observations()
    )
    history = read_back(tmp_path, observations, gaps=(Gap(step=40, reason="out of memory"),))
    history.problems = ("line 9 was cut off",)
    text = _text(history)
    assert "target alignment (never measured): no targets" in text
    assert "step 40: out of memory" in text
    assert "line 9 was cut off" in text


def test_one_observation_is_a_page_that_says_so(tmp_path):
    text = _text(read_back(tmp_path, lazy_observations()[:1]))
    assert "Verdict: undetermined (one observation)" in text
    assert "Numbers over time (1 observation)" in text


def test_nothing_observed_is_a_page_that_says_so():
    assert "Verdict: undetermined" in _text(History())


def test_the_course_of_the_loss_goes_down(tmp_path):
    observations = tuple(
        replace(observation(s, error=0.05, angle=0.02), loss=10.0 - s) for s in range(6)
    )
    text = _text(read_back(tmp_path, observations))
    (course,) = [line for line in text.splitlines() if line.strip().startswith("course")]
    assert course.split()[1][0] == "█"
    assert course.split()[1][-1] == "▁"


def test_prose_is_wrapped_and_not_cut(rich):
    verdict = judge(rich)
    wrapped = textwrap.wrap(verdict.reason, 100, initial_indent="  ", subsequent_indent="  ")
    assert len(wrapped) > 1
    assert verdict.reason.split()[-1] in _text(rich).split()
