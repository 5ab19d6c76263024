"""Rung 5: what rounding, order and reduction must not do to the numbers.

Oracles: a double loop of autograd, one output of one sample at a time, and algebra.
"""

import math

import pytest
import torch
from torch import nn

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk
from ntkwatch.kernel.drift import (
    kernel_angle,
    kernel_distance,
    kernel_scale,
    relative_kernel_change,
)
from ntkwatch.kernel.gram import inner

from regimes.recipes import f64


class Tied(nn.Module):
    """Two inputs' worth of embedding whose weight is also the head: it counts once."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 3, bias=False, **f64)
        self.mix = nn.Linear(3, 3, **f64)

    def forward(self, x):
        return torch.tanh(self.mix(self.embed(x))) @ self.embed.weight


def test_the_same_checkpoint_twice_has_not_moved_at_all():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    tracker = KernelTracker(ProbeBatch(torch.randn(16, 4)))
    tracker.observe(net, 0)
    seen = tracker.observe(net, 1)
    assert seen.kernel_distance == seen.relative_kernel_change == seen.kernel_scale == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perturbation_across_the_kernel_has_half_its_square_as_distance(dtype):
    """``K + eps |K| P`` with P of norm 1 across K, computed in the kernel's own precision."""
    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).to(dtype)
    K = empirical_ntk(net, torch.randn(16, 4, dtype=dtype), outputs="trace").matrix
    assert K.dtype == torch.float64
    P = torch.randn(16, 16, **f64)
    P = P + P.T
    P = P - inner(P, K) / inner(K, K) * K
    moved = K + 1e-6 * K.norm() * P / P.norm()
    assert float(kernel_distance(moved, K)) == pytest.approx(5e-13, rel=0.01)
    turned = 1.3 * K + 0.2 * K.norm() * P / P.norm()
    s, phi = math.exp(float(kernel_scale(turned, K))), float(kernel_angle(turned, K))
    split = (s - 1) ** 2 + s**2 * math.tan(phi) ** 2
    assert float(relative_kernel_change(turned, K)) ** 2 == pytest.approx(split, abs=1e-10)


def test_the_kernel_is_that_of_a_double_loop_with_tied_weights_once():
    net, x = Tied(), torch.randn(5, 4, **f64)
    weights = list(net.parameters())
    rows = [
        [torch.cat([g.flatten() for g in torch.autograd.grad(net(x[i : i + 1])[0, a], weights)])
         for a in range(4)]
        for i in range(5)
    ]  # fmt: skip
    kernel = empirical_ntk(net, x)
    for i in range(5):
        for j in range(5):
            for a in range(4):
                for b in range(4):
                    expected = float(rows[i][a] @ rows[j][b])
                    assert float(kernel.matrix[i, j, a, b]) == pytest.approx(expected, abs=1e-12)
    summed = sum(kernel.matrix[..., a, a] for a in range(4))
    torch.testing.assert_close(kernel.trace, summed, rtol=1e-13, atol=1e-13)
