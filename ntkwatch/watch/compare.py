"""From two looks at a model, the anchor's and the present one, to a reading in plain numbers.

Here tensors become floats: one reading is one synchronisation with the device.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import CoverageError, KernelMismatchError
from ntkwatch.jacobian.batchnorm import norm_matched
from ntkwatch.jacobian.inputs import cast_inputs
from ntkwatch.jacobian.linearize import OutputsOf, jacobian_vector_product
from ntkwatch.jacobian.parameters import layer_of
from ntkwatch.kernel.bootstrap import (
    angle_samples,
    bootstrap_weights,
    central_interval,
    relative_change_samples,
    residual_ratio_samples,
)
from ntkwatch.kernel.drift import (
    kernel_angle,
    kernel_distance,
    kernel_distance_offdiag,
    kernel_scale,
    offdiag_share,
    relative_kernel_change,
)
from ntkwatch.kernel.gram import offdiag, widest_float
from ntkwatch.watch.anchors import Anchor
from ntkwatch.watch.measure import Measurement, linearized_function
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.records import Reading

__all__ = ["compare", "replicates"]

# Off-diagonals below this share of the kernel are noise (whitened inputs).
_OFFDIAG_SHARE = 0.05
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
    now: Measurement, anchor: Anchor, *, moving: tuple[str, ...], weights: Tensor | None
) -> Reading:
    """Return how far a model is from an anchor; call it inside ``undisturbed``.

    Args:
        now: The present look at the model.
        anchor: What is compared with.
        moving: BatchNorms that training runs on batch statistics.
        weights: Bootstrap weights for intervals, or None for no intervals.

    Returns:
        The reading; numbers that are not defined are None, with the reason in ``left_out``.
    """
    left_out = dict(now.left_out)
    if now.kernel is not None and anchor.kernel is None:
        left_out["kernel"] = "there was none at the anchor"
    if "kernel" in left_out:
        left_out["layer_angle_median"] = "there is no per-sample kernel"
    values: dict[str, Any] = {}
    intervals: dict[str, tuple[float, float]] = {}
    layer_angle: dict[str, float | None] = {}
    if now.kernel is not None and anchor.kernel is not None:
        values |= _kernel_drift(now.kernel.trace, anchor.kernel, left_out)
        layer_angle, median = _layer_angles(now, anchor, left_out)
        values["layer_angle_median"] = median
        if weights is not None and values.get("kernel_angle") is not None:
            intervals |= _kernel_intervals(now, anchor, weights, layer_angle)
    error, error_interval, method = _linearization(now, anchor, moving, weights, left_out)
    if error_interval is not None:
        intervals["linearization_error"] = error_interval
    return Reading(
        anchor_step=anchor.step,
        layer_angle=layer_angle,
        linearization_error=error,
        linearization_method=method,
        output_change=float((now.outputs - anchor.outputs).square().mean().sqrt()),
        intervals=intervals,
        left_out=left_out,
        **values,
        **_displacement(now, anchor),
    )


def _kernel_drift(
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


def _layer_angles(
    now: Measurement, anchor: Anchor, left_out: dict[str, str]
) -> tuple[dict[str, float | None], float | None]:
    """Angle per layer, and the median over layers with a matrix or convolution weight."""
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
        angle for layer, angle in angles.items() if angle is not None and layer in _matrices(now)
    ]
    if not counted:
        left_out["layer_angle_median"] = "no layer with a matrix weight has a reference"
        return angles, None
    return angles, _median(counted)


def _matrices(now: Measurement) -> set[str]:
    params = now.problem.function.params
    return {layer_of(name) for name in now.problem.names if params[name].ndim >= 2}


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
        if angle is not None and layer in _matrices(now)
    ]
    if counted:
        by_layer = [
            angle_samples(now.kernel.layers[layer], anchor.layers[layer], weights)
            for layer in counted
        ]
        # quantile, not median: with an even count that is the mean of the middle two.
        samples["layer_angle_median"] = torch.stack(by_layer).quantile(0.5, dim=0)
    return _finite_intervals(samples)


def _finite_intervals(samples: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    intervals = {}
    for key, values in samples.items():
        low, high = central_interval(values).tolist()
        if math.isfinite(low) and math.isfinite(high):
            intervals[key] = (low, high)
    return intervals


def _linearization(
    now: Measurement,
    anchor: Anchor,
    moving: tuple[str, ...],
    weights: Tensor | None,
    left_out: dict[str, str],
) -> tuple[float | None, tuple[float, float] | None, str | None]:
    """``|f - f_0 - J_0 (theta - theta_0)| / |f - f_0|`` on the probe, with its interval."""
    change = now.outputs - anchor.outputs
    if not bool(change.any()):
        left_out["linearization_error"] = "the outputs on the probe did not change"
        return None, None, None
    try:
        linear, method = _linear_change(now, anchor, moving)
    except CoverageError as cause:
        left_out["linearization_error"] = str(cause)
        return None, None, None
    residual = (change - linear.to(change)).square().sum(dim=1)
    per_sample = change.square().sum(dim=1)
    error = float((residual.sum() / per_sample.sum()).sqrt())
    if not math.isfinite(error):
        left_out["linearization_error"] = "the linearized outputs overflow"
        return None, None, None
    if weights is None:
        return error, None, method
    samples = {"": residual_ratio_samples(residual, per_sample, weights)}
    return error, _finite_intervals(samples).get(""), method


def _linear_change(now: Measurement, anchor: Anchor, moving: tuple[str, ...]) -> tuple[Tensor, str]:
    problem = now.problem
    present = (
        norm_matched(problem.function, problem.inputs, moving, anchor.params)
        if moving
        else problem.function.params
    )
    moved = {
        name: present[name] - then
        for name, then in anchor.params.items()
        if then.is_floating_point() or then.is_complex()
    }
    start = {name: anchor.params[name] for name in moved}
    outputs_of = linearized_function(problem, moving, buffers=anchor.buffers)

    def in_float64() -> OutputsOf:
        function = problem.make(torch.float64)
        inputs = cast_inputs(problem.inputs, device=anchor.outputs.device, dtype=torch.float64)
        buffers = {
            name: b.double() if b.is_floating_point() else b for name, b in anchor.buffers.items()
        }
        return linearized_function(
            problem, moving, function=function, inputs=inputs, buffers=buffers
        )

    wide = anchor.outputs.device.type != "mps"
    product = jacobian_vector_product(
        outputs_of, start, moved, in_float64=in_float64 if wide else None
    )
    return product.change, product.method


def _displacement(now: Measurement, anchor: Anchor) -> dict[str, Any]:
    """Distances of the watched parameters from the anchor, in all and by layer."""
    params = now.problem.function.params
    moved2: dict[str, Tensor] = {}
    size2: dict[str, Tensor] = {}
    for name in now.problem.names:
        layer = layer_of(name)
        wide = widest_float(params[name].device)
        difference = (params[name] - anchor.params[name]).abs().to(wide).square().sum()
        size = anchor.params[name].abs().to(wide).square().sum()
        moved2[layer] = moved2.get(layer, 0) + difference
        size2[layer] = size2.get(layer, 0) + size
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
