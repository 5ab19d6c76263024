"""Tiny models in float64 and ways to move them, for tests of the tracker."""

import copy

import torch
from torch import Tensor, nn

from ntkwatch import KernelTracker, ProbeBatch

f64 = {"dtype": torch.float64}


def inputs(n: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), **f64)


def labels(n: int, classes: int = 3) -> Tensor:
    return torch.arange(n) % classes


class Deep(nn.Module):
    """Four matrix layers, an even number, and a LayerNorm, which has no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, **f64)
        self.norm = nn.LayerNorm(6, **f64)
        self.second = nn.Linear(6, 5, bias=False, **f64)
        self.third = nn.Linear(5, 5, **f64)
        self.head = nn.Linear(5, 3, **f64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.first(x)))
        return self.head(torch.tanh(self.third(torch.tanh(self.second(h)))))


class ConvNet(nn.Module):
    """A convolution into a BatchNorm, then a head: what batch statistics do to a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False, **f64)
        self.norm = nn.BatchNorm2d(4, **f64)
        self.head = nn.Linear(4, 3, **f64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))


class Attends(nn.Module):
    """Every sample looks at those before it: there is no kernel per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(4, 4, **f64)
        self.head = nn.Linear(4, 3, **f64)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(x @ x.T, dim=-1).tril()
        return self.head(torch.tanh(weights @ self.value(x)))


class LowRank(nn.Module):
    """A frozen layer with a trained correction ``B A`` that starts at zero, as in LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 6, **f64).requires_grad_(False)
        self.a = nn.Linear(4, 2, bias=False, **f64)
        self.b = nn.Linear(2, 6, bias=False, **f64)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base(x) + self.b(self.a(x)))


def moved(model: nn.Module, size: float = 0.1, *, seed: int = 2) -> nn.Module:
    """A copy whose trainable weights are a step away."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, **f64)
                parameter.add_(size * noise.to(parameter))
    return other


def start_and_now(
    start: nn.Module, now: nn.Module, probe: ProbeBatch, **settings
) -> tuple[KernelTracker, object, object]:
    """Observe two models as steps 0 and 7 of one training."""
    tracker = KernelTracker(probe, **settings)
    return tracker, tracker.observe(start, 0), tracker.observe(now, 7)
