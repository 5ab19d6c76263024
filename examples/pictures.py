"""What the examples' pictures have in common: panels without a window, and a small file."""

import io
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

__all__ = ["colours", "panels", "save"]

colours = colormaps["viridis"]  # of a number from 0 to 1: first to last, early to late


def panels(count: int, height: float = 3.8):
    """Return a figure with so many panels side by side, and the panels."""
    figure = Figure(figsize=(9.0, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count)
    for panel in axes:
        panel.grid(color="#e3e6ea", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, place: Path) -> None:
    """Write a PNG of 256 colours, which are enough for lines and text."""
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        if panel.yaxis.get_scale() == "log":
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    written = io.BytesIO()
    figure.savefig(written, format="png")
    with Image.open(written) as image:
        image.convert("RGB").quantize(256).save(place, optimize=True)
    print(f"See {place}")
