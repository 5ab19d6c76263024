"""Angles between kernels; oracle: the cosine of whole matrices in plain torch."""

import json
import math

import pytest
import torch
from watch.tiny import Deep, inputs, labels, moved

from ntkwatch import KernelTracker, ProbeBatch, read_history
from ntkwatch.watch.anchors.kept_kernels import KeptKernels
from ntkwatch.watch.record.angles import KernelAngles, angles_from_plain
from ntkwatch.watch.record.history import append_record
from ntkwatch.watch.record.records import Observation, RunInfo
from ntkwatch.watch.store import RunFiles

f64 = {"dtype": torch.float64}


def _kernel(seed: int, n: int = 6) -> torch.Tensor:
    a = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), **f64)
    return (seed + 1) * a @ a.T


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.acos(float((a * b).sum() / (a.norm() * b.norm())))


def _kept(seeds, **settings) -> KeptKernels:
    kept = KeptKernels(**settings)
    for seed in seeds:
        layers = {"a": _kernel(seed + 50), "b": _kernel(seed + 70)}
        kept.add(10 * seed, _kernel(seed), layers, ["a", "b"])
    return kept


def test_every_pair_has_the_angle_of_its_matrices():
    angles = _kept(range(5)).angles
    assert angles.steps == (0, 10, 20, 30, 40)
    for i, row in enumerate(angles.matrix):
        for j, angle in enumerate(row):
            expected = 0.0 if i == j else _cosine(_kernel(i), _kernel(j))
            assert angle == pytest.approx(expected, abs=1e-6)


def test_layers_are_compared_with_the_last_and_their_median_is_taken():
    angles = _kept(range(4)).angles
    for i in range(4):
        a, b = (_cosine(_kernel(i + at), _kernel(3 + at)) if i < 3 else 0.0 for at in (50, 70))
        assert angles.layers["a"][i] == pytest.approx(a, abs=1e-6)
        assert angles.medians[i] == pytest.approx((a + b) / 2, abs=1e-6)


def test_tiny_angles_keep_their_digits():
    """Single precision holds units to 6e-8; a cosine of them would lose everything below 3e-4."""
    kept, first = KeptKernels(), _kernel(1)
    step = _kernel(2) - first * (_kernel(2) * first).sum() / first.square().sum()
    kept.add(0, first, {}, ())
    kept.add(1, first + 1e-5 * step * first.norm() / step.norm(), {}, ())
    assert kept.angles.between(0, 1) == pytest.approx(1e-5, rel=0.02)


def test_a_layer_that_is_zero_has_no_angle():
    kept = KeptKernels()
    for step in (0, 1):
        kept.add(step, _kernel(1), {"a": step * _kernel(2)}, ["a"])
    assert kept.angles.layers["a"] == (None, 0.0)
    assert kept.angles.medians == (None, 0.0)


def test_a_step_seen_again_replaces_its_kernel():
    kept = KeptKernels()
    for step, seed in ((0, 1), (5, 2), (5, 3)):
        kept.add(step, _kernel(seed), {}, ())
    assert kept.angles.below == ((), (pytest.approx(_cosine(_kernel(1), _kernel(3)), abs=1e-6),))


def test_at_most_64_are_kept_and_a_turn_is_never_thinned_away():
    """A kernel that is still, goes away once and comes back, and is still again."""
    kept, still, away = KeptKernels(), _kernel(1), _kernel(2)
    for step in range(200):
        kept.add(step, away if step == 90 else still, {}, ())
        assert len(kept.angles.steps) <= 64
    steps = kept.angles.steps
    assert len(steps) == 64
    assert {0, 90, 199} <= set(steps)
    assert max(kept.angles.matrix[0]) == pytest.approx(_cosine(still, away), abs=1e-6)


def test_memory_stays_within_the_cap_and_layers_go_first():
    size = 4 * 6 * 7 // 2
    for kernels, cap in ((10, 10 * 3 * size), (64, 20 * size * 3)):
        kept = _kept(range(40), cap=cap)
        assert kept.nbytes <= cap
        assert len(kept.angles.steps) == min(kernels, cap // (3 * size))
        assert set(kept.angles.layers) == {"a", "b"}
    small = _kept(range(40), cap=9 * size)
    assert (len(small.angles.steps), small.angles.layers) == (9, {})
    assert "not kept by layer" in small.angles.left_out
    none = _kept(range(4), cap=size)
    assert none.angles.steps == ()
    assert "too large to be kept" in none.angles.left_out


# The same in plain numbers. -----------------------------------------------------------------------


def test_angles_survive_a_round_trip_through_json():
    angles = _kept(range(5)).angles
    assert angles_from_plain(json.loads(json.dumps(angles.to_plain(), allow_nan=False))) == angles


def test_what_is_left_of_some_steps_is_what_they_would_have_been():
    whole = _kept(range(5)).angles
    assert whole.only({0, 20, 40}).below == _kept((0, 2, 4)).angles.below
    assert whole.only({0, 20, 40}).layers == {}


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {"ntkwatch_angles": 2},
        {"ntkwatch_angles": 1, "steps": [0], "below": [[1.0]], "layers": {}, "medians": []},
        {"ntkwatch_angles": 1, "steps": [1, 0], "below": [[], [1]], "layers": {}, "medians": []},
        {"ntkwatch_angles": 1, "steps": [0, 1], "below": [[], [9]], "layers": {}, "medians": []},
        {"ntkwatch_angles": 1, "steps": [0], "below": [[]], "layers": {"a": []}, "medians": [1, 2]},
        {"ntkwatch_angles": 1, "steps": [0, 1], "below": [[], ["x"]], "layers": {}, "medians": []},
    ],
)
def test_a_file_of_another_form_is_left_out_and_named(broken, tmp_path):
    history = tmp_path / "history.jsonl"
    append_record(history, RunInfo())
    one = {"anchor_step": 0, "probe_size": 2, "output_count": 1, "seconds": 0.0}
    append_record(history, Observation(step=0, **one))
    (tmp_path / "angles.json").write_text(json.dumps(broken))
    read = read_history(tmp_path)
    assert read.angles is None
    assert len(read) == 1
    (problem,) = read.problems
    assert problem.startswith("angles.json cannot be read")


def test_a_tracker_keeps_what_its_files_give_back(tmp_path):
    torch.manual_seed(0)
    start, probe = Deep(), ProbeBatch(inputs(6, 4), labels(6))
    tracker = KernelTracker(probe)
    for step in (0, 3, 9):
        tracker.observe(moved(start, 0.02 * step), step)
    files = RunFiles(tmp_path)
    files.rewrite(tracker.history)
    again = read_history(tmp_path)
    assert again.angles == tracker.history.angles
    assert isinstance(again.angles, KernelAngles)
    assert again.angles.between(0, 2) == pytest.approx(again[-1].kernel_angle, abs=1e-6)
    assert again.angles.medians[0] == pytest.approx(again[-1].layer_angle_median, abs=1e-6)
    assert set(again.angles.layers) == set(again[-1].layer_angle)
