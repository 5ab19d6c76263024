"""Observations without a kernel; oracle: the whole observation of another tracker."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from watch.tiny import Deep, f64, inputs, labels, moved

from ntkwatch import KernelTracker, ProbeBatch, judge, training_of
from ntkwatch.watch.record.records import NOT_TAKEN, TIMINGS, Observation
from ntkwatch.watch.store import RunFiles

N = 40
# What needs no kernel, and is the same in both.
_SHARED = (
    "linearization_error",
    "linearization_error_centred",
    "linearization_method",
    "output_change",
    "displacement",
    "relative_displacement",
    "layer_displacement",
    "layer_relative_displacement",
    "noise_floor",
)


class Normed(nn.Sequential):
    """Convolutions whose norm a BatchNorm divides away, which the error has to look through."""

    def __init__(self) -> None:
        conv = nn.Conv1d(4, 6, 3, padding=1, **f64)
        norm, head = nn.BatchNorm1d(6, **f64), nn.Linear(6 * 5, 3, **f64)
        super().__init__(conv, norm, nn.Tanh(), nn.Flatten(), head)


def _probe(model: nn.Module) -> ProbeBatch:
    x = torch.randn(N, 4, 5, **f64) if isinstance(model, Normed) else inputs(N, 4)
    return ProbeBatch(x, labels(N))


def _seen(model: nn.Module, steps: dict[int, bool], **settings) -> list[Observation]:
    """Observe a model that moves a little at every step; True is for a brief one."""
    torch.manual_seed(1)
    tracker = KernelTracker(_probe(model), warmup_steps=3, **settings)
    for step in range(1 + max(steps)):
        if step in steps:
            tracker.observe(model, step, brief=steps[step])
        model = moved(model)
    return list(tracker.history)


@pytest.mark.parametrize("kind", [Deep, Normed])
def test_a_brief_observation_has_what_needs_no_kernel_to_the_last_bit(kind):
    torch.manual_seed(0)
    model = kind()
    brief = _seen(model, {0: False, 1: False, 2: True})[-1]
    whole = _seen(model, {0: False, 1: False, 2: False})[-1]
    assert brief.is_brief
    assert not whole.is_brief
    assert {key: getattr(brief, key) for key in _SHARED} == {
        key: getattr(whole, key) for key in _SHARED
    }
    assert brief.intervals == {"linearization_error": whole.intervals["linearization_error"]}
    assert brief.linearization_error > 1e-6


def test_what_it_leaves_out_has_a_reason():
    brief = _seen(Deep(), {0: False, 1: True})[-1]
    for key in ("kernel_angle", "relative_kernel_change", "effective_rank", "path_length"):
        assert getattr(brief, key) is None
    assert brief.left_out["kernel"] == brief.left_out["layer_angle_median"] == NOT_TAKEN


@pytest.mark.parametrize("metrics", ["standard", "full"])
def test_the_way_leads_from_one_kernel_to_the_next(metrics):
    """As if nothing had been looked at in between."""
    torch.manual_seed(0)
    model = Deep()
    steps = {0: False, 1: True, 2: False, 3: True, 4: False}
    with_brief = _seen(model, steps, metrics=metrics)
    without = _seen(model, {0: False, 2: False, 4: False}, metrics=metrics)
    timeless = dict.fromkeys(TIMINGS, 0.0)
    assert [replace(o, **timeless) for o in with_brief if not o.is_brief] == [
        replace(o, **timeless) for o in without
    ]


def test_a_brief_observation_is_no_anchor():
    seen = _seen(Deep(), {0: False, 3: True, 4: False, 5: False})
    assert seen[-1].since_warmup.anchor_step == 4


def test_the_reference_and_the_first_look_after_a_resume_are_never_brief():
    model, probe = Deep(), _probe(Deep())
    first = KernelTracker(probe)
    assert not first.observe(model, 0, brief=True).is_brief
    second = KernelTracker(probe)
    second.resume(first.history, first.reference)
    assert not second.observe(moved(model), 1, brief=True).is_brief


def test_fresh_probes_take_no_kernel_of_the_reference_either():
    """Both outputs are seen on the fresh probe, and neither kernel."""
    fresh = ProbeBatch(inputs(N, 4) + 1, labels(N))
    torch.manual_seed(0)
    model = Deep()
    tracker = KernelTracker(_probe(model), fresh_probe=lambda step: fresh)
    tracker.observe(model, 0)
    brief = tracker.observe(moved(model), 1, brief=True)
    other = KernelTracker(fresh)
    other.observe(model, 0)
    whole = other.observe(moved(model), 1)
    assert brief.linearization_error == whole.linearization_error
    assert brief.is_brief


def test_a_history_that_ends_brief_is_judged_by_the_error_alone():
    tracker = KernelTracker(_probe(Deep()))
    model = Deep()
    tracker.observe(model, 0, loss=1.0)
    tracker.observe(moved(model), 1, loss=0.1, brief=True)
    assert "the median layer angle is missing (no kernel was taken" in judge(tracker.history).reason


def _decayed(steps: dict[int, bool], folder=None) -> list[Observation]:
    """Train with weight decay and count it, as ``_seen`` observes."""
    torch.manual_seed(0)
    model, x = Deep(), inputs(N, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0)
    tracker = KernelTracker(_probe(model), warmup_steps=2)
    if folder is not None:
        tracker.keep_anchors_on(RunFiles(folder).anchors)
    for step in range(1 + max(steps)):
        if step in steps:
            now = training_of(optimizer)
            tracker.observe(model, step, training=now, brief=steps[step])
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        tracker.note_step(optimizer)
    return list(tracker.history)


_COURSE = dict.fromkeys((0, 2, 4, 8), False)


def test_decay_is_followed_and_anchors_at_hand_are_read_in_brief_observations_too():
    brief, whole = (_decayed({**_COURSE, 9: is_brief})[-1] for is_brief in (True, False))
    assert brief.linearization_error_decayed == whole.linearization_error_decayed is not None
    assert brief.linearization_error_decayed != brief.linearization_error
    own, other = brief.since_warmup, whole.since_warmup
    assert own.linearization_error_decayed == other.linearization_error_decayed is not None
    assert brief.since == whole.since != {}
    assert brief.since_layer_angle == {} != whole.since_layer_angle
    assert brief.left_out["since_layer_angle"] == NOT_TAKEN


def test_anchors_on_disk_are_not_read_for_a_brief_observation(tmp_path):
    brief = _decayed({**_COURSE, 9: True}, tmp_path)[-1]
    assert brief.since == {}
    assert "from disk" in brief.left_out["since"]
    assert brief.linearization_error_decayed is not None


def test_no_anchor_is_taken_and_no_kernel_kept_of_brief_observations():
    torch.manual_seed(0)
    model = Deep()
    tracker = KernelTracker(_probe(model), warmup_steps=1)
    for step, brief in {0: False, 1: False, 2: True, 3: False, 4: True}.items():
        tracker.observe(model, step, brief=brief)
        model = moved(model)
    assert [anchor.step for anchor in tracker.later_anchors] == [3]
    assert tracker.history.angles.steps == (0, 1, 3)


def test_where_there_is_no_kernel_nothing_is_brief():
    """A model whose kernel cannot be had, and of which nobody wants a sketch."""
    model = nn.Sequential(nn.Linear(4, 6, **f64), Coupled(), nn.Linear(6, 3, **f64))
    tracker = KernelTracker(_probe(model), engine="vmap")
    tracker.observe(model, 0)
    seen = tracker.observe(moved(model), 1, brief=True)
    assert not seen.is_brief
    assert seen.linearization_error is not None


class Coupled(nn.Module):
    """Takes the mean over samples away, so that every sample has a part in every other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x - x.mean(dim=0))
