"""A sketch in the place of a kernel: for samples that are coupled, and for what cannot be held.

It is taken where it was asked for, or where "auto" finds no kernel to hold. What it says of a
kernel are estimates, each with an interval over the random columns, and it is never passed off as
anything else.
"""

import math
from typing import Any

import torch

from ntkwatch.errors import KernelMismatchError
from ntkwatch.jacobian.batch_function import of_all_outputs
from ntkwatch.jacobian.inputs import count_samples
from ntkwatch.jacobian.memory import is_too_large, kernel_bytes
from ntkwatch.jacobian.outputs import OutputsSpec
from ntkwatch.jacobian.problem import Problem
from ntkwatch.jacobian.products import KernelProducts
from ntkwatch.jacobian.sketch import KernelSketch, draw_sketch
from ntkwatch.jacobian.sketched_drift import SketchedDrift, sketched_drift
from ntkwatch.kernel.gram import offdiag
from ntkwatch.kernel.sketched import Estimate

__all__ = ["COLUMNS", "sketch_drift", "sketch_floors", "take_sketch", "too_large"]

# The angle then has a standard error of 6 to 8 % in a lazy run and less in a rich one, for as many
# backward passes; the error falls with the square root of their number.
COLUMNS = 64


def too_large(problem: Problem, budget: int) -> str | None:
    """Return why a kernel cannot be held, or None if it can.

    Args:
        problem: Model and probe.
        budget: Bytes.

    Returns:
        The reason in words.
    """
    n, reduction = count_samples(problem.inputs), problem.reduction
    rows = n * (reduction.rows if reduction.full else 1)
    if not is_too_large(rows, rows, budget):
        return None
    return (
        f"the kernel of {rows} x {rows} entries takes {kernel_bytes(rows, rows) / 2**30:.1f} GiB "
        f"and memory_budget is {budget / 2**30:.2f} GiB"
    )


def take_sketch(
    problem: Problem, wanted: OutputsSpec, *, coupled: bool, budget: int
) -> KernelSketch:
    """Return a two-sided sketch of a kernel, which tells its layers apart.

    Args:
        problem: Model and probe.
        wanted: Setting of outputs. For "auto" all of them are taken, which costs a sketch no more
            than one does, while each direction of any other choice costs a pass of its own.
        coupled: Whether samples depend on each other.
        budget: Bytes.

    Returns:
        The sketch.
    """
    if wanted in ("auto", "auto:plain"):
        problem = of_all_outputs(problem)
    products = KernelProducts(problem, budget=budget, coupled=coupled)
    return draw_sketch(products, columns=COLUMNS, form="two-sided", coupled=coupled, budget=budget)


def sketch_drift(
    now: KernelSketch, then: KernelSketch, *, counted: set[str], left_out: dict[str, str]
) -> dict[str, Any]:
    """Return the fields of a reading that compare two kernels, as far as sketches tell them.

    Args:
        now: Of the present kernel.
        then: Of the anchor's.
        counted: Layers that enter the median.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name; "intervals" are over the choice of columns, and always there: an
        estimate without one says nothing.
    """
    try:
        drift = sketched_drift(now, then)
    except KernelMismatchError as error:
        left_out["kernel_angle"] = str(error)
        return {}
    found = {
        "relative_kernel_change": drift.relative_change,
        "kernel_scale": drift.scale,
        "kernel_angle": drift.angle,
    }
    angles = _layer_angles(drift, then, left_out)
    middle = [angle for layer, angle in angles.items() if angle is not None and layer in counted]
    if middle:
        found["layer_angle_median"] = _median(middle)
    else:
        left_out["layer_angle_median"] = "no layer with a matrix weight has a reference"
    known = {key: _finite(estimate) for key, estimate in found.items()}
    values: dict[str, Any] = {key: number[0] for key, number in known.items() if number is not None}
    if known["kernel_scale"] is None:
        left_out["kernel_scale"] = "the columns see the kernel as orthogonal to its reference"
    if "kernel_angle" in values:
        values["kernel_distance"] = 1 - math.cos(values["kernel_angle"])
    return {
        **values,
        "layer_angle": {
            layer: None if angle is None else float(angle.value) for layer, angle in angles.items()
        },
        "intervals": {key: number[1:] for key, number in known.items() if number is not None},
        "sketch_columns": drift.columns,
    }


def sketch_floors(again: KernelSketch, sketch: KernelSketch) -> dict[str, float]:
    """Return what the numbers of a sketch read between two that differ by rounding alone.

    Args:
        again: The sketch taken a second time.
        sketch: The first one.

    Returns:
        Floors by key; none for a kernel of zeros.
    """
    if not bool(offdiag(sketch.gram).any()):
        return {}
    drift = sketched_drift(again, sketch)
    floors = {
        "relative_kernel_change": float(drift.relative_change.value),
        "kernel_angle": float(drift.angle.value),
    }
    angles = [angle.value for angle in drift.layer_angle.values() if angle is not None]
    if angles:
        floors["layer_angle_median"] = float(torch.stack(angles).max())
    return floors


def _layer_angles(
    drift: SketchedDrift, then: KernelSketch, left_out: dict[str, str]
) -> dict[str, Estimate | None]:
    for layer, angle in drift.layer_angle.items():
        if angle is None:
            when = "now" if bool(offdiag(then.layers[layer]).any()) else "at the anchor"
            left_out[f"layer_angle/{layer}"] = f"its part of the kernel is zero {when}"
    return drift.layer_angle


def _median(angles: list[Estimate]) -> Estimate:
    """The median lies between the medians of the ends if each angle lies between its own."""
    ends = zip(*angles, strict=True)
    return Estimate(*(torch.stack(end).quantile(0.5) for end in ends))


def _finite(estimate: Estimate) -> tuple[float, float, float] | None:
    value, low, high = (float(end) for end in estimate)
    return (value, low, high) if all(map(math.isfinite, (value, low, high))) else None
