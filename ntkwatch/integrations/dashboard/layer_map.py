"""Every layer's angle over the whole run as one picture, where curves would be a flood of charts.

Rows are layers in the order of the model, columns observations in the order of time. Nothing is
left out silently: where there are more than fit, neighbours share a row or a column and show the
largest angle among them, and the picture says so.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkwatch.integrations.dashboard.canvas import (
    INK,
    QUIET,
    SIZE,
    Pixels,
    pixels,
    plain,
    sheet,
    style,
)
from ntkwatch.report.words import clean, shorten
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.bands import Bands

__all__ = ["layer_picture"]

_MOST_ROWS, _MOST_COLUMNS = 40, 120
_NAMED_STEPS = 7
_NAME = 26  # characters of a layer's name
_DECADES = 1.2  # on either side of the middle; pi / 2, the largest angle, is that far above it
_UNKNOWN = "#e3e6ea"


def layer_picture(observations: Sequence[Observation], bands: Bands) -> Pixels | None:
    """Draw the layer angles of a run: blue where a layer stayed, red where it turned.

    The colours have a logarithmic scale around the middle of the transitional band, the same at
    every step and in every run.

    Args:
        observations: Of one run, by step.
        bands: Whose edges are marked on the scale.

    Returns:
        Pixels, (height, width, 3), or None where no angle is known.
    """
    seen = [observed for observed in observations if _is_known(observed)]
    if not seen:
        return None
    layers = list(dict.fromkeys(name for observed in seen for name in observed.layer_angle))
    angles = np.array([[_number(o.layer_angle.get(name)) for o in seen] for name in layers])
    rows, columns = _groups(len(layers), _MOST_ROWS), _groups(len(seen), _MOST_COLUMNS)
    shown = np.array([[_largest(angles[np.ix_(r, c)]) for c in columns] for r in rows])
    names = [_row_name(layers, row) for row in rows]
    height = 1.1 + max(1.6, 0.19 * len(rows))
    figure = sheet(7.6, height)
    left = 0.03 + 0.0085 * max(map(len, names))
    axes = figure.add_axes((left, 0.5 / height, 0.85 - left, 1 - 1.05 / height))
    image = _heat(axes, shown, bands)
    _scale(axes, image, bands, judged=not any(o.unjudged for o in seen))
    axes.set_yticks(range(len(rows)), names)
    places = _spread(len(columns), _NAMED_STEPS)
    axes.set_xticks(places, [str(seen[columns[place][-1]].step) for place in places])
    axes.set_xlabel("observations, by optimizer step", fontsize=SIZE, color=QUIET, labelpad=1)
    style(axes, f"angle of each layer's kernel, to step {seen[-1].step}", _said(layers, rows))
    return pixels(figure)


def _is_known(observed: Observation) -> bool:
    return any(angle is not None for angle in observed.layer_angle.values())


def _number(angle: float | None) -> float:
    return math.nan if angle is None else float(angle)


def _largest(angles: NDArray[np.float64]) -> float:
    known = angles[np.isfinite(angles)]
    return float(known.max()) if len(known) else math.nan


def _groups(count: int, most: int) -> list[range]:
    """Runs of neighbours of nearly equal length: one each, where there are no more than fit."""
    parts = min(count, most)
    return [range(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def _spread(count: int, most: int) -> list[int]:
    """At most so many places, evenly, with the first and the last."""
    last, parts = count - 1, min(count, most)
    return sorted({round(last * i / max(1, parts - 1)) for i in range(parts)})


def _row_name(layers: Sequence[str], row: range) -> str:
    name = plain(shorten(clean(layers[row[0]]), _NAME)) or "(the model itself)"
    return name if len(row) == 1 else f"{name} +{len(row) - 1}"


def _said(layers: Sequence[str], rows: Sequence[range]) -> str:
    """What one row stands for."""
    if len(rows) == len(layers):
        return "since the start, radians; grey: not known"
    return f"{len(layers)} layers; where a row holds several, the largest angle among them"


def _heat(axes: Any, angles: NDArray[np.float64], bands: Bands) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    middle = math.sqrt(bands.lazy_angle * bands.feature_angle)
    low, high = middle / 10**_DECADES, middle * 10**_DECADES
    # Below the scale means below it, also for an angle of exactly 0, which has no logarithm.
    lifted = np.where(np.isnan(angles), np.nan, np.clip(angles, low, None))
    colours = colormaps["RdYlBu_r"].with_extremes(bad=_UNKNOWN)
    scale = LogNorm(low, high)
    return axes.imshow(lifted, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")


def _scale(axes: Any, image: Any, bands: Bands, *, judged: bool) -> None:
    """A colour bar with the edges of the bands, where they hold."""
    place = axes.get_position()
    bar = axes.figure.add_axes((place.x1 + 0.012, place.y0, 0.014, place.height))
    edges = (bands.lazy_angle, bands.feature_angle)
    axes.figure.colorbar(image, cax=bar, extend="min", ticks=[0.01, *edges, 1.0])
    words = [f"{edge:g}" for edge in edges]
    if judged:
        words = [f"{edges[0]:g}: lazy below", f"{edges[1]:g}: features"]
    bar.set_yticklabels(["0.01", *words, "1"])
    bar.minorticks_off()
    bar.tick_params(labelsize=SIZE - 1.5, colors=INK, length=2)
    bar.spines[:].set_visible(False)
