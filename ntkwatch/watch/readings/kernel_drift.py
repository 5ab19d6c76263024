"""How far a kernel is from that of an anchor: in all, layer by layer, and with which certainty.

Only kernels are looked at here; outputs and weights are another file's business.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.bootstrap import angle_samples, central_interval, relative_change_samples
from ntkwatch.kernel.drift import (
    kernel_angle,
    kernel_distance,
    kernel_distance_centred,
    kernel_distance_offdiag,
    kernel_scale,
    offdiag_share,
    relative_kernel_change,
)
from ntkwatch.kernel.gram import offdiag
from ntkwatch.kernel.modes import eigenmodes, subspace_overlap
from ntkwatch.kernel.spectrum import rank_holding
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.readings.measure import Measurement
from ntkwatch.watch.readings.sketching import sketch_drift

__all__ = ["finite_intervals", "kernel_drift", "layer_angles"]

# Off-diagonals below this share of the kernel are noise (whitened inputs).
_OFFDIAG_SHARE = 0.05
# Fewest points on which a centred distance says more than their number.
_CENTRED_POINTS = 32
# Leading eigenvectors that are followed, and the share of all points that they may be at most: two
# random subspaces share as much.
_LEADING, _LEADING_SHARE = 5, 0.25
_TRACE_SHARE = 0.9


def kernel_drift(
    now: Measurement, anchor: Anchor, weights: Tensor | None, left_out: dict[str, str]
) -> dict[str, Any]:
    """Return the fields of a reading that compare two kernels.

    Args:
        now: The present look at the model.
        anchor: What is compared with.
        weights: Bootstrap weights for intervals, or None for no intervals.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name, "intervals" and "layer_angle" among them; none without two kernels or
        two sketches.
    """
    if now.sketch is not None and anchor.sketch is not None:
        return sketch_drift(now.sketch, anchor.sketch, counted=now.matrix_layers, left_out=left_out)
    if now.kernel is None or anchor.kernel is None:
        return {}
    values: dict[str, Any] = _whole_drift(now.kernel.trace, anchor.kernel, left_out)
    angles, values["layer_angle_median"] = layer_angles(now, anchor, left_out)
    intervals = {}
    if weights is not None and values.get("kernel_angle") is not None:
        intervals = _kernel_intervals(now, anchor, weights, angles)
        values["kernel_distance_centred"] = _centred_distance(
            now.kernel.trace, anchor.kernel, left_out
        )
        values |= _overlaps(now.kernel.trace, anchor.kernel, left_out)
    return {**values, "layer_angle": angles, "intervals": intervals}


def _whole_drift(
    kernel: Tensor, reference: Tensor, left_out: dict[str, str]
) -> dict[str, float | None]:
    drift: dict[str, float | None] = {}
    try:
        scale = float(kernel_scale(kernel, reference))
        drift["relative_kernel_change"] = float(relative_kernel_change(kernel, reference))
        if math.isfinite(scale):
            drift["kernel_scale"] = scale
        else:
            left_out["kernel_scale"] = "the kernel is zero or orthogonal to its reference"
        drift["kernel_angle"] = float(kernel_angle(kernel, reference))
        drift["kernel_distance"] = float(kernel_distance(kernel, reference))
    except KernelMismatchError as error:
        left_out["kernel_angle"] = str(error)
        return drift
    if float(offdiag_share(reference)) < _OFFDIAG_SHARE:
        left_out["kernel_distance_offdiag"] = "the off-diagonal of the reference is noise"
    elif not bool(offdiag(kernel).any()):
        left_out["kernel_distance_offdiag"] = "the off-diagonal of the kernel is zero"
    else:
        drift["kernel_distance_offdiag"] = float(kernel_distance_offdiag(kernel, reference))
    return drift


def _centred_distance(kernel: Tensor, reference: Tensor, left_out: dict[str, str]) -> float | None:
    if len(kernel) < _CENTRED_POINTS:
        left_out["kernel_distance_centred"] = f"it takes {_CENTRED_POINTS} probe points"
        return None
    try:
        return float(kernel_distance_centred(kernel, reference))
    except KernelMismatchError as error:
        left_out["kernel_distance_centred"] = str(error)
        return None


def _overlaps(
    kernel: Tensor, reference: Tensor, left_out: dict[str, str]
) -> dict[str, dict[str, float]]:
    """How much of the leading eigenspaces stayed, each with what random ones share."""
    now, then = eigenmodes(kernel), eigenmodes(reference)
    ranks = {}
    if len(kernel) * _LEADING_SHARE >= _LEADING:
        ranks[str(_LEADING)] = (_LEADING, _LEADING)
    else:
        few = math.ceil(_LEADING / _LEADING_SHARE)
        left_out[f"subspace_overlap/{_LEADING}"] = f"it takes {few} probe points"
    held = [int(rank_holding(modes.values, share=_TRACE_SHARE)) for modes in (now, then)]
    ranks[f"{_TRACE_SHARE:.0%}"] = (held[0], held[1])
    found = {
        name: subspace_overlap(now.vectors[:, :k], then.vectors[:, :k_then])
        for name, (k, k_then) in ranks.items()
    }
    return {
        "subspace_overlap": {name: float(overlap.value) for name, overlap in found.items()},
        "subspace_overlap_null": {name: float(overlap.null) for name, overlap in found.items()},
    }


def layer_angles(
    now: Measurement, anchor: Anchor, left_out: dict[str, str]
) -> tuple[dict[str, float | None], float | None]:
    """Return the angle per layer, and the median over layers with a matrix or convolution weight.

    Args:
        now: The present look at the model, with a kernel.
        anchor: What is compared with, with its kernel by layer.
        left_out: Takes the reasons for angles that are not defined.

    Returns:
        Radians by layer, None where its part is zero, and their median, or None.
    """
    assert now.kernel is not None
    angles: dict[str, float | None] = {}
    for layer, part in now.kernel.layers.items():
        reference = anchor.layers[layer]
        known = bool(reference.any()) and bool(part.any())
        angles[layer] = float(kernel_angle(part, reference)) if known else None
        if not known:
            when = "at the anchor" if not bool(reference.any()) else "now"
            left_out[f"layer_angle/{layer}"] = f"its part of the kernel is zero {when}"
    counted = [
        angle for layer, angle in angles.items() if angle is not None and layer in now.matrix_layers
    ]
    if not counted:
        left_out["layer_angle_median"] = "no layer with a matrix weight has a reference"
        return angles, None
    return angles, _median(counted)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def _kernel_intervals(
    now: Measurement,
    anchor: Anchor,
    weights: Tensor,
    layer_angle: dict[str, float | None],
) -> dict[str, tuple[float, float]]:
    assert now.kernel is not None
    assert anchor.kernel is not None
    kernel, reference = now.kernel.trace, anchor.kernel
    samples = {
        "relative_kernel_change": relative_change_samples(kernel, reference, weights),
        "kernel_angle": angle_samples(kernel, reference, weights),
    }
    counted = [
        layer
        for layer, angle in layer_angle.items()
        if angle is not None and layer in now.matrix_layers
    ]
    if counted:
        by_layer = [
            angle_samples(now.kernel.layers[layer], anchor.layers[layer], weights)
            for layer in counted
        ]
        # quantile, not median: with an even count that is the mean of the middle two.
        samples["layer_angle_median"] = torch.stack(by_layer).quantile(0.5, dim=0)
    return finite_intervals(samples)


def finite_intervals(samples: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return central 95 % intervals of bootstrap samples; one that reaches infinity is left out.

    Args:
        samples: Replicates by key.

    Returns:
        Low and high end by key.
    """
    intervals = {}
    for key, values in samples.items():
        low, high = central_interval(values).tolist()
        if math.isfinite(low) and math.isfinite(high):
            intervals[key] = (low, high)
    return intervals
