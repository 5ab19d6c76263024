"""The structured engine from outside: what it can serve, and what it leaves to other engines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ntkwatch.errors import NtkwatchError
from ntkwatch.jacobian.forward import check_outputs_finite, first_line
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs, cast_inputs
from ntkwatch.jacobian.memory import is_out_of_memory
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.structured.check import Disagrees, check_against_autograd, trust, trusted
from ntkwatch.jacobian.structured.graph import Unstructured
from ntkwatch.jacobian.structured.kernel import Parts, structured_kernel
from ntkwatch.jacobian.structured.passes import Pass, run_pass
from ntkwatch.kernel.gram import widest_float

__all__ = ["Served", "serve"]

# A larger gap in single precision is a mistake, whatever double precision says.
_ROUNDING_AT_MOST = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the engine made of a problem.

    Attributes:
        parts: The kernel over the parameters that were served; None if there are none.
        left_out: Parameters for another engine.
        reason: Why; empty if nothing is left out.
    """

    parts: Parts | None
    left_out: tuple[str, ...]
    reason: str


@torch.no_grad()  # what autograd saved for the backward pass is part of a graph itself
def serve(
    make: Callable[[torch.dtype], ModelFunction],
    function: ModelFunction,
    inputs: Inputs,
    other: Inputs | None,
    reduction: Reduction,
    layers: Mapping[str, str],
    buffers: Params,
    budget: int,
    *,
    checked: bool = False,
) -> Served:
    """Compute what the structured engine can of a kernel.

    Args:
        make: The model as a function, in a given dtype.
        function: The same in the dtype of the kernel.
        inputs: The first samples.
        other: The second; None for the same.
        reduction: Output directions.
        layers: Layer of each parameter wanted.
        buffers: Buffers to use instead of the model's.
        budget: Bytes that may be held beyond a forward and a backward pass.
        checked: Whether the same was held against plain autograd on other samples already.

    Returns:
        The kernel of some or all parameters.

    Raises:
        NtkwatchError: What the model's own code or the checks before it raise.
        Exception: Where memory runs out, as torch or Python says it; other engines need more.
    """
    wanted = dict(layers)
    reasons: list[str] = []
    while wanted:
        sides: list[Pass] = []
        try:
            for samples in (inputs,) if other is None else (inputs, other):
                side = run_pass(function, samples, reduction, list(wanted), buffers, budget // 3)
                sides.append(side)
                check_outputs_finite(side.tape.outputs, function.model)
                if not checked and not trusted(side, function.model, list(wanted)):
                    _check(side, make, samples, reduction, list(wanted), buffers, budget)
                    trust(side, function.model, list(wanted))
            parts = structured_kernel(
                sides[0],
                sides[1] if len(sides) > 1 else None,
                wanted,
                reduction.rows,
                full=reduction.full,
                budget=budget,
            )
        except Unstructured as error:
            reasons.append(str(error))
            blamed = _users(sides, error) & set(wanted)
            if not blamed:
                wanted = {}
            for name in blamed:
                del wanted[name]
        except Exception as error:  # whatever it is, another engine may do without
            if isinstance(error, NtkwatchError) or is_out_of_memory(error):
                raise
            reasons.append(f"{type(error).__name__}: {first_line(error)}")
            wanted = {}
        else:
            left_out = tuple(name for name in layers if name not in wanted)
            return Served(parts=parts, left_out=left_out, reason="; ".join(reasons))
    return Served(parts=None, left_out=tuple(layers), reason="; ".join(reasons))


def _check(
    side: Pass,
    make: Callable[[torch.dtype], ModelFunction],
    samples: Inputs,
    reduction: Reduction,
    names: list[str],
    buffers: Params,
    budget: int,
) -> None:
    try:
        check_against_autograd(side, names, budget)
    except Disagrees as error:
        device = side.tape.outputs.device
        wide = widest_float(device)
        if side.tape.outputs.dtype == wide or not error.gap < _ROUNDING_AT_MOST:
            raise
        # Perhaps it is rounding, in a parameter whose gradients nearly cancel: float64 tells.
        function = make(wide)
        samples = cast_inputs(samples, device=device, dtype=wide)
        again = run_pass(function, samples, reduction, names, buffers, budget)
        check_against_autograd(again, names, budget)


def _users(sides: list[Pass], error: Unstructured) -> set[str]:
    """Parameters that meet the data at the operation that failed."""
    return {
        name
        for side in sides
        for name, parameter in side.parameters.items()
        if error.node is not None and any(use.node is error.node for use in parameter.uses)
    }
