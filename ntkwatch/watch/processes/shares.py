"""A kernel in as many shares as there are processes: sums that add up to the whole.

A kernel is a sum over parameters, and, unless its outputs are kept apart, over output directions:
backward passes are then shared as well.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ntkwatch.jacobian.functional import real_size
from ntkwatch.jacobian.inputs import count_samples
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.parameters import layer_of
from ntkwatch.jacobian.plan import KernelPlan
from ntkwatch.jacobian.problem import Problem
from ntkwatch.jacobian.spec import Kernel

__all__ = ["Share", "added_up", "part_of_problem", "shares_of", "sums_of"]

_DENSE = 2**12  # outputs beyond which unit vectors are not written out


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process computes.

    Attributes:
        names: Parameters.
        rows: Output directions, from the first to before the last; None for all.
    """

    names: tuple[str, ...]
    rows: tuple[int, int] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.names or (self.rows is not None and self.rows[0] == self.rows[1])


def shares_of(problem: Problem, size: int, costs: Mapping[str, float]) -> list[Share]:
    """Return a share for each of some processes.

    Args:
        problem: Model and probe.
        size: Processes.
        costs: Multiplications per parameter, as far as they are known from an earlier kernel.

    Returns:
        Shares of output directions where they are added up, else of parameters.
    """
    reduction, names = problem.reduction, tuple(problem.names)
    written = reduction.directions is not None or reduction.rows <= _DENSE
    if not reduction.full and reduction.rows >= size and written:
        ends = [i * reduction.rows // size for i in range(size + 1)]
        return [Share(names=names, rows=(ends[i], ends[i + 1])) for i in range(size)]
    # The dearest first, each to the process that has the least to do.
    known = [name for name in names if name in costs]
    cost = {n: costs[n] if len(known) == len(names) else _entries(problem, n) for n in names}
    loads, owned = [0.0] * size, [set[str]() for _ in range(size)]
    for name in sorted(names, key=lambda name: -cost[name]):
        least = loads.index(min(loads))
        owned[least].add(name)
        loads[least] += cost[name]
    return [Share(names=tuple(n for n in names if n in mine)) for mine in owned]


def _entries(problem: Problem, name: str) -> float:
    return float(real_size(problem.function.params[name]))


def part_of_problem(problem: Problem, share: Share) -> Problem:
    """Return the problem whose kernel is a share of the whole one."""
    part = copy.copy(problem)
    part.names = list(share.names)
    if share.rows is not None:
        part.reduction = _some_rows(problem.reduction, range(*share.rows))
    return part


def _some_rows(reduction: Reduction, rows: range) -> Reduction:
    like = torch.zeros(1, dtype=torch.float64, device="cpu")
    directions = reduction.cotangents(like, rows)
    return replace(reduction, directions=directions, rows=len(rows))


def sums_of(kernel: Kernel | None, problem: Problem) -> Tensor:
    """Return a share of a kernel and of its layers as one vector of sums; zeros for no share.

    Args:
        kernel: The share.
        problem: The whole problem.

    Returns:
        In float64, on the CPU.
    """
    n, r = count_samples(problem.inputs), problem.reduction.rows
    shape = (n, n, r, r) if problem.reduction.full else (n, n)
    layers = _layers(problem.names)
    total = torch.zeros(shape, dtype=torch.float64, device="cpu")
    parts = torch.zeros(len(layers), n, n, dtype=torch.float64, device="cpu")
    if kernel is not None:
        total += kernel.matrix.to(total)
        for layer, part in kernel.layers.items():
            parts[layers.index(layer)] += part.to(parts)
    return torch.cat([total.flatten(), parts.flatten()])


def added_up(
    sums: Tensor,
    problem: Problem,
    coverages: Sequence[Mapping[str, str]],
    plans: Sequence[KernelPlan],
    like: Tensor,
) -> Kernel:
    """Return the whole kernel from the sums of all shares.

    Args:
        sums: Of ``sums_of``, added up.
        problem: The whole problem.
        coverages: Route of each parameter, from every process.
        plans: What was done, from every process.
        like: In the dtype, and on the device, of the kernel.

    Returns:
        The kernel.
    """
    n, r = count_samples(problem.inputs), problem.reduction.rows
    shape = (n, n, r, r) if problem.reduction.full else (n, n)
    count = n * n * r * r if problem.reduction.full else n * n
    layers = _layers(problem.names)
    parts = sums[count:].view(len(layers), n, n).to(like)
    routes = {name: route for coverage in coverages for name, route in coverage.items()}
    return Kernel(
        matrix=sums[:count].view(shape).to(like),
        layers=dict(zip(layers, parts, strict=True)),
        coverage={name: routes[name] for name in problem.names},
        spec=problem.spec,
        plan=KernelPlan(
            steps=tuple(step for plan in plans for step in plan.steps),
            passes=sum(plan.passes for plan in plans),
        ),
    )


def _layers(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(layer_of(name) for name in names))
