"""A model is called throughout a run the way it was called at its reference.

The models' own code is the oracle: each has two ways of being called, and which of them was taken
shows in the outputs and in the kernel.
"""

import pytest
import torch
from torch import nn
from watch.tiny import inputs, labels

from ntkwatch import KernelTracker, ProbeBatch, judge
from ntkwatch.errors import ForwardError


def _net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Wrapped(nn.Module):
    """Has no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()


class Doubled(nn.Module):
    """Its one child is another function than itself: a quarter of the kernel."""

    works = True

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x):
        if not self.works:
            raise RuntimeError("the schedule took my parts away")
        return 2 * self.net(x)


PROBE = ProbeBatch(inputs(9, 4), labels(9))


def _nudge(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


def _resumed(earlier, **settings):
    tracker = KernelTracker(PROBE, **settings)
    tracker.resume(earlier.history, earlier.reference)
    return tracker


def test_a_forward_that_fails_later_is_a_failure_and_not_another_function():
    model, tracker = Doubled(), KernelTracker(PROBE)
    tracker.observe(model, 0)
    _nudge(model)
    drift = tracker.observe(model, 1).relative_kernel_change
    model.works = False
    with pytest.raises(
        ForwardError, match=r"before: model\(inputs\): RuntimeError: the sched.*ard="
    ):
        tracker.observe(model, 2)
    model.works = True
    assert tracker.observe(model, 3).relative_kernel_change == drift
    assert [seen.step for seen in tracker.history] == [0, 1, 3]


def test_a_forward_that_works_later_does_not_take_the_place_of_the_one_before():
    model, tracker = Wrapped(), KernelTracker(PROBE)
    first = tracker.observe(model, 0)
    assert tracker.history.run.spec["forward"] == "model.net(inputs)"
    model.forward = lambda x: 2 * model.net(x)
    second = tracker.observe(model, 1)
    assert second.relative_kernel_change == 0
    assert second.trace == first.trace


SPOILT = {
    "raises": lambda self, x: self.nett(x),
    "batches of another size": lambda self, x: 2 * self.net(x).view(8, 3),
    "returns nothing": lambda self, x: None,
    "a dictionary": lambda self, x: {"prediction": self.net(x)},
    "unpacks a batch": lambda self, batch: next(self.net(x) for x, y in [batch]),
    "unpacks a batch of three": lambda self, batch: next(self.net(x) for x, y, z in [batch]),
    "calls what has no forward": lambda self, x: self.net(x) + nn.ModuleDict()(x),
    "for others to write": lambda self, x: _not_written(),
}


def _not_written():
    raise NotImplementedError("not yet")


@pytest.mark.parametrize("how", SPOILT)
def test_a_part_does_not_take_the_place_of_a_forward_that_fails(how):
    """Only a module without a forward of its own is what it wraps."""
    kind = type("Spoilt", (Wrapped,), {"forward": SPOILT[how]})
    with pytest.raises(ForwardError, match=r"no way was found to call Spoilt.*Pass forward="):
        KernelTracker(PROBE).observe(kind(), 0)


def test_a_model_that_takes_batches_of_one_size_is_measured_on_that():
    fixed = type("Fixed", (Wrapped,), {"forward": lambda self, x: 2 * self.net(x).view(9, 3)})()
    plain = Doubled()
    plain.load_state_dict(fixed.state_dict())
    errors = []
    for model in (fixed, plain):
        tracker = KernelTracker(PROBE)
        tracker.observe(model, 0)
        _nudge(model)
        errors.append(tracker.observe(model, 1).linearization_error)
        assert tracker.history.run.spec["forward"] == "model(inputs)"
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)


def test_what_is_wrong_with_a_forward_is_said_where_the_whole_probe_does_not_fit_either():
    """A few samples show the mistake; trying all of them may take more memory than there is."""

    def forward(self, x):
        if len(x) == len(PROBE):
            raise torch.OutOfMemoryError("out of memory")
        raise ValueError("the mistake")

    broken = type("Broken", (Wrapped,), {"forward": forward})()
    with pytest.raises(ForwardError, match="ValueError: the mistake"):
        KernelTracker(PROBE).observe(broken, 0)


def test_that_a_part_was_measured_is_evidence():
    model, tracker = Wrapped(), KernelTracker(PROBE)
    tracker.observe(model, 0)
    evidence = " ".join(judge(tracker.history).evidence)
    assert "measured on model.net(inputs), a part" in evidence
    whole = KernelTracker(PROBE)
    whole.observe(Doubled(), 0)
    assert "a part" not in " ".join(judge(whole.history).evidence)


def test_a_run_goes_on_as_it_was_called():
    model, tracker = Doubled(), KernelTracker(PROBE)
    tracker.observe(model, 0)
    model.works = False
    with pytest.raises(ForwardError, match="called before"):
        _resumed(tracker).observe(model, 1)
    model.works = True
    assert _resumed(tracker).observe(model, 1).relative_kernel_change == 0


def test_a_run_that_was_told_how_and_is_left_to_guess_says_so():
    model = Doubled()
    tracker = KernelTracker(PROBE, forward=lambda model, x: model.net(x))
    tracker.observe(model, 0)
    (note,) = _resumed(tracker).observe(model, 1).notes
    assert note.startswith("the reference was called by forward=, and this is model(inputs)")


def test_a_run_that_guessed_can_be_told_how():
    model, tracker = Doubled(), KernelTracker(PROBE)
    tracker.observe(model, 0)
    model.works = False
    told = _resumed(tracker, forward=lambda model, x: 2 * model.net(x))
    assert told.observe(model, 1).relative_kernel_change < 1e-12


def test_a_part_that_is_gone_is_said_to_be():
    model, tracker = Wrapped(), KernelTracker(PROBE)
    tracker.observe(model, 0)
    model.again = nn.Sequential(
        model.net
    )  # the same weights, and the child is no longer the only one
    with pytest.raises(ForwardError, match="no such part any more"):
        tracker.observe(model, 1)
