"""An empty sheet to draw on, and the sheet as pixels: the little that all pictures share.

matplotlib is loaded when a picture is asked for (0.7 s that a run without pictures need not pay),
and never through pyplot, which keeps global state and would touch the user's backend.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INK", "QUIET", "SIZE", "Pixels", "pixels", "plain", "sheet", "style"]

Pixels = NDArray[np.uint8]

INK, QUIET = "#1a2027", "#56616d"
SIZE = 9.0  # points
_DOTS_PER_INCH = 100


def sheet(width: float, height: float) -> Any:
    """Return a white figure.

    Args:
        width: In inches of 100 pixels.
        height: Likewise.

    Returns:
        A matplotlib figure. Place axes by hand: automatic layouts double the time of drawing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Any, title: str, note: str = "") -> None:
    """Give axes the title and the small grey type that all pictures have.

    Args:
        axes: Of a figure.
        title: What is shown; plain text.
        note: What to know when reading it; plain text.
    """
    height = axes.get_position().height * axes.figure.get_figheight() * 72
    above = {"xycoords": "axes points", "annotation_clip": False, "parse_math": False}
    lift = 18 if note else 5
    axes.annotate(title, (0, height + lift), fontsize=SIZE + 2, color=INK, **above)
    axes.annotate(note, (0, height + 5), fontsize=SIZE, color=QUIET, **above)
    axes.tick_params(labelsize=SIZE - 1, colors=QUIET, which="both", length=2)
    for spine in axes.spines.values():
        spine.set_color("#c3cad2")


def plain(text: str) -> str:
    """Return text in which a dollar sign opens no formula."""
    return text.replace("$", r"\$")


def pixels(figure: Any) -> Pixels:
    """Return a figure as an image, (height, width, 3)."""
    with warnings.catch_warnings():
        # Of scripts that the font does not have, boxes are drawn: no reason to warn in a training.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
