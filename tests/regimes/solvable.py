"""Rung 2: the two-layer linear network, trained by hand on the n unit vectors.

``f = a'Wx / (gamma m)`` with ``gamma = 1``: the norm of the target alone is the strength. Inputs
are the unit vectors, so a step is a product of a matrix with a vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntkwatch import KernelTracker, Observation, ProbeBatch, Verdict, empirical_ntk, judge
from ntkwatch.kernel.drift import kernel_distance
from ntkwatch.kernel.regression import displacement_ratio

from regimes.recipes import f64

__all__ = ["LinearNet", "Solved", "solved"]

WIDTH, STOP = 4096, 1e-3


class LinearNet(nn.Module):
    """``(a'W - a_0'W_0) x / m``."""

    def __init__(self, w: Tensor, a: Tensor):
        super().__init__()
        self.w = nn.Linear(w.shape[1], len(w), bias=False, **f64)
        self.a = nn.Linear(len(w), 1, bias=False, **f64)
        self.move_to(w, a)
        self.start = a @ w

    def move_to(self, w: Tensor, a: Tensor) -> None:
        with torch.no_grad():
            self.w.weight.copy_(w)
            self.a.weight.copy_(a.view(1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(self.w(x)) - (x @ self.start)[:, None]) / self.w.out_features


@dataclass(frozen=True, kw_only=True)
class Solved:
    """What the package says at the end; and on the way: norm of the residual, and kernel along y.

    ``alignment`` is not centred; ``growth`` are factors of the eigenvalues along y and across.
    """

    seen: Observation
    verdict: Verdict
    alignment: float
    ratio: float
    growth: tuple[float, float]
    on_the_way: list[tuple[float, float]]


def solved(
    strength: float, samples: int, *, seed: int = 0, looks: int = 0, orthogonal: bool = False
) -> Solved:
    """Train to a thousandth of the residual, looking at the kernel ``looks`` times on the way.

    ``orthogonal`` weights have the statistics of infinite width exactly: ``W'W = m``, ``W'a = 0``.
    """
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(WIDTH, samples, generator=generator, **f64)
    a = torch.randn(WIDTH, generator=generator, **f64)
    y = torch.randn(samples, generator=generator, **f64)
    if orthogonal:
        basis = WIDTH**0.5 * torch.linalg.qr(torch.cat([w, a[:, None]], dim=1))[0]
        w, a = basis[:, :-1].contiguous(), basis[:, -1]
    u = y / y.norm()
    y = strength * u
    net, x = LinearNet(w, a), torch.eye(samples, **f64)
    tracker = KernelTracker(ProbeBatch(x, y))
    tracker.observe(net, 0, loss=float(0.5 * y.square().sum()))
    before = empirical_ntk(net, x).matrix
    marks = [strength * (k + 1) / (looks + 1) for k in reversed(range(looks))]
    on_the_way, steps = [], 0
    begun, one = a @ w, torch.eye(samples, **f64)
    while True:
        residual = (a @ w - begun) / WIDTH - y
        if marks and residual.norm() <= marks[0]:
            marks.pop(0)
            net.move_to(w, a)
            kernel = WIDTH * empirical_ntk(net, x).trace
            on_the_way.append((float(residual.norm()), float(u @ kernel @ u)))
        if residual.norm() <= STOP * strength:
            break
        kernel = (w.mT @ w + a.square().sum() * one) / WIDTH**2
        pull = 0.05 / torch.linalg.eigvalsh(kernel)[-1] / WIDTH * residual
        w, a = w - torch.outer(a, pull), a - w @ pull
        steps += 1
    net.move_to(w, a)
    seen = tracker.observe(net, steps, loss=float(0.5 * residual.square().sum()))
    after = empirical_ntk(net, x).trace
    moved = torch.tensor(seen.displacement, **f64)
    change = net(x).detach()
    then = before[..., 0, 0]
    along = [float(u @ kernel @ u) for kernel in (then, after)]
    across = [
        (float(k.trace()) - s) / (samples - 1) for k, s in zip((then, after), along, strict=True)
    ]
    return Solved(
        seen=seen,
        verdict=judge(tracker.history),
        alignment=1 - float(kernel_distance(after, torch.outer(y, y))),
        ratio=float(displacement_ratio(moved, before, change, ridge=0.0)),
        growth=(along[1] / along[0], across[1] / across[0]),
        on_the_way=on_the_way,
    )
