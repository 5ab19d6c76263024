"""What the numbers of a run read when nothing changed but rounding."""

import torch
from torch import Tensor

from ntkwatch.jacobian.exchanged import put_in_place
from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.inputs import take
from ntkwatch.jacobian.problem import Problem
from ntkwatch.jacobian.shards import local_part, part_of, with_local
from ntkwatch.jacobian.spec import Kernel
from ntkwatch.kernel.drift import kernel_angle, relative_kernel_change
from ntkwatch.watch.readings.measure import Measurement, Settings, linearized_function
from ntkwatch.watch.readings.sketching import sketch_floors, take_sketch

__all__ = ["noise_floor"]

_PART = 8  # of a kernel's samples, one in so many is looked at again
_FEWEST = 8  # but not fewer, where there are as many


def noise_floor(measured: Measurement, settings: Settings) -> dict[str, float]:
    """Return what the numbers read when nothing changed but rounding.

    Everything is computed a second time with every weight moved by up to one unit in its last
    place, the samples in reverse order and in other chunks; a kernel of many samples on every
    eighth of them, which rounds as all of it does and costs an eighth.

    Args:
        measured: A look at the model, which must not have changed since.
        settings: Of the run.

    Returns:
        Relative kernel change, angles and root mean square output change between the two.
    """
    order = torch.arange(len(measured.outputs))
    if measured.kernel is not None:  # coupled samples may depend on their order, too
        order = order.flip(0)
    state = _last_places_moved(measured.problem.function.params)
    with put_in_place(measured.problem.function.model, state):
        return _floor_at(measured.problem.at(state), measured, settings, order)


def _floor_at(
    problem: Problem, measured: Measurement, settings: Settings, order: Tensor
) -> dict[str, float]:
    """What the numbers read at weights that differ by rounding, on the samples in another order."""
    reverse = take(problem.inputs, order)
    with torch.no_grad():
        outputs = linearized_function(problem, settings.moving, inputs=reverse)({})
    change = (outputs[order].to(measured.outputs) - measured.outputs).square().mean().sqrt()
    floors = {"output": change}
    kernel = measured.kernel
    if kernel is not None and bool(kernel.trace.any()):
        floors |= _kernel_floors(problem, kernel, settings, order)
    rounded = {key: float(value) for key, value in floors.items()}
    if (sketch := measured.sketch) is not None:
        how = (problem, settings.outputs)
        second = take_sketch(*how, coupled=sketch.coupled, budget=settings.budget)
        rounded |= sketch_floors(second, sketch)
    return rounded


def _kernel_floors(
    problem: Problem, kernel: Kernel, settings: Settings, order: Tensor
) -> dict[str, Tensor]:
    """The same of a kernel, taken again on some of its samples in another order."""
    every = 1 if problem.spec.coupled else max(1, min(_PART, len(order) // _FEWEST))
    some = order[::every]
    rows = some.sort().values.to(kernel.trace.device)
    # Just too little for one chunk: the rounding of other chunks at the price of one kernel.
    budget = max(1, min(settings.budget * 2 // 3, 2 * problem.row_bytes // every))
    assert settings.engine != "sketch"
    # Where several processes share kernels, this part of one is not worth what they would exchange.
    again = problem.kernel(engine=settings.engine, budget=budget, order=some, checked=True)
    floors: dict[str, Tensor] = {}
    then = kernel.trace[rows][:, rows]
    if bool(then.any()):
        floors["relative_kernel_change"] = relative_kernel_change(again.trace, then)
        floors["kernel_angle"] = kernel_angle(again.trace, then)
    parts = {layer: part[rows][:, rows] for layer, part in kernel.layers.items()}
    angles = [
        kernel_angle(again.layers[layer], part)
        for layer, part in parts.items()
        if bool(part.any()) and bool(again.layers[layer].any())
    ]
    if angles:
        floors["layer_angle_median"] = torch.stack(angles).max()
    return floors


def _last_places_moved(params: Params) -> Params:
    """Every weight times ``1 + eps u`` with u uniform in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for name, tensor in params.items():
        if tensor.is_floating_point():
            own, factor = local_part(tensor), _factor(tensor, generator)
            moved[name] = with_local(tensor, own * part_of(factor, tensor).to(own))
    return moved


def _factor(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """``1 + eps u`` in double precision on the CPU: in float32 it would be rounded."""
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return noise.mul_(2).sub_(1).mul_(torch.finfo(tensor.dtype).eps).add_(1)
