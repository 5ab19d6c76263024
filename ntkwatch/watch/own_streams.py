"""Random generators that a dataset keeps for itself, put back after its items were read.

Datasets and transforms often hold a generator of their own, which the global streams know nothing
of: reading an item would move it on, and training would then see other augmentations.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ntkwatch.jacobian.generators import is_generator, restorer_of

__all__ = ["kept_own_streams"]

_DEPTH = 6  # dataset, subset, transform, compose, list, transform
_LONG = 100  # longer containers hold data, not transforms


@contextmanager
def kept_own_streams(thing: Any) -> Iterator[None]:
    """Put back every random generator that is reachable through an object's attributes.

    Args:
        thing: A dataset.

    Yields:
        Nothing.
    """
    found: dict[int, Any] = {}
    _collect(thing, found, set(), _DEPTH)
    restorers = [restorer_of(generator) for generator in found.values()]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _collect(thing: Any, found: dict[int, Any], seen: set[int], depth: int) -> None:
    if id(thing) in seen or depth < 0:
        return
    seen.add(id(thing))
    if is_generator(thing):
        found[id(thing)] = thing
        return
    parts: list[Any] = []
    if isinstance(thing, Mapping) and len(thing) <= _LONG:
        parts = list(thing.values())
    elif isinstance(thing, list | tuple | set) and len(thing) <= _LONG:
        parts = list(thing)
    elif not isinstance(thing, type | ModuleType | torch.Tensor | np.ndarray):
        parts = list(getattr(thing, "__dict__", {}).values())
    for part in parts:
        _collect(part, found, seen, depth - 1)
