"""The table under a timeline: what each anchor says of the last network, and each layer's step.

Nothing here knows how a row is drawn or escaped.
"""

from ntkwatch.report.words import MISSING, number
from ntkwatch.watch.timeline import Timeline

__all__ = ["ANCHOR_HEAD", "LAYER_HEAD", "anchor_rows", "layer_rows"]

ANCHOR_HEAD = ("from step", "linearization error", "median layer angle (rad)")
LAYER_HEAD = ("layer", "kept its shape since step")


def anchor_rows(timeline: Timeline) -> list[tuple[str, str, str]]:
    """Return one row per anchor, in order.

    Args:
        timeline: Of a run.

    Returns:
        Cells as in ``ANCHOR_HEAD``.
    """
    angles = timeline.layer_angles_since
    return [(key, number(error), number(angles.get(key))) for key, error in timeline.errors.items()]


def layer_rows(timeline: Timeline) -> list[tuple[str, str]]:
    """Return one row per layer whose features formed, those that turned most first.

    Args:
        timeline: Of a run.

    Returns:
        Cells as in ``LAYER_HEAD``; names are as the model gave them.
    """
    return [
        (name, MISSING if step is None else str(step)) for name, step in timeline.layers.items()
    ]
