"""When features formed; oracles: small trainings whose course is known, and tables by hand."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from watch.made import history_of, seen
from watch.tiny import f64, inputs

from ntkwatch import KernelTracker, ProbeBatch, judge
from ntkwatch.watch.record.angles import KernelAngles
from ntkwatch.watch.record.records import Reading
from ntkwatch.watch.verdict.bands import Bands
from ntkwatch.watch.verdict.timeline import timeline_of

STEPS = (0, 10, 20, 30, 40, 60, 80, 160, 300)


class Scaled(nn.Module):
    """``F = alpha (f - f_0)``: lazy where alpha is large."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        parts = nn.Linear(8, 24, **f64), nn.Tanh(), nn.Linear(24, 24, **f64), nn.Tanh()
        self.net = nn.Sequential(*parts, nn.Linear(24, 1, **f64))
        self.start = copy.deepcopy(self.net).requires_grad_(False)
        self.alpha = alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alpha * (self.net(x) - self.start(x))


def _trained(alpha: float, rate: float, until: int, *, drop: int | None = None) -> KernelTracker:
    """Adam on a product of signs; from step ``drop`` on at a three-hundredth of the rate."""
    model, x = Scaled(alpha), inputs(96, 8)
    y = torch.sign(x[:, :1] * x[:, 1:2])
    tracker = KernelTracker(ProbeBatch(x[:48], y[:48]))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(until + 1):
        loss = (model(x) - y).square().mean()
        if step in STEPS:
            tracker.observe(model, step, loss=loss.item())
        if step == drop:
            optimizer.param_groups[0]["lr"] /= 300
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tracker


@pytest.fixture(scope="module")
def frozen_late() -> KernelTracker:
    return _trained(1, 1e-2, 300, drop=40)


def test_features_that_formed_early_are_said_to_have_formed_until_then(frozen_late):
    verdict = judge(frozen_late.history)
    timeline = verdict.timeline
    assert timeline.finding == "formed"
    assert timeline.forming_at < 40 <= timeline.formed_until <= 60
    assert set(timeline.layers) == {"net.0", "net.2", "net.4"}
    assert all(30 <= step <= 80 for step in timeline.layers.values())
    line = f"timeline: features formed until step {timeline.formed_until} at the latest"
    assert verdict.evidence[-1].startswith(line)
    assert "a kernel machine since" in verdict.evidence[-1]
    assert verdict.strength == "feature-learning"


def test_the_angles_and_errors_are_those_of_the_history(frozen_late):
    history = frozen_late.history
    timeline, last = judge(history).timeline, history[-1]
    assert timeline.steps == tuple(o.step for o in history) == STEPS
    assert timeline.angles == history.angles.matrix
    warmup = last.since_warmup
    expected = {"0": last.linearization_error, "20": warmup.linearization_error, **last.since}
    assert timeline.errors == expected
    assert timeline.layer_angles_since["20"] == warmup.layer_angle_median
    assert [*map(int, timeline.errors)] == sorted(map(int, timeline.errors))


def test_it_goes_into_json(frozen_late):
    plain = json.loads(json.dumps(judge(frozen_late.history).to_plain(), allow_nan=False))
    assert plain["timeline"]["finding"] == "formed"
    assert len(plain["timeline"]["angles"]) == len(STEPS)


def test_a_lazy_run_is_a_kernel_machine_from_the_start():
    timeline = judge(_trained(100, 5e-5, 80).history).timeline
    assert timeline.finding == "kernel machine from the start"
    assert timeline.formed_until is timeline.forming_at is None
    assert timeline.sentence.startswith("a kernel machine from the start (from step 0 to step 80")


def test_a_run_that_stops_in_the_middle_is_still_forming():
    timeline = judge(_trained(1, 3e-3, 160).history).timeline
    assert timeline.finding == "still forming"
    assert timeline.sentence.startswith("features were still forming at the end in net.")


# Tables by hand. ----------------------------------------------------------------------------------


def _run(errors: dict[int, float], *, end: int, warmup: int = 20, angles=None, **values):
    """A history whose last network has these errors from each anchor."""
    first, second, *_ = [*errors.values(), None]
    since = {str(step): error for step, error in errors.items() if step not in (0, warmup)}
    later = None
    if warmup in errors:
        later = Reading(anchor_step=warmup, linearization_error=second, layer_angle_median=0.01)
    about = {"since": since, "since_warmup": later, "layer_angle": {"a": 0.4, "b": 0.01}, **values}
    history = history_of(seen(first, 0.3 if first > 0.15 else 0.01, 0.4, step=end, **about))
    history.angles = angles
    return history


def _found(*args, **kwargs):
    return timeline_of(_run(*args, **kwargs), Bands())


@pytest.mark.parametrize(
    ("errors", "end", "finding", "until", "at"),
    [
        ({0: 0.05, 20: 0.04, 40: 0.02}, 500, "kernel machine from the start", None, None),
        ({0: 0.9, 20: 0.05, 40: 0.02}, 500, "formed", 20, 0),
        ({0: 0.9, 20: 0.5, 40: 0.02}, 500, "formed", 40, 20),
        ({0: 0.9, 20: 0.5, 40: 0.05, 80: 0.3}, 500, "still forming", None, 80),
        ({0: 0.9, 20: 0.05, 40: 0.3, 80: 0.02}, 500, "formed", 80, 40),
        ({0: 0.9, 20: 0.5, 40: 0.3, 80: 0.4}, 500, "still forming", None, 80),
        # As many steps behind an anchor as four times its own distance, and one less.
        ({0: 0.9, 20: 0.5, 40: 0.02}, 200, "formed", 40, 20),
        ({0: 0.9, 20: 0.5, 40: 0.02}, 199, "unknown", None, 20),
        ({0: 0.9, 20: 0.5, 40: 0.3, 80: 0.02}, 100, "unknown", None, 40),
        # Transitional is not yet a kernel machine.
        ({0: 0.2, 20: 0.2}, 500, "still forming", None, 20),
        ({0: 0.9}, 500, "unknown", None, None),
    ],
)
def test_the_finding_follows_from_the_errors_and_the_steps_behind_each_anchor(
    errors, end, finding, until, at
):
    found = _found(errors, end=end)
    assert (found.finding, found.formed_until, found.forming_at) == (finding, until, at)


def test_too_few_steps_are_said_with_how_many_it_takes():
    said = _found({0: 0.9, 20: 0.5, 40: 0.02}, end=199).sentence
    assert "features still formed after step 20 in a" in said
    assert "it takes 160 quiet steps after step 40, and the run had 159" in said


def test_a_run_that_ended_right_after_an_anchor_is_not_told_to_go_on_for_ever():
    """A run of 460 steps with an anchor at 455: asking for 1820 more steps helps nobody."""
    said = _found({0: 0.9, 20: 0.5, 455: 0.02}, end=460).sentence
    assert said == (
        "features still formed after step 20 in a; the run ended at step 460, too soon after "
        "step 455 to tell whether they had stopped"
    )


def _angles(medians, steps, **layers) -> KernelAngles:
    below = tuple(tuple(0.1 for _ in range(i)) for i in range(len(steps)))
    return KernelAngles(steps=steps, below=below, layers=layers, medians=medians)


def test_a_kernel_that_still_turned_puts_the_end_of_forming_off():
    """The error from step 20 is small, and yet the kernel of step 60 was another one."""
    angles = _angles((0.5, 0.3, 0.2, 0.06, 0.04, 0.0), (0, 20, 40, 60, 90, 500))
    found = _found({0: 0.9, 20: 0.05}, end=500, angles=angles)
    assert (found.finding, found.formed_until, found.forming_at) == ("formed", 90, 60)
    late = _found({0: 0.9, 20: 0.05}, end=400, angles=angles)
    assert (late.finding, late.forming_at) == ("unknown", 60)


@pytest.mark.parametrize("why", ["unjudged", "buffers"])
def test_angles_without_bands_decide_nothing(why):
    angles = _angles((0.5, 0.3, 0.2, 0.06, 0.04, 0.0), (0, 20, 40, 60, 90, 500))
    other = {"unjudged": {"unjudged": "coupled"}, "buffers": {"parameters_only": Reading(
        anchor_step=0, layer_angle_median=0.3, layer_angle={"a": 0.4})}}[why]  # fmt: skip
    found = _found({0: 0.9, 20: 0.05}, end=500, angles=angles, **other)
    assert (found.finding, found.formed_until) == ("formed", 20)


def test_an_error_and_an_angle_that_disagree_are_no_kernel_machine():
    history = _run({0: 0.9, 20: 0.05, 40: 0.05}, end=500)
    last = replace(history[-1], since_layer_angle={"40": 0.3})
    history.add(last)
    assert timeline_of(history, Bands()).finding == "still forming"


def test_each_layer_has_the_step_since_which_it_kept_its_shape():
    angles = _angles(
        (0.5, 0.3, 0.01, 0.0), (0, 20, 40, 500), a=(0.4, 0.2, 0.01, 0.0), b=(0.01, 0.0, 0.0, 0.0)
    )
    found = _found({0: 0.9, 20: 0.5, 40: 0.02}, end=500, angles=angles)
    assert found.layers == {"a": 40}
    assert _found({0: 0.9, 20: 0.5, 40: 0.02}, end=500).layers == {"a": None}


def test_a_layer_that_kept_its_shape_before_is_not_said_to_have_formed_after():
    steps = (0, 20, 40, 90, 120)
    angles = _angles(
        (0.5, 0.3, 0.2, 0.01, 0.0), steps, a=(0.4, 0.3, 0.2, 0.01, 0.0), b=(0.3, 0.2, 0, 0, 0)
    )
    reading = {"layer_angle": {"a": 0.4, "b": 0.3}}
    found = _found({0: 0.9, 20: 0.5, 40: 0.02}, end=120, angles=angles, **reading)
    assert found.layers == {"a": 90, "b": 40}
    assert found.sentence.startswith("features still formed after step 40 in a; ")
    settled = _found({0: 0.9, 20: 0.5, 40: 0.02}, end=500, angles=angles, **reading)
    assert f"(still at step {settled.forming_at}) in a, b;" in settled.sentence


def test_decay_that_was_followed_is_read_past():
    history = _run({0: 0.9, 20: 0.9, 40: 0.02}, end=500)
    last = history[-1]
    warmup = replace(last.since_warmup, linearization_error_decayed=0.02)
    numbers = {"linearization_error_decayed": 0.03, "layer_angle_median": 0.03}
    history.add(replace(last, since_warmup=warmup, **numbers))
    found = timeline_of(history, Bands())
    assert found.finding == "kernel machine from the start"
    assert found.errors == {"0": 0.03, "20": 0.02, "40": 0.02}


def test_without_a_label_nothing_is_said_and_the_guard_is_named():
    history = _run({0: 0.9, 20: 0.05}, end=500, loss=1.99)
    verdict = judge(history)
    assert verdict.timeline.finding == "unknown"
    assert "nothing can be said of when features formed: the training loss" in verdict.evidence[-1]


def test_runs_of_earlier_versions_are_read_from_the_anchors_that_they_have():
    history = _run({0: 0.9, 20: 0.05}, end=500)
    assert judge(history).timeline.finding == "formed"
    assert judge(_run({0: 0.9}, end=500)).timeline.sentence.endswith(
        "no anchor between the start and the end was kept"
    )
    assert judge(history_of()).timeline is None
