"""Tells each step that an optimizer really takes: a gradient scaler leaves out those that overflow.

Whether one is left out is decided after a training's last hook before it, so the optimizer itself
is asked, by torch's hook after a step. Nothing is waited for.
"""

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch.optim import Optimizer

__all__ = ["TakenSteps"]


class TakenSteps:
    """Follows the optimizers of a training until it is over."""

    def __init__(self) -> None:
        self._followed: list[tuple[weakref.ref[Any], Any]] = []
        self._given: list[weakref.ref[Any]] = []  # the same, perhaps in their wrappers

    def follows(self, optimizer: Any) -> bool:
        """Return whether an optimizer, or this wrapper of one, was given to ``follow`` before."""
        return any(known() is optimizer for known in self._given)

    def follow(self, optimizer: Any, count: Callable[[Any], None]) -> None:
        """Tell each step that an optimizer takes from now on; call it before each of them.

        Args:
            optimizer: About to step, perhaps in a wrapper that holds it as ``optimizer``.
            count: Called after each step, with the learning rates that it used still in place.
        """
        inner = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(inner, Optimizer) or not hasattr(inner, "_optimizer_step_post_hooks"):
            count(inner)  # of another make: a step that is about to be taken is taken for one
            return
        if not any(known() is inner for known, _ in self._followed):
            handle = inner.register_step_post_hook(lambda stepped, *_: count(stepped))
            self._followed.append((weakref.ref(inner), handle))
        if not self.follows(optimizer):
            alive = [known for known in self._given if known() is not None]
            with suppress(TypeError):  # a wrapper that no reference can be held of
                self._given = [*alive, weakref.ref(optimizer)]

    def let_go(self) -> None:
        """Leave the optimizers as they were found."""
        for _, handle in self._followed:
            handle.remove()
        self._followed, self._given = [], []
