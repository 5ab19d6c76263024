"""Numbers that mean something on the whole training set only: what a frozen kernel would have done.

Each is left out, with the reason, where the training is not of the kind that it speaks of.
"""

from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import NtkwatchError
from ntkwatch.kernel.descent import gradient_flow_bound, square_loss_curvature, time_to_loss
from ntkwatch.kernel.gram import flatten_kernel
from ntkwatch.kernel.modes import (
    Modes,
    eigenmodes,
    mode_prediction_error,
    predicted_modes,
    residual_modes,
)
from ntkwatch.kernel.regression import displacement_ratio
from ntkwatch.kernel.spectrum import min_eigenvalue
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.readings.measure import Measurement
from ntkwatch.watch.readings.validity import Course, why_no_descent, why_no_row_space

__all__ = ["whole_set_numbers"]

# Of the shortest move, as a share of the mean eigenvalue: far below what training fits.
_RIDGE = 1e-6
# The loss that the gradient-flow bound is asked the time for, as a share of that at the start.
_REACHED = 0.01
_DESCENT = ("residual_modes", "gradient_flow_bound")


def whole_set_numbers(
    now: Measurement,
    start: Anchor,
    course: Course,
    *,
    step: int,
    displacement: float | None,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """Return the numbers that take the whole training set.

    Args:
        now: The present look at the model.
        start: The reference.
        course: What is known of the training.
        step: Optimizer steps taken so far.
        displacement: Of the weights since the reference.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name.
    """
    values = _ratio(now, start, course, displacement, left_out)
    reason = why_no_descent(course)
    if reason is None and start.full is None:
        reason = _NO_FULL
    if reason is not None:
        left_out.update(dict.fromkeys(_DESCENT, reason))
        return values
    assert start.full is not None
    targets = course.probe.targets
    assert targets is not None
    wanted = targets.to(now.outputs).reshape(len(now.outputs), -1)
    if not bool(torch.isfinite(wanted).all()):
        reason = "the targets of the probe hold NaN or infinity"
    elif wanted.shape != now.outputs.shape:
        reason = (
            f"targets of {wanted.shape[1]} numbers do not fit {now.outputs.shape[1]} outputs "
            "of each sample"
        )
    if reason is not None:
        left_out.update(dict.fromkeys(_DESCENT, reason))
        return values
    modes = eigenmodes(flatten_kernel(start.full))
    residuals = now.outputs - wanted, start.outputs.to(wanted) - wanted
    taken = step - start.step
    values |= _modes(modes, residuals, course, taken, left_out)
    values |= _bound(modes, residuals[1], course, taken, left_out)
    return values


_NO_FULL = "the kernel between outputs at the start is not kept: it takes outputs='full'"


def _ratio(
    now: Measurement,
    start: Anchor,
    course: Course,
    displacement: float | None,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """The move over the shortest one that frozen features need for the same outputs."""
    reason = why_no_row_space(course)
    change = now.outputs - start.outputs
    if reason is None and start.full is None:
        reason = _NO_FULL
    if reason is None and not bool(change.any()):
        reason = "the outputs on the probe did not change"
    if reason is None and displacement is not None and start.full is not None:
        moved = torch.tensor(displacement, dtype=change.dtype, device=change.device)
        try:
            ratio = float(displacement_ratio(moved, start.full, change, ridge=_RIDGE))
        except NtkwatchError as error:
            reason = str(error)
        else:
            return {"displacement_ratio": ratio, "displacement_ratio_ridge": _RIDGE}
    left_out["displacement_ratio"] = reason or "the weights have no displacement"
    return {}


def _modes(
    modes: Modes,
    residuals: tuple[Tensor, Tensor],
    course: Course,
    steps: int,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """The residual on the leading modes of the start, beside what a frozen kernel leaves of it."""
    training, sgd, rate = course.now, course.now.sgd, course.now.learning_rate
    assert training.square_loss is not None
    assert sgd is not None
    assert rate is not None
    n, c = residuals[0].shape
    found, begun = (residual_modes(modes, r.reshape(-1, 1)) for r in residuals)
    predicted = predicted_modes(
        modes,
        begun,
        learning_rate=rate,
        steps=steps,
        curvature=square_loss_curvature(training.square_loss, samples=n, outputs=c),
        sgd=sgd,
    )
    error = mode_prediction_error(found, predicted)
    if not bool(torch.isfinite(error)):
        left_out["residual_modes"] = "a frozen kernel would have diverged at this learning rate"
        return {}
    k = course.settings.top_k
    return {
        "residual_modes": tuple(found[:k, 0].abs().tolist()),
        "predicted_modes": tuple(predicted[:k, 0].abs().tolist()),
        "mode_prediction_error": float(error),
    }


def _bound(
    modes: Modes, residual: Tensor, course: Course, steps: int, left_out: dict[str, str]
) -> dict[str, Any]:
    """What gradient flow on a frozen kernel guarantees of the loss, and by when."""
    training, rate, loss = course.now, course.now.learning_rate, course.now.square_loss
    assert loss is not None
    assert rate is not None
    if training.momentum:
        left_out["gradient_flow_bound"] = "momentum is not gradient flow"
        return {}
    n, c = residual.shape
    smallest = min_eigenvalue(modes.values, precision=course.settings.dtype)
    if not bool(torch.isfinite(smallest)):
        left_out["gradient_flow_bound"] = "the smallest eigenvalue is at the rounding floor"
        return {}
    curvature = square_loss_curvature(loss, samples=n, outputs=c)
    initial = curvature * residual.square().sum() / 2
    time = torch.as_tensor(rate * steps, dtype=initial.dtype, device=initial.device)
    bound = gradient_flow_bound(initial, smallest, time=time, curvature=curvature)
    needed = time_to_loss(initial, smallest, target=_REACHED * initial, curvature=curvature)
    return {
        "gradient_flow_bound": float(bound),
        "gradient_flow_steps": float(needed) / rate if rate > 0 else None,
    }
