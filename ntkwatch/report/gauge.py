"""Where a number lies among the bands of the verdict, as positions on a bar of three equal parts.

Nothing here knows how the bar is drawn.
"""

import math
from dataclasses import dataclass

from ntkwatch.report.columns import BY_KEY
from ntkwatch.report.figures import edges_of
from ntkwatch.report.words import number, with_interval
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import Bands

__all__ = ["Gauge", "gauges"]

# How many times below the lazy edge and above the feature-learning edge the bar's ends lie.
_BELOW, _ABOVE = 100.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """One number on its bar.

    Attributes:
        title: What it is.
        value: The number with unit and interval, for people.
        edges: Where the lazy band ends and the feature-learning band starts, for people.
        at: Position of the number, percent of the bar; None where it was not measured, or has no
            bands.
        reach: Positions of its interval's ends, percent of the bar, or None.
        reason: Why it has no position, or empty.
        later: The same number read since warm-up, for people, or empty.
        later_at: Its position, percent of the bar, or None.
    """

    title: str
    value: str
    edges: tuple[str, str]
    at: float | None
    reach: tuple[float, float] | None
    reason: str
    later: str
    later_at: float | None


def gauges(last: Observation, bands: Bands) -> tuple[Gauge, ...]:
    """Return the two numbers that a verdict rests on, on their bars.

    Args:
        last: The observation that the verdict is about.
        bands: The thresholds used.

    Returns:
        Linearization error and median layer angle.
    """
    return tuple(_gauge(last, key, bands) for key in ("linearization_error", "layer_angle_median"))


def _gauge(last: Observation, key: str, bands: Bands) -> Gauge:
    column, edges = BY_KEY[key], edges_of(key, bands)
    followed = key == "linearization_error" and last.linearization_error_decayed is not None
    last = last.past_decay()
    value: float | None = getattr(last, key)
    interval = last.intervals.get(key)
    low, high = edges if edges is not None else (math.nan, math.nan)
    said = with_interval(value, interval)
    if followed:
        said += ", weight decay followed"
    second = None if last.since_warmup is None else last.since_warmup.past_decay()
    later: float | None = None if second is None else getattr(second, key)
    reason = "" if value is not None else last.left_out.get(key, "no reason was recorded")
    at = None if value is None else _position(value, low, high)
    if value is not None and key == "layer_angle_median" and last.unjudged is not None:
        at, reason = None, f"shown and not judged: {last.unjudged}"
    return Gauge(
        title=column.title,
        value=f"{said} {column.unit}".rstrip() if value is not None else "not measured",
        edges=(number(low, digits=2), number(high, digits=2)),
        at=at,
        reach=None
        if interval is None or at is None
        else (_position(interval[0], low, high), _position(interval[1], low, high)),
        reason=reason,
        later=""
        if second is None or later is None
        else f"since warm-up (step {second.anchor_step}) {number(later)} {column.unit}".rstrip(),
        later_at=None if later is None else _position(later, low, high),
    )


def _position(value: float, low: float, high: float) -> float:
    """Return percent of the bar: logarithmic within each third, held back at the ends."""
    ends = (low / _BELOW, low, high, high * _ABOVE)
    if not value > ends[0]:
        return 0.0
    for part in range(3):
        left, right = ends[part], ends[part + 1]
        if value <= right:
            return round(100 / 3 * (part + math.log(value / left) / math.log(right / left)), 2)
    return 100.0
