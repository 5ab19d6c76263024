"""Many two-layer networks trained side by side, and what the package then says of each.

Training is by hand (gradients written out, no autograd, no kernel of the package) with all
networks in one stack of tensors; start and end of each are then handed to the package.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk, judge
from ntkwatch.kernel.drift import kernel_distance, relative_kernel_change
from ntkwatch.kernel.layers import layer_trace_shares
from ntkwatch.kernel.regression import displacement_ratio, representer_gap

from regimes.recipes import TwoLayer, f64, relu2, relu2_slope, tanh_slope

__all__ = [
    "ACTIVATIONS",
    "ALPHAS",
    "Measured",
    "Problem",
    "Trained",
    "drawn",
    "geometric_mean",
    "learning_rates",
    "measured",
    "output_scales",
    "slope",
    "stacked",
    "train",
]

Activation = Callable[[Tensor], Tensor]
# By name: the activation and its slope.
ACTIVATIONS: dict[str, tuple[Activation, Activation]] = {
    "tanh": (torch.tanh, tanh_slope),
    "ReLU": (relu2, relu2_slope),
    "linear": (torch.clone, torch.ones_like),
}
SAMPLES, FRESH, INPUTS = 8, 32, 16
ALPHAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(kw_only=True)
class Problem:
    """A stack of S networks before training, each with its own data.

    ``w`` (S, m, d), ``a`` (S, m), ``x`` (S, n, d), ``y`` (S, n), ``fresh`` (S, k, d), ``alpha``
    (S,).
    """

    activation: str
    w: Tensor
    a: Tensor
    x: Tensor
    y: Tensor
    fresh: Tensor
    alpha: Tensor
    scale: float
    centred: bool = True


@dataclass(kw_only=True)
class Trained:
    """The same after training, with one number per network for all but the weights.

    ``peak`` is the largest norm of the residual and ``loss`` the last loss, both relative to the
    start; ``rate`` is that of the last step; a network is ``finished`` if it reached its target.
    """

    problem: Problem
    w: Tensor
    a: Tensor
    steps: Tensor
    peak: Tensor
    rate: Tensor
    finished: Tensor
    loss: Tensor


def _unit(generator: torch.Generator, count: int, dimension: int) -> Tensor:
    x = torch.randn(count, dimension, generator=generator, **f64)
    return x / x.norm(dim=1, keepdim=True)


def drawn(
    activation: str,
    *,
    width: int,
    alpha: float = 1.0,
    seeds: int = 8,
    parametrization: str = "NTK",
    symmetrised: bool = False,
    centred: bool = True,
) -> Problem:
    """Return networks of recipe R, one per seed; data hang on the seed alone."""
    parts: dict[str, list[Tensor]] = {key: [] for key in ("w", "a", "x", "y", "fresh")}
    for seed in range(seeds):
        data = torch.Generator().manual_seed(seed)
        parts["x"].append(_unit(data, SAMPLES, INPUTS))
        parts["fresh"].append(_unit(data, FRESH, INPUTS))
        parts["y"].append(torch.randint(2, (SAMPLES,), generator=data).double() * 2 - 1)
        weights = torch.Generator().manual_seed(1000 + seed)
        half = width // 2 if symmetrised else width
        w = torch.randn(half, INPUTS, generator=weights, **f64)
        a = torch.randn(half, generator=weights, **f64)
        parts["w"].append(torch.cat([w, w]) if symmetrised else w)
        parts["a"].append(torch.cat([a, -a]) if symmetrised else a)
    stack = {key: torch.stack(tensors) for key, tensors in parts.items()}
    scale = {"NTK": width**-0.5, "mean-field": 1 / width, "standard": 1.0}[parametrization]
    if parametrization == "standard":
        stack["w"] /= math.sqrt(INPUTS)
        stack["a"] /= math.sqrt(width)
    return Problem(
        activation=activation,
        **stack,
        alpha=torch.full((seeds,), alpha, **f64),
        scale=scale,
        centred=centred,
    )


def stacked(problems: list[Problem]) -> Problem:
    """Return problems of one width as one stack."""
    keys = ("w", "a", "x", "y", "fresh", "alpha")
    joined = {key: torch.cat([getattr(one, key) for one in problems]) for key in keys}
    first = problems[0]
    return Problem(activation=first.activation, **joined, scale=first.scale, centred=first.centred)


def train(
    problem: Problem,
    *,
    share: Tensor | float = 0.3,
    refreshed: bool = True,
    stop: float = 0.02,
    most: int = 20_000,
) -> Trained:
    """Full-batch descent on ``|F - y|^2 / 2`` at the rate ``share / lambda_max``.

    The eigenvalue is that of every step, or of the first one alone. A network stops at
    ``|F - y| <= stop |y|``, where it is no longer finite, or after ``most`` steps.
    """
    act, act_slope = ACTIVATIONS[problem.activation]
    count = len(problem.w)
    w, a, x, y = problem.w.clone(), problem.a.clone(), problem.x, problem.y
    unit = problem.alpha * problem.scale
    start = torch.einsum("snm,sm->sn", act(x @ w.mT), a) if problem.centred else torch.zeros(())
    shares = torch.as_tensor(share, **f64).expand(count).clone()
    gram, alive, peak = x @ x.mT, torch.arange(count), torch.zeros(count, **f64)
    rate = torch.zeros(count, **f64)
    end = Trained(
        problem=problem,
        w=w.clone(),
        a=a.clone(),
        steps=torch.zeros(count, dtype=torch.long),
        peak=torch.zeros(count, **f64),
        rate=torch.zeros(count, **f64),
        finished=torch.zeros(count, dtype=torch.bool),
        loss=torch.zeros(count, **f64),
    )
    start = start.expand(count, y.shape[1])
    for step in range(most + 1):
        z = x @ w.mT
        h = act(z)
        residual = unit[:, None] * (torch.einsum("snm,sm->sn", h, a) - start) - y
        size = residual.norm(dim=1) / y.norm(dim=1)
        peak = torch.maximum(peak, size)
        reached = size <= stop
        leaving = reached | ~torch.isfinite(size) | (step == most)
        if bool(leaving.any()):
            gone = alive[leaving]
            end.w[gone], end.a[gone] = w[leaving], a[leaving]
            end.steps[gone], end.peak[gone] = step, peak[leaving]
            end.rate[gone], end.finished[gone] = rate[leaving], reached[leaving]
            end.loss[gone] = size[leaving].square()
            stay = ~leaving
            if not bool(stay.any()):
                break
            w, a, x, y, gram, start = (t[stay] for t in (w, a, x, y, gram, start))
            alive, unit, shares, peak, rate = (t[stay] for t in (alive, unit, shares, peak, rate))
            z, h, residual = z[stay], h[stay], residual[stay]
        s = act_slope(z) * a[:, None]
        if refreshed or step == 0:
            kernel = unit[:, None, None] ** 2 * (h @ h.mT + (s @ s.mT) * gram)
            rate = shares / torch.linalg.eigvalsh(kernel)[:, -1]
        pull = (rate * unit)[:, None] * residual
        a = a - torch.einsum("snm,sn->sm", h, pull)
        w = w - (s * pull[:, :, None]).mT @ x
    return end


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the package says of one training; drift and gaps on training points, the rest on fresh
    ones.
    """

    alpha: float
    steps: int
    finished: bool
    change: float
    distance: float
    error: float
    angle: float
    label: str
    ratio: float
    gap: float
    displacement: float
    relative_displacement: float
    input_share: float
    peak: float
    top: tuple[float, float]
    rate: float


def measured(trained: Trained, index: int, *, dtype: torch.dtype = torch.float64) -> Measured:
    """Hand start and end of one network to the package and return what it says."""
    problem, steps = trained.problem, int(trained.steps[index])
    alpha = float(problem.alpha[index])
    _, width, inputs = problem.w.shape
    net = TwoLayer(
        inputs,
        width,
        ACTIVATIONS[problem.activation][0],
        alpha,
        scale=problem.scale,
        centred=problem.centred,
    ).to(dtype)
    x, fresh = problem.x[index].to(dtype), problem.fresh[index].to(dtype)
    net.start_at(problem.w[index], problem.a[index])
    tracker = KernelTracker(ProbeBatch(fresh))
    before, cross = empirical_ntk(net, x), empirical_ntk(net, fresh, other=x)
    tracker.observe(net, 0, loss=1.0)
    with torch.no_grad():
        there, here = net(fresh), net(x)
    net.move_to(trained.w[index], trained.a[index])
    after = empirical_ntk(net, x)
    seen = tracker.observe(net, max(1, steps), loss=float(trained.loss[index]))
    with torch.no_grad():
        there, here = net(fresh) - there, net(x) - here
    moved = torch.tensor(seen.displacement, **f64)
    tops = [float(torch.linalg.eigvalsh(k.trace.double())[-1]) for k in (before, after)]
    return Measured(
        alpha=alpha,
        steps=steps,
        finished=bool(trained.finished[index]),
        change=float(relative_kernel_change(after.trace, before.trace)),
        distance=float(kernel_distance(after.trace, before.trace)),
        error=float(seen.linearization_error or math.nan),
        angle=float(seen.layer_angle_median or math.nan),
        label=str(judge(tracker.history).strength),
        ratio=float(displacement_ratio(moved, before.matrix, here, ridge=0.0)),
        gap=float(representer_gap(before.matrix, cross.matrix, here, there, ridge=0.0)),
        displacement=float(seen.displacement or math.nan),
        relative_displacement=float(seen.relative_displacement or math.nan),
        input_share=float(layer_trace_shares(before.layers)["w"]),
        peak=float(trained.peak[index]),
        top=(tops[0], tops[1]),
        rate=float(trained.rate[index]),
    )


def output_scales(
    activation: str, alphas: Sequence[float] = ALPHAS, *, seeds: int = 8, **settings: Any
) -> dict[float, list[Measured]]:
    """Train at every output scale, all in one stack, and measure each network."""
    each = [drawn(activation, width=256, alpha=a, seeds=seeds, **settings) for a in alphas]
    trained = train(stacked(each))
    runs = [measured(trained, index) for index in range(len(trained.w))]
    return {alpha: runs[k * seeds : (k + 1) * seeds] for k, alpha in enumerate(alphas)}


def learning_rates(
    activation: str, rates: Sequence[float], *, seeds: int = 8
) -> dict[float, Trained]:
    """Train at rates that stay at ``c / lambda_max`` of the start, width 1024, for each c."""
    return {
        c: train(drawn(activation, width=1024, seeds=seeds), share=c, refreshed=False, most=3000)
        for c in rates
    }


def geometric_mean(values: list[float]) -> float:
    """Return the exponential of the mean logarithm."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def slope(sizes: list[float], means: list[float]) -> float:
    """Return the exponent of a power law through geometric means, by least squares in logs."""
    x, y = torch.tensor(sizes, **f64).log(), torch.tensor(means, **f64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())
