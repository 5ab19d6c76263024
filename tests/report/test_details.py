"""Numbers beyond the table over time; the oracle is the record that was put in."""

import dataclasses
import json
from dataclasses import replace

import pytest
from report.made_runs import feature_observations, read_back, run_info

from ntkwatch.report.columns import title_of
from ntkwatch.report.core import summarise
from ntkwatch.report.details import TITLES, detail_rows
from ntkwatch.report.html import render_html
from ntkwatch.report.json_report import render_json
from ntkwatch.report.markdown import render_markdown
from ntkwatch.report.text import render_text
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import judge

NUMBERS = {
    "subspace_overlap": {"5": 0.87, "90%": 0.9876},
    "subspace_overlap_null": {"5": 0.0781, "90%": 0.25},
    "rkhs_norm_ratio": {"1e-06": 0.41, "0.001": 0.53},
    "edge_of_stability": 0.987,
    "residual_modes": (1.5, 0.25, 0.1, 0.05),
    "predicted_modes": (1.25, 0.2, 0.1, 0.05),
}


@pytest.fixture
def history(tmp_path):
    reason = {"displacement_ratio": "AdamW leaves the span of the gradients"}
    first, *others = feature_observations()
    later = [replace(o, **NUMBERS, left_out=reason) for o in others]
    return read_back(tmp_path, (first, *later), info=run_info())


@pytest.mark.parametrize("render", [render_text, render_markdown, render_html])
def test_every_page_shows_them_and_says_what_was_left_out(history, render):
    page = render(history, judge(history), title="run").replace("\\", "")  # of Markdown
    for shown in ("learning rate over that", "0.987", "0.870", "0.0781", "0.410", "AdamW leaves"):
        assert shown in page


def test_json_holds_them_unrounded(history):
    report = json.loads(render_json(history, judge(history), title="run"))
    for key, value in NUMBERS.items():
        kept = report["observations"][-1][key]
        assert kept == (list(value) if isinstance(value, tuple) else value)


def test_values_come_with_what_belongs_to_them(history):
    rows = {row.title: row.value for row in detail_rows(history[-1])}
    assert rows["overlap of leading eigenvectors"] == (
        "first 5: 0.870 (0.0781), 90% of the trace: 0.988 (0.250)"
    )
    assert rows["norm of the targets, now over start"] == (
        "0.410 (ridge 1e-06), 0.530 (ridge 0.001)"
    )
    assert rows["residual on the leading modes"] == "1.50 (1.25), 0.250 (0.200), 0.100 (0.100)"
    assert "tail exponent" not in rows, "what was not measured is no row"


def test_a_missing_number_goes_by_its_title(history):
    (missing,) = summarise(history, judge(history)).missing
    assert missing.titles == ("displacement over shortest move",)
    assert missing.where == "never measured"


def test_every_title_belongs_to_a_field_of_the_records():
    fields = {field.name for field in dataclasses.fields(Observation)}
    assert set(TITLES) <= fields
    assert title_of("tail_exponent") == "tail exponent"


def test_nothing_observed_has_no_further_numbers():
    assert detail_rows(None) == ()


def test_accuracies_come_with_their_errors_and_rates_with_their_bounds():
    last = Observation(
        step=1,
        anchor_step=0,
        probe_size=4,
        output_count=2,
        seconds=0.1,
        acc_net=0.75,
        acc_kernel_ref=0.5,
        held_out={"net_se": 0.025},
        max_stable_lr_bounds=(0.125, 2.0),
    )
    shown = {row.title: row.value for row in detail_rows(last)}
    assert shown["held-out accuracy: network"] == "0.750 ± 0.025"
    assert shown["held-out accuracy: kernel at the start"] == "0.500"
    assert shown["largest stable learning rate, between"] == "0.125 and 2.00"
