"""When to observe, in optimizer steps: dense at first, then sparser; or every n steps."""

import math

__all__ = ["Schedule"]

# Each gap is at most a quarter of the steps so far: about ten observations for a factor of ten.
_GROWTH = 1.25
# A run of known length is observed at least this often.
_FEWEST = 25


class Schedule:
    """Tells at which optimizer steps an observation is due.

    It follows the count of optimizer steps as it grows, by one or by several, so that gradient
    accumulation and several optimizers neither repeat nor skip an observation.

    Args:
        every_n: Observe whenever this many more steps are done; None for dense, then sparser.

    Attributes:
        next_step: The first step at which an observation will be due.
    """

    def __init__(self, every_n: int | None = None) -> None:
        self.every_n = every_n
        self._max_gap = math.inf
        self._last: int | None = None
        self.next_step: float = -math.inf

    def expect(self, total_steps: int | None) -> None:
        """Say how many steps the run will take: gaps then stop growing at a 25th of it."""
        self._max_gap = max(1, math.ceil(total_steps / _FEWEST)) if total_steps else math.inf
        self.next_step = self._next()

    def is_due(self, step: int) -> bool:
        """Return whether an observation is due at a step.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            True at the first call, and then once for each step at which it is time.
        """
        return step >= self.next_step

    def _next(self) -> float:
        if self._last is None:
            return -math.inf
        if self.every_n is not None:
            return (self._last // self.every_n + 1) * self.every_n
        return self._last + min(max(1, math.ceil(self._last * (_GROWTH - 1))), self._max_gap)

    def done(self, step: int) -> None:
        """Note that an observation was made, or tried, at a step."""
        self._last = step
        self.next_step = self._next()
