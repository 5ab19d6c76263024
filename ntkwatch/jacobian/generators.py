"""Random generators that objects keep for themselves: what they are, and how they are put back."""

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

__all__ = ["GENERATORS", "restorer_of"]

GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


def restorer_of(generator: Any) -> Callable[[], None]:
    """Return what puts a generator back to where it is now.

    Args:
        generator: One of ``GENERATORS``.

    Returns:
        A function without arguments.
    """
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(setattr, bits, "state", copy.deepcopy(bits.state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, copy.deepcopy(generator.get_state(legacy=False)))
    return partial(generator.set_state, generator.get_state())
