"""Rung 9: a network that fits first and generalises later, at several output scales.

``f = (alpha / N) sum_i phi(w_i x)`` with ``phi(h) = h + eps h^2 / 2`` learns a quadratic form
(Kumar et al. 2023, arXiv:2310.06110, smaller sizes). Trained by hand, several networks at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk

from regimes.recipes import f64

__all__ = ["ALPHAS", "NEURONS", "Grokked", "QuadraticNet", "drawn", "grokked", "kernel_by_hand"]

ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0)
BEND, NEURONS, INPUTS, TRAINING, TEST, STEPS = 0.25, 150, 30, 200, 1000, 6000
FITTED = 0.02


class QuadraticNet(nn.Module):
    """``F = f - f_0`` as above; only ``w`` trains."""

    def __init__(self, start: Tensor, alpha: float):
        super().__init__()
        self.w = nn.Linear(start.shape[1], len(start), bias=False, **f64)
        self.w.weight.data = start.clone()
        self.start, self.alpha = start.clone(), alpha

    def forward(self, x: Tensor) -> Tensor:
        now, then = _phi(self.w(x)), _phi(x @ self.start.T)
        return self.alpha * (now - then).mean(dim=1, keepdim=True)


def _phi(h: Tensor) -> Tensor:
    return h + BEND * h.square() / 2


def kernel_by_hand(w: Tensor, x: Tensor) -> Tensor:
    """``(1/N) sum_i phi'(w_i x) phi'(w_i x') x x'``; the NTK is ``alpha^2 / N`` of it."""
    slope = 1 + BEND * x @ w.mT
    return (slope @ slope.mT) * (x @ x.mT) / w.shape[-2]


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, inputs and targets; the first ``TRAINING`` rows train, the rest test."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(NEURONS, INPUTS, generator=generator, **f64)
    x = torch.randn(TRAINING + TEST, INPUTS, generator=generator, **f64) / INPUTS**0.5
    beta = torch.randn(INPUTS, generator=generator, **f64)
    beta *= INPUTS**0.5 / beta.norm()
    return w, x, 0.5 * (x @ beta).square()


@dataclass(frozen=True, kw_only=True)
class Grokked:
    """One training. "Then" is when the training error fell below 2 % of the targets' variance."""

    fitted_at: int
    test_error_then: float
    test_error: float
    change_then: float
    change: float
    distance: float
    alignment_start: float
    alignment: float


def grokked(alphas: tuple[float, ...] = ALPHAS, seeds: int = 2) -> dict[float, list[Grokked]]:
    """Train all scales and seeds in one stack; what is returned is what the package measured."""
    runs = [(alpha, seed) for alpha in alphas for seed in range(seeds)]
    parts = [drawn(seed) for _, seed in runs]
    start, x, y = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    alpha = torch.tensor([alpha for alpha, _ in runs], **f64)
    then, end, fitted_at = _trained(start, x, y, alpha)
    found: dict[float, list[Grokked]] = {alpha: [] for alpha in alphas}
    for i, (scale, _) in enumerate(runs):
        weights = start[i], then[i], end[i]
        found[scale].append(_measured(weights, x[i], y[i], scale, int(fitted_at[i])))
    return found


def _trained(start: Tensor, x: Tensor, y: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x[:, :TRAINING], y[:, :TRAINING]
    top = torch.linalg.eigvalsh(kernel_by_hand(start, x))[:, -1]
    begun = _phi(x @ start.mT).mean(dim=2)
    w, then = start.clone(), torch.full_like(start, torch.nan)
    fitted_at = torch.full((len(w),), -1)
    spread = y.var(dim=1, correction=0)
    # alpha/N of the gradient times eta N/alpha^2 with eta = 0.3 / lambda_max.
    rate = 0.3 / (top * alpha)
    for step in range(STEPS):
        h = x @ w.mT
        residual = alpha[:, None] * (_phi(h).mean(dim=2) - begun) - y
        error = residual.square().mean(dim=1) / spread
        fresh = (fitted_at < 0) & (error < FITTED)
        if bool(fresh.any()):
            fitted_at[fresh], then[fresh] = step, w[fresh]
        pulled = (1 + BEND * h) * (rate[:, None] * residual)[:, :, None]
        w = w - pulled.mT @ x
    assert bool((fitted_at >= 0).all()), "a network did not fit its training set"
    return then, w, fitted_at


def _measured(
    weights: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor, alpha: float, fitted_at: int
) -> Grokked:
    start, then, end = weights
    net = QuadraticNet(start, alpha)
    kernel = empirical_ntk(net, x[:TRAINING], outputs="trace").matrix
    wanted = alpha**2 / NEURONS * kernel_by_hand(start, x[:TRAINING])
    torch.testing.assert_close(kernel, wanted, rtol=1e-10, atol=0)
    tracker = KernelTracker(ProbeBatch(x[:TRAINING], y[:TRAINING]))
    seen, errors = [], []
    for step, at in zip((0, fitted_at, STEPS), (start, then, end), strict=True):
        with torch.no_grad():
            net.w.weight.copy_(at)
            wrong = (net(x[TRAINING:]).flatten() - y[TRAINING:]).square().mean()
        errors.append(float(wrong / y[TRAINING:].var(correction=0)))
        seen.append(tracker.observe(net, step))
    first, middle, last = seen
    return Grokked(
        fitted_at=fitted_at,
        test_error_then=errors[1],
        test_error=errors[2],
        change_then=middle.relative_kernel_change,
        change=last.relative_kernel_change,
        distance=last.kernel_distance,
        alignment_start=first.target_alignment,
        alignment=last.target_alignment,
    )
