"""The structured engine: exact kernels from one forward pass and one backward pass per direction.

The graph says where parameters meet the data, rules say what the gradients there are made of, and
each parameter's part of the kernel is contracted in its cheapest order. The model is never
vectorised and no Jacobian is held.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ntkwatch.jacobian.blocks import contract, gram_of_rows, mirrored
from ntkwatch.jacobian.plan import KernelPlan
from ntkwatch.jacobian.structured.contraction import contract_outer, contract_turned
from ntkwatch.jacobian.structured.passes import Collected, Pass, PassRows
from ntkwatch.jacobian.structured.planner import Group, Planner
from ntkwatch.kernel.gram import widest_float

__all__ = ["Parts", "structured_kernel"]


@dataclass(slots=True, kw_only=True)
class Parts:
    """A kernel with its parts.

    Attributes:
        total: (N R, M R) if directions are kept apart, else (N, M).
        layers: (N, M) per layer.
        coverage: Route of each parameter.
        plan: What was done for each parameter.
    """

    total: Tensor
    layers: dict[str, Tensor]
    coverage: dict[str, str]
    plan: KernelPlan


@torch.no_grad()
def structured_kernel(
    left: Pass,
    right: Pass | None,
    layers: dict[str, str],
    rows: int,
    *,
    full: bool,
    budget: int,
) -> Parts:
    """Return the kernel between the samples of two passes.

    Args:
        left: The first samples.
        right: The second; None for the same.
        layers: Layer of each parameter.
        rows: Directions R.
        full: Whether to keep directions apart.
        budget: Bytes that may be held beyond the forward pass.

    Returns:
        The kernel with its parts by layer.

    Raises:
        Unstructured: If a parameter cannot be served.
    """
    planner = Planner(left, right, list(layers), rows, full=full, budget=budget)
    work = _Work(planner, layers)
    for group in planner.groups:
        work.add_group(group)
    if planner.large:
        work.add_large()
    routes = {step.parameter: step.route for step in planner.plan.steps}
    # A parameter that the outputs do not depend on has no step, and its part is zero.
    coverage: dict[str, str] = {name: routes.get(name, "structured") for name in layers}
    return Parts(total=work.whole(), layers=work.parts(), coverage=coverage, plan=planner.plan)


class _Work:
    """A kernel in the making."""

    def __init__(self, planner: Planner, layers: dict[str, str]) -> None:
        self.planner, self.layer_of = planner, layers
        self.left, self.right, self.full = planner.left, planner.right, planner.full
        columns = self.left if self.right is None else self.right
        n, m, r = self.left.count, columns.count, planner.rows
        outputs = self.left.tape.outputs
        device, wide = outputs.device, widest_float(outputs.device)
        shape = (n, r, m, r) if self.full else (n, m)
        self.total = torch.zeros(shape, dtype=wide, device=device)
        self.layers = {
            layer: torch.zeros(n, m, dtype=wide, device=device) for layer in layers.values()
        }
        self.factor = 1 / (self.left.tape.scale * columns.tape.scale)

    def whole(self) -> Tensor:
        """The kernel as a matrix."""
        n, r, m, s = self.total.shape if self.full else (len(self.total), 1, self.total.shape[1], 1)
        flat = self.total.reshape(n * r, m * s)
        return mirrored(flat) if self.right is None else flat

    def parts(self) -> dict[str, Tensor]:
        """Its parts by layer."""
        if self.right is not None:
            return self.layers
        return {layer: mirrored(part) for layer, part in self.layers.items()}

    def add_group(self, group: Group) -> None:
        """Add parameters that share backward passes, by blocks of directions."""
        for i, first in enumerate(group.blocks):
            left = self._collect(self.left, group, first)
            for second in group.blocks[i:] if self.full else [first]:
                if self.right is None:
                    right = None if first == second else self._collect(self.left, group, second)
                    self._add(group, left, right, first, second)
                    continue
                self._add(group, left, self._collect(self.right, group, second), first, second)
                if first != second:
                    # The other corner: between two sets of samples nothing is symmetric.
                    other = self._collect(self.left, group, second)
                    self._add(group, other, self._collect(self.right, group, first), second, first)

    def _collect(self, side: Pass, group: Group, directions: range) -> Collected:
        # Kept apart, directions are multiplied by blocks of samples that are copied each time.
        as_given = not self.full
        return Collected(side, group.names, group.as_rows, directions, as_given=as_given)

    def _add(
        self, group: Group, left: Collected, right: Collected | None, first: range, second: range
    ) -> None:
        for name in group.names:
            if name in group.as_rows:
                a = left.rows[name]
                b = a if right is None else right.rows[name]
                block = gram_of_rows(a, b, full=self.full)
                block = block.view(*a.shape[:2], *b.shape[:2]) if self.full else block
            else:
                block = self._outer(name, left, right)
            block *= self.factor
            self._place(block, self.layer_of[name], first, second)

    def _outer(self, name: str, left: Collected, right: Collected | None) -> Tensor:
        """The part of a parameter whose gradients are outer products."""
        budget, full = self.planner.budget // 2, self.full
        pairs = self.planner.bundles(name)
        block: Tensor | None = None
        for i, (mine, yours) in enumerate(pairs):
            order, _ = self.planner.order(mine)
            a = left.factors(name, mine)
            b = None if right is None else right.factors(name, yours)
            part = contract_outer(a, b, order, full=full, budget=budget)
            block = part if block is None else block.add_(part)
            for j, (_, other) in enumerate(pairs):
                if i == j or other.layout != mine.layout.turned():
                    continue
                if right is not None:  # both orders of such a pair come by
                    c = right.factors(name, other)
                    block += contract_turned(a, c, full=full, budget=budget)
                elif mine.indexed or (i < j and not other.indexed):
                    turned = contract_turned(a, left.factors(name, other), full=full, budget=budget)
                    block += turned
                    block += turned.permute(2, 3, 0, 1) if full else turned.mT
        assert block is not None
        return block

    def _place(self, block: Tensor, layer: str, first: range, second: range) -> None:
        if not self.full:
            self.total += block
            self.layers[layer] += block
            return
        a, b = slice(first.start, first.stop), slice(second.start, second.stop)
        self.total[:, a, :, b] += block
        if first == second:
            self.layers[layer] += torch.einsum("nrmr->nm", block)
        elif self.right is None:
            self.total[:, b, :, a] += block.permute(2, 3, 0, 1)

    def add_large(self) -> None:
        """Add parameters whose rows do not fit at once, by blocks of samples."""
        planner = self.planner
        names = planner.large
        total, layers = contract(
            PassRows(self.left, planner.rows),
            None if self.right is None else PassRows(self.right, planner.rows),
            {name: self.left.parameters[name].row_size for name in names},
            {name: self.layer_of[name] for name in names},
            full=self.full,
            itemsize=self.left.tape.outputs.element_size(),
            device=self.total.device,
            budget=planner.budget,
        )
        self.total += total.view(self.total.shape) * self.factor
        for layer, part in layers.items():
            self.layers[layer] += part * self.factor
