"""Training of a linearized model against that model: its parameters, steps and exponentials."""

import math
from inspect import unwrap  # past --typecheck, which would refuse before us

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError, KernelMismatchError, NonFiniteError
from ntkwatch.kernel.frozen import frozen_training
from ntkwatch.kernel.regression import kernel_regression

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}
N, M, C = 5, 4, 3


def _problem(seed: int, p: int = 30):
    """Jacobians (N, C, p) and (M, C, p) of a linear model, its start and its targets."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, **f64)

    return normal(N, C, p), normal(M, C, p), normal(N, C), normal(M, C), normal(N, C)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.einsum("iap,jbp->ijab", a, b)


def _descended(J, f0, y, rate: float, steps: int, h: float) -> torch.Tensor:
    """Parameters after steps of descent on ``h |f - y|^2 / 2``."""
    theta = torch.zeros(J.shape[2], **f64)
    for _ in range(steps):
        residual = f0 + J @ theta - y
        theta = theta - rate * h * torch.einsum("iap,ia->p", J, residual)
    return theta


# 30 parameters for 15 rows, and 8 for 15: then 7 modes do not move at all.
@pytest.mark.parametrize("p", [30, 8])
@pytest.mark.parametrize("steps", [0, 1, 7, 300])
def test_discrete_training_is_that_of_the_parameters(p, steps):
    J, J_test, f0, f0_test, y = _problem(0, p)
    K, h = _kernel(J, J), 2 / (N * C)
    rate = 1.7 / (h * float(np.linalg.eigvalsh(J.reshape(-1, p) @ J.reshape(-1, p).T)[-1]))
    theta = _descended(J, f0, y, rate, steps, h)
    training = frozen_training(K, f0 - y, curvature=h, learning_rate=rate)
    residual = f0 + J @ theta - y
    near = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(training.residual(steps), residual, **near)
    ratio = residual.square().sum() / (f0 - y).square().sum()
    torch.testing.assert_close(training.loss_ratio(steps), ratio, **near)
    found = training.predictions(_kernel(J_test, J), f0_test, steps)
    torch.testing.assert_close(found, f0_test + J_test @ theta, **near)
    # The cotangents of one backward pass give the parameters themselves.
    moved = torch.einsum("iap,ia->p", J, training.weights(steps))
    torch.testing.assert_close(moved, theta, **near)


@pytest.mark.parametrize("p", [30, 8])
@pytest.mark.parametrize("time", [0.0, 1e-12, 0.03, 0.4, 50.0])
def test_gradient_flow_is_that_of_a_matrix_exponential(p, time):
    J, J_test, f0, f0_test, y = _problem(1, p)
    flat, h = J.reshape(-1, p), 0.5
    training = frozen_training(_kernel(J, J), f0 - y, curvature=h)
    # In parameter space, d theta / dt = -h J' (f_0 + J theta - y): one more row takes the constant.
    generator = torch.zeros(p + 1, p + 1, **f64)
    generator[:p, :p] = -h * flat.T @ flat
    generator[:p, p] = -h * flat.T @ (f0 - y).reshape(-1)
    theta = torch.linalg.matrix_exp(time * generator)[:p, p]
    near = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(training.residual(time), f0 + J @ theta - y, **near)
    moved = torch.einsum("iap,ia->p", J, training.weights(time))
    torch.testing.assert_close(moved, theta, rtol=1e-8, atol=0 if time < 1e-6 else 1e-10)
    found = training.predictions(_kernel(J_test, J), f0_test, time)
    torch.testing.assert_close(found, f0_test + J_test @ theta, **near)


def test_the_end_of_the_path_is_regression_without_ridge():
    J, J_test, f0, f0_test, y = _problem(2)
    K, k = _kernel(J, J), _kernel(J_test, J)
    expected = kernel_regression(K, k, y, ridge=0.0, start=(f0, f0_test))
    found = frozen_training(K, f0 - y).predictions(k, f0_test, 1e9)
    torch.testing.assert_close(found, expected)


def test_small_steps_follow_the_flow():
    J, J_test, f0, f0_test, y = _problem(3)
    K, k = _kernel(J, J), _kernel(J_test, J)
    flow = frozen_training(K, f0 - y).predictions(k, f0_test, 0.02)
    errors = []
    for steps in (1000, 2000):
        found = frozen_training(K, f0 - y, learning_rate=0.02 / steps)
        errors.append((found.predictions(k, f0_test, steps) - flow).norm())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)  # first order in the rate


def test_a_trace_kernel_trains_each_output_with_its_share():
    x, x_test = torch.randn(N, 9, **f64), torch.randn(M, 9, **f64)
    _, _, f0, f0_test, y = _problem(4)
    one = torch.eye(C, **f64)
    full = frozen_training((x @ x.T)[:, :, None, None] * one, f0 - y)
    trace = frozen_training(C * x @ x.T, f0 - y)
    torch.testing.assert_close(trace.residual(0.07), full.residual(0.07))
    torch.testing.assert_close(trace.time_to_loss_ratio(0.2), full.time_to_loss_ratio(0.2))
    found = trace.predictions(C * x_test @ x.T, f0_test, 0.07)
    expected = full.predictions((x_test @ x.T)[:, :, None, None] * one, f0_test, 0.07)
    torch.testing.assert_close(found, expected)


@law
@given(seed=st.integers(0, 1000), ratio=st.floats(1e-12, 0.999))
def test_the_loss_ratio_at_the_time_to_it_is_the_one_asked_for(seed, ratio):
    J, _, f0, _, y = _problem(seed)
    training = frozen_training(_kernel(J, J), f0 - y, curvature=0.3)
    time = training.time_to_loss_ratio(ratio)
    assert time > 0
    assert training.loss_ratio(time).item() == pytest.approx(ratio, rel=1e-9)


@law
@given(seed=st.integers(0, 1000), ratio=st.floats(1e-6, 0.999), product=st.floats(0.01, 1.99))
def test_the_step_at_which_a_loss_ratio_is_reached_is_the_first_that_does(seed, ratio, product):
    J, _, f0, _, y = _problem(seed)
    K = _kernel(J, J)
    rate = product / float(torch.linalg.eigvalsh(J.reshape(-1, 30) @ J.reshape(-1, 30).T)[-1])
    training = frozen_training(K, f0 - y, learning_rate=rate)
    step = training.time_to_loss_ratio(ratio)
    assert step == step.round()
    assert training.loss_ratio(step) <= ratio * (1 + 1e-9)
    assert training.loss_ratio(step - 1) > ratio


def test_one_step_that_removes_a_mode_is_one_step():
    """``eta lambda = 1`` for all modes: everything is learned at once."""
    training = frozen_training(2 * torch.eye(3, **f64), torch.ones(3, 1, **f64), learning_rate=0.5)
    assert training.time_to_loss_ratio(0.5) == 1
    assert training.loss_ratio(1) == 0
    torch.testing.assert_close(training.weights(1), -torch.full((3, 1), 0.5, **f64))


@pytest.mark.parametrize("learning_rate", [None, 0.1])
def test_a_loss_that_is_reached_takes_no_time_and_one_out_of_reach_for_ever(learning_rate):
    """Two modes with half of the loss each, of which one does not move."""
    kernel, residual = torch.diag(torch.tensor([1.0, 0.0], **f64)), torch.ones(2, 1, **f64)
    training = frozen_training(kernel, residual, learning_rate=learning_rate)
    assert training.time_to_loss_ratio(1.0) == 0
    assert training.time_to_loss_ratio(3.0) == 0
    assert math.isfinite(training.time_to_loss_ratio(0.501))
    assert training.time_to_loss_ratio(0.499) == math.inf
    stuck = frozen_training(kernel, torch.tensor([[0.0], [1.0]], **f64))
    assert stuck.time_to_loss_ratio(0.99) == math.inf
    assert stuck.time_to_loss_ratio(1.0) == 0


def test_eigenvalues_that_rounding_made_are_not_fitted():
    """Equal samples with different targets: float32 gives their difference a tiny eigenvalue."""
    x = torch.randn(6, 20)
    x[3] = x[1]
    kernel = (x @ x.T).double()
    kernel[1, 3] = kernel[3, 1] = kernel[1, 3] * (1 - 1e-7)
    y = torch.randn(6, 1, **f64)
    training = frozen_training(kernel, -y, precision=torch.float32)
    fitted = training.residual(1e12) + y
    torch.testing.assert_close(fitted[1], (y[1] + y[3]) / 2, rtol=1e-4, atol=1e-4)
    naive = frozen_training(kernel, -y)
    assert naive.weights(1e12).abs().max() > 1e3 * training.weights(1e12).abs().max()


def test_what_cannot_be_trained_is_refused():
    kernel, residual = torch.diag(torch.tensor([4.0, 1.0], **f64)), torch.ones(2, 1, **f64)
    with pytest.raises(InputError, match="outputs at the start equal their targets"):
        frozen_training(kernel, 0 * residual)
    for rate in (0.5, 0.6, 0.0, -0.1):
        with pytest.raises(InputError, match=r"does not converge: the largest stable rate is 0\.5"):
            frozen_training(kernel, residual, learning_rate=rate)
    with pytest.raises(InputError, match="never reached in finite time"):
        frozen_training(kernel, residual).time_to_loss_ratio(0.0)
    with pytest.raises(KernelMismatchError, match="the residual"):
        unwrap(frozen_training)(kernel, torch.ones(3, 1, **f64))
    with pytest.raises(NonFiniteError):
        frozen_training(kernel * torch.nan, residual)
