"""What is known of a model from an earlier measurement of the same kind.

Whether samples are independent, and what a forward pass writes to, is looked at on first use and
remembered with the model, as long as its modules, their modes and their settings stay as they are
and inputs of the same shapes are given.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.inputs import Inputs, leaves

__all__ = ["Acquaintance", "acquainted", "kind_of_use"]

_PLAIN = (bool, int, float, str, type(None))
_MOST = 32


@dataclass(slots=True, kw_only=True)
class Acquaintance:
    """What was seen of one kind of use of a model.

    Attributes:
        guess: How the model is called, if that was guessed, and how in words.
        output_shape: Of the outputs with all samples; None before the first call.
        written: Parameters that the forward pass writes to without changing a value.
        independent: Whether samples were found to be independent.
        feeding: Weights that feed a BatchNorm on batch statistics; None before they were looked
            for.
        rescalable: Those of them whose norm was found to make no difference, at the last look.
        linearized: By which method Jacobian-vector products are taken, once one was checked.
        products: How many were taken.
    """

    guess: tuple[ForwardFn, str] | None = None
    output_shape: tuple[int, ...] | None = None
    written: tuple[str, ...] = ()
    independent: bool = False
    feeding: tuple[str, ...] | None = None
    rescalable: tuple[str, ...] | None = None
    linearized: str | None = None
    products: int = 0


_met: WeakKeyDictionary[nn.Module, dict[Hashable, Acquaintance]] = WeakKeyDictionary()


def acquainted(model: nn.Module, use: Hashable) -> Acquaintance:
    """Return what is known of a use of a model; to be filled in by whoever looks.

    Args:
        model: The model.
        use: From ``kind_of_use``.

    Returns:
        The record, empty at first.
    """
    uses = _met.setdefault(model, {})
    if use not in uses and len(uses) >= _MOST:
        uses.pop(next(iter(uses)))  # the oldest: uses like no other must not pile up
    return uses.setdefault(use, Acquaintance())


def kind_of_use(model: nn.Module, inputs: Inputs, *settings: object) -> Hashable:
    """Return a key that changes with whatever may change how a model treats its samples.

    Args:
        model: The model, with its modules as they are.
        inputs: The probe; shapes and dtypes count, values do not.
        settings: More that matters. Functions count by their code; one that holds on to something
            that may change makes the use like no other.

    Returns:
        The key.
    """
    modules = tuple(
        (type(module), tuple((k, v) for k, v in vars(module).items() if isinstance(v, _PLAIN)))
        for module in model.modules()
    )
    shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in leaves(inputs))
    return modules, shapes, tuple(_identity(setting) for setting in settings)


def _identity(setting: object) -> Hashable:
    if isinstance(setting, (*_PLAIN, torch.dtype)):
        return setting
    if isinstance(setting, tuple):
        return tuple(_identity(part) for part in setting)
    if isinstance(setting, FunctionType):
        held = [cell.cell_contents for cell in setting.__closure__ or ()]
        held += [*(setting.__defaults__ or ()), *(setting.__kwdefaults__ or {}).values()]
        if all(isinstance(value, _PLAIN) for value in held):
            return setting.__code__, tuple(held)
    return object()
