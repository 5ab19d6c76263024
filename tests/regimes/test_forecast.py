"""Rung 13: what is said before training, against what training then does.

The oracle is training itself: gradient descent to the loss that the forecast was asked for, with
kernels written out by hand. Rungs of output scale and width, the polynomial that is grokked, and a
small transformer, whose kernels are products of autograd's Jacobian.
"""

import copy
import math

import pytest
import torch
from torch import nn

from ntkwatch import forecast
from ntkwatch.kernel.drift import kernel_distance, relative_kernel_change
from ntkwatch.watch.verdict.bands import Strength

from oracles import dense_jacobian
from regimes.recipes import (
    TwoLayer,
    f64,
    gradient_descent,
    relu2,
    relu2_slope,
    tanh_slope,
    unit_inputs,
)

STOP = 0.02
SLOPES = {torch.tanh: tanh_slope, relu2: relu2_slope, torch.clone: torch.ones_like}


def _both(activation, alpha: float, seed: int, width: int = 256):
    """Forecast and training of one network: (change, distance) of each, and the forecast."""
    torch.manual_seed(seed)
    net, slope = TwoLayer(16, width, activation, alpha), SLOPES[activation]
    x = unit_inputs(8, 16)
    y = torch.randint(2, (8,)).double() * 2 - 1
    said = forecast(net, x, y[:, None], loss_ratios=(0.1, STOP**2))
    point = said.points[-1]

    def rate(model: TwoLayer) -> float:
        return float(0.3 / torch.linalg.eigvalsh(model.kernel(x, slope))[-1])

    start = net.kernel(x, slope)
    gradient_descent(net, x, y, rate, stop=STOP)
    now = net.kernel(x, slope)
    actual = float(relative_kernel_change(now, start)), float(kernel_distance(now, start))
    foretold = point.relative_kernel_change, 1 - math.cos(point.kernel_angle)
    return foretold, actual, said


def _geometric_mean(values) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("activation", [torch.tanh, torch.clone], ids=["tanh", "linear"])
def test_drift_is_foretold_within_a_factor_of_four_on_the_rung_of_output_scales(activation, alpha):
    for seed in range(3):
        foretold, actual, _ = _both(activation, alpha, seed)
        for said, found in zip(foretold, actual, strict=True):
            assert found / 4 < said < 4 * found


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_drift_is_foretold_within_a_factor_of_four_on_the_rung_of_widths(width):
    for seed in range(2):
        foretold, actual, _ = _both(torch.tanh, 1.0, seed, width)
        for said, found in zip(foretold, actual, strict=True):
            assert found / 4 < said < 4 * found


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_drift_of_relu_networks_is_foretold_in_the_mean_over_seeds(alpha):
    runs = [_both(relu2, alpha, seed)[:2] for seed in range(8)]
    ratio = _geometric_mean([foretold[0] / actual[0] for foretold, actual in runs])
    assert 0.5 < ratio < 2


def test_the_regime_is_named_before_training():
    lazy = _both(torch.tanh, 10.0, 0)[2]
    assert lazy.strength is Strength.LAZY
    assert _both(torch.tanh, 0.1, 0)[2].strength in (
        Strength.TRANSITIONAL,
        Strength.FEATURE_LEARNING,
    )
    assert _both(torch.tanh, 0.01, 0)[2].strength is Strength.FEATURE_LEARNING
    first, last = lazy.points
    assert first.linearization_error < last.linearization_error, "later is further"
    assert first.time < last.time


@pytest.mark.parametrize("activation", [torch.tanh, torch.clone], ids=["tanh", "linear"])
def test_the_change_is_foretold_far_into_feature_learning(activation):
    for seed in range(3):
        foretold, actual, _ = _both(activation, 0.03, seed)
        assert actual[0] / 4 < foretold[0] < 4 * actual[0]


# Rung 9: a network that groks a polynomial. -------------------------------------------------------


class Grokker(nn.Module):
    """``F = alpha / m sum_j (phi(w_j x) - phi(w_j0 x))``, ``phi(h) = h + eps h^2 / 2``."""

    def __init__(self, alpha: float, inputs: int = 30, width: int = 150, eps: float = 0.25):
        super().__init__()
        self.w = nn.Linear(inputs, width, bias=False, **f64)
        nn.init.normal_(self.w.weight)
        self.register_buffer("w0", self.w.weight.detach().clone())
        self.alpha, self.eps, self.width = alpha, eps, width

    def forward(self, x):
        h, h0 = self.w(x), x @ self.w0.T
        return self.alpha / self.width * (h - h0 + self.eps / 2 * (h**2 - h0**2)).sum(1, True)

    def kernel(self, x):
        with torch.no_grad():
            slopes = 1 + self.eps * self.w(x)
            return (self.alpha / self.width) ** 2 * (slopes @ slopes.T) * (x @ x.T)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_drift_of_a_network_that_groks_is_foretold(alpha):
    """From feature learning to nearly lazy, at 2 % of the variance of y as the rung reads it."""
    torch.manual_seed(0)
    net, x = Grokker(alpha), torch.randn(200, 30, **f64) / math.sqrt(30)
    beta = torch.randn(30, **f64)
    y = (x @ (beta * math.sqrt(30) / beta.norm())) ** 2 / 2
    ratio = float(0.02 * y.var() / y.square().mean())
    said = forecast(net, x, y[:, None], loss_ratios=(ratio,)).points[0]
    start, begun = net.kernel(x), copy.deepcopy(net)
    rate = float(0.3 / torch.linalg.eigvalsh(start)[-1])
    gradient_descent(net, x, y, lambda net: rate, stop=math.sqrt(ratio))
    now = net.kernel(x)
    change, distance = relative_kernel_change(now, start), kernel_distance(now, start)
    assert change / 1.5 < said.relative_kernel_change < 1.5 * change
    assert distance / 2 < 1 - math.cos(said.kernel_angle) < 2 * distance
    error = _linearization_error(begun, net, x)
    assert error / 2 < said.linearization_error < 2 * error


def _linearization_error(start, end, x) -> float:
    J = dense_jacobian(start, x)
    moved = {n: (p - dict(start.named_parameters())[n]).detach() for n, p in end.named_parameters()}
    linear = sum(J[n].flatten(2) @ d.flatten() for n, d in moved.items() if n in J)
    with torch.no_grad():
        change = end(x) - start(x)
    return float((change - linear).norm() / change.norm())


# A small transformer. -----------------------------------------------------------------------------


class Tiny(nn.Module):
    """One causal block over six tokens of eight, three classes from the last position."""

    def __init__(self, alpha: float, width: int = 16, heads: int = 2):
        super().__init__()
        self.tokens = nn.Embedding(8, width, **f64)
        self.places = nn.Parameter(0.1 * torch.randn(6, width, **f64))
        self.norms = nn.ModuleList(nn.LayerNorm(width, **f64) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width, **f64), nn.Linear(width, width, **f64)
        self.up, self.down = nn.Linear(width, 4 * width, **f64), nn.Linear(4 * width, width, **f64)
        self.head, self.heads, self.alpha = nn.Linear(width, 3, **f64), heads, alpha

    def forward(self, x):
        h = self.tokens(x) + self.places
        n, t, d = h.shape
        parts = self.qkv(self.norms[0](h)).reshape(n, t, 3, self.heads, d // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = torch.ones(t, t, dtype=torch.bool).tril()
        scores = (q @ k.mT / math.sqrt(d // self.heads)).masked_fill(~seen, -1e9)
        h = h + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, d))
        h = h + self.down(nn.functional.gelu(self.up(self.norms[1](h))))
        return self.alpha * self.head(self.norms[2](h)[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 10.0])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_drift_of_a_small_transformer_is_foretold_within_a_factor_of_four(kind, alpha, seed):
    torch.manual_seed(seed)
    net, x = Tiny(alpha), torch.randint(8, (24, 6))
    labels = (x[:, 0] + x[:, -1]) % 3
    said = forecast(net, x, labels, loss_ratios=(0.1,)).points[0]
    code, start = nn.functional.one_hot(labels, 3).double() - 1 / 3, copy.deepcopy(net)
    # A gradient grows as alpha squared, and Adam's steps are of one size whatever it is.
    rate = 2e-3 / alpha**2 if kind is torch.optim.SGD else 1e-3 / alpha
    descent, begun = kind(net.parameters(), lr=rate), (net(x) - code).detach().norm()
    for _ in range(5000):
        residual = net(x) - code
        if residual.detach().norm() <= math.sqrt(0.1) * begun:
            break
        descent.zero_grad()
        (residual.square().sum() / 2).backward()
        descent.step()
    else:
        raise AssertionError("the loss was not reached")
    now, then = (_trace_kernel(model, x) for model in (net, start))
    change = relative_kernel_change(now, then)
    error = _linearization_error(start, net, x)
    assert change / 4 < said.relative_kernel_change < 4 * change
    assert error / 4 < said.linearization_error < 4 * error


def _trace_kernel(model, x):
    rows = [part.flatten(1) for part in dense_jacobian(model, x).values()]
    return sum(part @ part.T for part in rows)
