"""How a model is trained, as far as that is known: which numbers mean something hangs on it.

Adam leaves the span of the gradients, weight decay moves weights without any, and a learning rate
is stable or not for one loss only. What is not known is None, and numbers that need it are left
out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

import torch
from torch import nn
from torch.nn import functional

from ntkwatch.errors import InputError
from ntkwatch.kernel.descent import SGD, SquareLoss
from ntkwatch.kernel.stability import Loss

__all__ = ["LossFunction", "Training", "loss_named", "training_of"]

# A name of floor 0, a loss of torch as module or function, or None where it is neither.
LossFunction = str | nn.Module | Callable[..., Any] | None

_SQUARE = get_args(SquareLoss)
_KNOWN = (*_SQUARE, "cross-entropy-sum", "cross-entropy-mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is trained at one step; None is not known.

    Attributes:
        optimizer: Its class.
        learning_rate: Of all parameters.
        momentum: As in ``torch.optim.SGD``.
        dampening: Likewise.
        nesterov: Likewise.
        weight_decay: The largest of any group.
        loss_function: Of which outputs, in which reduction.
        batch_size: Samples that one optimizer step adds up.
        clipped: Whether gradients are cut to a size.
    """

    optimizer: str | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    dampening: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    loss_function: Loss | None = None
    batch_size: int | None = None
    clipped: bool = False

    @property
    def sgd(self) -> SGD | None:
        """Its momentum, or None where it is not known to be torch's SGD."""
        if self.optimizer != "SGD" or self.momentum is None:
            return None
        return SGD(
            momentum=self.momentum,
            dampening=self.dampening or 0.0,
            nesterov=bool(self.nesterov),
        )

    @property
    def square_loss(self) -> SquareLoss | None:
        """Its loss, if that is a square loss."""
        return self.loss_function if self.loss_function in _SQUARE else None  # type: ignore[return-value]

    def to_plain(self) -> dict[str, str | float | bool]:
        """Return what is known as JSON-ready values."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Return what ``to_plain`` gave; unknown keys are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in plain.items() if key in known})


def loss_named(loss_function: LossFunction) -> Loss | None:
    """Return the name of a loss, or None where its curvature is not known.

    Args:
        loss_function: A name, ``MSELoss`` or ``CrossEntropyLoss`` (their functions count with their
            default mean), or anything else.

    Returns:
        Such as "square-mean".

    Raises:
        InputError: If it is a name that is not known.
    """
    if isinstance(loss_function, str):
        if loss_function not in _KNOWN:
            raise InputError(
                f"loss_function={loss_function!r} is not known, so its curvature is not either. "
                f"Give one of {', '.join(_KNOWN)}, torch's own loss, or None."
            )
        return loss_function  # type: ignore[return-value]
    if loss_function is functional.mse_loss:
        return "square-mean"
    if loss_function is functional.cross_entropy:
        return "cross-entropy-mean"
    reduction = getattr(loss_function, "reduction", None)
    if type(loss_function) is nn.MSELoss and reduction in ("mean", "sum"):
        return "square-mean" if reduction == "mean" else "square-sum"
    # Class weights change the curvature; smoothed labels do not.
    if type(loss_function) is nn.CrossEntropyLoss and loss_function.weight is None:
        names: dict[Any, Loss] = {"mean": "cross-entropy-mean", "sum": "cross-entropy-sum"}
        return names.get(reduction)
    return None


def check_optimizers(found: Sequence[Any]) -> None:
    """Refuse what is no optimizer.

    Args:
        found: As given.

    Raises:
        InputError: If something has no parameter groups.
    """
    for one in found:
        if not hasattr(one, "param_groups"):
            raise InputError(
                f"{one!r} is no optimizer (it has no param_groups), so how weights decay is not "
                "known. Give the torch.optim optimizer that trains the model."
            )


def training_of(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
    *,
    loss_function: LossFunction = None,
    batch_size: int | None = None,
    clipped: bool = False,
) -> Training:
    """Return how a model is trained right now.

    Args:
        optimizer: The optimizer, or all of them.
        loss_function: As in ``loss_named``.
        batch_size: Samples that one optimizer step adds up.
        clipped: Whether gradients are cut to a size.

    Returns:
        What is known of it: settings that differ between parameter groups are not.

    Raises:
        InputError: If something has no parameter groups.
    """
    loss = loss_named(loss_function)
    rest: dict[str, Any] = {"loss_function": loss, "batch_size": batch_size, "clipped": clipped}
    found = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    check_optimizers(found)
    if not found:
        return Training(**rest)
    names = dict.fromkeys(type(one).__name__ for one in found)
    groups = [group for one in found for group in one.param_groups]
    decays = [group.get("weight_decay", 0.0) for group in groups]
    # A subclass may step in its own way, so only torch's own SGD has a momentum that is understood.
    plain = all(type(one) is torch.optim.SGD for one in found)
    plain = plain and not any(group.get("maximize") for group in groups)
    only = "SGD" if plain else " and ".join("SGD (not torch's)" if n == "SGD" else n for n in names)
    shared: dict[str, Any] = {"learning_rate": _shared(groups, "lr")}
    if plain:
        shared |= {key: _shared(groups, key) for key in ("momentum", "dampening", "nesterov")}
    return Training(
        optimizer=only,
        weight_decay=max((float(decay) for decay in decays), default=0.0),
        **shared,
        **rest,
    )


def _shared(groups: Sequence[dict[str, Any]], key: str) -> float | bool | None:
    """What all groups agree on, or None."""
    values = [group.get(key) for group in groups]
    known = [value for value in values if value is not None]
    plain = [value if isinstance(value, bool) else float(value) for value in known]
    agreed = plain and len(known) == len(values) and all(value == plain[0] for value in plain)
    return plain[0] if agreed else None
