"""What a forward pass leaves behind on the modules it runs through, taken away again.

Counters, caches, recorded activations and weights that a hook computes are plain attributes, which
substituting parameters and buffers does not protect. Nothing here knows what they are for.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["call_forgotten", "kept_attributes"]

# A plain tensor up to this size is copied, so that a counter or running mean can be put back;
# larger ones are data, which copying at each measurement would make dear.
_SMALL_BYTES = 2**20


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Put the attributes of every module back afterwards, and run without its backward hooks.

    Backward hooks see or change gradients, which are not the function's derivative; torch.func
    refuses modules that have them.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for module in model.modules():
            own = vars(module)
            for value in own.values():
                restore = _restorer(value)
                if restore is not None:
                    stack.callback(restore)
            stack.callback(_put_back, own, dict(own))
            for hooks in ("_backward_hooks", "_backward_pre_hooks"):
                if own.get(hooks):
                    own[hooks] = OrderedDict()
        yield


@contextmanager
def call_forgotten(model: nn.Module) -> Iterator[None]:
    """Put back what a single call leaves behind: attributes, and what is in containers of them.

    All of these together, hooks included: a mark that something was done is kept beside it. It is
    quick, so what is written into tensors is left to ``kept_attributes`` around the measurement.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    mappings: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    others: list[Callable[[], None]] = []
    for module in model.modules():
        own = vars(module)
        for value in own.values():
            kind = type(value)
            if kind is dict or kind is OrderedDict:
                mappings.append((value, dict(value)))
            elif kind in _SEQUENCES and (restore := _restorer(value)) is not None:
                others.append(restore)
        mappings.append((own, dict(own)))
    try:
        yield
    finally:
        for restore in others:
            restore()
        for present, before in mappings:
            if present or before:
                _put_back(present, before)


_SEQUENCES = (list, deque, set)


def _put_back(own: dict[Any, Any], before: dict[Any, Any]) -> None:
    if not _same(own, before):
        own.clear()
        own.update(before)


def _restorer(value: Any) -> Callable[[], None] | None:
    """How to put the contents of an attribute back, or None where that is not known."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        return _restorer_of_mapping(value)
    if kind in (list, deque):
        return _restorer_of_sequence(value)
    if kind is set:
        return _restorer_of_set(value)
    if kind is torch.Generator:
        return partial(value.set_state, value.get_state())
    plain = kind is Tensor and not (value.requires_grad or value.is_inference() or value.is_meta)
    return _restorer_of_tensor(value) if plain and value.nbytes <= _SMALL_BYTES else None


def _restorer_of_mapping(value: dict[Any, Any]) -> Callable[[], None]:
    before = dict(value)
    return lambda: _put_back(value, before)


def _restorer_of_sequence(value: Any) -> Callable[[], None]:
    before = list(value)

    def restore() -> None:
        if len(value) != len(before) or any(a is not b for a, b in zip(value, before, strict=True)):
            value.clear()
            value.extend(before)

    return restore


def _restorer_of_set(value: set[Any]) -> Callable[[], None]:
    before = set(value)

    def restore() -> None:
        if value != before:
            value.clear()
            value.update(before)

    return restore


def _restorer_of_tensor(value: Tensor) -> Callable[[], None]:
    before = value.clone()

    def restore() -> None:
        if not torch.equal(value, before):
            value.copy_(before)

    return restore


def _same(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
