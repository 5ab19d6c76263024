"""How far outputs left those of the model linearized at an anchor, as it was or as decay left it.

Kernels are another file's business; so is where an anchor comes from.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.acquaintance import Acquaintance, acquainted
from ntkwatch.jacobian.exchanged import put_in_place
from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.inputs import cast_inputs
from ntkwatch.jacobian.linearize import (
    EXACT,
    Linearized,
    OutputsOf,
    jacobian_vector_product,
    unchecked_product,
)
from ntkwatch.jacobian.norm_matching import feeding_weights, norm_matched, with_norms_of
from ntkwatch.jacobian.sharded import ShardedFunction
from ntkwatch.jacobian.sharded_linearize import sharded_product
from ntkwatch.kernel.bootstrap import residual_ratio_samples
from ntkwatch.kernel.sizes import squared_norm
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.readings.decay import Shrunk
from ntkwatch.watch.readings.kernel_drift import finite_intervals
from ntkwatch.watch.readings.measure import Measurement, Settings, linearized_function
from ntkwatch.watch.record.records import NOT_TAKEN

__all__ = ["Departure", "decayed", "departure", "linearization"]

_NO_CHANGE = "the outputs on the probe did not change"
_OVERFLOW = "the linearized outputs overflow"


class Departure(NamedTuple):
    """How outputs moved from an anchor, and how the linearized model's did.

    Attributes:
        change: ``f - f_0``, (N, C).
        linear: ``J_0 (theta - theta_0)``.
        method: How that was computed.
    """

    change: Tensor
    linear: Tensor
    method: str

    @property
    def error(self) -> Tensor:
        """``|change - linear| / |change|``, no unit, in [0, inf); NaN without a change."""
        return (self.change - self.linear).norm() / self.change.norm()

    @property
    def error_centred(self) -> float | None:
        """The same without the mean over samples, which a shift common to all of them would be."""
        residual = self.change - self.linear
        left, own = ((part - part.mean(dim=0)).norm() for part in (residual, self.change))
        rounding = torch.finfo(self.change.dtype).eps * self.change.norm()
        return float(left / own) if bool(own > rounding) else None

    def interval(self, weights: Tensor | None) -> tuple[float, float] | None:
        """A central 95 % interval of the error over the choice of samples, if one is wanted."""
        if weights is None:
            return None
        residual = (self.change - self.linear).square().sum(dim=1)
        samples = residual_ratio_samples(residual, self.change.square().sum(dim=1), weights)
        return finite_intervals({"": samples}).get("")


def linearization(
    now: Measurement,
    outputs: Tensor,
    anchor: Anchor,
    settings: Settings,
    weights: Tensor | None,
    shrunk: Shrunk,
    left_out: dict[str, str],
) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """Return the linearization errors around an anchor, as it was and as decay left it.

    Args:
        now: The present look at the model.
        outputs: Of the present parameters with the anchor's buffers, (N, C).
        anchor: What is compared with.
        settings: Of the run.
        weights: Bootstrap weights for intervals, or None.
        shrunk: What weight decay alone would have left of the anchor's weights.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Fields of a reading, and intervals by field.
    """
    key, beside = "linearization_error", "linearization_error_decayed"
    if shrunk.why_not is not None:
        left_out[beside] = shrunk.why_not
    found = _departure_or_why(now, outputs, anchor, settings, None)
    if isinstance(found, str):
        left_out[key] = found
        return {}, {}
    values: dict[str, Any] = {
        key: float(found.error),
        "linearization_error_centred": found.error_centred,
        "linearization_method": found.method,
    }
    intervals = {key: found.interval(weights)}
    if shrunk.factors and not now.problem.function.replaceable:
        left_out[beside] = "weights that are sharded cannot be put where decay alone leaves them"
    elif shrunk.factors:
        there = decayed(now, anchor, settings, shrunk.factors)
        around = _departure_or_why(now, outputs, there, settings, found.method)
        values["decayed_norm_ratio"] = _norm(now, there) / _norm(now, anchor)
        if isinstance(around, str):
            left_out[beside] = around
        else:
            values[beside] = float(around.error)
            values["output_change_decayed"] = float(around.change.square().mean().sqrt())
            intervals[beside] = around.interval(weights)
    return values, {name: pair for name, pair in intervals.items() if pair is not None}


def departure(
    now: Measurement,
    outputs: Tensor,
    anchor: Anchor,
    settings: Settings,
    method: str | None = None,
) -> Departure:
    """Return how outputs left an anchor's, beside how the linearized model's did.

    Args:
        now: The present look at the model.
        outputs: Of the present parameters with the anchor's buffers, (N, C).
        anchor: What is compared with.
        settings: Of the run.
        method: One that was checked at another anchor of this model, which costs a third; or None.

    Returns:
        Both changes.
    """
    linear = _linear_change(now, anchor, settings, method)
    return Departure(outputs - anchor.outputs, linear.change.to(outputs), linear.method)


def decayed(
    now: Measurement, anchor: Anchor, settings: Settings, factors: dict[str, float]
) -> Anchor:
    """Return an anchor as weight decay alone would have left it, ``c theta_0``, with its outputs.

    Args:
        now: Any look at the model.
        anchor: As it was.
        settings: Of the run.
        factors: ``c`` by parameter name.

    Returns:
        The anchor with other parameters and outputs; its kernel is as it was.
    """
    params = {
        name: then * factors[name] if name in factors else then
        for name, then in anchor.params.items()
    }
    buffers = now.problem.function.own_buffers(anchor.buffers)
    with torch.no_grad():
        outputs = linearized_function(now.problem, settings.moving, buffers=buffers)(params)
    return replace(anchor, params=params, outputs=outputs.to(anchor.outputs))


def _departure_or_why(
    now: Measurement, outputs: Tensor, anchor: Anchor, settings: Settings, method: str | None
) -> Departure | str:
    """The departure, or why its error is not defined."""
    if not bool((outputs != anchor.outputs).any()):
        return _NO_CHANGE
    try:
        found = departure(now, outputs, anchor, settings, method)
    except CoverageError as cause:
        return str(cause)
    return found if math.isfinite(float(found.error)) else _OVERFLOW


def _norm(now: Measurement, anchor: Anchor) -> float:
    """Of the watched parameters."""
    sizes = [squared_norm(anchor.params[name]) for name in now.problem.names]
    return float(torch.stack(sizes).sum().sqrt())


def _linear_change(
    now: Measurement, anchor: Anchor, settings: Settings, method: str | None
) -> Linearized:
    problem, moving = now.problem, settings.moving
    if isinstance(problem.function, ShardedFunction):
        return _change_from_shards(now, problem.function, anchor, settings)
    known = acquainted(problem.function.model, problem.use)
    present = _norm_matched(now, anchor, moving, known) if moving else problem.function.params
    moved = {
        name: present[name] - then
        for name, then in anchor.params.items()
        if then.is_floating_point() or then.is_complex()
    }
    start = {name: anchor.params[name] for name in moved}
    outputs_of = linearized_function(problem, moving, buffers=anchor.buffers)
    if method in EXACT:
        return Linearized(unchecked_product(method, outputs_of, start, moved), method)

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
        change = unchecked_product(known.linearized, outputs_of, start, moved)
        return Linearized(change, known.linearized)
    wide = anchor.outputs.device.type != "mps"
    product = jacobian_vector_product(
        outputs_of, start, moved, in_float64=in_float64 if wide else None
    )
    known.linearized = product.method if product.method in EXACT else None
    return product


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


def _change_from_shards(
    now: Measurement, function: ShardedFunction, anchor: Anchor, settings: Settings
) -> Linearized:
    """The same where each process holds shards of the weights, now and at the anchor."""
    odd = [name for name, then in anchor.params.items() if then.is_complex()]
    if settings.moving or odd:
        what = f"{len(settings.moving)} BatchNorms on batch statistics" if not odd else odd[0]
        raise CoverageError(
            f"the linearization error with {what} takes whole weights, to rescale or to view as "
            "real numbers, and those of this model are sharded over processes. Compare saved "
            "checkpoints in one process."
        )
    params, problem = function.params, now.problem
    moved = {n: params[n] - then for n, then in anchor.params.items() if then.is_floating_point()}
    buffers = function.own_buffers(anchor.buffers)
    with put_in_place(function.model, anchor.params):
        there = problem.at(anchor.params).function
        assert isinstance(there, ShardedFunction)
        return sharded_product(
            there, problem.inputs, buffers, problem.reduction, moved, settings.budget
        )
