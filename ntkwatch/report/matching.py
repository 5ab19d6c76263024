"""Several runs at equal loss: what each read when it had come as far as the others.

Every run moves further as its loss falls, and some fall faster; so runs are lazier or less lazy
than others only at the same loss. Nothing here knows how that is shown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ntkwatch.report.columns import COLUMNS, value_of
from ntkwatch.report.comparison_figures import Run
from ntkwatch.report.words import number
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.bands import Bands, band_of_error

__all__ = ["MATCHED", "Clock", "Level", "Matching", "Reached", "match"]

Clock = Literal["ratio", "loss"]

# What is read at equal loss.
MATCHED = tuple(column.key for column in COLUMNS if column.key not in ("step", "epoch", "loss"))

_LEVELS = 5
_FARTHEST = 2.0  # the loss may fall by this factor between two observations to read between them


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A run at the moment when it first came down to a loss.

    Attributes:
        step: Optimizer steps, between the two observations around that moment; None where those
            are too far apart to say, with all that follows.
        loss: Training loss there, or None where only its share of the start is known.
        values: Per key of ``MATCHED``, interpolated in the logarithm of the loss; None where an
            end of the interval lacks the number.
    """

    step: float | None
    loss: float | None
    values: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """All runs at one loss.

    Attributes:
        level: Training loss, or its share of the loss at the start.
        runs: In the caller's order.
    """

    level: float
    runs: tuple[Reached, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Several runs at equal loss.

    Attributes:
        clock: "ratio" (training loss as a share of its start) or "loss" (as it is).
        levels: From high to low; empty where no loss was reached by all.
        why_not: Why there is none.
        said: What the lowest level says, in one sentence; empty without.
        order: Positions of the runs from the least to the greatest linearization error at the
            lowest level; empty where it is not known of all.
    """

    clock: Clock
    levels: tuple[Level, ...] = ()
    why_not: str = ""
    said: str = ""
    order: tuple[int, ...] = ()


def match(runs: Sequence[Run], *, by: Clock = "ratio") -> Matching:
    """Return what runs read at losses that all of them reached.

    A run has reached a loss at the first step at which it is that low; that a noisy loss rises
    again afterwards does not count.

    Args:
        runs: Name, observations and verdict of each.
        by: "ratio" to match by the share of the loss at the start that is left, "loss" to match
            by the loss itself.

    Returns:
        A few levels, evenly spaced in the logarithm of the loss.
    """
    falls = [_fall(history, by) for _, history, _ in runs]
    unknown = [name for (name, _, _), fall in zip(runs, falls, strict=True) if not fall]
    if unknown:
        return Matching(
            clock=by,
            why_not=f"The training loss of {', '.join(unknown)} is unknown, or of a kind that may "
            "fall below zero, so the runs cannot be matched by the loss that they reached. "
            "Checkpoints hold none: report on them with --loss.",
        )
    top, bottom = min(fall[0][0] for fall in falls), max(fall[-1][0] for fall in falls)
    if not bottom < top:
        return Matching(
            clock=by,
            why_not=f"There is no loss that all runs passed: one never fell below {number(bottom)} "
            f"and another began at {number(top)}.",
        )
    spots = [math.exp(math.log(top) + i / _LEVELS * math.log(bottom / top)) for i in range(1, 6)]
    spots[-1] = bottom  # to the last bit, so that it counts as reached
    levels = tuple(
        Level(level=spot, runs=tuple(_at(fall, spot) for fall in falls)) for spot in spots
    )
    said, order = _said(runs, levels[-1], by)
    return Matching(clock=by, levels=levels, said=said, order=order)


_Fall = list[tuple[float, Observation]]


def _fall(history: History, by: Clock) -> _Fall:
    """The observations at which the loss was lower than ever before."""
    records: _Fall = []
    for observation in history:
        loss = observation.loss_ratio if by == "ratio" else observation.loss
        if loss is not None and loss > 0 and (not records or loss < records[-1][0]):
            records.append((loss, observation.past_decay()))
    return records


def _at(fall: _Fall, level: float) -> Reached:
    after = next(place for place, (loss, _) in enumerate(fall) if loss <= level)
    low, later = fall[after]
    high, earlier = fall[max(0, after - 1)]
    share = 1.0 if low == high else math.log(high / level) / math.log(high / low)
    if share < 1 and high / low > _FARTHEST:
        return Reached(step=None, loss=None, values=dict.fromkeys(MATCHED))

    def between(a: float | None, b: float | None) -> float | None:
        if a is None or b is None:
            return b if share == 1 else None
        return a + share * (b - a)

    return Reached(
        step=between(earlier.step, later.step),
        loss=between(earlier.loss, later.loss),
        values={key: between(value_of(earlier, key), value_of(later, key)) for key in MATCHED},
    )


def _said(runs: Sequence[Run], lowest: Level, by: Clock) -> tuple[str, tuple[int, ...]]:
    errors = [reached.values["linearization_error"] for reached in lowest.runs]
    where = f"{number(lowest.level)} of its start" if by == "ratio" else number(lowest.level)
    known = [(error, place) for place, error in enumerate(errors) if error is not None]
    if len(known) < len(errors):
        missing = [place for place, error in enumerate(errors) if error is None]
        names = ", ".join(runs[place][0] for place in missing)
        seldom = any(lowest.runs[place].step is None for place in missing)
        why = ": its loss more than halved between two observations" if seldom else ""
        return f"Of {names} no linearization error is known at a loss of {where}{why}.", ()
    known.sort()
    bands: Bands = runs[0][2].bands
    listed = ", ".join(
        f"{runs[place][0]} {number(error)} ({band_of_error(error, 0.0, bands)} band)"
        for error, place in known
    )
    return (
        f"At a loss of {where}, the lowest that all reached, the linearization errors are, "
        f"laziest first: {listed}.",
        tuple(place for _, place in known),
    )
