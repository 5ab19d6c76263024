"""Which engine computes which parameter's part of a kernel, and the parts put together.

The structured engine serves what it can; the rest goes to rows by vmap if they agree with plain
autograd, else to rows by plain autograd.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.agreement import why_not_vmap
from ntkwatch.jacobian.blocks import contract
from ntkwatch.jacobian.first_call import first_call
from ntkwatch.jacobian.functional import ModelFunction, Params, real_size
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.loop import BatchRows, LoopRows
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.parameters import layer_of
from ntkwatch.jacobian.plan import KernelPlan
from ntkwatch.jacobian.spec import EngineName
from ntkwatch.jacobian.structured.engine import Served, serve
from ntkwatch.jacobian.vmapped import VmapRows

__all__ = ["Ingredients", "compute"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """A problem as an engine needs it.

    Attributes:
        make: Gives the model as a function in any dtype.
        function: The model as a function.
        reduction: Output directions.
        names: Parameters to differentiate by.
        buffers: Buffers to use instead of the model's own.
        coupled: Whether the samples are one function of the whole batch.
        batchnorms: BatchNorms that run on batch statistics if they are.
        checked: Whether the structured engine was held against plain autograd already.
    """

    make: Callable[[torch.dtype], ModelFunction]
    function: ModelFunction
    reduction: Reduction
    names: tuple[str, ...]
    buffers: Params
    coupled: bool
    batchnorms: tuple[str, ...]
    checked: bool = False


def compute(
    ingredients: Ingredients,
    inputs: Inputs,
    columns: Inputs | None,
    engine: EngineName,
    budget: int,
) -> tuple[Tensor, dict[str, Tensor], dict[str, str], KernelPlan]:
    """Return a kernel with its parts by layer, who computed what, and what the first engine did.

    Args:
        ingredients: The problem.
        inputs: The first samples.
        columns: The second; None for the same.
        engine: By choice.
        budget: Bytes that may be held.

    Returns:
        The kernel, (N R, M R) if outputs are kept apart; its (N, M) parts by layer, in the order of
        the parameters; the route of each parameter; the plan.

    Raises:
        CoverageError: If the engine that was chosen cannot compute it.
    """
    served = _structured(ingredients, inputs, columns, engine, budget)
    sums: list[tuple[Tensor, dict[str, Tensor]]] = []
    coverage: dict[str, str] = {}
    plan = KernelPlan()
    if served.parts is not None:
        sums.append((served.parts.total, served.parts.layers))
        coverage |= served.parts.coverage
        plan = served.parts.plan
    if served.left_out:
        names = [name for name in ingredients.names if name in served.left_out]
        # The other engines run the model unguarded, and it may write to its weights by now.
        first_call(ingredients.make(ingredients.function.dtype), inputs)
        left, right = _rows(ingredients, inputs, columns, names, engine, budget)
        found = contract(
            left,
            right,
            {name: real_size(ingredients.function.params[name]) for name in names},
            {name: layer_of(name) for name in names},
            full=ingredients.reduction.full,
            itemsize=ingredients.function.dtype.itemsize,
            device=ingredients.function.params[names[0]].device,
            budget=budget,
        )
        sums.append(found)
        coverage |= dict.fromkeys(names, left.route)
    total = sums[0][0] if len(sums) == 1 else sums[0][0] + sums[1][0]
    layers: dict[str, Tensor] = {}
    for layer in dict.fromkeys(layer_of(name) for name in ingredients.names):
        terms = [parts[layer] for _, parts in sums if layer in parts]
        layers[layer] = terms[0] if len(terms) == 1 else terms[0] + terms[1]
    return total, layers, {name: coverage[name] for name in ingredients.names}, plan


def _structured(
    of: Ingredients, inputs: Inputs, columns: Inputs | None, engine: EngineName, budget: int
) -> Served:
    """What the structured engine computes: by choice, or of coupled samples, nothing."""
    layers = {name: layer_of(name) for name in of.names}
    if of.coupled or engine not in ("auto", "structured"):
        return Served(parts=None, left_out=of.names, reason="")
    what = (of.make, of.function, inputs, columns, of.reduction, layers, of.buffers, budget)
    served = serve(*what, checked=of.checked)
    if served.left_out and (engine == "structured" or not of.function.replaceable):
        cure = (
            "Use engine='auto', which computes them by plain autograd"
            if of.function.replaceable
            else "Other engines cannot compute them from shards: leave them out by params="
        )
        raise CoverageError(
            f"engine={engine!r} cannot serve {', '.join(served.left_out[:3])} of "
            f"{type(of.function.model).__name__}: {served.reason}. {cure}."
        )
    if served.left_out:
        _log.info(
            "%d of %d parameters are left to another engine (%s)",
            len(served.left_out),
            len(layers),
            served.reason,
        )
    return served


def _rows(
    of: Ingredients,
    inputs: Inputs,
    columns: Inputs | None,
    names: list[str],
    engine: EngineName,
    budget: int,
) -> tuple[VmapRows | LoopRows, VmapRows | LoopRows | None]:
    if of.coupled:
        rows = BatchRows(of.function, inputs, of.reduction, of.buffers, batchnorms=of.batchnorms)
        return rows, None
    kind: type[VmapRows] | type[LoopRows] = LoopRows
    if engine != "loop":
        failure = why_not_vmap(
            of.make,
            inputs,
            of.reduction,
            names,
            dtype=of.function.dtype,
            buffers=of.buffers,
            budget=budget,
        )
        if failure is None:
            kind = VmapRows
        elif engine == "vmap":
            raise CoverageError(
                f"engine='vmap' cannot differentiate {type(of.function.model).__name__}: "
                f"{failure}. Use engine='auto' or 'loop'."
            )
        else:
            _log.info("vmap cannot be used (%s); plain autograd is used instead", failure)

    def rows_on(samples: Inputs) -> VmapRows | LoopRows:
        return kind(of.function, samples, of.reduction, of.buffers)

    return rows_on(inputs), None if columns is None else rows_on(columns)
