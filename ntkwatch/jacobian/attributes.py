"""What a forward pass leaves behind on the modules it runs through, taken away again.

Counters, caches, recorded activations and weights that a hook computes are plain attributes, which
substituting parameters and buffers does not protect. Nothing here knows what they are for.
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.jacobian.generators import is_generator, restorer_of

__all__ = ["call_forgotten", "kept_attributes"]

# A plain tensor up to this size is copied, so that a counter or running mean can be put back;
# larger ones are data, which copying at each measurement would make dear.
_SMALL_BYTES = 2**20
_MAPPINGS, _SEQUENCES = (dict, OrderedDict, defaultdict, Counter), (list, deque, set)
# What is in a container is looked at, too, unless it is long, which holds data; and so on in it.
_LONG, _DEPTH = 100, 4
_OF_TORCH = frozenset(vars(nn.Module()))  # parameters, buffers, hooks: watched over elsewhere


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
    trained = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with ExitStack() as stack:
        for module in model.modules():
            own = vars(module)
            for name, value in own.items():
                for restore in _restorers(value, 0 if name in _OF_TORCH else _DEPTH, trained):
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
            if kind in _MAPPINGS:
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


def _put_back(own: dict[Any, Any], before: dict[Any, Any]) -> None:
    if not _same(own, before):
        own.clear()
        own.update(before)


def _restorers(value: Any, depth: int, trained: set[int]) -> Iterator[Callable[[], None]]:
    """How to put an attribute back, and what is in it if that is a container.

    A change of what the model is trained with is not undone in secret: it has to be reported.

    Yields:
        Functions without arguments.
    """
    restore = None if id(value) in trained else _restorer(value)
    if restore is None:
        return
    yield restore
    if depth > 0 and type(value) in (*_MAPPINGS, *_SEQUENCES) and len(value) <= _LONG:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _restorers(part, depth - 1, trained)


def _restorer(value: Any) -> Callable[[], None] | None:
    """How to put the contents of an attribute back, or None where that is not known."""
    kind = type(value)
    if kind in _MAPPINGS:
        return _restorer_of_mapping(value)
    if kind in (list, deque):
        return _restorer_of_sequence(value)
    if kind is set:
        return _restorer_of_set(value)
    if is_generator(value):
        return restorer_of(value)
    return _restorer_of_tensor(value) if kind is Tensor and _is_plain(value) else None


def _is_plain(value: Tensor) -> bool:
    if value.layout is not torch.strided or value.is_nested or value.is_meta:
        return False
    return not (value.requires_grad or value.is_inference()) and value.nbytes <= _SMALL_BYTES


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
