"""One thin curve per layer, few enough and light enough for a page.

Nothing here knows which number of a layer is drawn.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from ntkwatch.report.colours import COLOURS, DASHES
from ntkwatch.report.curve import Curve, Point
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation

__all__ = ["Read", "layer_curves"]

_LAYERS_DRAWN = 64
# Points of all layers of a plot together: they are most of what a page weighs.
_POINTS, _FEWEST_POINTS = 6_000, 60

Read = Callable[[Observation], Mapping[str, float | None]]


def layer_curves(history: History, read: Read, *, shown: int) -> tuple[list[Curve], str]:
    """Return one thin curve per layer, in the model's order; of very many, those at both extremes.

    Args:
        history: A run's observations.
        read: The numbers by layer of one of them.
        shown: How many are visible before the reader asks for them.

    Returns:
        The curves, and what to add to a caption where not every layer has one.
    """
    readings = [(o.step, read(o)) for o in history]
    names = _names([values for _, values in readings])
    ends = _ends([values for _, values in readings], names)
    order = sorted(ends, key=lambda name: ends[name], reverse=True)
    drawn, said = _extremes(order, _LAYERS_DRAWN), ""
    if len(drawn) < len(order):
        said = (
            f" Drawn: the {len(drawn)} of {len(order)} layers with the largest and the smallest "
            "values at the end."
        )
    most = max(_FEWEST_POINTS, _POINTS // max(1, len(drawn)))
    at_first = _extremes(order, shown) if shown else set()
    curves = [
        Curve(
            name=name,
            points=_points_of_layer(readings, name),
            most=most,
            # The first two colours are those of the thick line and of the second reading.
            colour=COLOURS[2 + place % (len(COLOURS) - 2)],
            dash=DASHES[place // (len(COLOURS) - 2) % len(DASHES)],
            width=1.4,
            shown=name in at_first,
        )
        for place, name in enumerate(name for name in names if name in drawn)
    ]
    return curves, said


def _names(readings: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Every name once, in the model's order; nearly always all of them are in each reading."""
    names: dict[str, None] = {}
    for values in readings:
        if not values.keys() <= names.keys():
            names |= dict.fromkeys(values)
    return list(names)


def _ends(readings: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float]:
    """The last value of each, from the end on."""
    ends: dict[str, float] = {}
    rest = set(names)
    for values in reversed(readings):
        found = {name: v for name in rest if (v := values.get(name)) is not None}
        ends |= found
        rest -= found.keys()
        if not rest:
            break
    return {name: ends[name] for name in names if name in ends}


def _points_of_layer(
    readings: Sequence[tuple[int, Mapping[str, float | None]]], name: str
) -> tuple[Point, ...]:
    return tuple(
        (step, y, None)
        for step, values in readings
        if (y := values.get(name)) is not None and math.isfinite(y)
    )


def _extremes(order: Sequence[str], count: int) -> set[str]:
    if len(order) <= count:
        return set(order)
    return {*order[: count - count // 2], *order[len(order) - count // 2 :]}
