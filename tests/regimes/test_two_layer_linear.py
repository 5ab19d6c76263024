"""Rung 2: the two-layer linear network, whose end of training is known in closed form.

``f = a'Wx / (gamma m)``, inputs the n unit vectors, target of norm Y: with
``q = sqrt(1 + gamma^2 Y^2)`` everything below follows from ``cosh`` and ``sinh`` of one angle.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from ntkwatch import KernelTracker, ProbeBatch, judge

from regimes.recipes import f64, gradient_descent

WIDTH = 4096


class LinearNet(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.w = nn.Linear(n, WIDTH, bias=False, **f64)
        self.a = nn.Linear(WIDTH, 1, bias=False, **f64)
        for layer in (self.w, self.a):
            nn.init.normal_(layer.weight)
        self.register_buffer("start", (self.a.weight @ self.w.weight).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(self.w(x)) - x @ self.start.T) / WIDTH

    def rate(self) -> float:
        """``0.05 / lambda_max`` of the kernel of this function, (W'W + |a|^2) / m^2 on X = I."""
        w, a = self.w.weight, self.a.weight
        kernel = (w.T @ w + a.square().sum() * torch.eye(w.shape[1], **f64)) / WIDTH**2
        return float(0.05 / torch.linalg.eigvalsh(kernel)[-1])


def _trained(strength: float, n: int):
    torch.manual_seed(0)
    net, x = LinearNet(n), torch.eye(n, **f64)
    y = torch.randn(n, **f64)
    y = strength * y / y.norm()
    tracker = KernelTracker(ProbeBatch(x, y))
    tracker.observe(net, 0, loss=float(0.5 * y.square().sum()))
    steps = gradient_descent(net, x, y, LinearNet.rate, stop=1e-3)
    return tracker, tracker.observe(net, steps, loss=float(0.5e-6 * y.square().sum()))


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("strength", [1.0, 3.0, 10.0])
def test_the_end_of_training_is_that_of_the_closed_form(strength, n):
    _, seen = _trained(strength, n)
    q = math.sqrt(1 + strength**2)
    c = math.sqrt((1 + q) / 2)
    total = math.sqrt(n * (1 + q) ** 2 + 2 * (1 + q) * (q - 1) + (q - 1) ** 2)
    near = {"rel": 0.03 if n == 8 else 0.06}  # finite width: more so for more inputs
    change = (q - 1) * math.sqrt(n + 3) / (2 * math.sqrt(n))
    assert seen.relative_kernel_change == pytest.approx(change, **near)
    distance = 1 - (n * (1 + q) + q - 1) / (math.sqrt(n) * total)
    assert seen.kernel_distance == pytest.approx(distance, rel=0.1)
    assert seen.linearization_error == pytest.approx(1 - 1 / c, **near)
    angle = math.acos((n + q - 1) / math.sqrt(n * (n - 1 + q**2)))
    assert seen.layer_angle["a"] == pytest.approx(angle, rel=0.05)
    assert seen.layer_angle["w"] == pytest.approx(0, abs=0.03)
    grown = seen.top_eigenvalues[0] / seen.top_eigenvalues[1]
    assert grown == pytest.approx(2 * q / (1 + q), rel=0.08)


@pytest.mark.parametrize(
    ("strength", "label"),
    [(0.1, "lazy"), (1.0, "lazy"), (3.0, "transitional"), (10.0, "feature-learning")],
)
def test_the_verdict_follows_the_strength_although_the_distance_stays_small(strength, label):
    tracker, seen = _trained(strength, 32)
    assert seen.kernel_distance < 0.02
    assert judge(tracker.history).strength == label


def test_eight_probe_points_are_too_few_for_a_verdict():
    tracker, _ = _trained(3.0, 8)
    verdict = judge(tracker.history)
    assert verdict.strength == "undetermined"
    assert verdict.qualifier == "probe too small"
