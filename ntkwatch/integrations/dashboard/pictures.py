"""A kernel at a glance: its matrix ordered by class, and its spectrum, both beside the start.

Arrays go in and pixels come out. Colours and axes are those of the start, so that pictures of
several steps can be compared by eye.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkwatch.integrations.dashboard.canvas import INK, QUIET, SIZE, Pixels, pixels, sheet, style
from ntkwatch.kernel.drift import kernel_angle
from ntkwatch.kernel.spectrum import effective_rank, rounding_floor
from ntkwatch.report.colours import STRENGTH_COLOURS
from ntkwatch.report.words import number
from ntkwatch.watch.verdict.bands import Strength

__all__ = ["kernel_picture", "spectrum_picture"]

_MOST_LINES = 40  # between classes; more would cover the matrix
_MOST_NAMES = 12  # of classes on an axis
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
# Share of the start's largest entry at which the colours of the change are full: an entry that has
# changed by half of that has left the picture that the kernel was.
_FULL_CHANGE = 0.5


def kernel_picture(
    kernel: Tensor, reference: Tensor, *, step: int, classes: Sequence[int] | None = None
) -> Pixels:
    """Draw the kernel in units of its growth beside the change of its shape.

    With ``s = <K, K_0> / <K_0, K_0>``, on the left is ``K / s`` in the colours of ``K_0``, on the
    right ``K / s - K_0``, which is orthogonal to ``K_0``: what turned, without what only grew.

    Args:
        kernel: Trace kernel now, (N, N).
        reference: Trace kernel at the reference, (N, N).
        step: Optimizer steps taken.
        classes: Class of each sample, to order by.

    Returns:
        Pixels, (height, width, 3).
    """
    names = np.zeros(len(kernel), int) if classes is None else np.asarray(classes)
    order = np.argsort(names, kind="stable")
    now, then = (_array(matrix)[np.ix_(order, order)] for matrix in (kernel, reference))
    growth = _growth(now, then)
    shape = now / growth
    top = float(np.abs(then).max()) or 1.0
    figure = sheet(7.6, 4.0)
    left, right = (figure.add_axes((x, 0.11, 0.385, 0.7315)) for x in (0.06, 0.545))
    _matrix(left, shape, (min(0.0, float(then.min())), top), "viridis")
    style(left, f"kernel, step {step}", f"divided by its growth, {number(growth)}")
    reach = _FULL_CHANGE * top
    _matrix(right, shape - then, (-reach, reach), "RdBu_r")
    turned = f"turned by {number(_angle(kernel, reference))} rad, growth taken off"
    style(right, "change since the start", turned)
    for axes in (left, right):
        _mark_classes(axes, names[order], named=classes is not None)
    return pixels(figure)


def _array(matrix: Tensor) -> NDArray[np.float64]:
    return matrix.detach().cpu().double().numpy()


def _growth(now: NDArray[np.float64], then: NDArray[np.float64]) -> float:
    """Scale of the kernel against the start, 1 where that is no positive number."""
    whole = float((then * then).sum())
    growth = float((now * then).sum()) / whole if whole > 0 else 1.0
    return growth if np.isfinite(growth) and growth > 0 else 1.0


def _angle(kernel: Tensor, reference: Tensor) -> float | None:
    zero = not (bool(kernel.any()) and bool(reference.any()))
    return None if zero else float(kernel_angle(kernel, reference))


def _matrix(
    axes: Any, matrix: NDArray[np.float64], limits: tuple[float, float], colours: str
) -> None:
    low, high = limits
    shown = axes.imshow(matrix, cmap=colours, vmin=low, vmax=high, aspect="equal")
    place = axes.get_position()
    bar = axes.figure.add_axes((place.x1 + 0.008, place.y0, 0.012, place.height))
    axes.figure.colorbar(shown, cax=bar)
    bar.tick_params(labelsize=SIZE - 2, colors=QUIET, length=2)
    bar.locator_params(nbins=5)
    bar.ticklabel_format(scilimits=(-2, 4))
    bar.yaxis.get_offset_text().set(size=SIZE - 2, color=QUIET)
    bar.spines[:].set_visible(False)


def _mark_classes(axes: Any, names: NDArray[Any], *, named: bool) -> None:
    """Thin lines between classes, and their names at their middles."""
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    if not named:
        axes.set_xlabel("probe points, in the order of the probe", fontsize=SIZE, color=QUIET)
        return
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    edges = np.r_[starts, len(names)]
    if len(starts) <= _MOST_LINES:
        places, ends = edges[1:-1] - 0.5, (-0.5, len(names) - 0.5)
        axes.hlines(places, *ends, color=INK, linewidth=0.9, alpha=0.25)
        axes.vlines(places, *ends, color=INK, linewidth=0.9, alpha=0.25)
    every = -(-len(starts) // _MOST_NAMES)
    middles = (edges[:-1] + edges[1:] - 1)[::every] / 2
    # As texts, which take a third of the time that an axis and its ticks take.
    small = {"fontsize": SIZE - 1, "color": QUIET, "parse_math": False}
    for middle, name in zip(middles, names[starts][::every], strict=True):
        below = len(names) - 0.5 + 0.015 * len(names)
        axes.text(middle, below, str(name)[:6], ha="center", va="top", **small)
        axes.text(
            -0.5 - 0.015 * len(names), middle, str(name)[:6], ha="right", va="center", **small
        )
    axes.set_xlabel("class of the probe points", fontsize=SIZE, color=QUIET, labelpad=15)


def spectrum_picture(
    now: Tensor, then: Tensor, *, step: int, start: int, precision: torch.dtype
) -> Pixels:
    """Draw the eigenvalues of the kernel by rank, now and at the start, both axes logarithmic.

    Args:
        now: Eigenvalues, descending, (N,).
        then: Those of the reference, (N,).
        step: Optimizer steps taken.
        start: Those taken at the reference.
        precision: Of the arithmetic that built the kernels: what it cannot tell from 0 is left out.

    Returns:
        Pixels, (height, width, 3).
    """
    figure = sheet(6.0, 4.2)
    axes = figure.add_axes((0.1, 0.12, 0.87, 0.74))
    axes.set_xscale("log")
    axes.set_yscale("log")
    lines = (  # the start lies broad under the other, so that both show where nothing moved
        (then, "#b9c1ca", 6, f"step {start}, the start"),
        (now, STRENGTH_COLOURS[Strength.FEATURE_LEARNING], 2, f"step {step}"),
    )
    for spectrum, colour, width, name in lines:
        label = f"{name}: effective rank {_rank(spectrum)} of {len(spectrum)}"
        known = _array(spectrum[spectrum > rounding_floor(spectrum, precision=precision)])
        places = np.arange(1, len(known) + 1)
        axes.plot(places, known, color=colour, linewidth=width, label=label)
    axes.legend(loc="lower left", frameon=False, fontsize=SIZE, labelcolor=INK)
    axes.grid(color="#e6e9ed", linewidth=0.6)
    axes.set_xlim(0.9, len(now) * 1.1)
    ranks = [rank for rank in _RANKS if rank <= len(now)]
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_power)  # formulas take four times as long
    axes.set_xlabel("rank of the eigenvalue", fontsize=SIZE, color=QUIET, labelpad=1)
    style(axes, f"eigenvalues of the kernel, step {step}")
    return pixels(figure)


def _rank(spectrum: Tensor) -> str:
    return number(float(effective_rank(spectrum))) if bool(spectrum[0] > 0) else number(None)


def _power(value: float, _place: int | None = None) -> str:
    """A power of ten as plain text."""
    return "10" + str(round(math.log10(value))).translate(_RAISED) if value > 0 else ""
