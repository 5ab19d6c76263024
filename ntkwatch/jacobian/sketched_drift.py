"""How far a kernel has moved, from sketches: each number with its interval, and to a wanted error.

What a sketch is, and how one is drawn, is in ``sketch``; the estimators are in ``kernel.sketched``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.batch_function import batch_problem, is_coupled
from ntkwatch.jacobian.engine import check_choice
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec
from ntkwatch.jacobian.products import KernelProducts
from ntkwatch.jacobian.sketch import KernelSketch, check_comparable, draw_sketch
from ntkwatch.jacobian.spec import BatchNormMode
from ntkwatch.kernel.gram import offdiag
from ntkwatch.kernel.sketched import Estimate, drift_of_grams, drift_of_images

__all__ = ["DriftNumber", "SketchedDrift", "drift_within", "sketched_drift"]

DriftNumber = Literal["relative_change", "scale", "angle"]

_START = 8  # columns to begin with: fewer seldom do, and their intervals are the least sure


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchedDrift:
    """How far a kernel is from a reference, as far as a sketch can tell.

    Attributes:
        relative_change: ``|K - R|_F / |R|_F``, no unit.
        scale: ``ln(<K, R> / <R, R>)``, no unit.
        angle: Between the two kernels, radians in [0, pi/2].
        layer_angle: Per module, the angle of its part; None where that part is zero. Two-sided
            sketches only.
        columns: Random columns m that this rests on.
        level: Share of intervals that hold the true value, over choices of the columns. Points of
            the batch are taken as given.
        shortfall: Why a wanted error was not reached, or None.
    """

    relative_change: Estimate
    scale: Estimate
    angle: Estimate
    layer_angle: dict[str, Estimate | None] = field(default_factory=dict)
    columns: int
    level: float
    shortfall: str | None = None


def sketched_drift(
    sketch: KernelSketch, reference: KernelSketch, *, level: float = 0.95
) -> SketchedDrift:
    """Return how far a kernel is from a reference, with intervals.

    Args:
        sketch: Of the kernel now.
        reference: Of the reference, with the same settings on the same inputs. Where one of the two
            has more columns, those that both have are used.
        level: Share of intervals that hold the true value.

    Returns:
        The drift.

    Raises:
        KernelMismatchError: If the two cannot be compared, or the reference is zero.
    """
    check_comparable(sketch, reference)
    columns = min(sketch.columns, reference.columns)
    now, then = sketch.first(columns), reference.first(columns)
    if now.images is not None and then.images is not None:
        estimate = drift_of_images(now.images, then.images, level=level)
    else:
        estimate = drift_of_grams(now.gram, then.gram, level=level)
    return SketchedDrift(
        relative_change=estimate.relative_change,
        scale=estimate.scale,
        angle=estimate.angle,
        layer_angle={
            layer: _angle_of(now.layers[layer], part, level) for layer, part in then.layers.items()
        },
        columns=columns,
        level=level,
    )


def drift_within(
    model: nn.Module,
    inputs: Inputs,
    reference: KernelSketch,
    *,
    number: DriftNumber = "angle",
    relative_error: float = 0.1,
    forward: ForwardFn | None = None,
    outputs: OutputsSpec = "full",
    params: str | Sequence[str] | None = None,
    batchnorm: BatchNormMode = "batch",
    dtype: torch.dtype | None = None,
    memory_budget: str | int = "1GiB",
    level: float = 0.95,
) -> tuple[KernelSketch, SketchedDrift]:
    """Return the drift of a model's kernel with as many columns as a wanted error takes.

    Columns are doubled until half the interval is within ``relative_error`` of the value, at most
    to those of the reference: sketch that one with the most columns that you would ever pay for.

    Args:
        model: The model now.
        inputs: The batch of the reference.
        reference: Sketch to compare with; form and seed are taken from it.
        number: Whose error counts.
        relative_error: Wanted half width of the interval, as a share of the value.
        forward: As for the reference, like all that follow.
        outputs: As for the reference.
        params: As for the reference.
        batchnorm: As for the reference.
        dtype: As for the reference.
        memory_budget: As in ``sketch_kernel``.
        level: Share of intervals that hold the true value.

    Returns:
        The sketch now and the drift. If the error was not reached, ``shortfall`` says so.

    Raises:
        InputError: If settings cannot be used.
    """
    check_choice("number", number, ("relative_change", "scale", "angle"))
    if not relative_error > 0:
        raise InputError(
            f"relative_error={relative_error} can never be reached by a sketch. Give a share such "
            "as 0.1."
        )
    budget = parse_bytes(memory_budget)
    with batch_problem(
        model,
        inputs,
        forward=forward,
        outputs=outputs,
        params=params,
        batchnorm=batchnorm,
        dtype=dtype,
    ) as problem:
        coupled = is_coupled(problem)
        products = KernelProducts(problem, budget=budget, coupled=coupled)
        sketch, columns = None, min(_START, reference.columns)
        while True:
            sketch = draw_sketch(
                products,
                columns=columns,
                form=reference.form,
                coupled=coupled,
                budget=budget,
                seed=reference.seed,
                known=sketch,
            )
            drift = sketched_drift(sketch, reference, level=level)
            error = _relative_error(getattr(drift, number))
            if bool(error <= relative_error):
                return sketch, drift
            if columns == reference.columns:
                break
            columns = min(2 * columns, reference.columns)
    words = (
        f"the {number} is known to {float(error):.1%} after all {columns} columns that the "
        f"reference has, and {relative_error:.1%} was wanted. Sketch the reference with more "
        "columns: the error falls with the square root of their number."
    )
    return sketch, replace(drift, shortfall=words)


def _angle_of(now: Tensor, then: Tensor, level: float) -> Estimate | None:
    if not bool(offdiag(then).any()) or not bool(offdiag(now).any()):
        return None
    return drift_of_grams(now, then, level=level).angle


def _relative_error(estimate: Estimate) -> Tensor:
    """Half the interval as a share of the value; 0 for a value that is exactly 0."""
    half = (estimate.high - estimate.low) / 2
    return torch.where(half == 0, half, half / estimate.value.abs())
