"""Small trainings with a known answer, in plain torch: full-batch gradient descent in float64.

Kernels here are closed forms written out by hand, so that they share no code with the package.
"""

import math

import torch
from torch import Tensor, nn

f64 = {"dtype": torch.float64}


class TwoLayer(nn.Module):
    """``F = alpha (f - f_0)`` with ``f(x) = scale sum_j a_j act(w_j x)``, all weights N(0, 1).

    ``scale`` is ``m^-1/2`` unless it is given (mean field: ``1/m``); ``centred=False`` keeps f_0.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        activation,
        alpha: float = 1.0,
        *,
        scale: float | None = None,
        centred: bool = True,
    ):
        super().__init__()
        self.w = nn.Linear(inputs, width, bias=False, **f64)
        self.a = nn.Linear(width, 1, bias=False, **f64)
        for layer in (self.w, self.a):
            nn.init.normal_(layer.weight)
        self.activation, self.alpha, self.centred = activation, alpha, centred
        self.scale = 1 / math.sqrt(width) if scale is None else scale
        self.register_buffer("w0", self.w.weight.detach().clone())
        self.register_buffer("a0", self.a.weight.detach().clone())

    def start_at(self, w: Tensor, a: Tensor) -> None:
        """Take these weights, and their outputs as those of the start."""
        self.move_to(w, a)
        with torch.no_grad():
            self.w0.copy_(w)
            self.a0.copy_(a.view(1, -1))

    def move_to(self, w: Tensor, a: Tensor) -> None:
        with torch.no_grad():
            self.w.weight.copy_(w)
            self.a.weight.copy_(a.view(1, -1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.a(self.activation(self.w(x)))
        if self.centred:
            out = out - self.activation(x @ self.w0.T) @ self.a0.T
        return self.alpha * self.scale * out

    def kernel(self, x: Tensor, slope) -> Tensor:
        """By hand: ``(alpha scale)^2 (act act' + (a s)(a s)' o x x')``, s the slope of act."""
        with torch.no_grad():
            z = self.w(x)
            h, s = self.activation(z), slope(z) * self.a.weight
            return (self.alpha * self.scale) ** 2 * (h @ h.T + (s @ s.T) * (x @ x.T))


def relu2(z: Tensor) -> Tensor:
    return math.sqrt(2) * z.clamp(min=0)


def relu2_slope(z: Tensor) -> Tensor:
    return math.sqrt(2) * (z > 0).to(z)


def tanh_slope(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z) ** 2


def unit_inputs(count: int, dimension: int) -> Tensor:
    x = torch.randn(count, dimension, **f64)
    return x / x.norm(dim=1, keepdim=True)


def gradient_descent(net: nn.Module, x: Tensor, y: Tensor, rate, *, stop: float, most: int = 5000):
    """Full-batch descent on ``|F - y|^2 / 2`` until ``|F - y| <= stop |y|``; returns the steps."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    for step in range(most):
        residual = net(x).flatten() - y
        if residual.norm() <= stop * y.norm():
            return step
        gradients = torch.autograd.grad(0.5 * residual.square().sum(), parameters)
        with torch.no_grad():
            eta = rate(net)
            for p, g in zip(parameters, gradients, strict=True):
                p -= eta * g
    raise AssertionError(f"did not reach {stop} of the target in {most} steps")
