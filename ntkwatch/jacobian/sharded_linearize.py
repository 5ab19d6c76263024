"""``J v`` of a model that is sharded over processes, module by module.

By forward mode, one forward pass: each module's part of ``v`` is gathered when the module runs, as
its weights are, so that no process ever holds all of either. Where an operation has no forward
mode, by gradients of every sample, one parameter at a time. One backward pass checks either.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.forward import first_line
from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.inputs import Inputs, dense
from ntkwatch.jacobian.linearize import Linearized
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.jacobian.sharded import ShardedFunction
from ntkwatch.jacobian.shards import is_shard, local_part, over_shards, part_of, whole
from ntkwatch.jacobian.structured.graph import Unstructured
from ntkwatch.jacobian.structured.operands import rows_of
from ntkwatch.jacobian.structured.passes import run_pass

__all__ = ["sharded_product"]

# Rounding units that two orders of the same arithmetic may be apart; there is no float64 to look
# again, since shards cannot be cast.
_ROUNDING = 1e4
_CANNOT = (NotImplementedError, RuntimeError)  # what torch raises without a derivative


def sharded_product(
    function: ShardedFunction,
    inputs: Inputs,
    buffers: Params,
    reduction: Reduction,
    direction: Mapping[str, Tensor],
    budget: int,
) -> Linearized:
    """Return ``J v`` at the weights that stand in the model, along all outputs.

    Args:
        function: The model.
        inputs: Model inputs.
        buffers: Buffers by clean name; those left out are as in the model.
        reduction: Gives the outputs as (N, C), and directions where they are seen through some.
        direction: ``v``, shards by clean name.
        budget: Bytes that gradients may take where there is no forward mode.

    Returns:
        (N, C), or (N, R) of random directions; by "jvp" or "vjp-rows".

    Raises:
        CoverageError: If neither goes through the model, or reverse mode disagrees with both.
    """
    seen = reduction
    if not reduction.name.startswith("random"):
        count = reduction.rows if reduction.function is not None else math.prod(reduction.shape)
        seen = replace(reduction, name="full", full=True, directions=None, rows=max(1, count))
    problem = _At(function, inputs, buffers, seen, _trained(function, direction))
    failures = []
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
        for method, compute in (("jvp", _forward_mode), ("vjp-rows", partial(_rows, budget))):
            try:
                change = compute(problem)
            except (*_CANNOT, Unstructured) as error:
                failures.append(f"{method}: {type(error).__name__}: {first_line(error)}")
                continue
            if _gap_to_reverse(problem, change) <= _ROUNDING * torch.finfo(change.dtype).eps:
                return Linearized(change, method)
            failures.append(f"{method}: disagrees with reverse mode")
    raise CoverageError(
        "the model could not be linearized from its shards, so there is no linearization error: "
        f"{'; '.join(failures)}. Compare saved checkpoints in one process instead."
    )


class _At(NamedTuple):
    """Where to differentiate, and along what."""

    function: ShardedFunction
    inputs: Inputs
    buffers: Params
    reduction: Reduction
    direction: Mapping[str, Tensor]

    def seen(self, outputs: Tensor) -> Tensor:
        """Outputs as (N, C), or through the random directions."""
        values = self.reduction.flatten(outputs)
        if self.reduction.name.startswith("random"):
            return values @ self.reduction.cotangents(values).mT
        return values


def _trained(function: ShardedFunction, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The direction without what is frozen, which reverse mode could not check."""
    own = parameters_of(function.model)
    kept = {name: v for name, v in direction.items() if own[name].requires_grad}
    for name in direction:
        if name not in kept:
            size = over_shards(local_part(direction[name]).abs().sum(), direction[name])
            if bool(size):
                raise CoverageError(
                    f"{name} has moved though it requires no gradient, so the linearized outputs "
                    "cannot be checked from shards. Compare saved checkpoints in one process."
                )
    return kept


def _forward_mode(at: _At) -> Tensor:
    with at.function.along(at.direction):
        moving = at.seen(at.function({}, at.inputs, at.buffers))
        value, tangent = forward_ad.unpack_dual(moving)
        return torch.zeros_like(value) if tangent is None else tangent.detach().clone()


@torch.no_grad()  # as the structured engine: what autograd saved is part of a graph itself
def _rows(budget: int, at: _At) -> Tensor:
    """Gradients of every sample, one parameter and one direction at a time, met with ``v``."""
    names = list(at.direction)
    side = run_pass(at.function, at.inputs, at.reduction, names, at.buffers, budget)
    edges = list(dict.fromkeys(e for p in side.parameters.values() for e in p.edges))
    outputs = side.tape.outputs
    change = outputs.new_zeros(side.count, at.reduction.rows)
    for row in range(at.reduction.rows):
        found = side.cotangents(edges, row)
        for name, parameter in side.parameters.items():
            if side.count * parameter.size * outputs.element_size() > budget:
                raise Unstructured(f"the gradients of {name} take more than memory_budget")
            gradients = rows_of([parameter], found, side.count)[name]
            change[:, row] += gradients @ whole(at.direction[name]).flatten()
    return change / side.tape.scale


def _gap_to_reverse(at: _At, change: Tensor) -> float:
    """Compare ``<u, J v>`` with ``<J' u, v>`` for a random ``u``, in units of both."""
    outputs, leaves = at.function.trace(list(at.direction), at.inputs, at.buffers)
    values = at.seen(outputs)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(change.shape, generator=generator, dtype=torch.float64, device="cpu").to(change)
    terms = torch.zeros(2, dtype=torch.float64, device="cpu").to(change)
    if values.requires_grad:
        terms = _pulled_back(values, leaves, u, at.direction)
    forward, reverse = (u * change).sum(), terms[0]
    spread = terms[1].sqrt() + (u * change).norm()
    off = (forward - reverse).abs()
    return float(torch.where(off == 0, off, off / (spread + reverse.abs())))


def _pulled_back(
    values: Tensor, leaves: Params, u: Tensor, direction: Mapping[str, Tensor]
) -> Tensor:
    """``<J' u, v>``, and the sum of the squares of its terms."""
    mine: dict[str, Tensor] = {}

    def measure(name: str, gradient: Tensor) -> Tensor:
        # Each gradient is met with this process's part of v and dropped at once.
        products = part_of(dense(gradient), direction[name]) * local_part(direction[name])
        mine[name] = torch.stack([products.sum(), products.square().sum()])
        return torch.zeros((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)

    known = [name for name in direction if leaves[name].requires_grad]
    hooks = [leaves[name].register_hook(lambda g, n=name: measure(n, g)) for name in known]
    try:
        torch.autograd.grad(values, [leaves[name] for name in known], u, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    # By layout, in an order that all processes share: replicas count once.
    found = [
        over_shards(_sum(mine, group, u), direction[group[0]]) for group in _layouts(direction)
    ]
    return torch.stack(found).sum(dim=0)


def _sum(mine: Mapping[str, Tensor], names: list[str], like: Tensor) -> Tensor:
    return sum((mine[name] for name in names if name in mine), torch.zeros(2).to(like))


def _layouts(direction: Mapping[str, Tensor]) -> list[list[str]]:
    groups: dict[object, list[str]] = {}
    for name, tensor in direction.items():
        layout = (tensor.device_mesh, tensor.placements) if is_shard(tensor) else None  # type: ignore[attr-defined]
        groups.setdefault(layout, []).append(name)
    return list(groups.values())
