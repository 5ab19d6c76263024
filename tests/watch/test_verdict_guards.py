"""When a verdict is withheld, and what it says for itself; oracle: numbers put in by hand."""

import json
from dataclasses import replace

import pytest
from watch.made import history_of, seen

from ntkwatch import judge
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Gap, RunInfo
from ntkwatch.watch.verdict.wording import number

RICH = seen(0.6, 0.4, 2.0)


def _guarded(history: History) -> tuple[str, str | None, str]:
    verdict = judge(history)
    assert verdict.next_step
    assert verdict.reason.startswith("Undetermined")
    assert ".." not in verdict.reason
    return verdict.strength, verdict.qualifier, verdict.reason


GUARDS = {
    "too early": (history_of(replace(RICH, loss=1.9)), "still at 0.95 of its start"),
    "only a common shift": (
        history_of(replace(RICH, common_share=0.95, change_target_correlation=0.1)),
        "95% of the outputs' change is one shift",
    ),
    "probe too small": (history_of(replace(RICH, probe_size=31)), "has 31 points"),
    "outputs did not move": (
        history_of(replace(RICH, output_change=2e-6, noise_floor={"output": 1e-6})),
        "not distinguishable from rounding",
    ),
    "last observation failed": (
        history_of(RICH, gaps=(Gap(step=120, reason="out of memory."),)),
        "failed: out of memory",
    ),
    "diverged": (
        history_of(
            RICH,
            gaps=(
                Gap(step=110, reason="no memory."),
                Gap(step=120, reason="2 of 4 hold NaN.", kind="diverged"),
            ),
        ),
        "The model diverged by step 120: 2 of 4 hold NaN",
    ),
    "one observation": (history_of(), "only the reference"),
    "no linearization error": (
        history_of(seen(None, 0.4, 2.0, left_out={"linearization_error": "it overflows."})),
        "it overflows",
    ),
    "reference is not the start": (
        History(
            RunInfo(reference="step 50, where this fit began", reference_is_start=False),
            (*history_of(RICH),),
        ),
        "step 50, where this fit began",
    ),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_withholds_the_label_and_says_why(guard):
    history, why = GUARDS[guard]
    strength, qualifier, reason = _guarded(history)
    assert (strength, qualifier) == ("undetermined", guard)
    assert why in reason


def test_an_empty_history_says_what_to_do():
    verdict = judge(History())
    assert (verdict.strength, verdict.step) == ("undetermined", None)
    assert "NTKMonitor()" in verdict.next_step


@pytest.mark.parametrize(
    ("last", "gaps"),
    [
        (replace(RICH, loss=1.79), ()),
        (replace(RICH, loss=None), ()),
        (replace(RICH, loss_start=None), ()),
        (replace(RICH, loss=-3.0, loss_start=-2.0), ()),
        (replace(RICH, probe_size=32), ()),
        (replace(RICH, common_share=0.8, change_target_correlation=0.0), ()),
        (replace(RICH, common_share=0.99, change_target_correlation=0.6), ()),
        (replace(RICH, output_change=4e-5, noise_floor={"output": 1e-6}), ()),
        (RICH, (Gap(step=99, reason="a hiccup"),)),
        (RICH, (Gap(step=99, reason="NaN", kind="diverged"),)),
    ],
    ids=[
        "loss fell",
        "loss unknown",
        "first loss unknown",
        "loss below zero",
        "just enough points",
        "just not only a shift",
        "a shift and the task",
        "outputs moved",
        "a gap before the end",
        "a divergence that is over",
    ],
)
def test_no_guard_closes_without_its_reason(last, gaps):
    assert judge(history_of(last, gaps=gaps)).label == "feature-learning"


def test_the_gauge_turn_of_a_network_that_computes_the_same_is_not_feature_learning():
    """Rescaled against each other, two layers turn a kernel and move no output."""
    verdict = judge(history_of(seen(None, 0.5, 60.0, output_change=0.0)))
    assert (verdict.strength, verdict.qualifier) == ("undetermined", "outputs did not move")


def test_evidence_names_step_loss_and_probe_whatever_the_verdict():
    for history in [history_of(RICH), *(history for history, _ in GUARDS.values())]:
        lines = judge(history).evidence
        last = history[-1]
        assert f"step {last.step}" in lines[0]
        assert ("unknown" if last.loss is None else number(last.loss)) in lines[0]
        assert f"N = {last.probe_size}" in lines[1]
        assert lines[2].startswith("since start: linearization error")


def test_evidence_gives_the_intervals_floors_and_reasons():
    last = replace(
        RICH,
        intervals={"linearization_error": (0.55, 0.66)},
        noise_floor={"output": 2e-7},
        left_out={"target_alignment": "the probe has no targets"},
        notes=("a note",),
    )
    text = "\n".join(judge(history_of(last)).evidence)
    for part in (
        "0.60 [0.55, 0.66]",
        "output 2.0e-07",
        "not measured: target_alignment (the probe has no targets)",
        "a note",
        "0.10 of the start",
    ):
        assert part in text


def test_a_reason_that_many_layers_share_is_said_once():
    reason = "its part of the kernel is zero at the anchor"
    left_out = {f"layer_angle/block.{i}.lora_A": reason for i in range(96)}
    lines = judge(history_of(replace(RICH, left_out=left_out))).evidence
    missing = [line for line in lines if "not measured" in line]
    assert len(missing) == 1
    assert "and 93 more" in missing[0]


def test_the_use_of_a_single_observation_is_unknown():
    norms = {"1e-06": 1.0}
    first = {"target_alignment": 0.1, "target_alignment_null_sd": 0.01, "rkhs_norm": norms}
    assert judge(history_of(**first)).use.task_aligned == "unknown"


def test_a_verdict_is_json_with_the_names_of_its_fields():
    plain = json.loads(json.dumps(judge(history_of(RICH)).to_plain(), allow_nan=False))
    assert plain["strength"] == "feature-learning"
    assert set(plain) >= {
        "strength",
        "qualifier",
        "readings",
        "layers",
        "use",
        "reason",
        "evidence",
        "next_step",
        "bands",
    }
    assert plain["readings"]["since start"]["linearization_error"] == 0.6
    assert plain["bands"]["lazy_error"] == 0.13


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (None, "unknown"),
        (1e-9, "1.0e-09"),
        (0.0123, "0.012"),
        (0.256, "0.26"),
        (3.14159, "3.14"),
        (42.4, "42"),
        (12345.0, "1.2e+04"),
        (-0.5, "-0.50"),
    ],
)
def test_numbers_are_rounded_without_lying(value, text):
    assert number(value) == text


def test_a_scale_is_shown_with_its_sign():
    assert number(0.02, signed=True) == "+0.020"


def test_a_lazy_run_may_learn_nothing_but_a_shift():
    shift = {"common_share": 0.99, "change_target_correlation": 0.0}
    assert judge(history_of(seen(0.02, 0.01, 0.01, **shift))).label == "lazy"
