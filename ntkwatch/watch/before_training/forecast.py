"""Before training: will this model, on this data, train lazily?

The model with frozen features would go a way that its kernel at the start gives in full, at every
time. This puts the network where that model would be at a stated loss, and looks whether it still
is that model there. Stopped early, since the end of that way hangs on the smallest eigenvalues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.batchnorm import moving_batchnorms
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import jacobian_dtype
from ntkwatch.jacobian.inputs import Inputs, count_samples
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.parameters import check_finite_parameters, layer_of, select_parameters
from ntkwatch.jacobian.problem import Problem, prepare
from ntkwatch.jacobian.spec import EngineName, Kernel
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.kernel.drift import kernel_angle, relative_kernel_change
from ntkwatch.kernel.frozen import FrozenTraining, frozen_training
from ntkwatch.kernel.layers import layer_angle_median, layer_angles
from ntkwatch.kernel.regression import apply_kernel
from ntkwatch.watch.before_training.frozen_way import FrozenWay, Place, outputs_of
from ntkwatch.watch.processes.apart import apart
from ntkwatch.watch.readings.target_values import as_values
from ntkwatch.watch.record.records import Reading
from ntkwatch.watch.verdict.bands import Bands, Strength
from ntkwatch.watch.verdict.label import label_reading

__all__ = ["Forecast", "ForecastPoint", "forecast"]

# Of the loss at the start; the last one is what the answer is about.
_LOSS_RATIOS = (0.5, 0.1, 0.01)
# Rows of the kernel between outputs that its eigenvectors are still found for in seconds.
_MOST_ROWS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastPoint:
    """The network where a model with frozen features would be at one loss.

    Attributes:
        loss_ratio: Loss to be reached, over loss at the start.
        network_loss_ratio: The network's own loss there, over that at the start. Above the other
            where it never gets there on this way, whose place of lowest loss is then taken.
        linearization_error: ``|f - f_lin| / |f - f_0|`` on the inputs, no unit.
        relative_kernel_change: ``|K - K_0| / |K_0|``, no unit.
        kernel_angle: Between the two, radians.
        layer_angle_median: Median of the layers' angles, radians, or None.
        displacement: Length of the way there, in the unit of the parameters.
        time: Learning rate times steps of gradient flow on half the sum of squares.
    """

    loss_ratio: float
    linearization_error: float
    relative_kernel_change: float
    kernel_angle: float
    layer_angle_median: float | None
    displacement: float
    time: float
    network_loss_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Whether training will be lazy, as far as can be said before it.

    Attributes:
        strength: The band in which linearization error and angles lie at the last point reached;
            "undetermined" where they disagree.
        points: From the first loss to the last.
        left_out: Per loss that a model with frozen features never reaches, the reason.
        samples: N.
        outputs: C.
    """

    strength: Strength
    points: tuple[ForecastPoint, ...]
    left_out: Mapping[str, str]
    samples: int
    outputs: int

    def __str__(self) -> str:
        """A sentence and a table."""
        lines = [
            f"forecast: {self.strength}, for training on these {self.samples} samples with "
            f"{_counted(self.outputs, 'output')} to the last loss below",
            "  loss / start  of the network  linearization error  kernel change  layer angle",
        ]
        for point in self.points:
            angle = "-" if point.layer_angle_median is None else f"{point.layer_angle_median:.3g}"
            lines.append(
                f"  {point.loss_ratio:>12g}  {point.network_loss_ratio:>14.3g}  "
                f"{point.linearization_error:>19.3g}  "
                f"{point.relative_kernel_change:>13.3g}  {angle:>11}"
            )
        lines += [f"  {ratio}: {reason}" for ratio, reason in self.left_out.items()]
        return "\n".join(lines)


def forecast(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    loss_ratios: Sequence[float] = _LOSS_RATIOS,
    forward: ForwardFn | None = None,
    params: str | Sequence[str] | None = None,
    engine: EngineName = "auto",
    memory_budget: str | int = "1GiB",
    dtype: torch.dtype | None = None,
    bands: Bands | None = None,
) -> Forecast:
    """Return how far from its linearization a model will be once it has learned its targets.

    With ``r = f_0 - y`` a model with frozen features is at ``theta_0 + J_0' a(t)``, where
    ``K_0 a(t) = (e^{-K_0 t} - I) r``. The network and its kernel are evaluated there, at the first
    time ``t`` at which the *network's* square loss is down to each of ``loss_ratios``; where it
    never gets there, at its lowest, since further on that way leads off the targets.

    A forecast of the drift that training shows when it stops at that loss. Held against training in
    float64 (docs/ladder.md, rung 13), the kernel's relative change came out at 0.34 to 3.7 of what
    training showed for two-layer tanh and linear networks of output scales 0.03 to 10; at 0.5 to
    1.7 for ReLU (at scale 10 a few flipped gates decide, and single networks are off by 6); at 0.98
    to 1.04 for a network that groks a polynomial; at 0.19 to 1.2 for a small transformer under SGD
    and 0.41 to 1.04 under Adam. Linearization errors came out at 0.17 to 2.0 (tanh), 0.36 to 4.1
    (ReLU up to scale 1), 0.26 to 1.4 (transformer), and for linear networks at 0.02 to 4.1: far too
    small deep in feature learning. Under weight decay or cross-entropy far beyond the fit it was
    not tried.

    Args:
        model: The untrained model; it is left as found. BatchNorms run on the statistics of the
            inputs, held as they are at the start.
        inputs: The training set, or the part of it that the forecast is about: training on fewer
            samples is lazier.
        targets: Class labels (N,), which are regressed on as one-hot codes less their mean, or
            values of the shape of the outputs.
        loss_ratios: Square losses to stop at, over that at the start, in (0, 1).
        forward: ``(model, inputs) -> tensor (N, ...)``; guessed by default.
        params: Names or patterns of the parameters that train; default all trainable ones.
        engine: As in ``empirical_ntk``.
        memory_budget: Bytes that a kernel may take beyond a forward and a backward pass.
        dtype: Of the Jacobian; default that of the parameters, at least float32.
        bands: Thresholds of the strength.

    Returns:
        The forecast; printing it gives a table.

    Raises:
        InputError: If loss ratios or targets cannot be used, there are too many rows, or no loss
            asked for is reached.

    Source:
        This project's own, a numerical form of the criterion of Chizat, Oyallon and Bach, NeurIPS
        2019, arXiv:1812.07956; the path is that of Lee et al., NeurIPS 2019, arXiv:1902.06720.
    """
    ratios = sorted(loss_ratios, reverse=True)
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise InputError(
            f"loss_ratios={tuple(loss_ratios)} do not all lie between 0 and 1, so there is no loss "
            "to stop at. Give shares of the loss at the start, such as (0.1, 0.01)."
        )
    selected = select_parameters(model, params)
    check_finite_parameters(selected)
    budget = parse_bytes(memory_budget)
    with undisturbed(model), apart(model):
        problem = prepare(
            model,
            inputs,
            forward=forward,
            outputs="full",
            names=list(selected),
            dtype=jacobian_dtype(selected, dtype),
            batchnorm="probe",
            batchnorms=moving_batchnorms(model),
        )
        _check_rows(problem)
        problem.check_samples_independent()
        start = problem.kernel(engine=engine, budget=budget)
        outputs = outputs_of(problem).to(start.matrix)
        residual = outputs - as_values(targets, outputs)
        training = frozen_training(start.matrix, residual, precision=problem.function.dtype)
        way = FrozenWay(problem, training, residual, budget=budget)
        reached = [ratio for ratio in ratios if training.time_to_loss_ratio(ratio).isfinite()]
        never = [f"{ratio:g}" for ratio in ratios if ratio not in reached]
        left_out = dict.fromkeys(never, "a model with frozen features never gets there")
        points = []
        for ratio in reached:
            place = way.place_of(ratio, reached[-1])
            now = way.at(place.time)
            there = now.kernel(engine=engine, budget=budget), outputs_of(now).to(outputs) - outputs
            points.append(_point(ratio, start, there, training, place, problem))
    if not points:
        raise InputError(
            f"a model with frozen features reaches none of the losses {tuple(ratios)}: too much of "
            "the targets lies where its kernel is zero up to rounding. Are there equal inputs with "
            "different targets? Give larger loss_ratios."
        )
    return Forecast(
        strength=_strength(points[-1], bands if bands is not None else Bands()),
        points=tuple(points),
        left_out=left_out,
        samples=len(residual),
        outputs=residual.shape[1],
    )


def _check_rows(problem: Problem) -> None:
    n, c = count_samples(problem.inputs), problem.reduction.rows
    if n * c > _MOST_ROWS:
        raise InputError(
            f"{n} samples with {c} outputs make a kernel of {n * c} rows, and the path of a model "
            f"with frozen features takes its eigenvectors, in reach up to {_MOST_ROWS}. Give "
            f"{max(2, _MOST_ROWS // c)} samples or fewer: the forecast is then about training on "
            "those."
        )


def _point(
    ratio: float,
    start: Kernel,
    there: tuple[Kernel, Tensor],
    training: FrozenTraining,
    place: Place,
    problem: Problem,
) -> ForecastPoint:
    now, change = there
    weights = training.weights(place.time)
    linear = apply_kernel(start.matrix, weights)  # J_0 J_0' a, without another pass
    params = problem.function.params
    matrices = {layer_of(name) for name in problem.names if params[name].ndim >= 2}
    angles = layer_angles(now.layers, start.layers)
    median = layer_angle_median(angles, counted=sorted(matrices))
    numbers: dict[str, Any] = {
        "linearization_error": (change - linear).norm() / change.norm(),
        "relative_kernel_change": relative_kernel_change(now.trace, start.trace),
        "kernel_angle": kernel_angle(now.trace, start.trace),
        "displacement": (weights * linear).sum().clamp(min=0).sqrt(),
        "time": place.time,
        "network_loss_ratio": torch.as_tensor(place.loss_ratio),
    }
    return ForecastPoint(
        loss_ratio=ratio,
        layer_angle_median=None if bool(median.isnan()) else float(median),
        **{key: float(value) for key, value in numbers.items()},
    )


def _strength(point: ForecastPoint, bands: Bands) -> Strength:
    """The label that a training which ended there would get."""
    reading = Reading(
        anchor_step=0,
        linearization_error=point.linearization_error,
        layer_angle_median=point.layer_angle_median,
        relative_kernel_change=point.relative_kernel_change,
        kernel_angle=point.kernel_angle,
    )
    return label_reading(reading, {}, bands)[0]


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
