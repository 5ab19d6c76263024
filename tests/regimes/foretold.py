"""Rung 13: trainings to the loss that a forecast was asked for, and what the forecast said of them.

Kernels are closed forms written out by hand or products of autograd's Jacobian, linearization
errors come from that Jacobian: no code of the package but the forecast itself.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ntkwatch import Forecast, forecast
from ntkwatch.kernel.drift import kernel_distance, relative_kernel_change

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

__all__ = ["ACTIVATIONS", "Drift", "Foretold", "grokked", "transformer", "two_layers"]

STOP = 0.02
ACTIVATIONS = {
    "tanh": (torch.tanh, tanh_slope),
    "linear": (torch.clone, torch.ones_like),
    "ReLU": (relu2, relu2_slope),
}


class Drift(NamedTuple):
    """How far a network is from its start."""

    change: float  # |K - K_0| / |K_0|
    distance: float  # 1 - cos of the angle between the kernels
    error: float  # |f - f_lin| / |f - f_0|


class Foretold(NamedTuple):
    """What was said before a training, and what it then showed."""

    said: Drift
    found: Drift
    forecast: Forecast


def _foretold(said: Forecast, start: nn.Module, end: nn.Module, x: Tensor, now, then) -> Foretold:
    point = said.points[-1]
    distance = 1 - math.cos(point.kernel_angle)
    return Foretold(
        Drift(point.relative_kernel_change, distance, point.linearization_error),
        Drift(
            float(relative_kernel_change(now, then)),
            float(kernel_distance(now, then)),
            _linearization_error(start, end, x),
        ),
        said,
    )


def _linearization_error(start: nn.Module, end: nn.Module, x: Tensor) -> float:
    J = dense_jacobian(start, x)
    moved = {n: (p - dict(start.named_parameters())[n]).detach() for n, p in end.named_parameters()}
    linear = sum(J[n].flatten(2) @ d.flatten() for n, d in moved.items() if n in J)
    with torch.no_grad():
        change = end(x) - start(x)
    return float((change - linear).norm() / change.norm())


def two_layers(activation: str, alpha: float, seed: int, width: int = 256) -> Foretold:
    """Eight points on a sphere with random signs, to 0.04 % of the loss at the start."""
    torch.manual_seed(seed)
    function, slope = ACTIVATIONS[activation]
    net, x = TwoLayer(16, width, function, alpha), unit_inputs(8, 16)
    y = torch.randint(2, (8,)).double() * 2 - 1
    said = forecast(net, x, y[:, None], loss_ratios=(0.1, STOP**2))
    start, then = copy.deepcopy(net), net.kernel(x, slope)

    def rate(model: TwoLayer) -> float:
        return float(0.3 / torch.linalg.eigvalsh(model.kernel(x, slope))[-1])

    gradient_descent(net, x, y, rate, stop=STOP)
    return _foretold(said, start, net, x, net.kernel(x, slope), then)


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


def grokked(alpha: float) -> Foretold:
    """A polynomial, to 2 % of the variance of y as the rung of grokking reads it."""
    torch.manual_seed(0)
    net, x = Grokker(alpha), torch.randn(200, 30, **f64) / math.sqrt(30)
    beta = torch.randn(30, **f64)
    y = (x @ (beta * math.sqrt(30) / beta.norm())) ** 2 / 2
    ratio = float(0.02 * y.var() / y.square().mean())
    said = forecast(net, x, y[:, None], loss_ratios=(ratio,))
    then, start = net.kernel(x), copy.deepcopy(net)
    rate = float(0.3 / torch.linalg.eigvalsh(then)[-1])
    gradient_descent(net, x, y, lambda net: rate, stop=math.sqrt(ratio))
    return _foretold(said, start, net, x, net.kernel(x), then)


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


def transformer(optimizer: str, alpha: float, seed: int) -> Foretold:
    """Sums of two tokens modulo 3, by torch's "SGD" or "Adam", to a tenth of the loss."""
    torch.manual_seed(seed)
    net, x = Tiny(alpha), torch.randint(8, (24, 6))
    labels = (x[:, 0] + x[:, -1]) % 3
    said = forecast(net, x, labels, loss_ratios=(0.1,))
    code, start = nn.functional.one_hot(labels, 3).double() - 1 / 3, copy.deepcopy(net)
    # A gradient grows as alpha squared, and Adam's steps are of one size whatever it is.
    rate = 2e-3 / alpha**2 if optimizer == "SGD" else 1e-3 / alpha
    descent = getattr(torch.optim, optimizer)(net.parameters(), lr=rate)
    begun = (net(x) - code).detach().norm()
    for _ in range(5000):
        residual = net(x) - code
        if residual.detach().norm() <= math.sqrt(0.1) * begun:
            return _foretold(said, start, net, x, _trace_kernel(net, x), _trace_kernel(start, x))
        descent.zero_grad()
        (residual.square().sum() / 2).backward()
        descent.step()
    raise AssertionError("the loss was not reached")


def _trace_kernel(model: nn.Module, x: Tensor) -> Tensor:
    rows = [part.flatten(1) for part in dense_jacobian(model, x).values()]
    return sum(part @ part.T for part in rows)
