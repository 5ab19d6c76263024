"""Random generators that objects keep for themselves: what they are, and how they are put back."""

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

__all__ = ["is_generator", "restorer_of"]

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


def is_generator(thing: object) -> bool:
    """Return whether something draws random numbers and can be put back."""
    # The system's own generator has no state.
    return isinstance(thing, _GENERATORS) and not isinstance(thing, random.SystemRandom)


def restorer_of(generator: Any) -> Callable[[], None]:
    """Return what puts a generator back to where it is now.

    Args:
        generator: What ``is_generator`` says yes to.

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
