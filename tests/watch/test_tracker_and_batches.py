"""BatchNorm and samples that depend on each other; oracles: invariances, and plain batch functions.

A convolution into a BatchNorm does not feel its own scale; moving averages are no weights.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from watch.tiny import Attends, ConvNet, f64, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch, judge

from oracles import dense_ntk, finite_difference_jvp, naive_relative_change

N = 12


@pytest.fixture
def probe() -> ProbeBatch:
    return ProbeBatch(inputs(N, 1, 5, 5), labels(N))


@pytest.fixture
def net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet().train()


def _batch_outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What training computes: the model in train mode, its moving averages left alone."""
    twin = copy.deepcopy(model).train()
    return twin(x)


def test_moving_averages_alone_are_neither_drift_nor_error(net, probe):
    now = copy.deepcopy(net)
    with torch.no_grad():
        for _ in range(5):
            now(3 + 2 * inputs(N, 1, 5, 5, seed=4))
    assert not torch.equal(now.norm.running_mean, net.norm.running_mean)
    _, _, seen = start_and_now(net, now, probe)
    assert seen.relative_kernel_change == seen.displacement == seen.output_change == 0
    assert seen.linearization_error is None


def test_moving_averages_are_drift_where_they_are_asked_to_be(net, probe):
    now = copy.deepcopy(net)
    with torch.no_grad():
        now(3 + 2 * inputs(N, 1, 5, 5, seed=4))
    _, _, seen = start_and_now(net, now, probe, batchnorm="running")
    K, R = (
        torch.einsum("nmcc->nm", dense_ntk(copy.deepcopy(m).eval(), probe.inputs)).numpy()
        for m in (now, net)
    )
    assert seen.relative_kernel_change == pytest.approx(naive_relative_change(K, R), rel=1e-9)
    assert seen.relative_kernel_change > 1e-3
    assert any("count as drift" in note for note in seen.notes)


def _turned(net: ConvNet) -> ConvNet:
    """The same network with its convolution turned, and of the same norm."""
    now = copy.deepcopy(net)
    with torch.no_grad():
        rows = net.conv.weight.flatten(1)
        turn = inputs(*rows.shape, seed=3)
        turn -= rows * (turn * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
        there = rows + 0.3 * turn
        there *= rows.norm(dim=1, keepdim=True) / there.norm(dim=1, keepdim=True)
        now.conv.weight.copy_(there.view_as(now.conv.weight))
    return now


def test_a_smaller_weight_before_a_batchnorm_is_no_error(net, probe):
    """The network computes the same; a linearization would call 0.8 a step of a fifth."""
    turned = _turned(net)
    smaller = copy.deepcopy(turned)
    with torch.no_grad():
        smaller.conv.weight.mul_(0.8)
    errors = [start_and_now(net, now, probe)[2].linearization_error for now in (turned, smaller)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_the_error_is_that_of_the_batch_function_with_its_statistics_differentiated(net, probe):
    """Moved across the scale of the convolution only, so that its norm needs no matching."""
    now = _turned(net)
    then = dict(net.named_parameters())
    step = {n: (p - then[n]).detach() for n, p in now.named_parameters()}
    # A step so short crosses none of the kinks of the ReLU.
    linear = finite_difference_jvp(net, probe.inputs, step, _batch_outputs, step=1e-6)
    with torch.no_grad():
        change = _batch_outputs(now, probe.inputs) - _batch_outputs(net, probe.inputs)
    expected = float((change - linear).norm() / change.norm())
    _, _, seen = start_and_now(net, now, probe)
    assert seen.linearization_error == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


def test_a_batchnorm_that_is_frozen_keeps_its_running_statistics(net, probe):
    net.norm.eval()
    with torch.no_grad():
        net.norm.running_mean.add_(0.5)
        net.norm.running_var.mul_(3)
    now = moved(net)
    now.norm.eval()
    _, _, seen = start_and_now(net, now, probe)
    K, R = (
        torch.einsum("nmcc->nm", dense_ntk(copy.deepcopy(m).eval(), probe.inputs)).numpy()
        for m in (now, net)
    )
    assert seen.batchnorm == "running"
    assert seen.relative_kernel_change == pytest.approx(naive_relative_change(K, R), rel=1e-9)


@pytest.fixture
def in_a_group(tmp_path):
    """This process as the only one of a group: in a parallel training every process is in one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_synchronised_batchnorm_waits_for_nobody(net, probe, in_a_group):
    """On the processor it refuses to synchronise at all, which shows that nothing asked it to."""
    together = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    with pytest.raises(ValueError, match="to be on GPU"):
        together(probe.inputs)
    _, _, seen = start_and_now(together, moved(together), probe)
    _, _, expected = start_and_now(net, moved(net), probe)
    assert seen.linearization_error == expected.linearization_error
    assert seen.kernel_angle == expected.kernel_angle
    assert "forward" not in together.norm.__dict__


def test_coupled_samples_cost_the_kernel_and_not_the_observation():
    torch.manual_seed(0)
    start, x = Attends(), inputs(N, 4)
    now = moved(start)
    _, first, seen = start_and_now(start, now, ProbeBatch(x, labels(N)), engine="vmap")
    for observation in (first, seen):
        assert "mixes samples" in observation.left_out["kernel"]
        assert observation.kernel_angle is observation.trace is None
        assert observation.top_eigenvalues == ()
    then = dict(start.named_parameters())
    step = {n: (p - then[n]).detach() for n, p in now.named_parameters()}
    with torch.no_grad():
        change = now(x) - start(x)
    off = change - finite_difference_jvp(start, x, step)
    assert seen.linearization_error == pytest.approx(float(off.norm() / change.norm()), rel=1e-6)
    assert seen.relative_displacement > 0


def test_coupled_samples_have_a_floor_of_rounding_and_get_a_verdict():
    """Each looks at those before it: in reverse order the batch would be another function."""
    torch.manual_seed(0)
    x = inputs(40, 4)
    start = Attends()
    tracker, _, seen = start_and_now(start, moved(start, 0.01), ProbeBatch(x, labels(40)))
    assert seen.noise_floor["output"] < 1e-12
    verdict = judge(tracker.history)
    assert verdict.strength == "lazy"
    assert sum("not measured" in line for line in verdict.evidence) == 1


def test_coupled_samples_are_found_again_after_a_resume():
    torch.manual_seed(0)
    start, probe = Attends(), ProbeBatch(inputs(N, 4))
    first = KernelTracker(probe)
    first.observe(start, 0)
    second = KernelTracker(probe)
    second.resume(first.history, first.reference)
    seen = second.observe(moved(start), 3)
    assert "mixes samples" in seen.left_out["kernel"]
    assert seen.trace is None


def test_a_kernel_that_is_one_constant_has_a_spectrum_and_no_alignment():
    """Only an output bias is watched: every entry is equal, and centring leaves nothing."""
    torch.manual_seed(0)
    start = nn.Linear(4, 3, **f64)
    start.weight.requires_grad_(False)
    _, first, seen = start_and_now(start, moved(start), ProbeBatch(inputs(N, 4), labels(N)))
    assert first.top_eigenvalues[0] == pytest.approx(3 * N)
    assert seen.target_alignment is None
    assert "equal up to rounding" in seen.left_out["target_alignment"]
    assert seen.kernel_angle == pytest.approx(0, abs=1e-12)


def test_intervals_of_a_probe_with_one_point_per_class_are_not_points():
    """Each class keeps its size in a replicate; with classes of one nothing would vary."""
    torch.manual_seed(0)
    start, x = (
        nn.Sequential(nn.Linear(4, 8, **f64), nn.Tanh(), nn.Linear(8, 3, **f64)),
        inputs(N, 4),
    )
    _, _, seen = start_and_now(start, moved(start), ProbeBatch(x, torch.arange(N)))
    low, high = seen.intervals["linearization_error"]
    assert low < seen.linearization_error < high
