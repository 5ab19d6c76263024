"""What ``observe`` reads, against loops over plain autograd, numpy, and finite differences.

``oracles.py`` shares no code with the package; closed forms are written out where they are used.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from watch.tiny import Deep, LowRank, f64, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch

from oracles import (
    dense_jacobian,
    dense_ntk,
    finite_difference_jvp,
    naive_angle,
    naive_distance,
    naive_relative_change,
    naive_scale,
)

N = 8


def _trace(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    return torch.einsum("nmcc->nm", dense_ntk(model, x)).numpy()


def _without_diagonal(kernel: np.ndarray) -> np.ndarray:
    return kernel - np.diag(np.diag(kernel))


@pytest.fixture(scope="module")
def deep():
    """A deep network, the same moved a little, and what the tracker says of the pair."""
    torch.manual_seed(0)
    x = inputs(N, 4)
    start = Deep()
    now = moved(start)
    _, _, seen = start_and_now(start, now, ProbeBatch(x, labels(N)))
    return start, now, x, seen


def test_kernel_drift_is_that_of_kernels_from_plain_autograd(deep):
    start, now, x, seen = deep
    K, R = _trace(now, x), _trace(start, x)
    assert seen.relative_kernel_change == pytest.approx(naive_relative_change(K, R), rel=1e-9)
    assert seen.kernel_scale == pytest.approx(math.log(naive_scale(K, R)), rel=1e-9)
    assert seen.kernel_angle == pytest.approx(naive_angle(K, R), rel=1e-9)
    assert seen.kernel_distance == pytest.approx(naive_distance(K, R), rel=1e-9)
    off = naive_distance(_without_diagonal(K), _without_diagonal(R))
    assert seen.kernel_distance_offdiag == pytest.approx(off, rel=1e-9)
    assert seen.kernel_distance > 1e-4, "the test would see nothing"


def test_a_tiny_change_keeps_its_digits():
    """1 - cos of a change of 1e-6 is 5e-13: lost in float32, and nearly so in float64."""
    torch.manual_seed(0)
    x, start = inputs(N, 4), Deep()
    now = moved(start, 1e-6)
    _, _, seen = start_and_now(start, now, ProbeBatch(x))
    K, R = _trace(now, x), _trace(start, x)
    assert seen.kernel_distance == pytest.approx(naive_distance(K, R), rel=1e-4)
    assert 0 < seen.kernel_distance < 1e-10


def test_layer_angles_are_those_of_each_layers_own_jacobian(deep):
    start, now, x, seen = deep
    before, after = dense_jacobian(start, x), dense_jacobian(now, x)
    expected = {}
    for layer in ("first", "norm", "second", "third", "head"):
        own = [name for name in before if name.rpartition(".")[0] == layer]
        R = sum(torch.einsum("iap,jap->ij", before[n], before[n]) for n in own).numpy()
        K = sum(torch.einsum("iap,jap->ij", after[n], after[n]) for n in own).numpy()
        expected[layer] = naive_angle(K, R)
    assert seen.layer_angle == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_median_of_an_even_number_of_layers_is_the_mean_of_the_middle_two(deep):
    *_, seen = deep
    counted = sorted(seen.layer_angle[name] for name in ("first", "second", "third", "head"))
    assert seen.layer_angle_median == (counted[1] + counted[2]) / 2
    assert "norm" in seen.layer_angle, "a layer without a matrix is listed"


def test_spectrum_is_numpys(deep):
    _, now, x, seen = deep
    values = np.linalg.eigvalsh(_trace(now, x))[::-1]
    assert seen.top_eigenvalues == pytest.approx(values, rel=1e-7, abs=1e-9)
    assert seen.trace == pytest.approx(values.sum(), rel=1e-10)
    shares = values[values > 0] / values[values > 0].sum()
    rank = math.exp(-sum(p * math.log(p) for p in shares))
    assert seen.effective_rank == pytest.approx(rank, rel=1e-7)


def test_top_k_sets_the_number_of_eigenvalues():
    torch.manual_seed(0)
    tracker = KernelTracker(ProbeBatch(inputs(N, 4)), top_k=3)
    assert len(tracker.observe(Deep(), 0).top_eigenvalues) == 3


def test_displacement_is_numpys_in_all_and_by_layer(deep):
    start, now, _, seen = deep
    then = {n: p.detach().numpy() for n, p in start.named_parameters()}
    steps = {n: p.detach().numpy() - then[n] for n, p in now.named_parameters()}
    whole = math.sqrt(sum((d**2).sum() for d in steps.values()))
    size = math.sqrt(sum((p**2).sum() for p in then.values()))
    assert seen.displacement == pytest.approx(whole, rel=1e-12)
    assert seen.relative_displacement == pytest.approx(whole / size, rel=1e-12)
    for layer in ("first", "norm", "second", "third", "head"):
        own = [n for n in then if n.rpartition(".")[0] == layer]
        far = math.sqrt(sum((steps[n] ** 2).sum() for n in own))
        wide = math.sqrt(sum((then[n] ** 2).sum() for n in own))
        assert seen.layer_displacement[layer] == pytest.approx(far, rel=1e-12)
        assert seen.layer_relative_displacement[layer] == pytest.approx(far / wide, rel=1e-12)


def test_linearization_error_is_that_of_finite_differences(deep):
    start, now, x, seen = deep
    then = dict(start.named_parameters())
    step = {n: (p - then[n]).detach() for n, p in now.named_parameters()}
    with torch.no_grad():
        change = now(x) - start(x)
    off = change - finite_difference_jvp(start, x, step)
    assert seen.linearization_error == pytest.approx(float(off.norm() / change.norm()), rel=1e-6)
    assert seen.output_change == pytest.approx(float(change.square().mean().sqrt()), rel=1e-10)
    assert seen.linearization_method == "jvp"


def test_the_part_of_the_change_that_samples_share_is_that_of_its_mean(deep):
    start, now, x, seen = deep
    with torch.no_grad():
        change = (now(x) - start(x)).numpy()
    shared = np.broadcast_to(change.mean(0), change.shape)
    share = (shared**2).sum() / (change**2).sum()
    assert seen.common_share == pytest.approx(share, rel=1e-10)
    assert 0.01 < share < 0.99, "the test would see nothing"


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_a_change_that_goes_with_the_targets_is_known_by_numpys_correlation(kind):
    torch.manual_seed(0)
    x, y = inputs(64, 4), torch.arange(64) % 3
    code = torch.nn.functional.one_hot(y, 3).double()
    x[:, :3] += code
    start = nn.Linear(4, 3, **f64)
    now = copy.deepcopy(start)
    with torch.no_grad():
        now.weight[:, :3] += 0.1 * torch.eye(3)
        now.bias += 5.0
        change = (now(x) - start(x)).numpy()
    probe = ProbeBatch(x, y if kind == "classes" else code)
    seen = start_and_now(start, now, probe)[2]
    pairs = [part - part.mean(0) for part in (change, code.numpy())]
    expected = np.corrcoef(*(part.ravel() for part in pairs))[0, 1]
    assert seen.change_target_correlation == pytest.approx(expected, rel=1e-9)
    assert expected > 0.3
    assert seen.common_share > 0.99


def test_targets_of_another_kind_than_the_outputs_have_no_correlation_with_their_change():
    torch.manual_seed(0)
    start = nn.Linear(4, 3, **f64)
    for targets in (None, torch.randn(16, 1), torch.arange(16)):
        seen = start_and_now(start, moved(start), ProbeBatch(inputs(16, 4), targets))[2]
        assert seen.change_target_correlation is None


class _Square(torch.autograd.Function):
    """A square as people write it by hand: no forward mode, and no rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_operation_without_forward_mode_is_linearized_in_another_way(by_hand):
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 6, **f64), nn.Linear(6, 3, **f64)

        def forward(self, x):
            h = self.first(x)
            return self.head(_Square.apply(h) if by_hand else h * h)

    torch.manual_seed(0)
    start, x = Squares(), inputs(N, 4)
    now = moved(start)
    _, _, seen = start_and_now(start, now, ProbeBatch(x))
    then = dict(start.named_parameters())
    step = {n: (p - then[n]).detach() for n, p in now.named_parameters()}
    with torch.no_grad():
        change = now(x) - start(x)
    off = change - finite_difference_jvp(start, x, step)
    assert seen.linearization_error == pytest.approx(float(off.norm() / change.norm()), rel=1e-6)
    assert seen.linearization_method == ("double-vjp" if by_hand else "jvp")
    expected = naive_relative_change(_trace(now, x), _trace(start, x))
    assert seen.relative_kernel_change == pytest.approx(expected, rel=1e-9)


def test_scaling_all_weights_of_a_relu_network_has_its_closed_form():
    """f is of degree 2 in the weights: K grows by c^2, f by c^2, and f_lin by 1 + 2 (c - 1)."""
    c = 1.3
    torch.manual_seed(0)
    start = nn.Sequential(
        nn.Linear(4, 16, bias=False, **f64), nn.ReLU(), nn.Linear(16, 3, bias=False, **f64)
    )
    now = moved(start, 0.0)
    with torch.no_grad():
        for parameter in now.parameters():
            parameter.mul_(c)
    _, _, seen = start_and_now(start, now, ProbeBatch(inputs(N, 4)))
    assert seen.kernel_scale == pytest.approx(2 * math.log(c), rel=1e-12)
    assert seen.relative_kernel_change == pytest.approx(c**2 - 1, rel=1e-12)
    assert seen.kernel_angle == pytest.approx(0, abs=1e-12)
    assert seen.linearization_error == pytest.approx((c - 1) / (c + 1), rel=1e-12)
    assert seen.relative_displacement == pytest.approx(c - 1, rel=1e-12)


def test_a_model_linear_in_its_weights_reads_no_drift_wherever_it_goes():
    """Its kernel and its linearization are constants: all that is left is rounding."""
    torch.manual_seed(0)
    start = nn.Linear(4, 3, **f64)
    _, _, seen = start_and_now(start, moved(start, 5.0), ProbeBatch(inputs(N, 4), labels(N)))
    for key in ("relative_kernel_change", "kernel_angle", "layer_angle_median"):
        assert getattr(seen, key) <= 1e-12, key
    assert abs(seen.kernel_scale) <= 1e-12
    assert seen.linearization_error <= 1e-12
    assert seen.relative_displacement > 1


def test_a_layer_that_starts_at_zero_is_left_out_with_the_reason():
    """With B = 0 no gradient reaches A: its block has no reference, the others have one."""
    torch.manual_seed(0)
    start = LowRank()
    _, first, seen = start_and_now(start, moved(start), ProbeBatch(inputs(N, 4)))
    assert first.layer_angle == {"a": None, "b": 0.0}
    assert seen.layer_angle["a"] is None
    assert "zero at the anchor" in seen.left_out["layer_angle/a"]
    assert seen.layer_angle_median == seen.layer_angle["b"] > 0
    assert seen.layer_relative_displacement["b"] is None
    assert seen.layer_displacement["b"] > 0


def test_the_reference_itself_reads_no_change_and_says_why_there_is_no_error():
    torch.manual_seed(0)
    seen = KernelTracker(ProbeBatch(inputs(N, 4), labels(N))).observe(Deep(), 0)
    assert seen.relative_kernel_change == seen.kernel_distance == seen.displacement == 0
    assert seen.linearization_error is None
    assert "did not change" in seen.left_out["linearization_error"]


def test_many_outputs_are_seen_through_random_directions_fit_for_the_targets():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 11, **f64), inputs(N, 4)
    for_classes = KernelTracker(ProbeBatch(x, labels(N)))
    for_classes.observe(model, 0)
    assert for_classes.history.run.spec["outputs"] == "random:8"
    for_values = KernelTracker(ProbeBatch(x, inputs(N, 11)))
    seen = for_values.observe(model, 0)
    assert for_values.history.run.spec["outputs"] == "random:8:plain"
    assert any("random directions of the 11 outputs" in note for note in seen.notes)


def test_ten_outputs_are_all_seen():
    for metrics, outputs in (("standard", "trace"), ("full", "full")):
        tracker = KernelTracker(ProbeBatch(inputs(N, 4), labels(N)), metrics=metrics)
        tracker.observe(nn.Linear(4, 10, **f64), 0)
        assert tracker.history.run.spec["outputs"] == outputs


def test_chosen_parameters_alone_make_the_kernel_and_all_of_them_the_error(deep):
    start, now, x, all_seen = deep
    _, _, seen = start_and_now(start, now, ProbeBatch(x), params="head.*")
    kept = [n for n, _ in start.named_parameters() if n.startswith("head.")]
    K, R = (torch.einsum("nmcc->nm", dense_ntk(m, x, params=kept)).numpy() for m in (now, start))
    assert seen.relative_kernel_change == pytest.approx(naive_relative_change(K, R), rel=1e-9)
    assert list(seen.layer_angle) == ["head"]
    assert seen.linearization_error == pytest.approx(all_seen.linearization_error, rel=1e-12)


def test_minimal_metrics_leave_out_what_they_promise_to_leave_out(deep):
    start, now, x, full = deep
    _, _, seen = start_and_now(start, now, ProbeBatch(x, labels(N)), metrics="minimal")
    assert (seen.intervals, seen.top_eigenvalues, seen.target_alignment) == ({}, (), None)
    assert seen.linearization_error == full.linearization_error
    assert seen.kernel_angle == full.kernel_angle


def test_rounding_floors_are_far_below_a_real_change_and_above_zero_in_float32():
    torch.manual_seed(0)
    start = Deep().float()
    _, _, seen = start_and_now(start, moved(start), ProbeBatch(inputs(N, 4)))
    for key in ("output", "relative_kernel_change", "layer_angle_median"):
        assert 0 < seen.noise_floor[key] < 1e-4, key
    assert seen.relative_kernel_change > 1e3 * seen.noise_floor["relative_kernel_change"]
