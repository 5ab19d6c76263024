"""The angles between the kernels of a run as two pictures: steps by steps, and layers by steps.

Nothing here judges; the sentence under the first picture is the verdict's.
"""

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ntkwatch.report.colours import GREY
from ntkwatch.report.curve import escaped
from ntkwatch.report.drawing import Drawing
from ntkwatch.report.words import clean, counted, finite, number, shorten
from ntkwatch.watch.verdict.timeline import Timeline
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["SCALE", "timeline_drawings"]

_FEWEST = 3  # kernels that make a picture
_LAYERS = 40  # rows beyond so many cannot be read
_LABELS, _LABEL = 20, 22  # names beside the rows, and characters of each: the rest is for the map
_HEIGHT = 380  # pixels
# From pale to dark in one hue: it reads on white, on black and in print.
SCALE = [[0, "#eef3f6"], [0.5, "#5aa7b8"], [1, "#0b3d55"]]

_Row = Sequence[float | None]


def timeline_drawings(verdict: Verdict) -> list[Drawing]:
    """Return the pictures of when features formed.

    Args:
        verdict: With its timeline.

    Returns:
        Angles between all kernels, and of each layer to the last kernel; those of which there is
        something to draw.
    """
    timeline = verdict.timeline
    if timeline is None or len(timeline.steps) < _FEWEST:
        return []
    edge = verdict.bands.feature_angle
    drawings = [_between_kernels(timeline, edge)]
    if timeline.layer_angles:
        drawings.append(_by_layer(timeline, edge))
    return drawings


def _between_kernels(timeline: Timeline, edge: float) -> Drawing:
    steps = [str(step) for step in timeline.steps]
    largest = _largest(timeline.angles)
    return _drawing(
        timeline.angles,
        across=steps,
        down=steps,
        down_title="optimizer steps",
        edge=edge,
        hover="kernels of step %{y} and step %{x}<br>%{z:.3g} rad<extra></extra>",
        id="kernel-angles",
        title="When the kernel turned",
        caption=f"{timeline.sentence[:1].upper()}{timeline.sentence[1:]}. Each cell is the angle "
        "between the kernels of two steps: a pale square at the lower right is a stretch at the "
        "end in which the kernel kept its shape.",
        label=f"When the kernel turned: angles between the kernels of {len(steps)} steps, from 0 "
        f"to {number(largest)} rad. {clean(timeline.sentence)}",
    )


def _by_layer(timeline: Timeline, edge: float) -> Drawing:
    rows = timeline.layer_angles
    turned = {name: _largest([row]) or 0.0 for name, row in rows.items()}
    shown = set(sorted(rows, key=lambda name: -turned[name])[:_LAYERS])
    names = [name for name in rows if name in shown]
    said = "" if len(names) == len(rows) else f" Drawn: the {_LAYERS} that turned most."
    return _drawing(
        [rows[name] for name in names],
        across=[str(step) for step in timeline.steps],
        down=_distinct([escaped(name) for name in names]),
        down_title="",
        edge=edge,
        hover="%{y}, step %{x}<br>%{z:.3g} rad from the end<extra></extra>",
        id="layer-map",
        title="When each layer turned",
        caption="Angle of each layer's part of the kernel to the last one: a row is pale from "
        f"the step on at which that layer's features had formed.{said}",
        label="When each layer turned: angle to the last kernel by step, "
        f"{counted(len(names), 'layer')}",
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Rows of one name would be drawn as one, and names that differ in the middle look alike."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct


def _largest(rows: Sequence[_Row]) -> float | None:
    return max((value for row in rows for value in row if value is not None), default=None)


def _drawing(
    values: Sequence[_Row],
    *,
    across: list[str],
    down: list[str],
    down_title: str,
    edge: float,
    hover: str,
    id: str,
    title: str,
    caption: str,
    label: str,
) -> Drawing:
    trace = {
        "type": "heatmap",
        "x": across,
        "y": down,
        "z": [[None if v is None else round(v, 4) for v in row] for row in values],
        "zmin": 0,
        # A run in which nothing turned is pale all over, whatever its largest angle.
        "zmax": max(edge, _largest(values) or 0.0),
        "colorscale": SCALE,
        "colorbar": {"title": {"text": "rad", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        "hovertemplate": hover,
        "hoverongaps": False,
    }
    axis = {"type": "category", "showgrid": False, "automargin": True}
    layout = {
        "height": _HEIGHT,
        "margin": {"l": 64, "r": 12, "t": 10, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 12, "color": GREY},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": GREY},
        "hoverlabel": {"namelength": -1},
        "xaxis": {**axis, "title": {"text": "optimizer steps", "standoff": 8}, "nticks": 12},
        "yaxis": {
            **axis,
            **_labels(down),
            "title": {"text": down_title, "standoff": 8},
            "autorange": "reversed",
        },
    }
    return Drawing(
        id=id,
        title=title,
        caption=caption,
        label=label,
        plot=finite({"data": [trace], "layout": layout}),
        legend=(),
    )


def _labels(names: Sequence[str]) -> dict[str, Any]:
    """A name per row, or per few rows, short enough to leave room for the map."""
    every = -(-len(names) // _LABELS)
    shown = list(names[::every])
    short = [html.escape(shorten(html.unescape(name), _LABEL), quote=False) for name in shown]
    return {"tickvals": shown, "ticktext": short}
