"""``plan``: what a kernel will cost, before any of it is computed.

A model on the meta device, without weights, can be planned too: its graph is read from shapes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntkwatch.errors import CoverageError, ForwardError
from ntkwatch.jacobian.first_call import guessed_on
from ntkwatch.jacobian.forward import ForwardFn, first_line
from ntkwatch.jacobian.functional import ModelFunction, jacobian_dtype
from ntkwatch.jacobian.inputs import Inputs, cast_inputs, count_samples, take
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec, Reduction, resolve_outputs
from ntkwatch.jacobian.parameters import select_parameters, unwrapped
from ntkwatch.jacobian.plan import KernelPlan
from ntkwatch.jacobian.sharded import function_of
from ntkwatch.jacobian.structured.graph import Unstructured
from ntkwatch.jacobian.structured.passes import Pass, run_pass
from ntkwatch.jacobian.structured.planner import Planner
from ntkwatch.jacobian.structured.shapes import OwnersByShapes
from ntkwatch.jacobian.structured.tape import Tape
from ntkwatch.jacobian.structured.uses import find_uses
from ntkwatch.jacobian.undisturbed import undisturbed

__all__ = ["plan"]


def plan(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward: ForwardFn | None = None,
    outputs: OutputsSpec = "full",
    params: str | Sequence[str] | None = None,
    memory_budget: str | int = "1GiB",
    dtype: torch.dtype | None = None,
) -> KernelPlan:
    """Return what ``empirical_ntk`` would do with the same arguments, without doing it.

    It takes one forward pass and two or three backward passes to activations. For a model on the
    meta device it takes two forward passes without values; the inputs' values are not looked at.

    Args:
        model: As for ``empirical_ntk``; on the meta device if it does not fit in memory.
        inputs: As there.
        forward: As there.
        outputs: As there.
        params: As there.
        memory_budget: As there.
        dtype: As there.

    Returns:
        The plan; ``print`` shows it as a table.

    Raises:
        InputError: If inputs or settings cannot be used.
        SelectionError: If no trainable parameter is selected.
        ForwardError: If no way to call the model is found.
        CoverageError: If the structured engine cannot serve the model, so that there is no plan.
    """
    budget = parse_bytes(memory_budget)
    count_samples(inputs, at_least=1)
    model = unwrapped(model)
    selected = select_parameters(model, params)
    kind = jacobian_dtype(selected, dtype)
    device = next(iter(selected.values())).device
    with undisturbed(model), torch.no_grad():
        inputs = cast_inputs(inputs, device=device, dtype=kind)
        if forward is None:
            forward, _ = guessed_on(model, inputs, kind)
        function = function_of(model, forward, dtype=kind)
        reduction = resolve_outputs(outputs, _outputs(function, inputs))
        try:
            side = _side(function, inputs, reduction, list(selected), budget)
        except Unstructured as error:
            raise CoverageError(
                f"the structured engine cannot serve {type(model).__name__}: {error}. There is no "
                "plan for the other engines, which empirical_ntk would take instead."
            ) from error
        planner = Planner(
            side, None, list(selected), reduction.rows, full=reduction.full, budget=budget
        )
        return planner.plan


def _outputs(function: ModelFunction, inputs: Inputs) -> Tensor:
    try:
        return function({}, inputs)
    except (RuntimeError, NotImplementedError) as error:
        if function.params and next(iter(function.params.values())).device.type != "meta":
            raise
        raise ForwardError(
            f"{type(function.model).__name__} looks at values in its forward pass "
            f"({first_line(error)}), and on the meta device there are none, so its cost cannot be "
            "told from shapes. Pass forward= to give it what spares the look (in transformers a "
            "mask of four dimensions), or plan a smaller model of the same kind on the CPU."
        ) from error


def _side(
    function: ModelFunction, inputs: Inputs, reduction: Reduction, names: list[str], budget: int
) -> Pass:
    if function.params[names[0]].device.type != "meta":
        return run_pass(function, inputs, reduction, names, {}, budget)
    tape = Tape(function, inputs, reduction, names, {})
    again = torch.tensor([*range(count_samples(inputs)), 0], device="meta")
    if tape.count > count_samples(inputs):
        again = torch.zeros(tape.count + 1, dtype=torch.long, device="meta")
    larger = Tape(function, take(inputs, again), reduction, names, {})
    return Pass(tape, find_uses(tape, None, OwnersByShapes(tape, larger)))
