"""From two looks at a model, the anchor's and the present one, to a reading in plain numbers.

Here tensors become floats: one reading is one synchronisation with the device.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.acquaintance import Acquaintance, acquainted
from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.inputs import cast_inputs
from ntkwatch.jacobian.linearize import (
    METHODS,
    OutputsOf,
    jacobian_vector_product,
    unchecked_product,
)
from ntkwatch.jacobian.norm_matching import feeding_weights, norm_matched, with_norms_of
from ntkwatch.jacobian.parameters import layer_of
from ntkwatch.kernel.bootstrap import bootstrap_weights, residual_ratio_samples
from ntkwatch.kernel.gram import widest_float
from ntkwatch.watch.anchors import Anchor
from ntkwatch.watch.buffers import buffer_share, outputs_of_parameters, parameters_part
from ntkwatch.watch.describe import unjudged
from ntkwatch.watch.kernel_drift import finite_intervals, kernel_drift
from ntkwatch.watch.measure import Measurement, Settings, linearized_function
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.records import NOT_TAKEN, Reading
from ntkwatch.watch.task import change_target_correlation, task_rise

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
) -> Reading:
    """Return how far a model is from an anchor; call it inside ``undisturbed``.

    Args:
        now: The present look at the model.
        anchor: What is compared with.
        settings: Of the run.
        weights: Bootstrap weights for intervals, or None for what costs least: no intervals, and
            no second kernel where buffers moved.
        targets: Of the probe, or None.

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
    linear, error_interval = _linearization(
        now, outputs, anchor, settings.moving, weights, left_out
    )
    if error_interval is not None:
        intervals["linearization_error"] = error_interval
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


def _linearization(
    now: Measurement,
    outputs: Tensor,
    anchor: Anchor,
    moving: tuple[str, ...],
    weights: Tensor | None,
    left_out: dict[str, str],
) -> tuple[dict[str, Any], tuple[float, float] | None]:
    """``|f - f_0 - J_0 (theta - theta_0)| / |f - f_0|`` on the probe, with its interval."""
    change = outputs - anchor.outputs
    if not bool(change.any()):
        left_out["linearization_error"] = "the outputs on the probe did not change"
        return {}, None
    try:
        linear, method = _linear_change(now, anchor, moving)
    except CoverageError as cause:
        left_out["linearization_error"] = str(cause)
        return {}, None
    residual = (change - linear.to(change)).square().sum(dim=1)
    per_sample = change.square().sum(dim=1)
    error = float((residual.sum() / per_sample.sum()).sqrt())
    if not math.isfinite(error):
        left_out["linearization_error"] = "the linearized outputs overflow"
        return {}, None
    values = {
        "linearization_error": error,
        "linearization_error_centred": _centred_error(change, linear.to(change)),
        "linearization_method": method,
    }
    if weights is None:
        return values, None
    samples = {"": residual_ratio_samples(residual, per_sample, weights)}
    return values, finite_intervals(samples).get("")


def _centred_error(change: Tensor, linear: Tensor) -> float | None:
    """The same without the mean over samples, which a shift common to all of them would be."""
    left, own = ((part - part.mean(dim=0)).norm() for part in (change - linear, change))
    rounding = torch.finfo(change.dtype).eps * change.norm()
    return float(left / own) if bool(own > rounding) else None


def _common_share(change: Tensor) -> float | None:
    """How much of it is one shift of all samples: what a bias alone could have learned."""
    whole = change.square().sum()
    if not bool(whole > 0):
        return None
    return float(change.mean(dim=0).square().sum() * len(change) / whole)


def _linear_change(now: Measurement, anchor: Anchor, moving: tuple[str, ...]) -> tuple[Tensor, str]:
    problem = now.problem
    known = acquainted(problem.function.model, problem.use)
    present = _norm_matched(now, anchor, moving, known) if moving else problem.function.params
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

    # Whether forward mode is right is a matter of the model's operations, which stay what they are
    # from one observation to the next: it is checked ever more rarely.
    known.products += 1
    if known.linearized is not None and not _is_power_of_eight(known.products):
        return unchecked_product(known.linearized, outputs_of, start, moved), known.linearized
    wide = anchor.outputs.device.type != "mps"
    product = jacobian_vector_product(
        outputs_of, start, moved, in_float64=in_float64 if wide else None
    )
    known.linearized = product.method if product.method in METHODS else None
    return product.change, product.method


def _norm_matched(
    now: Measurement, anchor: Anchor, moving: tuple[str, ...], known: Acquaintance
) -> Params:
    """The present weights with norms as at the anchor where these make no difference."""
    problem, function = now.problem, now.problem.function
    # Whether they make one is looked at in whole observations, whose word a brief one takes for it.
    if now.left_out.get("kernel") == NOT_TAKEN and known.rescalable is not None:
        rescaled = with_norms_of(anchor.params, function.params, known.rescalable)
        return {**function.params, **rescaled}
    if known.feeding is None:
        known.feeding = tuple(feeding_weights(function, problem.inputs, moving))
    present = norm_matched(
        function,
        problem.inputs,
        moving,
        anchor.params,
        feeding=known.feeding,
        outputs=problem.on_batch if tuple(problem.batchnorms) == moving else None,
    )
    own = function.params
    known.rescalable = tuple(name for name in known.feeding if present[name] is not own[name])
    return present


def _is_power_of_eight(number: int) -> bool:
    return number & (number - 1) == 0 and number.bit_length() % 3 == 1


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
