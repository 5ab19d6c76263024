"""The closed form against the flow itself, of a network whose statistics are exactly infinite.

Weights that are orthogonal instead of random have ``W'W / m = I``, ``|a|^2 = m`` and ``W'a = 0``
exactly: no limit of large width is left to wait for.
"""

import math

import pytest
import torch

from ntkwatch.errors import InputError
from ntkwatch.kernel.drift import kernel_angle, kernel_distance, relative_kernel_change
from ntkwatch.kernel.two_layer_linear import two_layer_linear

f64 = {"dtype": torch.float64}


def _trained(gamma: float, y: torch.Tensor):
    """Weights (a, W) at start and end of gradient flow, by Runge-Kutta steps of fourth order."""
    n = len(y)
    m = n + 3
    basis = math.sqrt(m) * torch.linalg.qr(torch.randn(m, n + 1, **f64))[0]
    start = basis[:, 0], basis[:, 1:]

    def outputs(a, W):
        return W.T @ a / (gamma * m)

    def flow(a, W):
        residual = outputs(a, W) - y
        # Times gamma^2 m, which is a choice of the unit of time.
        return -gamma * (W @ residual), -gamma * torch.outer(a, residual)

    a, W = start
    dt = 0.02 / math.sqrt(1 + gamma**2 * float(y @ y))
    while (outputs(a, W) - y).norm() > 1e-12 * y.norm():
        k1 = flow(a, W)
        k2 = flow(a + dt / 2 * k1[0], W + dt / 2 * k1[1])
        k3 = flow(a + dt / 2 * k2[0], W + dt / 2 * k2[1])
        k4 = flow(a + dt * k3[0], W + dt * k3[1])
        a, W = (
            x + dt / 6 * (p + 2 * q + 2 * r + s)
            for x, p, q, r, s in zip((a, W), k1, k2, k3, k4, strict=True)
        )
    return start, (a, W), m


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0, 10.0])
def test_the_end_is_that_of_the_flow(strength, n):
    gamma = 0.7
    y = torch.randn(n, **f64)
    y = strength / gamma * y / y.norm()
    (a0, W0), (a, W), m = _trained(gamma, y)
    found = two_layer_linear(torch.tensor(strength, **f64), samples=n)
    eye = torch.eye(n, **f64)
    then = (W0.T @ W0 + a0.square().sum() * eye) / m
    now = (W.T @ W + a.square().sum() * eye) / m
    near = {"rel": 1e-7}
    change = relative_kernel_change(now, then)
    assert found.relative_kernel_change.item() == pytest.approx(change.item(), **near)
    assert found.kernel_angle.item() == pytest.approx(kernel_angle(now, then).item(), **near)
    assert found.kernel_distance.item() == pytest.approx(kernel_distance(now, then).item(), **near)
    readout = kernel_angle(W.T @ W, W0.T @ W0)
    assert found.readout_angle.item() == pytest.approx(readout.item(), **near)
    target = torch.outer(y, y)
    alignment = (now * target).sum() / now.norm() / target.norm()
    assert found.target_alignment.item() == pytest.approx(alignment.item(), **near)
    linear = ((W - W0).T @ a0 + W0.T @ (a - a0)) / (gamma * m)
    error = (y - linear).norm() / y.norm()
    assert found.linearization_error.item() == pytest.approx(error.item(), **near)
    moved = math.sqrt(float((a - a0).square().sum() + (W - W0).square().sum()))
    shortest = math.sqrt(float(y @ torch.linalg.solve(then / (gamma**2 * m), y)))
    assert found.displacement_ratio.item() == pytest.approx(moved / shortest, **near)
    growth = float(y @ now @ y / (y @ then @ y)), float(torch.linalg.eigvalsh(now)[0] / 2)
    assert found.eigenvalue_growth.tolist() == pytest.approx(growth, rel=1e-7)


def test_figures_of_the_literal_formulas():
    """Written with q and c as derived, in the same order; n = 8, strength 3."""
    q, n = math.sqrt(10), 8
    c = math.sqrt((1 + q) / 2)
    size = math.sqrt(n * (1 + q) ** 2 + 2 * (1 + q) * (q - 1) + (q - 1) ** 2)
    found = two_layer_linear(torch.tensor(3.0, **f64), samples=n)
    assert found.relative_kernel_change.item() == pytest.approx(
        (q - 1) * math.sqrt(n + 3) / (2 * math.sqrt(n)), rel=1e-13
    )
    distance = 1 - (n * (1 + q) + q - 1) / (math.sqrt(n) * size)
    assert found.kernel_distance.item() == pytest.approx(distance, rel=1e-11)
    assert found.linearization_error.item() == pytest.approx(1 - 1 / c, rel=1e-13)
    assert found.displacement_ratio.item() == pytest.approx(math.sqrt(2 / (c * (c + 1))), rel=1e-13)
    angle = math.acos((n + q - 1) / math.sqrt(n * (n - 1 + q**2)))
    assert found.readout_angle.item() == pytest.approx(angle, rel=1e-12)


def test_weak_training_keeps_its_digits():
    """To leading order in s: change ``s^2 sqrt(n + 3) / (4 sqrt n)``, LE ``s^2 / 8``, rk 1."""
    found = two_layer_linear(torch.tensor(1e-8, **f64), samples=6)
    near = {"rel": 1e-12, "abs": 0}
    change = 1e-16 * 3 / 4 / math.sqrt(6)
    assert found.relative_kernel_change.item() == pytest.approx(change, **near)
    assert found.linearization_error.item() == pytest.approx(1e-16 / 8, **near)
    angle = 1e-16 / 4 * math.sqrt(5 / 6) / math.sqrt(6)
    assert found.kernel_angle.item() == pytest.approx(angle, **near)
    assert found.kernel_distance.item() == pytest.approx(angle**2 / 2, **near)
    assert found.displacement_ratio == 1


def test_no_strength_and_one_sample_are_refused():
    for strength, samples in [(0.0, 8), (-1.0, 8), (math.nan, 8), (1.0, 1)]:
        with pytest.raises(InputError, match="leaves nothing to turn"):
            two_layer_linear(torch.tensor(strength, **f64), samples=samples)
