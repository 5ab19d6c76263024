"""How a setting trains, for a network and for its twin: batches, loss, optimizer, rate."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.data import Data
from calibration.linear import stateless, top_eigenvalue
from calibration.settings import Setting

__all__ = ["batches", "first_rate", "loss_of", "new_optimizer", "rate_at", "rate_limit"]

_BATCH, _MOMENTUM = 64, 0.9


def batches(setting: Setting, data: Data, steps: int) -> Iterator[Tensor]:
    """Rows of the training set, step by step: the same for a network and its twin."""
    if setting.optimizer == "gd":
        for _ in range(steps):
            yield torch.arange(len(data.x))
        return
    maker = torch.Generator().manual_seed(setting.seed)
    each = len(data.x) // _BATCH
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(len(data.x), generator=maker)
        yield order[(step % each) * _BATCH :][:_BATCH]


def loss_of(setting: Setting, output: Tensor, y: Tensor) -> Tensor:
    """``|F - y|^2 / 2`` (a sum over samples under "gd", else a mean), or the cross-entropy."""
    if setting.loss == "cross-entropy":
        return functional.cross_entropy(output, y)
    if setting.optimizer == "gd":
        return (output - y).square().sum() / 2
    if not y.is_floating_point():
        y = functional.one_hot(y, output.shape[1]).to(output)
    return (output - y).square().sum() / (2 * len(y))


def new_optimizer(
    setting: Setting, weights: Iterable[Tensor], rate: float
) -> torch.optim.Optimizer:
    """The setting's optimizer; its decay takes off ``shrink`` over all steps, where that is set."""
    if setting.optimizer == "adamw":
        decay = 0.01
        if setting.shrink is not None:
            decay = setting.shrink / (rate * sum(_shape(setting, s) for s in range(setting.steps)))
        return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
    momentum = 0.0 if setting.optimizer == "gd" else _MOMENTUM
    return torch.optim.SGD(weights, lr=rate, momentum=momentum)


def first_rate(setting: Setting, model: nn.Module, data: Data) -> float:
    """Return the learning rate at the start.

    Steps of Adam know no scale of the loss, so that they shrink by ``1/alpha``.
    """
    if setting.optimizer == "adamw":
        return setting.rate / setting.alpha
    return setting.rate * rate_limit(setting, model, data)


def rate_at(setting: Setting, step: int, first: float) -> float:
    """Return the learning rate of a step."""
    return first * _shape(setting, step)


def rate_limit(setting: Setting, model: nn.Module, data: Data) -> float:
    """Return the largest stable learning rate of the linearized model: ``2 (1 + beta) / lambda``.

    ``lambda`` is the top eigenvalue of the loss's curvature in the weights (Gauss-Newton) on one
    batch; that of the cross-entropy is bounded with ``diag(p) - pp' <= 1/2``.
    """
    rows = next(batches(setting, data, 1))
    top = top_eigenvalue(stateless(model), data.x[rows])
    if setting.optimizer == "gd":
        return 2 / top
    bound = 0.5 if setting.loss == "cross-entropy" else 1.0
    return 2 * (1 + _MOMENTUM) * len(rows) / (top * bound)


def _shape(setting: Setting, step: int) -> float:
    return max(0.0, 1 - step / setting.steps) if setting.optimizer == "adamw" else 1.0
