"""What watching costs, as a share of wall time, and which kind of observation is affordable now.

The reference is dear, and the last observation and the report have to be paid for in the end. Where
the length of a run is known, what all of it allows is laid out over all of it; where it may end at
any moment, nothing is spent that has not come in, with the end put aside. Observations differ in
price: a whole one takes the kernel, a brief one does without, and a part is put by for whole ones.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal, Self

from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.record.records import Observation

__all__ = ["Kind", "OverheadBudget"]

Kind = Literal["whole", "brief"]

_RECENT = 5  # prices that a median is taken of, since one may be an accident
# The first of a kind pays for what is loaded and checked once. Below so many of them the least is
# believed, or the guess if it is less: else brief ones would be given up for what only one costs.
_ENOUGH = 3
# Of what there is for observing, the part that brief observations may take: they are many and
# cheap, and draw the curves between whole ones.
_BRIEF_SHARE = 0.7
# Whole ones beyond reference and end come after so many looks in all are sure: a curve first.
_FEWEST = 25
# A brief observation that costs more of a whole one than this is not worth its gaps.
_WORTH_IT = 0.6
# Before one was made, its price as a part of the reference's, which holds every check besides.
_GUESSED: dict[Kind, float] = {"whole": 0.6, "brief": 0.1}
# What was too dear is asked for again after a part of the time so far, and after some seconds.
_PATIENCE, _LEAST_PATIENCE = 0.002, 0.05
_REPORT = 0.7  # seconds: loading what draws the page, and the page of an ordinary run
_MARGIN = 1.2  # on what is put aside for the end, whose price is not known before


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
        self._reference, self._made = 0.0, 0
        self._on: dict[Kind, float] = {"whole": 0.0, "brief": 0.0}
        self._recent: dict[Kind, deque[float]] = {
            "whole": deque(maxlen=_RECENT),
            "brief": deque(maxlen=_RECENT),
        }
        self._prices: dict[Kind, float] = {"whole": 0.0, "brief": 0.0}
        self._first_step, self._total_steps = 0, 0
        self._time_left: Callable[[], float | None] | None = None
        self._at_first: float | None = None
        self._ask_again = -math.inf  # on the clock

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

    def expect(
        self,
        total_steps: int | None,
        *,
        first_step: int = 0,
        time_left: Callable[[], float | None] | None = None,
    ) -> None:
        """Say how long the run is, where it is known: all of it then pays for reference and end.

        Args:
            total_steps: Optimizer steps that the run will take, or None.
            first_step: Steps taken when this part of it began.
            time_left: Tells how many seconds are left on a clock that ends the run.
        """
        self._first_step, self._total_steps = first_step, total_steps or 0
        self._time_left = time_left

    # What was spent. ------------------------------------------------------------------------------

    def counting(self) -> Self:
        """Count what happens inside as spent on watching; once, however deep it is nested.

        Returns:
            A context: this object itself, since it is entered several times at every step.
        """
        return self

    def __enter__(self) -> None:
        if self._depth == 0:
            self._since = self._clock()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
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
        self._made += 1
        self._on[kind] += seconds
        self._recent[kind].append(seconds)
        self._prices[kind] = self._price(kind)

    def _price(self, kind: Kind) -> float:
        known = self._recent[kind]
        if len(known) >= _ENOUGH or not self._reference:
            return statistics.median(known)
        return min(*known, _GUESSED[kind] * self._reference)

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

    def learn(self, earlier: Iterable[Observation]) -> None:
        """Learn prices from the observations of an interrupted run, whose cost is counted already.

        Args:
            earlier: What was seen before the interruption.
        """
        for seen in earlier:
            kind: Kind = "brief" if seen.is_brief else "whole"
            self.note_price(seen.seconds, None if seen.step == seen.anchor_step else kind)

    def cost(self, *, promised: float | None, observations: int, brief: int) -> Cost:
        """Return what watching took up to now, as a record."""
        spent, elapsed = self.spent, self.elapsed
        return Cost(
            seconds=spent,
            elapsed=elapsed,
            share=spent / elapsed if elapsed > 0 else 0.0,
            promised=promised,
            observations=observations,
            brief=brief,
        )

    # What is affordable. --------------------------------------------------------------------------

    @property
    def is_asked_in_vain(self) -> bool:
        """Whether nothing was affordable a moment ago, so that asking again is not worth it."""
        return self._clock() < self._ask_again

    def choice(self, step: int) -> Kind | None:
        """Return the kind of observation to make now, or None if neither is affordable.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            "whole" where that is affordable, else "brief" where that is, and is worth it.
        """
        if self.is_asked_in_vain:
            return None
        kind = self._affordable(step)
        if kind is None:
            patience = max(_PATIENCE * self.elapsed, _LEAST_PATIENCE)
            self._ask_again = self._clock() + patience
        return kind

    def _affordable(self, step: int) -> Kind | None:
        whole, brief = self._prices["whole"], self._prices["brief"]
        purse, now = self._purse(step)
        on_observing, rest = sum(self._on.values()), 1 - self.max_overhead
        is_worth_it = brief <= _WORTH_IT * whole
        curve = brief * rest * max(0, _FEWEST - self._made) if is_worth_it else 0.0
        after = on_observing + whole * rest
        if after <= now and after + curve <= purse:
            return "whole"
        if not is_worth_it or on_observing + brief * rest > now:
            return None
        # Where what is put by would never pay for a whole one, nothing is.
        puts_by = (1 - _BRIEF_SHARE) * purse >= whole and _BRIEF_SHARE * purse >= _FEWEST * brief
        part = _BRIEF_SHARE if puts_by else 1.0
        return "brief" if self._on["brief"] + brief <= part * now else None

    def _purse(self, step: int) -> tuple[float, float]:
        """Seconds for observing between reference and end: over the whole run, and until now."""
        elapsed, share = self.elapsed, self.max_overhead
        rest = self.spent - sum(self._on.values())  # reference, drawing, writing, hooks
        if self._at_first is None:
            self._at_first = rest
        aside = _MARGIN * (self._prices["whole"] + _REPORT) * (1 - share)
        left = self._seconds_left(step)
        if left is None:  # training may end at any moment
            purse = share * elapsed - rest - aside
            return math.inf, purse
        total = elapsed + left
        hooks = (rest - self._at_first) * left / max(elapsed, 1e-9)
        purse = share * total - rest - hooks - aside
        # Most of what happens to a network happens early, so half of it is for the first quarter;
        # but no more than has come in, lest a run that is cut short has paid for all of it.
        return purse, min(share * elapsed, purse * math.sqrt(elapsed / total))

    def _seconds_left(self, step: int) -> float | None:
        """How long training will go on, by its pace so far and its clock; None where not known."""
        known = [] if self._time_left is None else [self._time_left()]
        done = step - self._first_step
        if self._total_steps > 0 and done > 0:
            training = self.elapsed - self._before[1] - (self.spent - self._before[0])
            known.append(max(0.0, training / done * (self._total_steps - step)))
        return min((left for left in known if left is not None), default=None)
