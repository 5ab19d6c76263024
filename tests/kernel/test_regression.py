"""Kernel regression against the parameters themselves: least squares on explicit Jacobians.

Nothing is a better oracle for a linearized model than the model: ``J theta`` with theta in numpy.
"""

from inspect import unwrap  # past --typecheck, which would refuse before us

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError, KernelMismatchError, NonFiniteError, SingularKernelError
from ntkwatch.kernel.leave_one_out import leave_one_out_errors
from ntkwatch.kernel.regression import (
    apply_kernel,
    displacement_ratio,
    kernel_regression,
    representer_gap,
    ridge_weights,
    shortest_move,
)

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}
N, M, C, P = 6, 4, 3, 40


def _jacobians(seed: int, p: int = P) -> tuple[torch.Tensor, torch.Tensor]:
    """Of N training and M test samples, (N, C, p) and (M, C, p)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (N, C, p), (M, C, p)
    train, test = (torch.randn(shape, generator=generator, **f64) for shape in shapes)
    return train, test


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.einsum("iap,jbp->ijab", a, b)


def _shared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Full kernel ``k x I`` of features (N, p) that all outputs have alike."""
    return (a @ b.T)[:, :, None, None] * torch.eye(C, **f64)


@pytest.mark.parametrize("seed", range(3))
def test_without_ridge_predictions_are_those_of_the_shortest_exact_fit(seed):
    J, J_test = _jacobians(seed)
    y = torch.randn(N, C, **f64)
    theta = np.linalg.lstsq(J.reshape(-1, P).numpy(), y.reshape(-1).numpy(), rcond=None)[0]
    found = kernel_regression(_kernel(J, J), _kernel(J_test, J), y, ridge=0.0)
    expected = (J_test.reshape(-1, P).numpy() @ theta).reshape(M, C)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_with_ridge_predictions_are_those_of_penalised_least_squares(ridge):
    """``min |J theta - r|^2 + eps |theta|^2`` as an ordinary problem with sqrt(eps) I below J."""
    J, J_test = _jacobians(0)
    y, f0, f0_test = torch.randn(N, C, **f64), torch.randn(N, C, **f64), torch.randn(M, C, **f64)
    flat = J.reshape(-1, P).numpy()
    eps = ridge * np.trace(flat @ flat.T) / (N * C)
    stacked = np.vstack([flat, np.sqrt(eps) * np.eye(P)])
    right = np.concatenate([(y - f0).reshape(-1).numpy(), np.zeros(P)])
    theta = np.linalg.lstsq(stacked, right, rcond=None)[0]
    expected = f0_test.numpy() + (J_test.reshape(-1, P).numpy() @ theta).reshape(M, C)
    found = kernel_regression(
        _kernel(J, J), _kernel(J_test, J), y, ridge=ridge, start=(f0, f0_test)
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_trace_kernel_stands_for_its_share_on_every_output(ridge):
    """With ``K = k x I`` all that takes a kernel agrees between K and ``S = C k``."""
    x, x_test = torch.randn(N, 9, **f64), torch.randn(M, 9, **f64)
    y, y_test = torch.randn(N, C, **f64), torch.randn(M, C, **f64)
    full = _shared(x, x), _shared(x_test, x)
    trace = C * (x @ x.T), C * (x_test @ x.T)
    for of in (
        lambda K, k: kernel_regression(K, k, y, ridge=ridge),
        lambda K, k: representer_gap(K, k, y, y_test, ridge=ridge),
        lambda K, k: shortest_move(K, y, ridge=ridge),
        lambda K, k: ridge_weights(K, y, ridge=ridge),
        lambda K, k: apply_kernel(k, y),
    ):
        torch.testing.assert_close(of(*trace), of(*full))


@law
@given(seed=st.integers(0, 1000), factor=st.floats(1e-6, 1e6), ridge=st.floats(0, 10))
def test_predictions_do_not_see_the_scale_of_the_kernel(seed, factor, ridge):
    J, J_test = _jacobians(seed)
    K, k, y = _kernel(J, J), _kernel(J_test, J), J[:, :, 0]
    found = kernel_regression(factor * K, factor * k, y, ridge=ridge)
    torch.testing.assert_close(found, kernel_regression(K, k, y, ridge=ridge), rtol=1e-8, atol=1e-9)


def test_training_samples_are_met_without_ridge():
    J, _ = _jacobians(0)
    y, f0 = torch.randn(N, C, **f64), torch.randn(N, C, **f64)
    found = kernel_regression(_kernel(J, J), _kernel(J, J), y, ridge=0.0, start=(f0, f0))
    torch.testing.assert_close(found, y)


def _trained(seed: int, *, loss, steps: int = 40, p: int = P):
    """A linear model under stochastic descent on one sample at a time: start, end, Jacobians."""
    J, J_test = _jacobians(seed, p)
    y = torch.randn(N, C, **f64)
    theta = torch.zeros(p, **f64)
    for step in range(steps):
        i = [step % N, (5 * step + 2) % N]
        f = (J[i] @ theta).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(f, y[i]), f)
        theta = theta - 0.01 * torch.einsum("iap,ia->p", J[i], gradient)
    return J, J_test, theta


LOSSES = {
    "square": torch.nn.functional.mse_loss,
    "cross-entropy": lambda f, y: torch.nn.functional.cross_entropy(f, y.softmax(dim=1)),
    "absolute": torch.nn.functional.l1_loss,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_linear_model_has_no_representer_gap_and_moves_by_the_shortest_way(loss):
    J, J_test, theta = _trained(0, loss=LOSSES[loss])
    K, k = _kernel(J, J), _kernel(J_test, J)
    change, there = J @ theta, J_test @ theta
    assert representer_gap(K, k, change, there, ridge=0.0) < 1e-10
    ratio = displacement_ratio(theta.norm(), K, change, ridge=0.0)
    assert ratio.item() == pytest.approx(1, rel=1e-10)


def test_a_change_that_the_training_set_cannot_make_is_the_gap():
    """A step off the row space leaves training outputs alone, and is longer than needed."""
    J, J_test, theta = _trained(0, loss=LOSSES["square"])
    K, k = _kernel(J, J), _kernel(J_test, J)
    rows = J.reshape(-1, P)
    astray = torch.randn(P, **f64)
    astray -= rows.T @ torch.linalg.solve(rows @ rows.T, rows @ astray)
    moved = theta + astray
    gap = representer_gap(K, k, J @ moved, J_test @ moved, ridge=0.0)
    expected = (J_test @ astray).norm() / (J_test @ moved).norm()
    torch.testing.assert_close(gap, expected)
    ratio = displacement_ratio(moved.norm(), K, J @ moved, ridge=0.0)
    torch.testing.assert_close(ratio, moved.norm() / theta.norm())
    assert ratio > 1


def test_the_shortest_move_is_that_of_the_pseudo_inverse():
    J, _ = _jacobians(0)
    change = torch.randn(N, C, **f64)
    theta = np.linalg.pinv(J.reshape(-1, P).numpy()) @ change.reshape(-1).numpy()
    found = shortest_move(_kernel(J, J), change, ridge=0.0)
    assert found.item() == pytest.approx(np.linalg.norm(theta), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_samples_make_a_kernel_singular_which_a_ridge_cures(dtype):
    J, _ = _jacobians(0)
    J[4] = J[1]
    K, y = _kernel(J, J).to(dtype), torch.randn(N, C, **f64)
    with pytest.raises(SingularKernelError, match=r"18 rows is singular .* ridge=0: row 1[2-4]"):
        ridge_weights(K, y, ridge=0.0)
    # The two are fitted at the mean of their targets.
    fitted = apply_kernel(K, ridge_weights(K, y, ridge=1e-6))
    torch.testing.assert_close(fitted[4], (y[1] + y[4]) / 2, rtol=1e-2, atol=1e-2)


def test_more_rows_than_parameters_make_a_kernel_singular():
    J, _ = _jacobians(0, 10)
    with pytest.raises(SingularKernelError, match="more rows than parameters"):
        ridge_weights(_kernel(J, J), torch.ones(N, C, **f64), ridge=0.0)


def test_the_row_that_is_not_independent_is_named_by_sample_and_output():
    kernel = torch.eye(4, **f64)[:, :, None, None] * torch.eye(3, **f64)
    kernel[2, :, 1], kernel[:, 2, :, 1] = 0, 0
    with pytest.raises(SingularKernelError, match=r"row 7 \(sample 2, output 1\)"):
        ridge_weights(kernel, torch.ones(4, 3, **f64), ridge=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_rounding_left_of_a_row_is_no_row(dtype):
    """A factorisation in float64 goes through, and would divide by the rounding."""
    eps = torch.finfo(dtype).eps
    kernel = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0 + eps, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    y = torch.tensor([[1.0], [-1.0], [0.0]], **f64)
    with pytest.raises(SingularKernelError, match=r"row 1 \(sample 1, output 0\)"):
        ridge_weights(kernel, y, ridge=0.0)
    assert ridge_weights(kernel, y, ridge=1e-3).abs().max() < 3e3


def test_a_kernel_that_is_not_positive_is_refused_at_a_ridge_too():
    with pytest.raises(SingularKernelError, match=r"at ridge=0\.001"):
        ridge_weights(torch.diag(torch.tensor([1.0, -1.0, 1.0])), torch.ones(3, 1), ridge=1e-3)
    with pytest.raises(SingularKernelError):
        ridge_weights(torch.zeros(3, 3), torch.ones(3, 1), ridge=1e-3)


@pytest.mark.parametrize("ridge", [-1e-3, float("nan")])
def test_a_negative_ridge_is_refused(ridge):
    with pytest.raises(InputError, match="would make a kernel singular"):
        ridge_weights(torch.eye(3), torch.ones(3, 1), ridge=ridge)


def test_kernels_and_values_that_do_not_belong_together_are_refused():
    J, J_test = _jacobians(0)
    K, k, y = _kernel(J, J), _kernel(J_test, J), torch.ones(N, C, **f64)
    regress = unwrap(kernel_regression)
    short, start = y[:-1], torch.zeros(M, C, **f64)
    with pytest.raises(KernelMismatchError, match="the values"):
        unwrap(ridge_weights)(K, short, ridge=0.0)
    with pytest.raises(KernelMismatchError, match="the outputs at the start"):
        regress(K, k, y, ridge=0.0, start=(short, start))
    with pytest.raises(KernelMismatchError, match="at the start on test samples"):
        regress(K, k, y, ridge=0.0, start=(y, y))
    with pytest.raises(KernelMismatchError, match="the weights"):
        unwrap(apply_kernel)(k.transpose(0, 1), y)
    with pytest.raises(KernelMismatchError, match="changes on held-out samples"):
        unwrap(representer_gap)(K, k, y, y, ridge=0.0)


def test_kernels_that_are_not_finite_are_refused():
    bad, y = torch.full((3, 3), torch.nan), torch.ones(3, 1)
    with pytest.raises(NonFiniteError, match="entries of the kernel are"):
        ridge_weights(bad, y, ridge=0.0)
    with pytest.raises(NonFiniteError, match="kernel between test and training samples"):
        apply_kernel(bad, y)


def test_a_model_that_did_not_move_has_neither_gap_nor_ratio():
    K, nothing = torch.eye(3), torch.zeros(3, 1)
    with pytest.raises(InputError, match="3 held-out samples changed"):
        representer_gap(K, K, torch.ones(3, 1), nothing, ridge=0.0)
    with pytest.raises(InputError, match="3 training samples changed"):
        displacement_ratio(torch.ones(()), K, nothing, ridge=0.0)


@pytest.mark.parametrize("kind", ["full", "trace"])
def test_errors_of_samples_left_out_are_those_of_fits_without_them(kind):
    """Every sample is predicted by numpy from the others, with the ridge of them all."""
    J, _ = _jacobians(0, p=10)
    features = torch.randn(N, 4, **f64)
    K = _kernel(J, J) if kind == "full" else C * features @ features.T
    flat = K.permute(0, 2, 1, 3).reshape(N * C, N * C) if kind == "full" else None
    flat = np.kron(features @ features.T, np.eye(C)) if flat is None else flat.numpy()
    y = torch.randn(N, C, **f64)
    ridges = (1e-3, 0.1, 3.0)
    found = leave_one_out_errors(K, y, ridges)
    sample, values = np.repeat(np.arange(N), C), y.numpy().reshape(-1)
    for ridge, error in zip(ridges, found.tolist(), strict=True):
        eps, total = ridge * np.trace(flat) / len(flat), 0.0
        for i in range(N):
            rest, own = sample != i, sample == i
            ridged = flat[np.ix_(rest, rest)] + eps * np.eye(rest.sum())
            predicted = flat[np.ix_(own, rest)] @ np.linalg.solve(ridged, values[rest])
            total += ((values[own] - predicted) ** 2).sum()
        assert error == pytest.approx(total / (values**2).sum(), rel=1e-8)


def test_leaving_samples_out_finds_the_ridge_of_noise():
    """Targets that no feature explains are predicted best by nothing."""
    features = torch.randn(40, 12, **f64)
    K = features @ features.T
    clean, noise = features @ torch.randn(12, 1, **f64), torch.randn(40, 1, **f64)
    ridges = (1e-6, 1e-2, 10.0)
    assert leave_one_out_errors(K, clean, ridges).argmin() == 0
    assert leave_one_out_errors(K, noise, ridges).argmin() == 2


def test_errors_of_samples_left_out_take_a_ridge_and_something_to_predict():
    K, y = torch.eye(3, **f64), torch.ones(3, 1, **f64)
    cases = ((K, y, (0.0,)), (K, y, ()), (0 * K, y, (1.0,)), (K, 0 * y, (1.0,)))
    for kernel, values, ridges in cases:
        with pytest.raises(InputError, match="leave nothing to predict"):
            leave_one_out_errors(kernel, values, ridges)
