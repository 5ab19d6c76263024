"""The JSON report; oracle: a strict parser, and the lines of the history file itself."""

import json
import math
from dataclasses import replace

import pytest
from report.made_runs import HOSTILE, feature_observations, lazy_observations, read_back, renamed

from ntkwatch.report.json_report import render_json
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.verdict.verdict import judge


def _refuse(word):
    raise AssertionError(f"{word} is not JSON")


def _report(history):
    text = render_json(history, judge(history), title="run 1")
    return json.loads(text, parse_constant=_refuse)


def test_the_form_carries_its_version_first(tmp_path):
    report = _report(read_back(tmp_path, lazy_observations()))
    assert next(iter(report)) == "ntkwatch_report"
    assert report["ntkwatch_report"] == 1


def test_the_verdict_has_the_field_names_of_the_record(tmp_path):
    history = read_back(tmp_path, feature_observations())
    verdict = _report(history)["verdict"]
    assert verdict["strength"] == "feature-learning"
    assert verdict["qualifier"] is None
    assert verdict["bands"]["lazy_error"] == 0.13
    assert verdict["readings"]["since start"]["linearization_error"] == pytest.approx(
        0.72, abs=0.01
    )


def test_observations_are_those_of_the_file_unrounded_and_complete(tmp_path):
    history = read_back(tmp_path, feature_observations(), gaps=(Gap(step=7, reason="why"),))
    lines = [json.loads(line) for line in history.path.read_text().splitlines()]
    written = [line for line in lines if line.pop("record") == "observation"]
    report = _report(history)
    assert report["observations"] == written
    assert report["gaps"] == [{"step": 7, "reason": "why", "kind": "failed"}]
    assert report["cost"]["observations"] == 19


def test_numbers_that_json_has_no_words_for_become_null():
    observations = tuple(
        replace(o, loss=math.nan, relative_kernel_change=math.inf) for o in lazy_observations()
    )
    report = _report(History(observations=observations))
    assert report["observations"][-1]["relative_kernel_change"] is None
    assert report["observations"][-1]["loss"] is None


def test_names_come_back_as_they_were_given(tmp_path):
    name = HOSTILE + '"\\\n\u2028'
    history = read_back(
        tmp_path, tuple(renamed(o, {"features.0": name}) for o in lazy_observations())
    )
    assert name in _report(history)["verdict"]["layers"]


def test_nothing_observed_is_still_a_report():
    report = _report(History())
    assert report["observations"] == []
    assert report["verdict"]["strength"] == "undetermined"
