"""The data that the verdict is calibrated on: random labels on a sphere, and three real sets."""

from dataclasses import dataclass

import torch
from sklearn import datasets
from torch import Tensor

__all__ = ["Data", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Inputs and targets to train on, and inputs that training never sees.

    Attributes:
        x: Inputs (M, ...).
        y: Targets: class numbers, or values (M, C).
        probe: Inputs held out (N, ...).
        probe_y: Their targets.
        outputs: C.
    """

    x: Tensor
    y: Tensor
    probe: Tensor
    probe_y: Tensor
    outputs: int


def load(name: str, seed: int) -> Data:
    """Return a data set, split by the seed: "sphere", "digits", "cancer" or "diabetes"."""
    maker = torch.Generator().manual_seed(1000 + seed)
    if name == "sphere":
        return _sphere(maker)
    if name == "digits":
        images, digits = datasets.load_digits(return_X_y=True)
        x = torch.tensor(images / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
        return _split(x, torch.tensor(digits), 512, 10, maker)
    table = datasets.load_breast_cancer if name == "cancer" else datasets.load_diabetes
    values, targets = table(return_X_y=True)
    x, y = torch.tensor(values, dtype=torch.float32), torch.tensor(targets)
    x = (x - x.mean(0)) / x.std(0)
    if name == "diabetes":
        y = ((y - y.mean()) / y.std()).float()[:, None]
    return _split(x, y, 256, 2 if name == "cancer" else 1, maker)


def _sphere(maker: torch.Generator) -> Data:
    """Eight points with random signs, and 32 fresh ones, on the unit sphere in 16 dimensions."""
    x = torch.randn(40, 16, generator=maker, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    y = torch.randint(2, (40, 1), generator=maker).double() * 2 - 1
    return Data(x=x[:8], y=y[:8], probe=x[8:], probe_y=y[8:], outputs=1)


def _split(x: Tensor, y: Tensor, train: int, outputs: int, maker: torch.Generator) -> Data:
    order = torch.randperm(len(x), generator=maker)
    x, y = x[order], y[order]
    held_out = slice(train, train + 64)
    return Data(x=x[:train], y=y[:train], probe=x[held_out], probe_y=y[held_out], outputs=outputs)
