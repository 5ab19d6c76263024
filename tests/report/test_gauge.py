"""Positions on the bar; oracle: the definition, worked out by hand for a few numbers."""

from dataclasses import replace

import pytest
from report.made_runs import feature_observations

from ntkwatch.report.gauge import gauges
from ntkwatch.watch.verdict.verdict import Bands

LAST = feature_observations()[-1]


@pytest.mark.parametrize(
    ("error", "percent"),
    [
        (0.0, 0.0),
        (1e-9, 0.0),
        (0.0013, 0.0),  # a hundredth of the lazy edge
        (0.013, 100 / 6),  # half of that way, logarithmically
        (0.13, 100 / 3),
        ((0.13 * 0.32) ** 0.5, 50.0),
        (0.32, 200 / 3),
        (3.2, 100.0),
        (1e9, 100.0),
    ],
)
def test_each_band_takes_a_third_of_the_bar(error, percent):
    gauge, _ = gauges(replace(LAST, linearization_error=error), Bands())
    assert gauge.at == pytest.approx(percent, abs=0.01)


def test_the_bar_follows_the_bands_that_the_verdict_used():
    gauge, _ = gauges(replace(LAST, linearization_error=0.5), Bands(lazy_error=0.5))
    assert gauge.at == pytest.approx(100 / 3, abs=0.01)
    assert gauge.edges[0] == "0.50"


def test_an_interval_lies_around_its_number():
    for gauge in gauges(LAST, Bands()):
        assert gauge.reach[0] < gauge.at < gauge.reach[1]


def test_a_number_that_was_not_measured_has_no_place_but_a_reason():
    missing = replace(LAST, linearization_error=None, left_out={"linearization_error": "moved not"})
    gauge, _ = gauges(missing, Bands())
    assert (gauge.at, gauge.reach, gauge.value) == (None, None, "not measured")
    assert gauge.reason == "moved not"


def test_the_reading_since_warm_up_has_its_own_mark():
    later = replace(LAST.since_warmup, linearization_error=0.13)
    gauge, _ = gauges(replace(LAST, since_warmup=later), Bands())
    assert gauge.later_at == pytest.approx(100 / 3, abs=0.01)
    assert gauge.later == "since warm-up (step 18) 0.130"


def test_without_a_reading_since_warm_up_there_is_no_second_mark():
    gauge, _ = gauges(replace(LAST, since_warmup=None), Bands())
    assert (gauge.later, gauge.later_at) == ("", None)


def test_an_angle_without_bands_is_shown_and_has_no_place():
    error, angle = gauges(replace(LAST, unjudged="there are no bands for it"), Bands())
    assert error.at is not None
    assert (angle.at, angle.reach) == (None, None)
    assert angle.value == gauges(LAST, Bands())[1].value
    assert angle.reason == "shown and not judged: there are no bands for it"
