"""What watching costs, as a share of wall time, and which kind of observation is affordable now.

Two promises are kept. At any moment after the reference is paid for, no observation is begun that
would lift the share above the allowed one; and at the end it is not above it either, with the last
observation and the report paid. Observations differ in price: a whole one takes the kernel, a brief
one does without, and of the money a part is put by for whole ones.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from ntkwatch.watch.records import Cost

__all__ = ["Kind", "OverheadBudget"]

Kind = Literal["whole", "brief"]

_RECENT = 5  # prices that a median is taken of: the first is dearer, and one may be an accident
# Of what is left once reference, drawing and writing are paid, the part that brief observations may
# take: they are many and cheap, and draw the curves between whole ones.
_BRIEF_SHARE = 0.7
# A brief observation that costs more of a whole one than this is not worth its gaps.
_WORTH_IT = 0.6
# Before one was made, its price as a part of the reference's, which holds every check besides.
_GUESSED: dict[Kind, float] = {"whole": 0.6, "brief": 0.25}
_REPORT = 0.5  # seconds: verdict, pictures and page of an ordinary run
_MARGIN = 1.3  # on what is put aside for the end, whose price is not known before


class OverheadBudget:
    """Counts the seconds spent on watching against the seconds that have passed.

    Args:
        max_overhead: Share of wall time that watching may take, in (0, 1].
        clock: Seconds that only grow.
    """

    def __init__(
        self, max_overhead: float, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.max_overhead = max_overhead
        self._clock = clock
        self._start: float | None = None
        self._spent, self._before = 0.0, (0.0, 0.0)
        self._depth, self._since = 0, 0.0
        self._reference = 0.0
        self._on: dict[Kind, float] = {"whole": 0.0, "brief": 0.0}
        self._recent: dict[Kind, deque[float]] = {
            "whole": deque(maxlen=_RECENT),
            "brief": deque(maxlen=_RECENT),
        }
        self._prices: dict[Kind, float] = {"whole": 0.0, "brief": 0.0}
        self._first_step, self._total_steps = 0, 0

    def start(self) -> None:
        """Begin to count wall time."""
        if self._start is None:
            self._start = self._clock()

    def go_on_from(self, spent: float, elapsed: float) -> None:
        """Count what came before an interruption.

        Args:
            spent: Seconds that watching took until then.
            elapsed: Seconds that passed until then, watching included.
        """
        self._before = (self._before[0] + spent, self._before[1] + elapsed)

    def expect(self, total_steps: int | None, *, first_step: int = 0) -> None:
        """Say how long the run is, where it is known: time to come then pays for the end.

        Args:
            total_steps: Optimizer steps that the run will take, or None.
            first_step: Steps taken when this part of it began.
        """
        self._first_step, self._total_steps = first_step, total_steps or 0

    # What was spent. ------------------------------------------------------------------------------

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what happens inside as spent on watching; once, however deep it is nested.

        Yields:
            Nothing.
        """
        if self._depth == 0:
            self._since = self._clock()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._spent += self._clock() - self._since

    def note_price(self, seconds: float, kind: Kind | None) -> None:
        """Learn what an observation cost.

        Args:
            seconds: Wall time, which is being counted already.
            kind: Which it was; None for the reference, whose checks are made once.
        """
        if kind is None:
            self._reference = max(self._reference, seconds)
            for guessed, part in _GUESSED.items():
                self._prices[guessed] = part * self._reference
            return
        self._on[kind] += seconds
        self._recent[kind].append(seconds)
        self._prices[kind] = statistics.median(self._recent[kind])

    @property
    def spent(self) -> float:
        """Seconds spent on watching so far, up to this moment."""
        running = self._clock() - self._since if self._depth else 0.0
        return self._before[0] + self._spent + running

    @property
    def elapsed(self) -> float:
        """Seconds since the start, watching included."""
        return self._before[1] + (0.0 if self._start is None else self._clock() - self._start)

    @property
    def share(self) -> float:
        """Share of wall time spent on watching so far, in [0, 1]."""
        elapsed = self.elapsed
        return self.spent / elapsed if elapsed > 0 else 0.0

    def cost(self, *, promised: float | None, observations: int, brief: int) -> Cost:
        """Return what watching took up to now, as a record."""
        return Cost(
            seconds=self.spent,
            elapsed=self.elapsed,
            share=self.share,
            promised=promised,
            observations=observations,
            brief=brief,
        )

    # What is affordable. --------------------------------------------------------------------------

    def choice(self, step: int) -> Kind | None:
        """Return the kind of observation to make now, or None if neither is affordable.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            "whole" where that is affordable, else "brief" where that is, and is worth it.
        """
        spent, elapsed = self.spent, self.elapsed
        whole, brief = self._prices["whole"], self._prices["brief"]
        aside = _MARGIN * (whole + _REPORT)
        left = self._seconds_left(step, spent, elapsed)
        if left is None:  # training may end at any moment
            spent, elapsed, left, aside = spent + aside, elapsed + aside, 0.0, 0.0

        def affords(price: float) -> bool:
            now = spent + price <= self.max_overhead * (elapsed + price)
            last = spent + price + aside
            return now and last <= self.max_overhead * (elapsed + left + price + aside)

        if affords(whole):
            return "whole"
        if brief <= _WORTH_IT * whole and affords(brief):
            on_observing = sum(self._on.values())
            free = self.max_overhead * elapsed - (spent - on_observing)
            return "brief" if self._on["brief"] + brief <= _BRIEF_SHARE * free else None
        return None

    def _seconds_left(self, step: int, spent: float, elapsed: float) -> float | None:
        """How long training will go on, from its pace so far; None where that is not known."""
        done = step - self._first_step
        if self._total_steps <= 0 or done <= 0:
            return None
        training = elapsed - self._before[1] - (spent - self._before[0])
        return max(0.0, training / done * (self._total_steps - step))
