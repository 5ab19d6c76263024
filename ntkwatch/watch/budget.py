"""What watching costs, as a share of wall time, and whether one more observation is affordable."""

import time
from collections.abc import Callable

__all__ = ["OverheadBudget"]


class OverheadBudget:
    """Counts the seconds spent on observing against the seconds that have passed.

    Args:
        max_overhead: Share of wall time that observing may take, in (0, 1].
        clock: Seconds that only grow.
    """

    def __init__(
        self, max_overhead: float, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.max_overhead = max_overhead
        self._clock = clock
        self._start: float | None = None
        self.spent = 0.0
        self._dearest = 0.0

    def start(self) -> None:
        """Begin to count wall time."""
        if self._start is None:
            self._start = self._clock()

    def spend(self, seconds: float, *, reference: bool = False) -> None:
        """Note what something cost.

        Args:
            seconds: Wall time.
            reference: Whether it was the reference, which costs more than what follows.
        """
        self.spent += seconds
        if not reference:
            self._dearest = max(self._dearest, seconds)

    @property
    def elapsed(self) -> float:
        """Seconds since the start, observing included."""
        return 0.0 if self._start is None else self._clock() - self._start

    @property
    def share(self) -> float:
        """Share of wall time spent on observing so far, in [0, 1]."""
        return self.spent / self.elapsed if self.elapsed > 0 else 0.0

    def share_with(self, seconds: float) -> float:
        """Return the share with that much more counted as spent, which has passed already."""
        return (self.spent + seconds) / self.elapsed if self.elapsed > 0 else 0.0

    def affords_another(self) -> bool:
        """Return whether one more observation, and the last one, would stay within the share."""
        return self.seconds_to_wait() <= 0

    def seconds_to_wait(self) -> float:
        """Return in how many seconds one more is affordable; none or fewer if it is now."""
        # The last step is always observed, so its price is put aside beforehand.
        expected = self.spent + 2 * self._dearest
        return expected / self.max_overhead - (self.elapsed + 2 * self._dearest)
