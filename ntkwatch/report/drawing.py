"""One plot as plain data: curves, bands and axes in the form that plotly reads, with its words.

Nothing here knows which numbers are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ntkwatch.report.colours import GREY, STRENGTH_COLOURS, faded
from ntkwatch.report.curve import Curve, escaped, traces_of
from ntkwatch.report.words import clean, finite, number
from ntkwatch.watch.verdict.verdict import Strength

__all__ = ["Axis", "Drawing", "Entry", "draw"]

_BANDS = (Strength.LAZY, Strength.TRANSITIONAL, Strength.FEATURE_LEARNING)
_HEIGHT = 300  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis of a plot.

    Attributes:
        title: What it measures, with its unit.
        log: Logarithmic, where all values allow it.
        edges: The two edges between the lazy, transitional and feature-learning bands, or None.
        lines: Horizontal lines: height and name.
        falling: Large values first, as for a loss that stands for time.
        counts: Whole numbers, which read as 5k and not as 0.5 times a power of ten.
    """

    title: str
    log: bool = False
    edges: tuple[float, float] | None = None
    lines: tuple[tuple[float, str], ...] = ()
    falling: bool = False
    counts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One button of a legend.

    Attributes:
        name: What it says, unescaped.
        colour: Of its line.
        dash: Of its line.
        traces: Indices of the traces that it shows and hides.
        shown: Whether they are visible at first.
    """

    name: str
    colour: str
    dash: str
    traces: tuple[int, ...]
    shown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A plot with the words around it.

    Attributes:
        id: For links and scripts; ours, never a name from a model.
        title: Heading.
        caption: How to read it.
        label: What it shows, for readers who cannot see it.
        plot: ``data`` and ``layout``; ``plotly.graph_objects.Figure(**plot)`` takes them.
        legend: Its buttons; none for a single curve.
    """

    id: str
    title: str
    caption: str
    label: str
    plot: dict[str, Any]
    legend: tuple[Entry, ...]


_STEPS = Axis(title="optimizer steps", counts=True)


def draw(
    curves: Sequence[Curve], axis: Axis, *, id: str, title: str, caption: str, across: Axis = _STEPS
) -> Drawing | None:
    """Return a drawing of curves.

    Args:
        curves: Those without a point are left out.
        axis: The vertical axis.
        id: Of the drawing.
        title: Heading.
        caption: How to read it.
        across: The horizontal axis.

    Returns:
        The drawing, or None if there is nothing to draw.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    values = [value for curve in curves for _, value, _ in curve.points]
    log = axis.log and min(values) >= 0 and max(values) > 0
    data: list[dict[str, Any]] = []
    legend = []
    for curve in curves:
        traces = traces_of(curve, log=log)
        indices = tuple(range(len(data), len(data) + len(traces)))
        legend.append(
            Entry(
                name=curve.name,
                colour=curve.colour,
                dash=curve.dash,
                traces=indices,
                shown=curve.shown,
            )
        )
        data += traces
    return Drawing(
        id=id,
        title=title,
        caption=caption + _said_of_zeros(curves, log=log),
        label=_label(title, curves),
        plot=finite({"data": data, "layout": _layout(curves, axis, across, log=log)}),
        legend=tuple(legend) if len(legend) > 1 else (),
    )


def _layout(curves: Sequence[Curve], axis: Axis, across: Axis, *, log: bool) -> dict[str, Any]:
    values = [value for curve in curves for _, value, _ in curve.points]
    ends = [curve.points[-1][1] for curve in curves if curve.shown]
    vertical: dict[str, Any] = {**_look(axis), "type": "log" if log else "linear"}
    if log:
        bottom, top = _reach(values, axis)
        vertical["range"] = [math.log10(bottom), math.log10(top)]
        vertical |= _ticks(bottom, top)
    elif axis.edges is None:
        bottom, top = -math.inf, math.inf
    else:
        bottom, top = 0.0, max([*values, 2 * axis.edges[1]])
        vertical["range"] = [bottom, top]
    shapes, notes = _bands(axis, bottom, top, log=log, ends=ends)
    return {
        "height": _HEIGHT,
        "margin": {"l": 64, "r": 12, "t": 10, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 12, "color": GREY},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": GREY},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"namelength": -1, "font": {"color": "#ffffff"}},
        "xaxis": _horizontal(curves, across),
        "yaxis": vertical,
        "shapes": shapes,
        "annotations": notes,
    }


def _horizontal(curves: Sequence[Curve], across: Axis) -> dict[str, Any]:
    if not across.log:
        return {**_look(across), "type": "linear"}
    places = [x for curve in curves for x, _, _ in curve.points]
    return {**_look(across), "type": "log", **_ticks(min(places), max(places))}


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Left alone, plotly labels every digit between powers of ten, one over the other."""
    if high < 10 * low:
        return {}
    return {"dtick": "D2" if high < 100 * low else 1}


def _look(axis: Axis) -> dict[str, Any]:
    grid = faded(GREY, 0.25)
    look: dict[str, Any] = {
        "title": {"text": escaped(axis.title), "standoff": 8},
        "gridcolor": grid,
        "zerolinecolor": faded(GREY, 0.5),
        "linecolor": grid,
        "exponentformat": "SI" if axis.counts else "power",
        "automargin": True,
    }
    return look | {"autorange": "reversed"} if axis.falling else look


def _reach(values: list[float], axis: Axis) -> tuple[float, float]:
    """The range of a logarithmic axis: all values, both edges, and room for the bands' names."""
    marks = [value for value in values if value > 0]
    if axis.edges is not None:
        marks += [axis.edges[0] / 4, axis.edges[1] * 3]
    return min(marks) / 1.4, max(marks) * 1.4


def _bands(
    axis: Axis, bottom: float, top: float, *, log: bool, ends: Sequence[float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    if axis.edges is not None:
        edges = (bottom, *axis.edges, top)
        for strength, low, high in zip(_BANDS, edges, edges[1:], strict=False):
            if low >= high:
                continue
            place = {"xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high}
            fill = faded(STRENGTH_COLOURS[strength], 0.13)
            look = {"type": "rect", "layer": "below", "fillcolor": fill, "line": {"width": 0}}
            shapes.append({**place, **look})
            notes.append(_note(str(strength), _free(low, high, ends, log=log), log=log))
    for height, name in axis.lines:
        line = {"color": GREY, "width": 1.2, "dash": "dot"}
        place = {"xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height}
        shapes.append({**place, "type": "line", "line": line})
        notes.append({**_note(name, height, log=log), "yanchor": "bottom"})
    return shapes, notes


def _free(low: float, high: float, ends: Sequence[float], *, log: bool) -> float:
    """Return the height in a band where its name is furthest from the curves' right ends."""

    def along(value: float) -> float:
        return math.log(value) if log else value

    def room(share: float) -> float:
        here = along(low) + share * (along(high) - along(low))
        return min([abs(here - along(end)) for end in ends if end > 0 or not log], default=0.0)

    # The middle is tried first and wins where it makes no difference.
    share = max((0.5, 0.85, 0.15), key=room)
    return low * (high / low) ** share if log else low + share * (high - low)


def _note(text: str, height: float, *, log: bool) -> dict[str, Any]:
    """Text at the right end; plotly wants the logarithm here, and the value itself in shapes."""
    return {
        "text": escaped(text),
        "xref": "paper",
        "x": 0.995,
        "xanchor": "right",
        "y": math.log10(height) if log else height,
        "showarrow": False,
        "font": {"size": 11, "color": GREY},
    }


def _said_of_zeros(curves: Sequence[Curve], *, log: bool) -> str:
    """The first point is the reference, 0 by definition; any other zero is a finding."""
    zeros = sum(value == 0 for curve in curves for _, value, _ in curve.points[1:])
    if not log or zeros == 0:
        return ""
    return f" Exactly 0, and so below this logarithmic axis: {zeros} of the values."


def _label(title: str, curves: Sequence[Curve]) -> str:
    said = [
        f"{clean(curve.name)} from {number(curve.points[0][1])} to {number(curve.points[-1][1])}"
        for curve in curves[:3]
    ]
    more = f"; and {len(curves) - 3} more curves" if len(curves) > 3 else ""
    return f"{title}: {'; '.join(said)}{more}"
