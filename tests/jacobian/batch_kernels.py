"""Kernels of batch functions, flat, from plain autograd, and models whose samples are coupled."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from oracles import dense_ntk

__all__ = ["Contrastive", "NormedNet", "flat", "flat_kernel", "moved"]


class NormedNet(nn.Sequential):
    """4-6-3 with a BatchNorm that trains on batch statistics."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


class Contrastive(nn.Module):
    """Similarity of every sample to every other one: a head over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = functional.normalize(self.body(x).tanh(), dim=1)
        return z @ z.T


def flat(kernel: Tensor) -> Tensor:
    """(N, N, C, C) to (N·C, N·C)."""
    n, _, c, _ = kernel.shape
    return kernel.permute(0, 2, 1, 3).reshape(n * c, n * c)


def flat_kernel(model: nn.Module, x: Tensor, *, train: bool = True, **options) -> Tensor:
    """The flat kernel of plain autograd over the whole batch, in training or evaluation mode."""
    return flat(dense_ntk(copy.deepcopy(model).train(train), x, **options))


def moved(model: nn.Module, size: float, names: tuple[str, ...] = ("",), seed: int = 1):
    """A copy with every weight, or those whose name starts so, moved by noise."""
    generator = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            if name.startswith(names):
                p.add_(size * noise)
    return twin
