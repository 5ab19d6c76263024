"""The rows that every format shows; oracle: the made-up observations, searched by hand."""

from dataclasses import replace

from report.made_runs import (
    LAYERS,
    feature_observations,
    lazy_observations,
    observation,
    read_back,
    run_info,
)

from ntkwatch.report.columns import COLUMNS, value_of
from ntkwatch.report.core import summarise, thin
from ntkwatch.watch.record.history import History, read_history
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.verdict.verdict import judge


def _summary(history):
    return summarise(history, judge(history))


def test_a_short_run_is_listed_whole():
    observations = lazy_observations()[:12]
    assert thin(observations) == observations


def test_a_long_run_is_thinned_to_a_readable_number_with_both_ends():
    observations = [observation(step, error=0.7, angle=0.6, end=5000) for step in range(5000)]
    rows = thin(observations)
    assert (rows[0], rows[-1]) == (observations[0], observations[-1])
    assert len(rows) <= 12 + 2 * len(COLUMNS)


def test_a_spike_in_any_column_survives_thinning():
    flat = [observation(step, error=0.1, angle=0.1, end=900) for step in range(900)]
    flat[137] = replace(flat[137], loss=55.0)
    flat[731] = replace(flat[731], effective_rank=1.0)
    flat[402] = replace(flat[402], top_eigenvalues=(9e9,))
    rows = thin(flat)
    assert [flat[place] in rows for place in (137, 731, 402)] == [True, True, True]


def test_rows_stay_in_the_order_of_steps():
    steps = [row.step for row in thin(feature_observations())]
    assert steps == sorted(steps)


def test_layers_come_by_angle_and_those_without_a_reference_last(tmp_path):
    *earlier, last = feature_observations()
    angles = {"head": None, "frozen": 0.0, **last.layer_angle}
    history = read_back(tmp_path, (*earlier, replace(last, layer_angle=angles)))
    names = [layer.name for layer in _summary(history).layers]
    assert names[0] == "classifier.0"  # the largest factor in the made-up run
    assert names[-2:] == ["frozen", "head"]
    assert sorted(names) == sorted([*LAYERS, "frozen", "head"])


def test_a_number_that_was_never_measured_is_no_column_and_has_its_reason(tmp_path):
    reason = "the probe has no targets"
    observations = tuple(
        replace(o, target_alignment=None, left_out={**o.left_out, "target_alignment": reason})
        for o in lazy_observations()
    )
    summary = _summary(read_back(tmp_path, observations))
    assert "target_alignment" not in [column.key for column in summary.columns]
    assert [(m.titles, m.where, m.reason) for m in summary.missing] == [
        (("target alignment",), "never measured", reason)
    ]


def test_without_a_kernel_all_that_is_computed_from_it_shares_one_reason(tmp_path):
    without = {
        "loss": None,
        "relative_kernel_change": None,
        "kernel_scale": None,
        "kernel_angle": None,
        "kernel_distance": None,
        "kernel_distance_offdiag": None,
        "layer_angle_median": None,
        "layer_angle": {},
        "top_eigenvalues": (),
        "effective_rank": None,
        "target_alignment": None,
        "left_out": {"kernel": "samples are coupled"},
    }
    observations = tuple(replace(o, **without) for o in lazy_observations())
    loss, missing = _summary(read_back(tmp_path, observations)).missing
    assert (loss.titles, loss.reason) == (("training loss",), "no reason was recorded")
    assert missing.reason == "samples are coupled"
    assert set(missing.titles) >= {"relative kernel change", "top eigenvalue", "effective rank"}
    assert "linearization error" not in missing.titles


def test_a_number_that_is_missing_now_and_then_says_how_often(tmp_path):
    observations = list(lazy_observations())
    for place in (3, 7):
        observations[place] = replace(
            observations[place],
            linearization_error=None,
            left_out={"linearization_error": "the outputs did not move"},
        )
    (missing,) = _summary(read_back(tmp_path, tuple(observations))).missing
    assert missing.where == "missing at 2 of 18 observations"  # the reference has none to give
    assert missing.reason == "the outputs did not move"


def test_the_reference_has_no_loss_and_that_is_no_news(tmp_path):
    first, *later = lazy_observations()
    summary = _summary(read_back(tmp_path, (replace(first, loss=None), *later)))
    assert summary.missing == ()


def test_a_missing_number_without_a_reason_says_so(tmp_path):
    observations = tuple(replace(o, loss=None) for o in lazy_observations())
    (missing,) = _summary(read_back(tmp_path, observations)).missing
    assert (missing.titles, missing.reason) == (("training loss",), "no reason was recorded")


def test_cost_adds_up_over_all_observations_and_not_only_the_listed(tmp_path):
    observations = tuple(replace(o, seconds=0.25) for o in lazy_observations())
    summary = _summary(
        read_back(tmp_path, (*observations[:-1], replace(observations[-1], seconds=2.0)))
    )
    cost = dict(summary.cost)
    assert cost["all observations"] == "6.50 s"  # 18 of 0.25 s, and one of 2 s
    assert cost["slowest observation"] == "2.00 s"
    assert len(summary.rows) < summary.total == 19


def test_gaps_and_problems_of_the_file_are_passed_on(tmp_path):
    history = read_back(tmp_path, lazy_observations(), gaps=(Gap(step=7, reason="out of memory"),))
    with history.path.open("a") as file:
        file.write('{"record": "observation", "st')
    summary = _summary(read_history(history.path))
    assert [(gap.step, gap.reason) for gap in summary.gaps] == [(7, "out of memory")]
    assert len(summary.problems) == 1


def test_settings_name_the_reference_the_probe_and_the_versions(tmp_path):
    settings = dict(_summary(read_back(tmp_path, lazy_observations(), info=run_info())).settings)
    assert settings["reference"] == "the weights before the first update"
    assert settings["probe: fingerprint"] == "9f2c41d07be3"
    assert settings["version of torch"] == "2.13.0"


def test_nothing_observed_is_a_summary_with_nothing_in_it():
    summary = _summary(History())
    assert (summary.rows, summary.layers, summary.missing, summary.cost) == ((), (), (), ())


def test_every_column_can_be_read_from_an_observation():
    last = feature_observations()[-1]
    assert [column.key for column in COLUMNS if value_of(last, column.key) is None] == []
