"""The table under a timeline: what each anchor says of the last network, and each layer's step.

Nothing here knows how a row is drawn or escaped.
"""

from ntkwatch.report.words import MISSING, number
from ntkwatch.watch.verdict.timeline import Timeline

__all__ = ["ANCHOR_HEAD", "LAYER_HEAD", "anchor_rows", "layer_rows"]

ANCHOR_HEAD = ("from step", "linearization error", "median layer angle (rad)")
LAYER_HEAD = ("layer", "kept its shape since")

_TO_THE_END = "not known: it turned up to the end"


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
    last = timeline.steps[-1] if timeline.steps else None
    return [(name, _since(step, last)) for name, step in timeline.layers.items()]


def _since(step: int | None, last: int | None) -> str:
    """The last kernel has its own shape whatever came before: that is no finding."""
    if step is None:
        return MISSING
    return _TO_THE_END if step == last else f"step {step}"
