"""The present network read from every further anchor: one forward-mode pass each.

Where anchors come from and how long they are kept is another file's business.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ntkwatch.errors import NtkwatchError
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.readings.buffers import outputs_of_parameters
from ntkwatch.watch.readings.decay import Shrunk
from ntkwatch.watch.readings.kernel_drift import layer_angles
from ntkwatch.watch.readings.linear_error import Departure, decayed, departure
from ntkwatch.watch.readings.measure import Measurement, Settings
from ntkwatch.watch.readings.sketching import sketch_drift
from ntkwatch.watch.record.records import NOT_TAKEN

__all__ = ["Since", "read_since"]

_FLOORS = 3.0  # a change of fewer noise floors is none


class Since(NamedTuple):
    """Numbers since further anchors, by their step as text.

    Attributes:
        errors: Linearization error, around the decayed anchor where weights decayed.
        angles: Median layer angle, radians.
        left_out: Reasons for those that are missing.
    """

    errors: dict[str, float]
    angles: dict[str, float]
    left_out: dict[str, str]


def read_since(
    now: Measurement,
    anchors: Iterable[Anchor],
    settings: Settings,
    *,
    step: int,
    method: str | None,
    shrunk: Callable[[Anchor], Shrunk],
    floor: float,
    fresh: bool,
    buffers_moved: bool,
) -> Since:
    """Return how far a model is from each of several anchors; call it inside ``undisturbed``.

    Args:
        now: The present look at the model.
        anchors: What is compared with.
        settings: Of the run.
        step: Optimizer steps taken so far.
        method: How ``J v`` was computed and checked at the reference, or None.
        shrunk: What weight decay alone would have left of an anchor's weights.
        floor: Root mean square of outputs' change that is rounding alone.
        fresh: Whether anchors were seen on another probe: their outputs are then taken again.
        buffers_moved: Whether moving buffers have a part in the kernel's motion.

    Returns:
        Errors and angles.
    """
    found = Since({}, {}, {})
    for anchor in anchors:
        key = str(anchor.step)
        if anchor.step >= step:
            continue
        try:
            gone = _departure(now, anchor, settings, method, shrunk(anchor), fresh=fresh)
        except NtkwatchError as cause:
            found.left_out[f"since/{key}"] = str(cause)
            continue
        if float(gone.change.square().mean().sqrt()) <= _FLOORS * floor:
            found.left_out[f"since/{key}"] = "outputs did not move by more than rounding"
        elif math.isfinite(error := float(gone.error)):
            found.errors[key] = error
        else:
            found.left_out[f"since/{key}"] = "the linearized outputs overflow"
        angle = None if fresh or buffers_moved else _angle(now, anchor)
        if angle is not None:
            found.angles[key] = angle
    if found.errors and now.left_out.get("kernel") == NOT_TAKEN:
        found.left_out["since_layer_angle"] = NOT_TAKEN
    elif found.errors and fresh:
        found.left_out["since_layer_angle"] = "every observation has a probe of its own"
    elif found.errors and buffers_moved:
        found.left_out["since_layer_angle"] = "moving buffers changed the kernel, too"
    return found


def _departure(
    now: Measurement,
    anchor: Anchor,
    settings: Settings,
    method: str | None,
    shrunk: Shrunk,
    *,
    fresh: bool,
) -> Departure:
    if shrunk.factors or fresh:
        anchor = decayed(now, anchor, settings, shrunk.factors)
    outputs = outputs_of_parameters(now, anchor, settings.moving)
    return departure(now, outputs, anchor, settings, method)


def _angle(now: Measurement, anchor: Anchor) -> float | None:
    """Median layer angle, from kernels or from sketches of them."""
    angle: float | None = None
    if now.kernel is not None and anchor.layers:
        angle = layer_angles(now, anchor, {})[1]
    elif now.sketch is not None and anchor.sketch is not None:
        drift = sketch_drift(now.sketch, anchor.sketch, counted=now.matrix_layers, left_out={})
        angle = drift.get("layer_angle_median")
    return angle
