"""Several runs in one static picture, for a page that cannot hold an interactive plot.

Knows nothing of verdict logic; it shades the bands that the verdicts used. matplotlib is loaded
when a picture is asked for, and never through pyplot, which keeps global state.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntkwatch.report.colours import STRENGTH_COLOURS, run_colours
from ntkwatch.report.comparison_figures import Run
from ntkwatch.report.figures import edges_of, points
from ntkwatch.report.files import write_whole
from ntkwatch.report.words import clean, shorten
from ntkwatch.watch.verdict.verdict import Bands, Strength, Verdict

__all__ = ["save_comparison_png"]

_INCHES, _DOTS_PER_INCH = (9.0, 4.2), 200  # twice the pixels it is shown at, for sharp screens
_INK, _QUIET = "#1a2027", "#56616d"
_PANELS = (
    ("linearization_error", "linearization error"),
    ("layer_angle_median", "median layer angle (rad)"),
)
_BANDS = (Strength.LAZY, Strength.TRANSITIONAL, Strength.FEATURE_LEARNING)
_MARKERS = "osD^vP"
_SIZE = 9.0  # points
_NAME = 40  # characters of a run's name


def save_comparison_png(runs: Sequence[Run], path: Path) -> None:
    """Save two panels over steps with one line per run: linearization error and layer angle.

    Args:
        runs: Name, observations and verdict of each; the bands of the first are shaded.
        path: The PNG to write, 1800 pixels wide and meant to be shown at 900.

    Raises:
        ValueError: If there is no run.
    """
    if not runs:
        raise ValueError("no run was given, so there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", wspace=0.06)
    panels = figure.subplots(1, 2)
    for panel, (key, title) in zip(panels, _PANELS, strict=True):
        lines = _panel(panel, runs, key, title)
    figure.legend(
        handles=lines,
        labels=[_label(name, verdict) for name, _, verdict in runs],
        loc="outside upper center",
        ncols=min(3, len(runs)),
        frameon=False,
        fontsize=_SIZE + 1,
        labelcolor=_INK,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def _label(name: str, verdict: Verdict) -> str:
    """A dollar sign would open a formula; an underscore hides a line in older matplotlibs."""
    text = f"{shorten(clean(name), _NAME)}: {verdict.label}".replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _panel(panel: Any, runs: Sequence[Run], key: str, title: str) -> list[Any]:
    colours = run_colours([verdict.strength for _, _, verdict in runs])
    bottom, top = _reach(runs, key)
    lines: list[Any] = []
    panel.set_yscale("log")
    panel.set_ylim(bottom, top)
    for place, (_, history, _) in enumerate(runs):
        drawn = [(x, y) for x, y, _ in points(history, key) if y > 0]
        lines += panel.plot(
            [x for x, _ in drawn],
            [y for _, y in drawn],
            color=colours[place],
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=3.2,
            linewidth=2,
        )
        spread = [(x, *ends) for x, y, ends in points(history, key) if ends is not None and y > 0]
        panel.fill_between(
            [x for x, _, _ in spread],
            [max(low, bottom) for _, low, _ in spread],
            [high for _, _, high in spread],
            color=colours[place],
            alpha=0.2,
            linewidth=0,
        )
    _bands(panel, runs[0][2].bands, key, bottom, top)
    panel.set_title(title, fontsize=_SIZE + 2, color=_INK, loc="left")
    panel.set_xlabel("optimizer steps", fontsize=_SIZE, color=_QUIET)
    panel.tick_params(labelsize=_SIZE, colors=_QUIET, which="both")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        panel.spines[side].set_color("#c3cad2")
    return lines


def _reach(runs: Sequence[Run], key: str) -> tuple[float, float]:
    low, high = edges_of(key, runs[0][2].bands) or (1.0, 1.0)
    values = [y for _, history, _ in runs for _, y, _ in points(history, key) if y > 0]
    return min([*values, low / 5]) / 1.5, max([*values, high * 3]) * 1.5


def _bands(panel: Any, bands: Bands, key: str, bottom: float, top: float) -> None:
    """Shade the bands and name them on the right, where no line passes."""
    edges = edges_of(key, bands)
    if edges is None:
        return
    ends = (bottom, *edges, top)
    for strength, low, high in zip(_BANDS, ends, ends[1:], strict=False):
        panel.axhspan(low, high, color=STRENGTH_COLOURS[strength], alpha=0.12, linewidth=0)
        panel.text(
            1.01,
            (math.log(low * high) / 2 - math.log(bottom)) / math.log(top / bottom),
            str(strength).replace("-", "-\n"),
            transform=panel.transAxes,
            va="center",
            fontsize=_SIZE,
            color=STRENGTH_COLOURS[strength],
        )
