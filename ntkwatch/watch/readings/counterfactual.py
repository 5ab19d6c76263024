"""Were features needed: what the kernel at the start would have told on samples held out.

Regression with the kernel at the start says what the network could have learned without moving its
features. No kernel between held-out and training samples is ever held: ``K(X*, X) w`` is one
backward pass over the training set and one forward-mode pass over the held-out samples, so that
the price is a few passes and the solves, whatever the number of held-out samples; and, once, the
decomposition of the kernel at the start, by which its ridge is chosen on the training set alone.
"""

from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import NonFiniteError, NtkwatchError
from ntkwatch.jacobian.inputs import count_samples, take
from ntkwatch.jacobian.problem import Problem
from ntkwatch.jacobian.products import KernelProducts
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.kernel.regression import ridge_weights
from ntkwatch.kernel.triple import Triple, score_classes, score_values
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.processes.apart import apart
from ntkwatch.watch.readings.held_out import HeldOut
from ntkwatch.watch.readings.measure import Measurement
from ntkwatch.watch.readings.target_values import as_values, name_classes
from ntkwatch.watch.readings.validity import Course, why_no_counterfactual, why_no_row_space

__all__ = ["held_out_numbers"]

# Of the change of outputs, which holds no noise: far below what training fits.
_GAP_RIDGE = 1e-6
# Rows of the kernel between outputs that are solved for in seconds.
_MOST_ROWS = 4000
_CHUNK = 256  # samples in one forward pass


def held_out_numbers(
    now: Measurement, start: Anchor, course: Course, left_out: dict[str, str]
) -> dict[str, Any]:
    """Return how the network and regression with its kernels do on held-out samples.

    Args:
        now: The present look at the model.
        start: The reference.
        course: What is known of the training; the probe is the training set.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name.
    """
    held_out = course.held_out
    if held_out is None or held_out.batch.targets is None:
        return {}
    classes = name_classes(held_out.batch.targets, now.outputs.shape[1])
    kind = "acc" if classes else "score"
    keys = ("representer_gap", f"{kind}_net", f"{kind}_kernel_ref", f"{kind}_kernel_final")
    reason = why_no_counterfactual(course) or _why_no_solve(now, start)
    if reason is None:
        model = now.problem.function.model
        try:
            with undisturbed(model), apart(model):
                return _compared(now, start, course, held_out, classes, left_out)
        except NtkwatchError as error:
            reason = str(error)
    left_out.update(dict.fromkeys(keys, reason))
    return {}


def _why_no_solve(now: Measurement, start: Anchor) -> str | None:
    if start.full is None or now.kernel is None or now.kernel.matrix.ndim != 4:
        return "the kernel between outputs is not kept: it takes outputs='full'"
    if now.outputs.numel() > _MOST_ROWS:
        return (
            f"the kernel has {now.outputs.numel()} rows, and regression is in reach up to "
            f"{_MOST_ROWS}"
        )
    return None


def _compared(
    now: Measurement,
    start: Anchor,
    course: Course,
    held_out: HeldOut,
    classes: bool,
    left_out: dict[str, str],
) -> dict[str, Any]:
    assert start.full is not None
    assert now.kernel is not None
    assert course.probe.targets is not None
    batch = held_out.batch
    assert batch.targets is not None
    budget = course.settings.budget
    first = now.problem.at(start.params).with_buffers(start.buffers)
    f0, f = start.outputs, now.outputs
    there, here = first.on(batch.inputs), now.problem.on(batch.inputs)
    f0_test, f_test = _outputs(there).to(f), _outputs(here).to(f)
    wanted, test = as_values(course.probe.targets, f), as_values(batch.targets, f_test)

    def predicted(kernel: Tensor, values: Tensor, on: Problem, to: Problem, ridge: float) -> Tensor:
        weights = ridge_weights(kernel, values, ridge=ridge)
        step = KernelProducts(on, budget=budget, coupled=False).pull(
            weights.reshape(len(weights), -1).to(on.function.dtype)
        )
        return KernelProducts(to, budget=budget, coupled=False).push(step).to(f)

    ridge = held_out.ridge_for(start.full, wanted - f0)
    frozen = f0_test + predicted(start.full, wanted - f0, first, there, ridge)
    after = predicted(now.kernel.matrix, wanted, now.problem, here, ridge)
    score = score_classes if classes else score_values
    found = score(f_test, frozen, after, test)
    names = found._fields[:3]
    values: dict[str, Any] = {name: float(getattr(found, name)) for name in names}
    facts = {
        "n_train": float(len(wanted)),
        "n_test": float(len(test)),
        "ridge": ridge,
        "gain_se": float(found.gain_se),
    }
    if isinstance(found, Triple):
        own = ("net_se", "kernel_ref_se", "kernel_final_se")
        facts |= dict(zip(own, found.se.tolist(), strict=True))
    values["held_out"] = facts
    reason = why_no_row_space(course)
    change = f_test - f0_test
    if reason is None and not bool(change.any()):
        reason = "the outputs on the held-out samples did not change"
    if reason is None:
        rest = change - predicted(start.full, f - f0, first, there, _GAP_RIDGE)
        values["representer_gap"] = float(rest.norm() / change.norm())
    else:
        left_out["representer_gap"] = reason
    return values


def _outputs(problem: Problem) -> Tensor:
    parts = []
    with torch.no_grad():
        for begin in range(0, count_samples(problem.inputs), _CHUNK):
            few = take(problem.inputs, slice(begin, begin + _CHUNK))
            parts.append(problem.reduction.flatten(problem.function({}, few, problem.buffers)))
    outputs = torch.cat(parts)
    if not bool(torch.isfinite(outputs).all()):
        raise NonFiniteError(
            f"the outputs on the {len(outputs)} held-out samples are NaN or infinite, so they "
            "cannot be scored. Look for samples with NaN, or weights that diverged."
        )
    return outputs
