"""The largest stable learning rate in the user's own units, and how near to it training is."""

import math
from typing import Any

from torch import Tensor

from ntkwatch.errors import InputError, NtkwatchError
from ntkwatch.kernel.stability import (
    edge_of_stability,
    max_stable_lr,
    sharpness,
    sharpness_bracket,
)
from ntkwatch.watch.readings.measure import Measurement
from ntkwatch.watch.readings.validity import Course, why_no_stable_rate

__all__ = ["rate_numbers"]

_KEYS = ("max_stable_lr", "edge_of_stability")


def rate_numbers(now: Measurement, course: Course, left_out: dict[str, str]) -> dict[str, Any]:
    """Return the stable rate of the present kernel, and the share of it that is in use.

    Args:
        now: The present look at the model.
        course: What is known of the training.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name.
    """
    if now.kernel is None:
        return {}
    reason = why_no_stable_rate(course)
    bounds: dict[str, Any] = {}
    if reason is None and now.kernel.matrix.ndim != 4:
        reason = "it takes the kernel between outputs (outputs='full')"
        bounds = _bounds(now, course)
    if reason is None:
        try:
            return _rates(now, now.kernel.matrix, course, left_out)
        except NtkwatchError as error:
            reason = str(error)
    left_out.update(dict.fromkeys(_KEYS, reason))
    return bounds


def _bounds(now: Measurement, course: Course) -> dict[str, Any]:
    """Between which rates the largest stable one lies, as far as the trace kernel tells."""
    training, reduction = course.now, now.problem.reduction.name
    assert now.kernel is not None
    assert training.loss_function is not None
    assert training.sgd is not None
    if reduction != "trace" or len(now.problem.spec.output_shape) != 1:
        return {}
    low, high = sharpness_bracket(
        now.kernel.matrix,
        outputs=now.problem.spec.output_count,
        loss=training.loss_function,
        samples=None if training.loss_function.endswith("mean") else training.batch_size,
    )
    if low <= 0:  # cross-entropy is flat for sure outputs
        return {}
    rates = (max_stable_lr(end, sgd=training.sgd) for end in (high, low))
    return {"max_stable_lr_bounds": tuple(float(rate) for rate in rates)}


def _rates(
    now: Measurement, kernel: Tensor, course: Course, left_out: dict[str, str]
) -> dict[str, Any]:
    training = course.now
    assert training.loss_function is not None
    assert training.sgd is not None
    probabilities = None
    if training.loss_function.startswith("cross-entropy"):
        if len(now.problem.spec.output_shape) != 1:
            raise InputError(
                f"each sample has outputs of shape {now.problem.spec.output_shape}, so the "
                "cross-entropy is over several positions, whose number per step is not known."
            )
        probabilities = now.outputs.softmax(dim=1)
    size = training.batch_size
    top = sharpness(
        kernel,
        loss=training.loss_function,
        probabilities=probabilities,
        # Batches may be smaller than the probe; a mean does not care.
        samples=None if training.loss_function.endswith("mean") else size,
    )
    stable = float(max_stable_lr(top, sgd=training.sgd))
    if not math.isfinite(stable):
        left_out.update(dict.fromkeys(_KEYS, "the loss has no curvature at these weights"))
        return {}
    values: dict[str, Any] = {"max_stable_lr": stable}
    if training.learning_rate is None:
        left_out["edge_of_stability"] = "the learning rate is not the same for all parameters"
    else:
        edge = edge_of_stability(training.learning_rate, top, sgd=training.sgd)
        values["edge_of_stability"] = float(edge)
    return values
