"""A BatchNorm that training keeps in evaluation mode keeps its running statistics everywhere.

Oracles: copies of the model in the modes in which it trains, with statistics written in by hand,
differentiated by plain autograd and by finite differences.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from watch.tiny import f64, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch

from oracles import dense_ntk, finite_difference_jvp, naive_relative_change

N = 10
IMAGES = inputs(N, 1, 5, 5)
MODES = ("running", "probe", "reference", "batch")


class Mixed(nn.Module):
    """A frozen BatchNorm behind one convolution, and one that trains behind the next."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(1, 3, 3, padding=1, bias=False, **f64)
        self.frozen = nn.BatchNorm2d(3, **f64)
        self.late = nn.Conv2d(3, 4, 3, padding=1, bias=False, **f64)
        self.norm = nn.BatchNorm2d(4, **f64)
        self.head = nn.Linear(4, 3, **f64)

    def features(self, x: Tensor) -> Tensor:
        return self.late(torch.tanh(self.frozen(self.early(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.features(x))).mean(dim=(2, 3)))


def _as_trained(model: Mixed) -> Mixed:
    model.train().frozen.eval()
    return model


@pytest.fixture
def start() -> Mixed:
    """With statistics that are not those of the probe."""
    torch.manual_seed(0)
    net = Mixed().train()
    with torch.no_grad():
        for seed in range(30):
            net(1 + 2 * inputs(8, 1, 5, 5, seed=seed))
    return _as_trained(net)


@pytest.fixture
def now(start: Mixed) -> Mixed:
    """Weights moved, and the moving statistics with them."""
    net = _as_trained(moved(start, 0.1))
    with torch.no_grad():
        for seed in range(30):
            net(-2 + inputs(8, 1, 5, 5, seed=seed))
    assert torch.equal(net.frozen.running_mean, start.frozen.running_mean)
    return net


def _kernel(model: Mixed, batchnorm: str, start: Mixed) -> Tensor:
    twin = copy.deepcopy(model).eval()
    if batchnorm == "probe":
        features = twin.features(IMAGES).detach()
        twin.norm.running_mean.copy_(features.mean(dim=(0, 2, 3)))
        twin.norm.running_var.copy_(features.var(dim=(0, 2, 3), correction=0))
    elif batchnorm == "reference":
        twin.norm.load_state_dict({**twin.norm.state_dict(), **dict(start.norm.named_buffers())})
    elif batchnorm == "batch":
        _as_trained(twin)
    return torch.einsum("nmcc->nm", dense_ntk(twin, IMAGES)).numpy()


@pytest.mark.parametrize("batchnorm", MODES)
def test_kernels_of_a_mixed_model_follow_the_modes_in_which_it_trains(start, now, batchnorm):
    tracker, _, seen = start_and_now(start, now, ProbeBatch(IMAGES), batchnorm=batchnorm)
    K, R = (_kernel(m, batchnorm, start) for m in (now, start))
    torch.testing.assert_close(tracker.kernel.trace, torch.tensor(K), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tracker.reference.kernel, torch.tensor(R), rtol=1e-9, atol=1e-9)
    assert seen.relative_kernel_change == pytest.approx(naive_relative_change(K, R), rel=1e-8)
    assert seen.batchnorm == batchnorm
    assert tracker.history.run.spec["batchnorms"] == ["norm"]
    assert seen.noise_floor["relative_kernel_change"] < 1e-12
    # The four are four different kernels.
    others = [_kernel(now, other, start) for other in MODES if other != batchnorm]
    assert min(naive_relative_change(K, other) for other in others) > 1e-3


def _trained_outputs(model: Mixed, x: Tensor) -> Tensor:
    return _as_trained(copy.deepcopy(model))(x)


@pytest.mark.parametrize("batchnorm", MODES)
def test_the_error_of_a_mixed_model_is_that_of_the_function_that_trains(start, now, batchnorm):
    """The weights that feed the frozen norm count with their size; the others only turn."""
    now = copy.deepcopy(now)
    with torch.no_grad():
        now.early.weight.mul_(0.8)
        sizes = [m.late.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for m in (start, now)]
        now.late.weight.mul_(sizes[0] / sizes[1])
    then = dict(start.named_parameters())
    step = {n: (p - then[n]).detach() for n, p in now.named_parameters()}
    linear = finite_difference_jvp(start, IMAGES, step, _trained_outputs, step=1e-5)
    with torch.no_grad():
        change = _trained_outputs(now, IMAGES) - _trained_outputs(start, IMAGES)
    expected = float((change - linear).norm() / change.norm())
    assert expected > 0.05
    settings = {"batchnorm": batchnorm, "metrics": "minimal"}
    seen = start_and_now(start, now, ProbeBatch(IMAGES), **settings)[2]
    assert seen.linearization_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batchnorm", MODES)
def test_a_model_with_all_its_batchnorms_frozen_is_the_same_under_every_setting(
    start, now, batchnorm
):
    for net in (start, now):
        net.norm.eval()
    now.norm.load_state_dict({**now.norm.state_dict(), **dict(start.norm.named_buffers())})
    seen = start_and_now(start, now, ProbeBatch(IMAGES), batchnorm=batchnorm)[2]
    K, R = (_kernel(m, "running", start) for m in (now, start))
    assert seen.relative_kernel_change == pytest.approx(naive_relative_change(K, R), rel=1e-8)
    assert seen.batchnorm == ("reference" if batchnorm == "reference" else "running")
    assert seen.buffer_share is None
    assert seen.noise_floor["output"] < 1e-12


def test_kernels_of_the_reference_go_on_after_a_resume(start, now):
    probe = ProbeBatch(IMAGES)
    first, _, expected = start_and_now(start, now, probe, batchnorm="reference")
    second = KernelTracker(probe, batchnorm="reference")
    second.resume(first.history, first.reference)
    again = second.observe(now, 8)
    assert again.relative_kernel_change == expected.relative_kernel_change
    assert again.kernel_angle == expected.kernel_angle


# Modes that show only once training has begun. ----------------------------------------------------


@pytest.mark.parametrize("before", ["train", "eval"])
@pytest.mark.parametrize("batchnorm", MODES)
def test_a_norm_that_the_first_step_freezes_was_frozen_from_the_start(
    start, now, batchnorm, before
):
    probe = ProbeBatch(IMAGES, labels(N))
    expected, first, later = start_and_now(start, now, probe, batchnorm=batchnorm)
    unseen = getattr(copy.deepcopy(start), before)()
    tracker = KernelTracker(probe, batchnorm=batchnorm)
    tracker.observe(unseen, 0, loss=2.0, epoch=0, logged_step=5)
    assert tracker.history.run.spec["batchnorms"] == ["frozen", "norm"]
    tracker.history.gaps.append("a gap")
    seen = tracker.observe(now, 7)
    assert tracker.history.run.spec == expected.history.run.spec
    assert [o.step for o in tracker.history] == [0, 7]
    assert tracker.history.gaps == ["a gap"]
    again = tracker.history[0]
    assert (again.loss, again.epoch, again.logged_step, seen.loss_start) == (2.0, 0, 5, 2.0)
    assert again.top_eigenvalues == pytest.approx(first.top_eigenvalues, rel=1e-12)
    assert seen.relative_kernel_change == pytest.approx(later.relative_kernel_change, rel=1e-12)
    assert seen.linearization_error == pytest.approx(later.linearization_error, rel=1e-9)
    assert seen.layer_angle == pytest.approx(later.layer_angle, rel=1e-9)


def test_modes_that_change_after_the_first_steps_change_nothing(start, now):
    """A schedule that unfreezes is no reason to take another reference in the middle."""
    tracker = start_and_now(start, now, ProbeBatch(IMAGES))[0]
    reference = tracker.reference
    thawed = copy.deepcopy(now).train()
    for step, net in ((8, thawed), (9, thawed.eval())):
        tracker.observe(net, step)
        assert tracker.reference is reference
        assert tracker.history.run.spec["batchnorms"] == ["norm"]


def test_a_model_in_evaluation_mode_says_nothing_and_is_looked_at_again(start, now):
    tracker = KernelTracker(ProbeBatch(IMAGES))
    tracker.observe(start, 0)
    reference = tracker.reference
    tracker.observe(copy.deepcopy(now).eval(), 1)
    assert tracker.reference is reference
    thawed = copy.deepcopy(now).train()
    tracker.observe(thawed, 2)
    assert tracker.reference is not reference
    assert tracker.history.run.spec["batchnorms"] == ["frozen", "norm"]


def test_what_trains_is_as_it_was_where_only_modes_turned_out_otherwise(start, now):
    """A training step may switch gradients off for a while; the parameters watched stay."""
    tracker = KernelTracker(ProbeBatch(IMAGES))
    tracker.observe(copy.deepcopy(start).train(), 0)
    watched = tracker.history.run.spec["params"]
    now.early.requires_grad_(False)
    tracker.observe(now, 7)
    assert tracker.history.run.spec["params"] == watched
    assert "early.weight" in watched


def test_a_look_that_fails_leaves_the_reference_to_be_taken_again(start, now):
    tracker = KernelTracker(ProbeBatch(IMAGES))
    tracker.observe(copy.deepcopy(start).train(), 0)
    broken = copy.deepcopy(now)
    broken.frozen = nn.Sequential(nn.BatchNorm2d(3, **f64)).eval()
    with pytest.raises(Exception, match="frozen"):
        tracker.observe(broken, 6)
    tracker.observe(now, 7)
    assert tracker.history.run.spec["batchnorms"] == ["norm"]
