"""The kernel then and now, ordered by class, and its eigenvalues then and now.

Knows nothing of files; colours are those of the start in both pictures, so that the eye can
compare them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkwatch.report.colours import COLOURS, GREY
from ntkwatch.report.curve import Curve
from ntkwatch.report.drawing import Axis, Drawing, draw
from ntkwatch.report.heatmap import SCALE
from ntkwatch.report.kept_kernels import KernelPair
from ntkwatch.report.words import counted, finite, number

__all__ = ["kernel_drawings"]

_CELLS = 96  # a side: more cells than a plot has pixels to show cost bytes and show nothing more
_NAMES = 12  # of classes on an axis
_HEIGHT = 380  # pixels

_Array = NDArray[np.float64]


def kernel_drawings(kernels: KernelPair | None, *, precision: str) -> list[Drawing]:
    """Return pictures of a run's first and last kernel.

    Args:
        kernels: Both, or None.
        precision: Name of the Jacobian's dtype: eigenvalues that it cannot tell from 0 are left
            out.

    Returns:
        The kernel then, now, and the eigenvalues of both; nothing without kernels.
    """
    if kernels is None or not kernels.then.any():
        return []
    growth = _growth(kernels.now, kernels.then)
    top, low = float(np.abs(kernels.then).max()), min(0.0, float(kernels.then.min()))
    order = "ordered by class" if kernels.classes is not None else "in the order of the probe"
    n = counted(len(kernels.then), "probe point")
    then = _matrix(
        kernels.then,
        kernels,
        (low, top),
        id="kernel-then",
        title=f"Kernel at the start (step {kernels.start})",
        caption=f"How alike the network finds each two of the {n}, {order}. Dark blocks on the "
        "diagonal are classes that it takes for alike.",
    )
    now = _matrix(
        kernels.now / growth,
        kernels,
        (low, top),
        id="kernel-now",
        title=f"Kernel at step {kernels.end}",
        caption=f"The same later, divided by its growth ({number(growth)}) and in the colours of "
        "the start: what differs is what turned.",
    )
    return [then, now, *_spectrum(kernels, precision)]


def _growth(now: _Array, then: _Array) -> float:
    """Scale of the kernel against the start, 1 where that is no positive number."""
    growth = float((now * then).sum() / (then * then).sum())
    return growth if np.isfinite(growth) and growth > 0 else 1.0


def _matrix(
    values: _Array,
    kernels: KernelPair,
    limits: tuple[float, float],
    *,
    id: str,
    title: str,
    caption: str,
) -> Drawing:
    cells, width = _coarse(values)
    if width > 1:
        caption += f" A cell is the mean of {width} x {width} pairs."
    ticks = _ticks(kernels.classes, width)
    named = "class of the probe points" if kernels.classes is not None else "probe points"
    axis = {"showgrid": False, "zeroline": False, "constrain": "domain", **ticks}
    trace = {
        "type": "heatmap",
        "z": [[float(f"{value:.3g}") for value in row] for row in cells.tolist()],
        "zmin": limits[0],
        "zmax": limits[1],
        "colorscale": SCALE,
        "colorbar": {"thickness": 12, "outlinewidth": 0, "exponentformat": "power"},
        "hovertemplate": "%{z:.3g}<extra></extra>",
    }
    layout: dict[str, Any] = {
        "height": _HEIGHT,
        "margin": {"l": 48, "r": 12, "t": 10, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 12, "color": GREY},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": GREY},
        # Its axes are no steps, which the page could draw on a logarithmic axis.
        "meta": {"steps": False},
        "xaxis": {**axis, "title": {"text": named, "standoff": 8}},
        "yaxis": {**axis, "autorange": "reversed", "scaleanchor": "x"},
    }
    label = f"{title}: {len(values)} by {len(values)}, from {number(float(values.min()))} to "
    label += f"{number(float(values.max()))}"
    return Drawing(
        id=id,
        title=title,
        caption=caption,
        label=label,
        plot=finite({"data": [trace], "layout": layout}),
        legend=(),
    )


def _coarse(values: _Array) -> tuple[_Array, int]:
    """Means over squares, so that no more than so many cells are left, and the side of a square."""
    width = -(-len(values) // _CELLS)
    if width == 1:
        return values, 1
    edges = np.arange(0, len(values), width)
    sizes = np.diff(np.r_[edges, len(values)]).astype(float)
    sums = np.add.reduceat(np.add.reduceat(values, edges, axis=0), edges, axis=1)
    return sums / np.outer(sizes, sizes), width


def _ticks(classes: Sequence[int] | None, width: int) -> dict[str, Any]:
    """Names of classes at their middles."""
    if classes is None:
        return {"showticklabels": False, "ticks": ""}
    names = np.asarray(classes)
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    middles = (starts + np.r_[starts[1:], len(names)] - 1) / 2 / width
    every = -(-len(starts) // _NAMES)
    return {
        "tickvals": middles[::every].tolist(),
        "ticktext": [str(name)[:6] for name in names[starts][::every]],
    }


def _spectrum(kernels: KernelPair, precision: str) -> list[Drawing]:
    curves = []
    for name, matrix, colour, dash, width in (
        (f"step {kernels.start}, the start", kernels.then, GREY, "dash", 3.0),
        (f"step {kernels.end}", kernels.now, COLOURS[0], "solid", 2.2),
    ):
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
        floor = len(values) * _epsilon(precision) * float(np.abs(values).max())
        known = [float(value) for value in values if value > floor]
        points = tuple((rank, value, None) for rank, value in enumerate(known, start=1))
        curves.append(
            Curve(name=name, points=points, colour=colour, dash=dash, width=width, across="rank")
        )
    drawing = draw(
        curves,
        Axis(title="eigenvalue of the trace kernel", log=True),
        id="spectrum",
        title="All eigenvalues, then and now",
        caption="A steep fall is a kernel of few directions; where a few rise above the rest, the "
        "network has learned them. What rounding made is left out.",
        across=Axis(title="rank", log=True),
    )
    if drawing is None:
        return []
    drawing.plot["layout"]["meta"] = {"steps": False}
    return [drawing]


def _epsilon(precision: str) -> float:
    return float(np.finfo(np.float64 if precision == "float64" else np.float32).eps)
