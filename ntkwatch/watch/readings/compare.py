"""From two looks at a model, the anchor's and the present one, to a reading in plain numbers.

Here tensors become floats: one reading is one synchronisation with the device.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ntkwatch.jacobian.parameters import layer_of
from ntkwatch.jacobian.shards import local_part, over_shards
from ntkwatch.kernel.bootstrap import bootstrap_weights
from ntkwatch.kernel.sizes import squared_norm
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.buffers import buffer_share, outputs_of_parameters, parameters_part
from ntkwatch.watch.readings.decay import NO_DECAY, Shrunk
from ntkwatch.watch.readings.describe import unjudged
from ntkwatch.watch.readings.kernel_drift import kernel_drift
from ntkwatch.watch.readings.linear_error import linearization
from ntkwatch.watch.readings.measure import Measurement, Settings
from ntkwatch.watch.readings.task import change_target_correlation, task_rise
from ntkwatch.watch.record.records import NOT_TAKEN, Reading

__all__ = ["compare", "replicates"]

_DRAWS = 200  # bootstrap replicates: the ends of a 95 % interval then scatter by a tenth of it
# A class of k points that keeps its size varies by 1 - 1/k as much as it should.
_PER_CLASS = 4


def replicates(probe: ProbeBatch) -> Tensor:
    """Return bootstrap weights of a probe's points, class by class where classes are not tiny."""
    labels = probe.targets if probe.has_classes else None
    if labels is not None and len(labels) < _PER_CLASS * len(labels.unique()):
        labels = None
    return bootstrap_weights(len(probe), _DRAWS, strata=labels)


def compare(
    now: Measurement,
    anchor: Anchor,
    *,
    settings: Settings,
    weights: Tensor | None,
    targets: Tensor | None,
    shrunk: Shrunk = NO_DECAY,
) -> Reading:
    """Return how far a model is from an anchor; call it inside ``undisturbed``.

    Args:
        now: The present look at the model.
        anchor: What is compared with.
        settings: Of the run.
        weights: Bootstrap weights for intervals, or None for what costs least: no intervals, and
            no second kernel where buffers moved.
        targets: Of the probe, or None.
        shrunk: What weight decay alone would have left of the anchor's weights.

    Returns:
        The reading; numbers that are not defined are None, with the reason in ``left_out``.
    """
    left_out = dict(now.left_out)
    if now.kernel is not None and anchor.kernel is None:
        left_out["kernel"] = "there was none at the anchor"
    values = kernel_drift(now, anchor, weights, left_out)
    if "kernel" in left_out and "kernel_angle" not in values:
        left_out.setdefault("layer_angle_median", _why_no_drift(now, anchor, left_out["kernel"]))
    intervals = values.pop("intervals", {})
    own = parameters_part(now, anchor, settings, weights)
    if own is not None:
        drift = values.get("relative_kernel_change")
        values["buffer_share"] = buffer_share(drift, own.relative_kernel_change)
    known = now.kernel is not None and values.get("kernel_angle") is not None
    if weights is not None and known and now.kernel is not None and anchor.kernel is not None:
        values |= task_rise(now.kernel.trace, anchor.kernel, targets, left_out)
    outputs = outputs_of_parameters(now, anchor, settings.moving)
    change = outputs - anchor.outputs
    linear, of_errors = linearization(now, outputs, anchor, settings, weights, shrunk, left_out)
    intervals |= of_errors
    return Reading(
        anchor_step=anchor.step,
        **linear,
        output_change=float(change.square().mean().sqrt()),
        common_share=_common_share(change),
        change_target_correlation=change_target_correlation(change, targets),
        parameters_only=own,
        unjudged=unjudged(now),
        intervals=intervals,
        left_out=left_out,
        **values,
        **_displacement(now, anchor),
    )


def _why_no_drift(now: Measurement, anchor: Anchor, why: str) -> str:
    if why == NOT_TAKEN:
        return why
    if now.sketch is not None and anchor.sketch is None:
        return "there was no sketch of the kernel at the anchor"
    return "there is no per-sample kernel"


def _common_share(change: Tensor) -> float | None:
    """How much of it is one shift of all samples: what a bias alone could have learned."""
    whole = change.square().sum()
    if not bool(whole > 0):
        return None
    return float(change.mean(dim=0).square().sum() * len(change) / whole)


def _displacement(now: Measurement, anchor: Anchor) -> dict[str, Any]:
    """Distances of the watched parameters from the anchor, in all and by layer."""
    params = now.problem.function.params
    moved2: dict[str, Tensor] = {}
    size2: dict[str, Tensor] = {}
    for name in now.problem.names:
        layer = layer_of(name)
        then, present = local_part(anchor.params[name]), local_part(params[name])
        both = torch.stack([squared_norm(present, minus=then), squared_norm(then)])
        both = over_shards(both, params[name])
        moved2[layer] = moved2.get(layer, 0) + both[0]
        size2[layer] = size2.get(layer, 0) + both[1]
    moved = torch.stack(list(moved2.values())).sqrt().tolist()
    sizes = torch.stack(list(size2.values())).sqrt().tolist()
    total, whole = math.hypot(*moved), math.hypot(*sizes)
    layers = list(moved2)
    return {
        "displacement": total,
        "relative_displacement": total / whole if whole > 0 else None,
        "layer_displacement": dict(zip(layers, moved, strict=True)),
        "layer_relative_displacement": {
            layer: distance / size if size > 0 else None
            for layer, distance, size in zip(layers, moved, sizes, strict=True)
        },
    }
