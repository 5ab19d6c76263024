"""What the tracker remembers, forgets and refuses; oracle: two trackers, or the numbers themselves.

A tracker that was shown a model in some other way must say what one says that was shown it plainly.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from watch.tiny import Deep, f64, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch
from ntkwatch.errors import InputError, KernelMismatchError, NonFiniteError, SelectionError
from ntkwatch.watch.record.history import History

N = 6


@pytest.fixture
def probe() -> ProbeBatch:
    return ProbeBatch(inputs(N, 4), labels(N))


@pytest.fixture
def start() -> nn.Module:
    torch.manual_seed(0)
    return Deep()


def _numbers(observation):
    return replace(observation, seconds=0.0)


def test_the_reference_observed_again_replaces_it_and_the_history_starts_over(start, probe):
    again = moved(start)
    tracker = KernelTracker(probe)
    tracker.observe(start, 0, loss=2.0)
    tracker.observe(moved(start, seed=5), 3, loss=1.0)
    replaced = tracker.observe(again, 0, loss=4.0)
    assert replaced.relative_kernel_change == 0
    assert [o.step for o in tracker.history] == [0]
    later = tracker.observe(moved(start, seed=6), 5, loss=1.0)
    _, _, fresh = start_and_now(again, moved(start, seed=6), probe)
    assert later.relative_kernel_change == fresh.relative_kernel_change
    assert (later.loss_start, later.loss_ratio) == (4.0, 0.25)


def test_another_step_observed_again_replaces_what_was_seen_there(start, probe):
    tracker = KernelTracker(probe)
    tracker.observe(start, 0)
    tracker.observe(moved(start, 0.5), 3)
    last = tracker.observe(moved(start), 3)
    assert [o.step for o in tracker.history] == [0, 3]
    assert tracker.history[-1] is last


def test_kept_weights_read_as_the_model_that_has_them(start, probe):
    now = moved(start)
    _, _, plain = start_and_now(start, now, probe)
    by_state = KernelTracker(probe)
    by_state.observe(moved(start, 0.7), 0, state=start.state_dict())
    seen = by_state.observe(start, 7, state=now.state_dict())
    assert _numbers(seen) == _numbers(plain)


def test_kept_weights_leave_the_model_and_themselves_alone(start, probe):
    before, kept = copy.deepcopy(start.state_dict()), moved(start).state_dict()
    held = copy.deepcopy(kept)
    KernelTracker(probe).observe(start, 0, state=kept)
    for state, then in ((start.state_dict(), before), (kept, held)):
        assert all(torch.equal(state[name], then[name]) for name in then)


def test_kept_weights_may_come_with_an_infinite_buffer(probe):
    """A causal mask is a buffer of minus infinities, and no sign of divergence."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3, **f64)
            self.register_buffer("mask", torch.full((3,), -torch.inf, **f64))

        def forward(self, x):
            return self.head(x) + torch.exp(self.mask)

    model = Masked()
    seen = KernelTracker(probe).observe(model, 0, state=model.state_dict())
    assert seen.trace > 0


def test_part_of_a_checkpoint_is_refused(start, probe):
    """Names with a prefix match nothing; measuring the present weights instead would be a lie."""
    state = {f"model.{name}": tensor for name, tensor in start.state_dict().items()}
    with pytest.raises(InputError, match=r"no value for 9 of the 9 parameters.*model\.first"):
        KernelTracker(probe).observe(start, 0, state=state)


def test_a_checkpoint_of_another_size_is_refused(start, probe):
    state = {**start.state_dict(), "head.bias": torch.zeros(4, **f64)}
    with pytest.raises(InputError, match=r"head\.bias of shape \(4,\)"):
        KernelTracker(probe).observe(start, 0, state=state)


@pytest.mark.parametrize("change", ["gone", "new", "shape", "frozen part gone"])
def test_a_model_of_another_form_is_refused(start, probe, change):
    other = copy.deepcopy(start)
    if change == "gone":
        other.first = nn.Linear(4, 6, bias=False, **f64)
    elif change == "new":
        other.extra = nn.Linear(2, 2, **f64)
    elif change == "shape":
        other.third, other.head = nn.Linear(5, 7, **f64), nn.Linear(7, 3, **f64)
    else:
        start.first.bias.requires_grad_(False)
        other.first = nn.Linear(4, 6, bias=False, **f64)
    tracker = KernelTracker(probe)
    tracker.observe(start, 0)
    with pytest.raises(SelectionError, match="no longer those of the reference"):
        tracker.observe(other, 1)
    assert [o.step for o in tracker.history] == [0]


def test_weights_that_are_nan_are_refused_and_leave_no_trace(start, probe):
    tracker = KernelTracker(probe)
    tracker.observe(start, 0)
    broken = copy.deepcopy(start)
    with torch.no_grad():
        broken.third.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"third\.weight"):
        tracker.observe(broken, 1)
    assert [o.step for o in tracker.history] == [0]


def test_a_failed_reference_can_be_taken_again(start, probe):
    """Nothing of the first attempt may stay, or the second would be compared with it."""
    broken = copy.deepcopy(start)
    with torch.no_grad():
        broken.head.bias[0] = torch.inf
    tracker = KernelTracker(probe)
    with pytest.raises(NonFiniteError):
        tracker.observe(broken, 0)
    assert tracker.reference is None
    assert tracker.observe(start, 1).anchor_step == 1


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_left_out(start, probe, loss):
    tracker = KernelTracker(probe)
    seen = tracker.observe(start, 0, loss=loss)
    assert (seen.loss, seen.loss_start) == (None, None)
    assert tracker.observe(moved(start), 1, loss=1.5).loss == 1.5


def test_a_first_loss_that_comes_late_is_not_held_against_itself(start, probe):
    tracker = KernelTracker(probe)
    tracker.observe(start, 0)
    assert tracker.observe(moved(start), 1, loss=2.0).loss_ratio is None
    assert tracker.observe(moved(start), 2, loss=0.5).loss_ratio == 0.25


def test_the_loss_at_the_reference_may_be_told_later(start, probe):
    tracker = KernelTracker(probe)
    tracker.observe(start, 0)
    tracker.note_start_loss(float("nan"))
    assert tracker.history[0].loss is tracker.loss_start is None
    tracker.note_start_loss(4.0)
    assert (tracker.history[0].loss, tracker.history[0].loss_ratio) == (4.0, 1.0)
    assert tracker.observe(moved(start), 1, loss=1.0).loss_ratio == 0.25


def test_losses_that_may_be_negative_have_no_ratio(start, probe):
    """A log-density that falls from -1 to -2 has not doubled its loss."""
    tracker = KernelTracker(probe)
    tracker.observe(start, 0, loss=-1.0)
    assert tracker.observe(moved(start), 1, loss=-2.0).loss_ratio is None


def test_since_warmup_is_what_a_tracker_started_there_reads(start, probe):
    middle, now = moved(start), moved(start, 0.3)
    tracker = KernelTracker(probe, warmup_steps=20)
    tracker.observe(start, 0)
    assert tracker.observe(moved(start, 0.05), 19).since_warmup is None
    assert tracker.observe(middle, 25).since_warmup is None
    seen = tracker.observe(now, 40).since_warmup
    _, _, expected = start_and_now(middle, now, probe)
    assert seen.anchor_step == 25
    for key in ("linearization_error", "kernel_angle", "layer_angle_median", "displacement"):
        assert getattr(seen, key) == getattr(expected, key), key
    assert tracker.observe(now, 60).since_warmup.anchor_step == 25


def test_the_end_of_the_warmup_observed_again_replaces_it(start, probe):
    middle, now = moved(start), moved(start, 0.3)
    tracker = KernelTracker(probe, warmup_steps=20)
    tracker.observe(start, 0)
    tracker.observe(moved(start, 0.6), 25)
    assert tracker.observe(middle, 25).since_warmup is None
    _, _, expected = start_and_now(middle, now, probe)
    assert tracker.observe(now, 40).since_warmup.kernel_angle == expected.kernel_angle


def test_a_resumed_tracker_goes_on_as_if_it_had_not_stopped(start, probe):
    whole = KernelTracker(probe, warmup_steps=2)
    states = {0: start, 2: moved(start), 5: moved(start, 0.3)}
    for step, model in states.items():
        whole.observe(model, step, loss=1.0 / (1 + step))
    first = KernelTracker(probe, warmup_steps=2)
    for step in (0, 2):
        first.observe(states[step], step, loss=1.0 / (1 + step))
    second = KernelTracker(probe, warmup_steps=2)
    second.resume(first.history, first.reference, first.warmup, last_kernel=first.kernel.trace)
    second.observe(states[5], 5, loss=1.0 / 6)
    assert [_numbers(o) for o in second.history] == [_numbers(o) for o in whole.history]


def test_a_resumed_tracker_with_another_probe_is_refused(start, probe):
    first = KernelTracker(probe)
    first.observe(start, 0)
    second = KernelTracker(ProbeBatch(inputs(N, 4, seed=9), labels(N)))
    with pytest.raises(InputError, match="observed on probe"):
        second.resume(first.history, first.reference)


def test_a_resumed_tracker_with_other_outputs_is_refused(start, probe):
    first = KernelTracker(probe)
    first.observe(start, 0)
    second = KernelTracker(probe, outputs="sum")
    second.resume(first.history, first.reference)
    with pytest.raises(KernelMismatchError, match="outputs='trace' then and 'sum' now"):
        second.observe(moved(start), 1)


def test_a_reference_that_is_not_the_start_is_written_down(start, probe):
    tracker = KernelTracker(probe, reference="step 9", reference_is_start=False)
    tracker.observe(start, 9)
    run = tracker.history.run
    assert (run.reference, run.reference_is_start) == ("step 9", False)
    assert isinstance(tracker.history, History)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"engine": "magic"}, "engine='magic'"),
        ({"batchnorm": "bach"}, "batchnorm='bach'"),
        ({"batchnorm": "batch", "engine": "vmap"}, "engine='vmap' differentiates each"),
        ({"metrics": "all"}, "metrics='all'"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(probe, setting, said):
    with pytest.raises(InputError, match=said):
        KernelTracker(probe, **setting)
