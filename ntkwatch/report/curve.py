"""A curve with its intervals as the traces that plotly reads.

Nothing here knows which number it is. A name arrives as the model gave it and leaves escaped,
since plotly reads a small HTML of its own in every text.
"""

import html
from dataclasses import dataclass
from typing import Any

from ntkwatch.report.colours import COLOURS, faded
from ntkwatch.report.words import Number, clean, number, shorten

__all__ = ["Curve", "Point", "escaped", "traces_of"]

# More points than a plot has columns cost bytes and show nothing more.
_POINTS = 600
_MARKED = 60  # up to so many points, each observation gets its own dot
_NAME = 48  # characters of a name in a hover label

# Abscissa, value, and the interval of the value where there is one.
Point = tuple[Number, Number, tuple[Number, Number] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One number over steps.

    Attributes:
        name: For the legend, as the model or the caller gave it.
        points: In the order in which they are joined.
        colour: A hash and six hexadecimal digits.
        dash: A dash style of plotly.
        width: Of the line, pixels.
        shown: Whether it is visible before the reader asks for it.
        across: What the abscissa is called beside a point.
        most: Points to draw; of more, each stretch keeps its least and its greatest.
    """

    name: str
    points: tuple[Point, ...]
    colour: str = COLOURS[0]
    dash: str = "solid"
    width: float = 2.2
    shown: bool = True
    across: str = "step"
    most: int = _POINTS


def escaped(name: str) -> str:
    """Return a name as plotly shows it letter by letter.

    Args:
        name: As the model or the caller gave it.

    Returns:
        One short line without tags; entities stand for what would open one.
    """
    return html.escape(shorten(clean(name), _NAME), quote=False)


def traces_of(curve: Curve, *, log: bool) -> list[dict[str, Any]]:
    """Return a curve, and its intervals as a shaded band, in the form that plotly reads.

    Args:
        curve: What to draw.
        log: Whether the vertical axis is logarithmic, which has no place for 0.

    Returns:
        One trace, or two with the band first.
    """
    points = [point for point in curve.points if point[1] > 0] if log else list(curve.points)
    points = _thinned(points, curve.most)
    name, visible = escaped(curve.name), curve.shown
    traces = []
    if outline := _outline(points, log=log):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x for x, _ in outline],
                "y": [y for _, y in outline],
                "fill": "toself",
                "fillcolor": faded(curve.colour, 0.2),
                "line": {"width": 0},
                "hoverinfo": "skip",
                "name": f"{name}, interval",
                "visible": visible,
            }
        )
    between: dict[str, Any] = {"hovertemplate": f"{curve.across} %{{x}}<br>%{{y:.3g}}"}
    if any(interval is not None for _, _, interval in points):
        between["hovertemplate"] += "%{customdata}"
        between["customdata"] = [_between(interval) for _, _, interval in points]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers" if len(points) <= _MARKED else "lines",
            "x": [_six_digits(x) for x, _, _ in points],
            "y": [_six_digits(y) for _, y, _ in points],
            **between,
            "line": {"color": curve.colour, "width": curve.width, "dash": curve.dash},
            "marker": {"color": curve.colour, "size": 3 + curve.width},
            "name": name,
            "visible": visible,
        }
    )
    return traces


def _thinned(points: list[Point], most: int) -> list[Point]:
    """Keep the ends, and in each stretch the least and the greatest value, so no spike is lost."""
    if len(points) <= most:
        return points
    stretches = most // 2 - 1
    kept = {0, len(points) - 1}
    for i in range(stretches):
        start, stop = i * len(points) // stretches, (i + 1) * len(points) // stretches
        stretch = sorted(range(start, stop), key=lambda place: points[place][1])
        kept |= {stretch[0], stretch[-1]}
    return [points[place] for place in sorted(kept)]


def _outline(points: list[Point], *, log: bool) -> list[tuple[Number | None, Number | None]]:
    """Return the intervals as closed shapes, one per run of points that have them."""
    outline: list[tuple[Number | None, Number | None]] = []
    stretch: list[tuple[Number, Number, Number]] = []
    for x, value, interval in [*points, (0.0, 0.0, None)]:
        if interval is not None:
            # An end at 0 has no place on a logarithmic axis; the shape then ends far below.
            low = max(interval[0], value * 1e-3) if log else interval[0]
            stretch.append((_six_digits(x), _six_digits(low), _six_digits(interval[1])))
            continue
        if len(stretch) > 1:
            outline += [(x, high) for x, _, high in stretch]
            outline += [(x, low) for x, low, _ in reversed(stretch)]
            outline.append((None, None))
        stretch = []
    return outline[:-1]


def _between(interval: tuple[Number, Number] | None) -> str:
    return "" if interval is None else f" [{number(interval[0])}, {number(interval[1])}]"


def _six_digits(value: Number) -> Number:
    return value if isinstance(value, int) else float(f"{value:.6g}")
