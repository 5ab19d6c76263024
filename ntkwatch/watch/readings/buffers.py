"""Buffers that training moves, and what is left of a drift when they are put back.

Running averages of a BatchNorm, the vectors of a spectral norm, the entries of a codebook: a
training step writes them, no gradient does, and a kernel that moves because they moved says
nothing about features. So outputs are compared with the anchor's buffers in place, and a kernel
that reads moving buffers is computed once more with the anchor's.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ntkwatch.errors import NonFiniteError
from ntkwatch.jacobian.batchnorm import batch_statistics, unread_buffers
from ntkwatch.kernel.gram import check_finite
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.readings.kernel_drift import kernel_drift
from ntkwatch.watch.readings.measure import Measurement, Settings, kernel_of, linearized_function
from ntkwatch.watch.readings.sketching import take_sketch
from ntkwatch.watch.record.records import Reading

__all__ = ["buffer_share", "outputs_of_parameters", "parameters_part"]


def outputs_of_parameters(now: Measurement, anchor: Anchor, moving: tuple[str, ...]) -> Tensor:
    """Return the present outputs, with buffers as they were at the anchor.

    ``f(theta_t; b_0)``: with the present buffers, ``J_0`` would not be the derivative of the
    function that is compared.

    Args:
        now: The present look at the model.
        anchor: What is compared with.
        moving: BatchNorms that training runs on batch statistics, as these outputs do.

    Returns:
        Outputs, (N, C), in the widest float.
    """
    unread = unread_buffers(now.problem.function.model, moving)
    if not _moved(now, anchor, unread):
        return now.outputs
    buffers = now.problem.function.own_buffers(anchor.buffers)
    with torch.no_grad():
        outputs = linearized_function(now.problem, moving, buffers=buffers)({})
    return outputs.to(now.outputs)


def parameters_part(
    now: Measurement,
    anchor: Anchor,
    settings: Settings,
    weights: Tensor | None,
) -> Reading | None:
    """Return the drift of ``K(theta_t, b_0)``: the present parameters, the anchor's buffers.

    Args:
        now: The present look at the model.
        anchor: What is compared with.
        settings: Of the run.
        weights: Bootstrap weights; None where such a kernel would be too dear.

    Returns:
        A reading with the numbers that compare kernels, or None where no buffer that the kernel
        reads has moved, so that all of the drift is the parameters'.
    """
    kernels = now.kernel is not None and anchor.kernel is not None
    sketches = now.sketch is not None and anchor.sketch is not None
    if not kernels and not sketches:
        return None
    moved = _moved_and_read(now, anchor)
    if not moved:
        return None
    keys = ("relative_kernel_change", "layer_angle_median")
    if weights is None:
        why = "moving buffers changed, and metrics='minimal' does not tell their part"
        return _without_numbers(anchor, moved, dict.fromkeys(keys, why))
    try:
        held = _with_buffers_of(anchor, now, settings)
    except NonFiniteError as error:
        return _without_numbers(anchor, moved, dict.fromkeys(keys, str(error)))
    left_out: dict[str, str] = {}
    drift = kernel_drift(held, anchor, weights, left_out)
    return replace(_without_numbers(anchor, moved, left_out), **drift)


def buffer_share(change: float | None, of_parameters: float | None) -> float | None:
    """Return the part of a kernel's drift that moving buffers make.

    ``1 - |K(theta_t, b_0) - K_0| / |K(theta_t, b_t) - K_0|``, with ``b`` the buffers that the
    kernel reads and training steps write, and ``K_0 = K(theta_0, b_0)``.

    Args:
        change: Relative kernel change, ``|K(theta_t, b_t) - K_0| / |K_0|``.
        of_parameters: The same with the anchor's buffers.

    Returns:
        A number without unit in (-inf, 1]: 1 where buffers made all of the drift, 0 where they
        made none, negative where they hide some of the parameters'. None without a drift.
    """
    if not change or of_parameters is None:
        return None
    return 1 - of_parameters / change


def _with_buffers_of(anchor: Anchor, now: Measurement, settings: Settings) -> Measurement:
    """The same look with the kernel, or its sketch, that the anchor's buffers give."""
    problem = now.problem.with_buffers(anchor.buffers)
    if now.sketch is None:
        kernel = kernel_of(problem, settings)
        check_finite(kernel.matrix)
        return replace(now, kernel=kernel)
    sketch = take_sketch(
        problem, settings.outputs, coupled=now.sketch.coupled, budget=settings.budget
    )
    return replace(now, sketch=sketch)


def _without_numbers(anchor: Anchor, moved: list[str], left_out: dict[str, str]) -> Reading:
    return Reading(anchor_step=anchor.step, moving_buffers=tuple(moved), left_out=left_out)


def _moved_and_read(now: Measurement, anchor: Anchor) -> list[str]:
    """Names of buffers that have moved, if the kernel's forward pass reads any of them."""
    problem = now.problem
    model, on_batch = problem.function.model, problem.batchnorms if problem.spec.coupled else ()
    moved = _moved(now, anchor, unread_buffers(model, on_batch) | set(problem.buffers))
    if not moved:
        return []
    with torch.no_grad(), batch_statistics(model, on_batch):
        present = problem.function({}, problem.inputs, problem.buffers)
        held = problem.function({}, problem.inputs, problem.with_buffers(anchor.buffers).buffers)
    return [] if torch.equal(present, held) else moved


def _moved(now: Measurement, anchor: Anchor, unread: set[str]) -> list[str]:
    """Names of all other buffers that have changed since the anchor."""
    function = now.problem.function
    then = function.own_buffers(anchor.buffers)
    names = [name for name in then if name not in unread]
    # One synchronisation with the device for all of them.
    differ = [_differs(then[name], function.buffers[name]) for name in names]
    if not differ:
        return []
    together = torch.stack([d.to(differ[0].device) for d in differ]).tolist()
    return [name for name, d in zip(names, together, strict=True) if d]


def _differs(then: Tensor, now: Tensor) -> Tensor:
    """NaN that stays NaN has not changed."""
    return ((then != now) & ((then == then) | (now == now))).any()
