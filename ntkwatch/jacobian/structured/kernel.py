"""The structured engine: exact kernels from one forward pass and one backward pass per direction.

The graph says where parameters meet the data, rules say what the gradients there are made of, and
each parameter's part of the kernel is contracted in its cheapest order. The model is never
vectorised and no Jacobian is held.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ntkwatch.jacobian.blocks import contract, gram_of_rows, mirrored
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.plan import Step
from ntkwatch.jacobian.structured.contraction import Factors, contract_outer, contract_turned
from ntkwatch.jacobian.structured.graph import Edge, dtype_of, shape_of
from ntkwatch.jacobian.structured.operands import Bundle, Parameter, rows_of, size_of
from ntkwatch.jacobian.structured.planner import cheapest_order
from ntkwatch.jacobian.structured.tape import Tape
from ntkwatch.jacobian.structured.uses import find_uses
from ntkwatch.kernel.gram import widest_float

__all__ = ["Parts", "Pass", "structured_kernel"]


class Pass:
    """A forward pass over some samples with the uses of its parameters.

    Args:
        function: The model as a function.
        inputs: Samples.
        reduction: Output directions.
        names: Parameters to differentiate by.
        buffers: Buffers to use instead of the model's.
        budget: Bytes that cotangents may take.

    Attributes:
        tape: The pass.
        parameters: Those that the outputs depend on, by name.
    """

    def __init__(
        self,
        function: ModelFunction,
        inputs: Inputs,
        reduction: Reduction,
        names: Sequence[str],
        buffers: Params,
        budget: int,
    ) -> None:
        self.tape = Tape(function, inputs, reduction, names, buffers)
        uses = find_uses(self.tape, function.model, budget)
        self.parameters = {
            name: Parameter(self.tape, name, found) for name, found in uses.items() if found
        }

    @property
    def count(self) -> int:
        """Samples that were asked for."""
        return self.tape.kept

    def cotangents(self, edges: Sequence[Edge], row: int) -> dict[Edge, Tensor]:
        """Return the cotangents of one direction, zeros where there are none."""
        found = self.tape.cotangents(edges, self.tape.direction(row))
        return {
            edge: _zeros(edge, self.tape.outputs.device) if c is None else c
            for edge, c in zip(edges, found, strict=True)
        }


@dataclass(slots=True)
class Parts:
    """A kernel in the making.

    Attributes:
        total: (N R, M R) if full, else (N, M).
        layers: (N, M) per layer.
        coverage: Route of each parameter.
        steps: What was done for each parameter.
    """

    total: Tensor
    layers: dict[str, Tensor]
    coverage: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


@torch.no_grad()
def structured_kernel(
    left: Pass,
    right: Pass | None,
    layers: Mapping[str, str],
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
    work = _Work(left, right, layers, rows, full=full, budget=budget)
    work.run()
    return work.parts


class _Work:
    def __init__(
        self,
        left: Pass,
        right: Pass | None,
        layers: Mapping[str, str],
        rows: int,
        *,
        full: bool,
        budget: int,
    ) -> None:
        self.left, self.right, self.layers = left, right, layers
        self.rows, self.full, self.budget = rows, full and rows > 1, budget
        columns = left if right is None else right
        self.n, self.m = left.count, columns.count
        outputs = left.tape.outputs
        device, wide = outputs.device, widest_float(outputs.device)
        self.itemsize = outputs.element_size()
        shape = (self.n, rows, self.m, rows) if self.full else (self.n, self.m)
        self.total = torch.zeros(shape, dtype=wide, device=device)
        self.parts = Parts(
            self.total,
            {
                layer: torch.zeros(self.n, self.m, dtype=wide, device=device)
                for layer in layers.values()
            },
        )
        self.factor = 1 / (left.tape.scale * columns.tape.scale)

    def run(self) -> None:
        for name in self.layers:
            self.parts.coverage[name] = "structured"
        names = [n for n in self.left.parameters if self._served(n)]
        plain, large = self._sorted(names)
        for group in self._groups(plain):
            self._group(group)
        if large:
            self._large(large)
        if self.right is None:
            flat = (self.n * self.rows,) * 2 if self.full else (self.n, self.m)
            self.parts.total = mirrored(self.total.reshape(flat))
            self.parts.layers = {k: mirrored(part) for k, part in self.parts.layers.items()}
        elif self.full:
            self.parts.total = self.total.reshape(self.n * self.rows, self.m * self.rows)

    def _served(self, name: str) -> bool:
        return self.right is None or name in self.right.parameters

    def _sorted(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Parameters that can be contracted at once, and those whose rows are too many for it."""
        plain: list[str] = []
        large: list[str] = []
        for name in names:
            parameter = self.left.parameters[name]
            many = (self.n + self.m) * self.rows * parameter.size * self.itemsize
            derived = sum(size_of([shape_of(use.derived)]) for use in parameter.uses)
            made = (self.n + self.m) * derived * self.itemsize
            fits = max(many, made) <= self.budget // 4
            (plain if self._outer(name) or fits else large).append(name)
            self.parts.steps.append(self._step(name))
            if parameter.generic:
                self.parts.coverage[name] = "generic"
        return plain, large

    def _outer(self, name: str) -> list[tuple[Bundle, Bundle]]:
        """The bundles of both sides in pairs; none if rows are needed."""
        first = self.left.parameters[name].bundles
        if self.right is None:
            return [(bundle, bundle) for bundle in first]
        second = {bundle.layout: bundle for bundle in self.right.parameters[name].bundles}
        if set(second) != {bundle.layout for bundle in first}:
            return []
        return [(bundle, second[bundle.layout]) for bundle in first]

    def _step(self, name: str) -> Step:
        parameter = self.left.parameters[name]
        operations = tuple(dict.fromkeys(use.node.name() for use in parameter.uses))
        bundles = self._outer(name)
        if not bundles:
            n, r, p = self.n, self.rows, parameter.size
            return Step(
                parameter=name,
                operations=operations,
                route="generic" if parameter.generic else "structured",
                order="rows",
                length=0,
                depth=0,
                width=p,
                multiplications=0.5
                * (n * r if self.full else n) ** 2
                * p
                * (1 if self.full else r),
                nbytes=n * r * p * self.itemsize,
                passes=self.rows,
            )
        costs = [self._order(bundle) for bundle, _ in bundles]
        return Step(
            parameter=name,
            operations=operations,
            route="structured",
            order="+".join(dict.fromkeys(order for order, _ in costs)),
            length=bundles[0][0].length,
            depth=bundles[0][0].depth,
            width=bundles[0][0].width,
            multiplications=sum(count for _, count in costs),
            nbytes=sum(self._bytes(bundle) for bundle, _ in bundles),
            passes=self.rows,
        )

    def _order(self, bundle: Bundle) -> tuple[str, float]:
        count = max(self.n, self.m)
        return cheapest_order(
            count,
            self.rows,
            bundle.length,
            bundle.depth,
            bundle.width,
            full=self.full,
            indexed=bundle.indexed,
        )

    def _bytes(self, bundle: Bundle) -> int:
        """Cotangents of all directions and samples."""
        return self.n * self.rows * bundle.length * bundle.width * self.itemsize

    # Groups of parameters that share their backward passes. ------------------------------------

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        group: list[str] = []
        held = 0
        for name in names:
            bundles = self._outer(name)
            parameter = self.left.parameters[name]
            if bundles:
                need = sum(self._bytes(bundle) for bundle, _ in bundles)
            else:
                need = self.n * self.rows * parameter.size * self.itemsize
            need *= 1 if self.right is None else 2
            if group and held + need > self.budget // 2:
                yield group
                group, held = [], 0
            group.append(name)
            held += need
        if group:
            yield group

    def _group(self, names: list[str]) -> None:
        """Contract some parameters, by blocks of directions if all of them are too many."""
        need = max(sum(self._bytes(bundle) for bundle, _ in self._outer(name)) for name in names)
        fit = self.budget // 2 * self.rows // max(1, need)
        step = self.rows if fit >= self.rows else max(1, fit // (2 if self.full else 1))
        blocks = [range(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]
        for i, first in enumerate(blocks):
            left = self._collect(self.left, names, first)
            for second in blocks[i:] if self.full else [first]:
                if self.right is None:
                    same = first == second
                    right = left if same else self._collect(self.left, names, second)
                    self._add(names, left, None if same else right, first, second)
                else:
                    right = self._collect(self.right, names, second)
                    self._add(names, left, right, first, second)
                    if first != second:
                        # The other corner, since nothing is symmetric between two sets of samples.
                        other = self._collect(self.left, names, second)
                        mine = self._collect(self.right, names, first)
                        self._add(names, other, mine, second, first)

    def _collect(self, side: Pass, names: Sequence[str], directions: range) -> "_Collected":
        return _Collected(side, names, directions, self._outer)

    def _add(
        self,
        names: Sequence[str],
        left: "_Collected",
        right: "_Collected | None",
        first: range,
        second: range,
    ) -> None:
        for name in names:
            pairs = self._outer(name)
            if pairs:
                block = self._outer_block(pairs, left, right)
            else:
                a = left.rows[name]
                b = a if right is None else right.rows[name]
                block = gram_of_rows(a, b, full=self.full)
                if self.full:
                    block = block.view(*a.shape[:2], *b.shape[:2])
            block *= self.factor
            self._place(block, self.layers[name], first, second)

    def _outer_block(
        self,
        pairs: list[tuple[Bundle, Bundle]],
        left: "_Collected",
        right: "_Collected | None",
    ) -> Tensor:
        block: Tensor | None = None
        columns = left if right is None else right
        for mine, yours in pairs:
            order, _ = self._order(mine)
            a = left.factors(mine)
            b = None if right is None else right.factors(yours)
            part = contract_outer(a, b, order, full=self.full, budget=self.budget // 2)
            block = part if block is None else block.add_(part)
            turned = [y for _, y in pairs if y.layout == mine.layout.turned() and y is not yours]
            for other in turned:
                # Both orders of the pair come by, so the sum is symmetric again.
                block += contract_turned(
                    a, columns.factors(other), full=self.full, budget=self.budget // 2
                )
        assert block is not None
        return block

    def _place(self, block: Tensor, layer: str, first: range, second: range) -> None:
        if not self.full:
            self.total += block
            self.parts.layers[layer] += block
            return
        a, b = slice(first.start, first.stop), slice(second.start, second.stop)
        self.total[:, a, :, b] += block
        if first == second:
            self.parts.layers[layer] += torch.einsum("nrmr->nm", block)
        elif self.right is None:
            self.total[:, b, :, a] += block.permute(2, 3, 0, 1)

    # Parameters whose rows do not fit: blocks of samples. ----------------------------------------

    def _large(self, names: list[str]) -> None:
        sizes = {name: self.left.parameters[name].size for name in names}
        total, layers = contract(
            _RowSource(self.left, self.rows),
            None if self.right is None else _RowSource(self.right, self.rows),
            sizes,
            {name: self.layers[name] for name in names},
            full=self.full,
            itemsize=self.itemsize,
            device=self.total.device,
            budget=self.budget,
        )
        self.total += total.view(self.total.shape) * self.factor
        for layer, part in layers.items():
            self.parts.layers[layer] += part * self.factor


class _Collected:
    """The operands of some parameters for some directions, made pass by pass."""

    def __init__(
        self,
        side: Pass,
        names: Sequence[str],
        directions: range,
        outer: Callable[[str], list[tuple[Bundle, Bundle]]],
    ) -> None:
        self.side = side
        rows = [side.parameters[name] for name in names if not outer(name)]
        edges = dict.fromkeys(e for name in names for e in side.parameters[name].edges)
        kept = {e for name in names if outer(name) for e in side.parameters[name].edges}
        self._cotangents: list[dict[Edge, Tensor]] = []
        self.rows: dict[str, Tensor] = {}
        for index, row in enumerate(directions):
            found = side.cotangents(list(edges), row)
            self._cotangents.append({edge: c for edge, c in found.items() if edge in kept})
            if rows:
                for name, part in rows_of(rows, found, side.count).items():
                    if name not in self.rows:
                        shape = (len(part), len(directions), part.shape[1])
                        self.rows[name] = part.new_empty(shape)
                    self.rows[name][:, index] = part

    def factors(self, bundle: Bundle) -> Factors:
        parameter = next(
            p for p in self.side.parameters.values() if any(b is bundle for b in p.bundles)
        )
        return parameter.factors(bundle, self._cotangents)


class _RowSource:
    """Rows of parameters for ranges of samples, made anew for each range."""

    def __init__(self, side: Pass, rows: int) -> None:
        self.side, self.rows, self.count = side, rows, side.count

    def row_blocks(self, names: Sequence[str], samples: range, budget: int) -> dict[str, Tensor]:
        parameters = [self.side.parameters[name] for name in names]
        edges = list(dict.fromkeys(edge for p in parameters for edge in p.edges))
        blocks: dict[str, Tensor] = {}
        for row in range(self.rows):
            found = rows_of(parameters, self.side.cotangents(edges, row), samples.stop)
            for name, part in found.items():
                if name not in blocks:
                    shape = (len(samples), self.rows, part.shape[1])
                    blocks[name] = part.new_empty(shape)
                blocks[name][:, row] = part[samples.start :]
        return blocks


def _zeros(edge: Edge, device: torch.device) -> Tensor:
    return torch.zeros(shape_of(edge), dtype=dtype_of(edge), device=device)
