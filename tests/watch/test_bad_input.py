"""Bad input ends in an error that says what to do, or in a reason: never in a NaN of a report.

The oracle is a walk over everything that a history and its reports hold.
"""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from watch.made import seen
from watch.tiny import f64, inputs, labels, moved

from ntkwatch import KernelTracker, ProbeBatch, judge, training_of
from ntkwatch.errors import InputError, NonFiniteError
from ntkwatch.report.json_report import render_json
from ntkwatch.report.markdown import render_markdown
from ntkwatch.report.text import render_text
from ntkwatch.watch.record.finite import OVERFLOWS, only_finite
from ntkwatch.watch.record.history import append_record, read_history
from ntkwatch.watch.record.plain import to_plain

N, D, C = 40, 4, 3
X = inputs(N, D)


def _net(outputs: int = C) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 6, **f64), nn.Tanh(), nn.Linear(6, outputs, **f64))


@pytest.mark.parametrize("step", [0.5, True, "3", "three", None, -1, math.inf, math.nan])
def test_a_step_that_is_no_count_is_refused(step):
    with pytest.raises(InputError, match="not a whole number"):
        KernelTracker(ProbeBatch(X)).observe(_net(), step)


@pytest.mark.parametrize("step", [3, 3.0, np.int64(3), torch.tensor(3), torch.tensor(3.0)])
def test_a_step_may_be_a_whole_number_of_any_type(step):
    seen = KernelTracker(ProbeBatch(X)).observe(_net(), step)
    assert (seen.step, type(seen.step)) == (3, int)


def test_a_step_before_the_reference_is_refused_and_nothing_is_lost():
    tracker = KernelTracker(ProbeBatch(X))
    tracker.observe(_net(), 10)
    with pytest.raises(InputError, match="step 5 lies before step 10, where the reference"):
        tracker.observe(_net(), 5)
    tracker.observe(_net(), 20)
    assert [seen.step for seen in tracker.history] == [10, 20]


@pytest.mark.parametrize(
    ("step", "told", "known"),
    [(0, None, True), (500, None, False), (500, True, True), (0, False, False)],
)
def test_a_reference_after_step_0_is_no_start_unless_that_is_said(step, told, known):
    tracker = KernelTracker(ProbeBatch(X, labels(N)), reference_is_start=told)
    start = _net()
    tracker.observe(start, step, loss=1.0)
    tracker.observe(moved(start), step + 100, loss=0.1)
    assert tracker.history.run.reference_is_start is known
    verdict = judge(tracker.history)
    assert ("reference is not the start" in verdict.label) is not known
    if step and not known:
        assert "the reference is the first observation, at step 500" in verdict.reason.lower()
        assert "before the first update, at step 0" in verdict.next_step


def test_a_probe_that_is_a_bare_tensor_and_no_optimizer_are_refused_by_name():
    with pytest.raises(InputError, match=r"a Tensor.*Give ProbeBatch\(inputs, targets\)"):
        KernelTracker(X)
    with pytest.raises(InputError, match="'a' is no optimizer"):
        training_of("adam")
    with pytest.raises(InputError, match="None is no optimizer"):
        KernelTracker(ProbeBatch(X)).note_step(None)


def test_a_loss_may_be_a_tensor_that_still_has_its_graph():
    loss = _net()(X).square().mean()
    assert KernelTracker(ProbeBatch(X)).observe(_net(), 0, loss=loss).loss == loss.item()


def test_a_second_reading_that_is_missing_is_said_to_be():
    tracker = KernelTracker(ProbeBatch(X, labels(N)), warmup_steps=5)
    start = _net()
    missing = []
    for step in (0, 100, 200):
        tracker.observe(
            start if step == 0 else moved(start, seed=step), step, loss=9.0 / (1 + step)
        )
        missing.append(
            "since warm-up: no second reading" in " ".join(judge(tracker.history).evidence)
        )
    assert missing == [False, True, False]


def _watched(probe: ProbeBatch, start=None, end=None) -> KernelTracker:
    start = _net() if start is None else start
    tracker = KernelTracker(probe, metrics="full", warmup_steps=1)
    descent = torch.optim.SGD(start.parameters(), lr=0.01)
    facts = training_of(descent, loss_function="square-mean", batch_size=len(probe))
    tracker.observe(start, 0, loss=1.0, training=facts)
    tracker.observe(moved(start, 0.02), 2, loss=0.7, training=facts)
    tracker.observe(moved(start) if end is None else end, 5, loss=0.5, training=facts)
    return tracker


def _floats(value):
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _floats(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _floats(part)


def _check_nothing_is_nan(tracker: KernelTracker, path) -> None:
    for observation in tracker.history:
        assert all(math.isfinite(number) for number in _floats(to_plain(observation)))
        append_record(path / "history.jsonl", observation)
    assert len(read_history(path / "history.jsonl")) == len(tracker.history)
    verdict = judge(tracker.history)
    assert verdict.reason
    for render in (render_text, render_markdown, render_json):
        page = render(tracker.history, verdict, title="run")
        said = re.sub(r"(hold|for) NaN|NaN or|Check the inputs for NaN", "", page)
        assert not re.search(r"\b(nan|NaN|inf|Infinity)\b", said)
    json.loads(page)


ONE = torch.ones(N, C, **f64)
BAD = {
    "yes or no": labels(N, 2) > 0,
    "small whole numbers": labels(N).to(torch.int8),
    "not a number": torch.full((N, C), torch.nan, **f64),
    "some of them": torch.where(torch.arange(N)[:, None] < 3, torch.nan, ONE * inputs(N, C)),
    "infinite": torch.full((N, C), torch.inf, **f64),
    "too large to square": 1e200 * inputs(N, C),
    "too small to square": 1e-200 * inputs(N, C),
    "of one class": torch.zeros(N, dtype=torch.long),
    "of one value": ONE,
    "of too few columns": inputs(N, 2),
    "of several labels": torch.randint(0, 2, (N, C), generator=torch.Generator().manual_seed(0)),
    "far from zero": 10**6 * labels(N),
    "to be ignored": torch.where(labels(N) == 0, -100, labels(N)),
}


@pytest.mark.parametrize("kind", BAD)
def test_targets_of_any_kind_end_in_reasons(kind, tmp_path):
    tracker = _watched(ProbeBatch(X, BAD[kind], whole_training_set=True))
    _check_nothing_is_nan(tracker, tmp_path)
    last = tracker.history[-1]
    for key in ("target_alignment", "residual_modes", "gradient_flow_bound"):
        assert getattr(last, key) not in (None, ()) or last.left_out[key]
    assert last.linearization_error is not None


def test_targets_that_are_not_known_are_no_divergence():
    tracker = _watched(ProbeBatch(X[:2], BAD["not a number"][:2], whole_training_set=True))
    last = tracker.history[-1]
    assert "hold NaN" in last.left_out["residual_modes"]
    assert "hold NaN" in last.left_out["gradient_flow_bound"]


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (labels(N)[:10], r"40 samples and targets of shape \(10,\)"),
        (torch.tensor(1), r"targets of shape \(\)"),
        (labels(N).tolist(), "targets of the probe are a list"),
        (labels(N).numpy(), "are a ndarray of int64"),
        (torch.zeros(N, dtype=torch.complex64), "are a Tensor of torch.complex64"),
    ],
)
def test_targets_that_cannot_be_read_are_refused(targets, says):
    with pytest.raises(InputError, match=says):
        ProbeBatch(X, targets)


POINTS = {
    "half of them twice": torch.cat([X[: N // 2], X[: N // 2]]),
    "all the same": X[:1].repeat(N, 1),
    "all zero": 0 * X,
    "huge": 1e160 * X,
    "two": X[:2],
}


@pytest.mark.parametrize("kind", POINTS)
def test_probes_with_singular_kernels_end_in_reasons(kind, tmp_path):
    x = POINTS[kind]
    tracker = _watched(ProbeBatch(x, inputs(len(x), C, seed=5), whole_training_set=True))
    _check_nothing_is_nan(tracker, tmp_path)
    if kind not in ("two", "huge"):
        last = tracker.history[-1]
        assert "rounding floor" in last.left_out["min_eigenvalue"]
        assert last.condition_number is None


def test_models_that_are_zero_or_stand_still_end_in_reasons(tmp_path):
    zero = _net()
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    _check_nothing_is_nan(_watched(ProbeBatch(X, labels(N)), zero), tmp_path)
    still = KernelTracker(ProbeBatch(X, labels(N), whole_training_set=True), metrics="full")
    still.observe(_net(), 0)
    still.observe(_net(), 1)
    (tmp_path / "still").mkdir()
    _check_nothing_is_nan(still, tmp_path / "still")
    assert judge(still.history).qualifier == "outputs did not move"


def test_weights_whose_squares_overflow_end_in_reasons(tmp_path):
    end = _net()
    with torch.no_grad():
        for parameter in end.parameters():
            parameter.mul_(1e200)
    tracker = _watched(ProbeBatch(X, labels(N), whole_training_set=True), end=end)
    _check_nothing_is_nan(tracker, tmp_path)
    last = tracker.history[-1]
    assert last.left_out["displacement"] == OVERFLOWS
    assert last.displacement is None
    assert judge(tracker.history).strength == "undetermined"


def test_weights_that_are_not_numbers_are_refused_and_the_history_is_kept():
    end = _net()
    with torch.no_grad():
        end[0].weight[0, 0] = torch.nan
    tracker = KernelTracker(ProbeBatch(X, labels(N)))
    tracker.observe(_net(), 0)
    with pytest.raises(NonFiniteError, match=r"hold NaN or infinity \(0.weight\)"):
        tracker.observe(end, 1)
    assert len(tracker.history) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf, -1.0, 0.0])
def test_losses_without_a_ratio_give_none(loss, tmp_path):
    tracker = KernelTracker(ProbeBatch(X, labels(N)))
    tracker.observe(_net(), 0, loss=loss)
    tracker.observe(moved(_net()), 1, loss=loss)
    _check_nothing_is_nan(tracker, tmp_path)
    assert judge(tracker.history).loss_ratio is None


def test_one_observation_is_undetermined_and_says_what_to_do(tmp_path):
    tracker = KernelTracker(ProbeBatch(X, labels(N)), metrics="full")
    tracker.observe(_net(), 0)
    _check_nothing_is_nan(tracker, tmp_path)
    verdict = judge(tracker.history)
    assert (verdict.strength, verdict.qualifier) == ("undetermined", "one observation")
    assert "Observe again" in verdict.next_step


def test_a_run_goes_on_with_its_own_probe_and_settings_only():
    first = KernelTracker(ProbeBatch(X, labels(N)))
    first.observe(_net(), 0)
    other = KernelTracker(ProbeBatch(inputs(N, D, seed=8), labels(N)))
    with pytest.raises(InputError, match="kernels cannot be compared"):
        other.resume(first.history, first.reference)


def test_what_is_not_finite_leaves_a_record_with_the_reason_and_the_rest_stays():
    inner = copy.copy(seen(math.nan, 0.1, 2.0))
    record = seen(
        0.5,
        math.inf,
        2.0,
        top_eigenvalues=(math.inf, 1.0),
        layer_displacement={"a": 1.0, "b": math.nan},
        intervals={"kernel_scale": (0.0, math.nan), "kernel_angle": (0.1, 0.2)},
        left_out={"layer_angle_median": "said before"},
        since_warmup=inner,
    )
    found = only_finite(record)
    assert found.linearization_error == 0.5
    assert found.layer_angle_median is None
    assert found.left_out["layer_angle_median"] == "said before"
    assert found.top_eigenvalues == ()
    assert found.left_out["top_eigenvalues"] == OVERFLOWS
    assert found.layer_displacement == {"a": 1.0}
    assert found.intervals == {"kernel_angle": (0.1, 0.2)}
    assert found.since_warmup.linearization_error is None
    whole = seen(0.5, 0.1, 2.0)
    assert only_finite(whole) is whole
