"""A fresh probe at every observation; the oracle is a tracker that had it from the start."""

from dataclasses import replace

import pytest
import torch
from watch.tiny import ConvNet, Deep, inputs, labels, moved

from ntkwatch import KernelTracker, ProbeBatch, judge

N = 64


def _probe(seed: int, n: int = N) -> ProbeBatch:
    return ProbeBatch(inputs(n, 4, seed=seed), labels(n))


def _numbers(seen):
    """What does not hang on the first probe."""
    first = {"noise_floor": {}, "probe_fingerprint": None, "seconds": 0.0, "since_layer_angle": {}}
    way = dict.fromkeys(("angular_velocity", "path_length", "path_length_ratio"))
    return replace(seen, **first, **way, left_out={})


@pytest.fixture(scope="module")
def course():
    torch.manual_seed(0)
    start = Deep()
    return {0: start, 3: moved(start, 0.05), 7: moved(start, 0.1), 9: moved(start, 0.12)}


def _observed(course, probe, fresh=None, **settings) -> KernelTracker:
    tracker = KernelTracker(probe, fresh_probe=fresh, warmup_steps=3, **settings)
    for step, model in course.items():
        tracker.observe(model, step, loss=1.0 / (1 + step))
    return tracker


def test_each_observation_reads_as_if_its_probe_had_been_there_from_the_start(course):
    fresh = _observed(course, _probe(1), lambda step: _probe(100 + step), metrics="full")
    for step in (3, 7, 9):
        alone = _observed(course, _probe(100 + step), metrics="full").history
        mine = next(seen for seen in fresh.history if seen.step == step)
        other = next(seen for seen in alone if seen.step == step)
        assert _numbers(mine) == _numbers(other)
        assert mine.probe_fingerprint == _probe(100 + step).fingerprint()
    assert fresh.history[-1].since_warmup is not None


def test_moving_averages_of_the_reference_are_those_of_the_reference():
    torch.manual_seed(0)
    start = ConvNet()
    now = moved(start, 0.1)
    now.norm.running_mean += 0.5

    def images(seed: int) -> ProbeBatch:
        return ProbeBatch(inputs(8, 1, 4, 4, seed=seed), labels(8))

    settings = {"batchnorm": "running"}
    fresh = _observed({0: start, 5: now}, images(1), lambda step: images(2), **settings)
    alone = _observed({0: start, 5: now}, images(2), **settings)
    assert _numbers(fresh.history[-1]) == _numbers(alone.history[-1])
    assert fresh.history[-1].buffer_share is not None


def test_both_modes_agree_within_their_intervals(course):
    fixed = _observed(course, _probe(1)).history[-1]
    fresh = _observed(course, _probe(1), lambda step: _probe(100 + step)).history[-1]
    for key in ("relative_kernel_change", "kernel_angle", "layer_angle_median"):
        (low, high), (other_low, other_high) = fixed.intervals[key], fresh.intervals[key]
        assert getattr(fixed, key) != getattr(fresh, key)
        assert low < other_high
        assert other_low < high
    (low, high), value = fixed.intervals["linearization_error"], fresh.linearization_error
    assert low < value < high


def test_what_compares_observations_with_each_other_is_left_out(course):
    last = _observed(course, _probe(1), lambda step: _probe(100 + step)).history[-1]
    assert (last.angular_velocity, last.path_length, last.path_length_ratio) == (None, None, None)
    assert "probe of its own" in last.left_out["path_length_ratio"]


def test_the_run_says_that_probes_are_fresh_and_gets_its_verdict(course):
    tracker = _observed(course, _probe(1), lambda step: _probe(100 + step))
    assert tracker.history.run.probe["resampled"] is True
    assert judge(tracker.history).strength != "undetermined"
    assert tracker.last_probe.fingerprint() == _probe(109).fingerprint()
    assert tracker.reference is not tracker.last_reference
    torch.testing.assert_close(tracker.reference.outputs, course[0](tracker.probe.inputs).detach())


def test_the_use_of_the_movement_is_read_on_one_probe(course):
    """An easier probe aligns better; its own rise is none where nothing moved."""
    still = {0: course[0], 3: course[0], 9: moved(course[0], 1e-6)}

    def easier(step: int) -> ProbeBatch:
        return ProbeBatch(inputs(N, 4, seed=step) + 3 * labels(N)[:, None], labels(N))

    history = _observed(still, _probe(1), easier).history
    first, last = history[0], history[-1]
    assert last.target_alignment - first.target_alignment > 3 * first.target_alignment_null_sd
    assert judge(history).use.task_aligned == "no"
