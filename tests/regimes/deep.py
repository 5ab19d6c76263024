"""Deep networks of several seeds trained side by side, in two parametrizations (rungs 3 and 7).

Training and its learning rate are by hand; start and end of each network go to the package.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ntkwatch import KernelTracker, ProbeBatch

from regimes.recipes import f64, relu2, relu2_slope

__all__ = ["ACTIVATIONS", "DeepNet", "Drift", "deep_drifts", "drawn", "kernel_by_hand"]


def _tanh(z: Tensor) -> Tensor:
    return 1.6 * torch.tanh(z)


def _tanh_slope(z: Tensor) -> Tensor:
    return 1.6 * (1 - torch.tanh(z) ** 2)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (_tanh, _tanh_slope),
    "ReLU": (relu2, relu2_slope),
}
SAMPLES, INPUTS = 6, 12


class DeepNet(nn.Module):
    """``scale W_L act(... scale W_1 act(W_0 x))`` with one output, less that of the start."""

    def __init__(self, weights: list[Tensor], activation, scale: float):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(w.shape[1], w.shape[0], False, **f64) for w in weights
        )
        self.activation, self.scale = activation, scale
        self.start = [w.clone() for w in weights]
        self.move_to(weights)

    def move_to(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            for layer, weight in zip(self.layers, weights, strict=True):
                layer.weight.copy_(weight)

    def _through(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        x = x @ weights[0].T
        for weight in weights[1:]:
            x = self.scale * self.activation(x) @ weight.T
        return x

    def forward(self, x: Tensor) -> Tensor:
        now = self._through(x, [layer.weight for layer in self.layers])
        return now - self._through(x, self.start)


class _Passes(NamedTuple):
    """Per layer, what comes in and how the output hangs on what goes out; the output, (S, n)."""

    inputs: list[Tensor]
    signals: list[Tensor]
    outputs: Tensor


def _passes(weights: list[Tensor], x: Tensor, activation: str, scale: float) -> _Passes:
    act, slope = ACTIVATIONS[activation]
    inputs, before = [x], [x @ weights[0].mT]
    for weight in weights[1:]:
        inputs.append(scale * act(before[-1]))
        before.append(inputs[-1] @ weight.mT)
    signals = [torch.ones_like(before[-1])]
    for weight, z in zip(reversed(weights[1:]), reversed(before[:-1]), strict=True):
        signals.insert(0, scale * (signals[0] @ weight) * slope(z))
    return _Passes(inputs, signals, before[-1][..., 0])


def kernel_by_hand(weights: list[Tensor], x: Tensor, activation: str, scale: float) -> Tensor:
    """Return the NTK of each network of a stack: a Gram matrix of signals times one of inputs."""
    inputs, signals, _ = _passes(weights, x, activation, scale)
    pairs = zip(inputs, signals, strict=True)
    return sum((s @ s.mT) * (h @ h.mT) for h, s in pairs)  # type: ignore[return-value]


class Drift(NamedTuple):
    """What the package says of one training."""

    change: float
    relative_displacement: float
    steps: int


def deep_drifts(
    activation: str, depth: int, width: int, *, standard: bool, seeds: int = 6
) -> list[Drift]:
    """Train at the fixed rate ``0.5 / lambda_max`` to 3 % of the residual, one network per seed."""
    x, y, start, scale = drawn(depth, width, standard=standard, seeds=seeds)
    end, steps = _trained(x, y, start, activation, scale)
    drifts = []
    for seed in range(seeds):
        net = DeepNet([w[seed] for w in start], ACTIVATIONS[activation][0], scale)
        tracker = KernelTracker(ProbeBatch(x[seed]), metrics="minimal")
        tracker.observe(net, 0)
        net.move_to([w[seed] for w in end])
        seen = tracker.observe(net, int(steps[seed]))
        assert seen.relative_kernel_change is not None
        assert seen.relative_displacement is not None
        drifts.append(
            Drift(seen.relative_kernel_change, seen.relative_displacement, int(steps[seed]))
        )
    return drifts


def drawn(
    depth: int, width: int, *, standard: bool, seeds: int
) -> tuple[Tensor, Tensor, list[Tensor], float]:
    """Inputs, targets, a stack of weights per layer, and what multiplies all but the first."""
    sizes = [INPUTS, *[width] * depth, 1]
    every = []
    for seed in range(seeds):
        data = torch.Generator().manual_seed(seed)
        x = torch.randn(SAMPLES, INPUTS, generator=data, **f64)
        y = torch.randint(2, (SAMPLES,), generator=data).double() * 2 - 1
        shapes = zip(sizes[1:], sizes[:-1], strict=True)
        weights = torch.Generator().manual_seed(1000 + seed)
        layers = [torch.randn(shape, generator=weights, **f64) for shape in shapes]
        every.append([x / x.norm(dim=1, keepdim=True), y, *layers])
    x, y, *stack = (torch.stack(parts) for parts in zip(*every, strict=True))
    scale = 1 / math.sqrt(width)
    if standard:
        return x, y, [stack[0], *(scale * w for w in stack[1:])], 1.0
    return x, y, stack, scale


def _trained(
    x: Tensor, y: Tensor, start: list[Tensor], activation: str, scale: float
) -> tuple[list[Tensor], Tensor]:
    weights, steps = [w.clone() for w in start], torch.zeros(len(x), dtype=torch.long)
    rate = 0.5 / torch.linalg.eigvalsh(kernel_by_hand(weights, x, activation, scale))[:, -1]
    begun = _passes(weights, x, activation, scale).outputs
    for step in range(5000):
        inputs, signals, outputs = _passes(weights, x, activation, scale)
        residual = outputs - begun - y
        running = residual.norm(dim=1) > 0.03 * y.norm(dim=1)
        if not bool(running.any()):
            return weights, steps
        steps[running] = step + 1
        pull = (rate * running)[:, None] * residual
        for i, weight in enumerate(weights):
            weight -= (signals[i] * pull[:, :, None]).mT @ inputs[i]
    raise AssertionError("a deep network did not reach 3 % of its residual in 5000 steps")
