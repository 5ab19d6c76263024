"""The rules of a verdict, case by case; oracle: a table written by hand, with numbers for each row.

Bands: a linearization error is lazy below 0.13 and feature-learning above 0.32; a median layer
angle is lazy below 0.06 rad and feature-learning above 0.2 rad.
"""

import copy

import pytest
from watch.made import history_of, seen

from ntkwatch import judge
from ntkwatch.watch.record.records import Reading
from ntkwatch.watch.verdict.bands import Bands, Strength

# error, angle, relative change -> strength, qualifier
TABLE = [
    ("all below the floor", 1e-6, 1e-6, 1e-6, "static", None),
    ("error below the floor, angle above", 1e-6, 0.01, 0.02, "lazy", None),
    ("angle below the floor, error above", 0.01, 1e-6, 0.02, "lazy", None),
    ("both lazy", 0.05, 0.02, 0.04, "lazy", None),
    ("angle one band up", 0.05, 0.10, 0.2, "lazy", None),
    ("angle one band up, kernel larger: it turned too", 0.05, 0.10, 0.9, "lazy", None),
    ("both between", 0.25, 0.10, 0.3, "transitional", None),
    ("angle one band down", 0.25, 0.02, 0.2, "transitional", None),
    ("angle one band up again", 0.25, 0.30, 0.6, "transitional", None),
    ("both feature-learning", 0.60, 0.40, 2.0, "feature-learning", None),
    ("angle one band below features", 0.60, 0.10, 0.4, "feature-learning", None),
    ("grown in few directions", 0.60, 0.02, 0.8, "feature-learning", "low-rank or scale change"),
    (
        "grown, angle below its floor",
        0.60,
        1e-6,
        0.8,
        "feature-learning",
        "low-rank or scale change",
    ),
    ("not turned, grown some", 0.60, 0.02, 0.3, "transitional", None),
    ("not turned, not grown", 0.60, 0.02, 0.05, "undetermined", "derivative does not fit"),
    ("lazy, kernel larger", 0.05, 0.02, 0.9, "lazy", "kernel rescaled"),
    ("nothing but scale", 1e-6, 1e-6, 0.9, "lazy", "kernel rescaled"),
    ("error lazy, angle rich", 0.05, 0.40, 0.6, "undetermined", "signals disagree"),
    ("error static, angle rich", 1e-6, 0.40, 0.6, "undetermined", "signals disagree"),
    ("edges belong to the band between: lower", 0.13, 0.06, 0.1, "transitional", None),
    ("edges belong to the band between: upper", 0.32, 0.20, 0.5, "transitional", None),
]


@pytest.mark.parametrize(
    ("error", "angle", "change", "strength", "qualifier"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_the_table_of_rules(error, angle, change, strength, qualifier):
    verdict = judge(history_of(seen(error, angle, change)))
    assert (verdict.strength, verdict.qualifier) == (strength, qualifier)
    assert verdict.next_step
    assert verdict.reason.endswith(".")
    assert ".." not in verdict.reason


@pytest.mark.parametrize(
    ("error", "interval", "strength", "qualifier"),
    [
        (0.10, (0.08, 0.12), "lazy", None),
        (0.12, (0.11, 0.17), "lazy", "borderline"),
        (0.30, (0.20, 0.40), "transitional", "borderline"),
        (0.25, (0.16, 0.31), "transitional", None),
        (0.25, (0.10, 0.45), "undetermined", "interval too wide"),
        (0.40, (0.36, 0.45), "feature-learning", None),
    ],
)
def test_an_interval_across_an_edge_is_borderline_and_across_two_says_nothing(
    error, interval, strength, qualifier
):
    last = seen(error, 0.1, 0.2, intervals={"linearization_error": interval})
    verdict = judge(history_of(last))
    assert (verdict.strength, verdict.qualifier) == (strength, qualifier)


def test_an_interval_across_two_edges_says_nothing_however_little_the_kernel_turned():
    last = seen(0.60, 0.02, 0.8, intervals={"linearization_error": (0.1, 0.9)})
    assert judge(history_of(last)).qualifier == "interval too wide"


def test_without_an_angle_the_error_decides_and_static_is_not_claimed():
    reason = {"layer_angle_median": "there is no per-sample kernel."}
    for error, strength in ((1e-6, "lazy"), (0.05, "lazy"), (0.25, "transitional")):
        verdict = judge(history_of(seen(error, None, None, left_out=reason)))
        assert (verdict.strength, verdict.qualifier) == (strength, None)
        assert "no per-sample kernel" in verdict.reason
    wide = {"linearization_error": (0.12, 0.14)}
    verdict = judge(history_of(seen(0.129, None, None, left_out=reason, intervals=wide)))
    assert verdict.qualifier == "borderline"


def test_floors_raise_what_counts_as_nothing():
    noisy = {"layer_angle_median": 0.004, "output": 0.01}
    last = seen(0.02, 0.01, 0.01, noise_floor=noisy, output_change=1.0)
    assert judge(history_of(last)).strength == "static"
    last = seen(0.05, 0.01, 0.01, noise_floor=noisy, output_change=1.0)
    assert judge(history_of(last)).strength == "lazy"


def _warm(error, angle, change=0.2, *, anchor=20) -> Reading:
    return Reading(
        anchor_step=anchor,
        linearization_error=error,
        layer_angle_median=angle,
        relative_kernel_change=change,
        output_change=1.0,
    )


AFTER = "after an early reorganisation"


@pytest.mark.parametrize(
    ("since_start", "since_warmup", "strength", "qualifier"),
    [
        ((0.6, 0.4), (0.05, 0.02), "lazy", AFTER),
        ((0.6, 0.4), (0.25, 0.10), "transitional", AFTER),
        ((0.6, 0.4), (0.7, 0.5), "feature-learning", None),
        ((0.25, 0.1), (0.05, 0.02), "lazy", AFTER),
        ((0.25, 0.1), (0.6, 0.4), "transitional", None),
        ((0.05, 0.02), (1e-6, 1e-6), "lazy", None),  # what was lazy at once did not reorganise
        ((0.6, 0.4), (None, None), "feature-learning", None),
        ((0.05, 0.4), (0.05, 0.02), "undetermined", "signals disagree"),
    ],
)
def test_the_reading_since_warmup_counts_where_it_is_lower(
    since_start, since_warmup, strength, qualifier
):
    last = seen(*since_start, 0.4, since_warmup=_warm(*since_warmup))
    verdict = judge(history_of(last))
    assert (verdict.strength, verdict.qualifier) == (strength, qualifier)
    assert set(verdict.readings) == {"since start", "since warm-up"}
    assert verdict.readings["since warm-up"].anchor_step == 20
    if qualifier == AFTER:
        assert verdict.label == f"{strength} {AFTER}"
        assert f"{since_start[0]:.2g}" in verdict.reason


def test_one_step_after_the_warmup_tells_nothing_about_what_came_since():
    last = seen(0.6, 0.4, 0.4, step=25, since_warmup=_warm(0.01, 0.01, anchor=24))
    verdict = judge(history_of(last))
    assert verdict.label == "feature-learning"
    assert verdict.readings["since warm-up"].strength == "undetermined"
    assert verdict.readings["since warm-up"].qualifier == "too early"


def test_layers_in_far_apart_bands_are_called_mixed():
    layers = {"a": 0.4, "b": 0.01, "c": None}
    verdict = judge(history_of(seen(0.25, 0.1, 0.2, layer_angle=layers)))
    assert verdict.label == "transitional (mixed by layer)"
    assert "features formed in a and not in b" in verdict.reason
    assert [verdict.layers[name].band for name in "abc"] == [
        "feature-learning",
        "lazy",
        "no reference",
    ]


def test_the_edges_of_an_angle_belong_to_the_band_between():
    layers = {"lower": 0.06, "upper": 0.2}
    verdict = judge(history_of(seen(0.25, 0.1, 0.2, layer_angle=layers)))
    assert {layer.band for layer in verdict.layers.values()} == {"transitional"}


def test_a_qualifier_that_says_more_is_not_replaced_by_mixed():
    layers = {"a": 0.4, "b": 0.01}
    verdict = judge(history_of(seen(0.05, 0.02, 0.9, layer_angle=layers)))
    assert verdict.qualifier == "kernel rescaled"


def test_bands_are_the_callers_to_change_and_are_reported():
    strict = Bands(lazy_error=0.01, feature_error=0.02)
    history = history_of(seen(0.05, 0.3, 0.2))
    assert judge(history, bands=strict).strength == "feature-learning"
    assert judge(history, bands=strict).bands is strict
    assert judge(history).bands == Bands()


def test_judging_changes_nothing():
    history = history_of(seen(0.25, 0.1, 0.2, since_warmup=_warm(0.1, 0.02)))
    before = copy.deepcopy((history.run, history.observations, history.gaps))
    judge(history)
    assert (history.run, history.observations, history.gaps) == before


def test_strengths_are_ranked_and_undetermined_is_not():
    ranks = [strength.rank for strength in Strength]
    assert ranks == [0, 1, 2, 3, None]


@pytest.mark.parametrize(
    ("alignment", "norms", "answer"),
    [
        ((0.10, 0.14), (1.0, 1.0), "yes"),
        ((0.10, 0.101), (1.0, 0.6), "yes"),
        ((0.10, 0.101), (1.0, 0.9), "no"),
        ((0.10, 0.12), (1.0, 0.9), "unknown"),
        ((0.10, 0.101), (1.0, 0.75), "unknown"),
        ((None, None), (None, None), "unknown"),
    ],
)
def test_alignment_with_the_task_needs_evidence_either_way(alignment, norms, answer):
    def with_targets(value, norm):
        known = {} if norm is None else {"1e-06": norm, "0.001": norm}
        return {
            "target_alignment": value,
            "target_alignment_null_sd": 0.01 if value else None,
            "rkhs_norm": known,
        }

    first = with_targets(alignment[0], norms[0])
    last = seen(0.25, 0.1, 0.2, **with_targets(alignment[1], norms[1]))
    verdict = judge(history_of(last, **first))
    assert verdict.use.task_aligned == answer
    assert verdict.use.features_needed == "unknown"
    assert verdict.use.why


def test_two_ridges_that_disagree_say_nothing():
    first = {"rkhs_norm": {"1e-06": 1.0, "0.001": 1.0}}
    last = seen(0.25, 0.1, 0.2, rkhs_norm={"1e-06": 0.5, "0.001": 0.9})
    assert judge(history_of(last, **first)).use.task_aligned == "unknown"


def test_advice_to_a_lazy_run_names_the_room_that_its_learning_rate_has():
    lazy = {"error": 0.02, "angle": 0.01, "change": 0.01}
    unknown = judge(history_of(seen(*lazy.values())))
    assert "raise the learning rate toward the stable limit" in unknown.next_step
    rates = {"max_stable_lr": 0.8, "edge_of_stability": 0.25}
    known = judge(history_of(seen(*lazy.values(), **rates)))
    assert "now 0.25 of the stable limit, toward 0.80" in known.next_step
    rates = {"max_stable_lr": 0.8, "edge_of_stability": 1.5}
    beyond = judge(history_of(seen(*lazy.values(), **rates)))
    assert "1.50 times the stable 0.80" in beyond.next_step


def test_advice_follows_the_qualifier():
    grown = judge(history_of(seen(0.02, 0.01, 2.0)))
    assert grown.label == "lazy (kernel rescaled)"
    assert "grew without turning" in grown.next_step
    settled = judge(history_of(seen(0.6, 0.4, 2.0, step=500, since_warmup=_warm(0.02, 0.01))))
    assert settled.label == f"lazy {AFTER}"
    assert "From step 20 on" in settled.next_step
