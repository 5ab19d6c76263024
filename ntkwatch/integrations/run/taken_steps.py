"""Tells each step that an optimizer really takes: a gradient scaler leaves out those that overflow.

Whether one is left out is decided after a training's last hook before it, so the optimizer itself
is asked, by torch's hook after a step. Nothing is waited for.
"""

import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

__all__ = ["TakenSteps"]


class TakenSteps:
    """Follows the optimizers of a training until it is over."""

    def __init__(self) -> None:
        self._followed: list[tuple[weakref.ref[Any], Any]] = []
        self._last: weakref.ref[Any] | None = None  # as it was given, perhaps in its wrapper

    def follows(self, optimizer: Any) -> bool:
        """Return whether each step of an optimizer is told, perhaps in a wrapper that holds it."""
        if self._last is not None and self._last() is optimizer:
            return True  # as at nearly every step
        inner = getattr(optimizer, "optimizer", optimizer)
        found = any(known() is inner for known, _ in self._followed)
        if found:
            self._last = weakref.ref(optimizer)
        return found

    def follow(self, optimizer: Any, count: Callable[[Any], None]) -> None:
        """Tell each step that an optimizer takes from now on; call it before each it is not told.

        Args:
            optimizer: About to step, perhaps in a wrapper that holds it as ``optimizer``.
            count: Called after each step, with the learning rates that it used still in place.
        """
        inner = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(inner, Optimizer) or not hasattr(inner, "_optimizer_step_post_hooks"):
            count(inner)  # of another make: a step that is about to be taken is taken for one
            return
        handle = inner.register_step_post_hook(lambda stepped, *_: count(stepped))
        self._followed.append((weakref.ref(inner), handle))

    def let_go(self) -> None:
        """Leave the optimizers as they were found."""
        for _, handle in self._followed:
            handle.remove()
        self._followed, self._last = [], None
