"""Drift against the loss: the clock that runs of different length share.

Nothing here knows how a curve becomes a picture (``drawing``) or where it stands on a page.
"""

from ntkwatch.report.columns import BY_KEY, value_of
from ntkwatch.report.curve import Curve
from ntkwatch.report.drawing import Axis, Drawing, draw
from ntkwatch.report.figures import axis_title, edges_of, points_of
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import Bands

__all__ = ["loss_drawings"]

_KEYS = ("linearization_error", "layer_angle_median")
_FEWEST = 3  # points that make a curve


def loss_drawings(history: History, bands: Bands) -> list[Drawing]:
    """Return linearization error and layer angle against the loss reached.

    Args:
        history: Of one run.
        bands: Thresholds of the verdict, which are shaded.

    Returns:
        Those of which there is something to draw: none where no loss is known.
    """
    drawings = (_against_loss(history, key, bands) for key in _KEYS)
    return [drawing for drawing in drawings if drawing is not None]


def _ratio(observation: Observation) -> float | None:
    ratio = observation.loss_ratio
    return ratio if ratio is not None and ratio > 0 else None


def _against_loss(history: History, key: str, bands: Bands) -> Drawing | None:
    column = BY_KEY[key]
    points = points_of(
        history,
        lambda o: value_of(o, key),
        interval=lambda o: o.intervals.get(key),
        at=_ratio,
    )
    if len(points) < _FEWEST:
        return None
    return draw(
        [Curve(name=column.title, points=points, across="loss ratio")],
        Axis(title=axis_title(key), log=True, edges=edges_of(key, bands)),
        id=f"{key.replace('_', '-')}-against-loss",
        title=f"{column.title.capitalize()} against the loss",
        caption="Read from left to right as the loss falls: it stands for time, whatever the "
        "length of a run or its learning rate.",
        across=Axis(title="training loss, as a share of its start", log=True, falling=True),
    )
