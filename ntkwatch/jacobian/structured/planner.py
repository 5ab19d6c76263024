"""What will be computed for each parameter of a pass, in which order and in which company.

Parameters share backward passes as far as their operands fit the memory budget together.
"""

from dataclasses import dataclass

from ntkwatch.jacobian.plan import KernelPlan, Step
from ntkwatch.jacobian.structured.graph import shape_of
from ntkwatch.jacobian.structured.operands import Bundle, size_of
from ntkwatch.jacobian.structured.orders import cheapest_order
from ntkwatch.jacobian.structured.passes import Pass

__all__ = ["Group", "Planner"]

_SCRATCH = 2**24  # bytes: intermediates of a contraction are kept to the size of a cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Parameters that share backward passes.

    Attributes:
        names: The parameters.
        as_rows: Those whose gradients are held as rows.
        blocks: Output directions in blocks that are held at once.
        passes: Backward passes in all.
    """

    names: tuple[str, ...]
    as_rows: frozenset[str]
    blocks: tuple[range, ...]
    passes: int


class Planner:
    """Sorts the parameters of one or two passes.

    Args:
        left: The first samples.
        right: The second; None for the same.
        names: Parameters wanted.
        rows: Directions R.
        full: Whether to keep directions apart.
        budget: Bytes that may be held beyond the forward pass.

    Attributes:
        full: The same, unless there is but one direction.
        groups: Parameters that are contracted pass by pass.
        large: Parameters whose rows do not fit, for blocks of samples.
        plan: All this for people.
    """

    def __init__(
        self,
        left: Pass,
        right: Pass | None,
        names: list[str],
        rows: int,
        *,
        full: bool,
        budget: int,
    ) -> None:
        self.left, self.right, self.rows = left, right, rows
        # The rest is for what allocators keep between pieces and libraries take for themselves.
        self.full, self.budget = full and rows > 1, max(1, budget * 2 // 3)
        self.itemsize = left.tape.outputs.element_size()
        self.samples = left.count + (0 if right is None else right.count)
        served = [
            name
            for name in names
            if name in left.parameters and (right is None or name in right.parameters)
        ]
        self._bundles = {name: self._paired(name) for name in served}
        if right is not None:
            for name in (name for name in served if not self._bundles[name]):
                left.parameters[name].match(right.parameters[name])
        self.large = [name for name in served if not self._bundles[name] and self._too_many(name)]
        self.groups = self._grouped([name for name in served if name not in self.large])
        passes = {name: group.passes for group in self.groups for name in group.names}
        passes |= {name: self._sample_passes(name) for name in self.large}
        self.plan = KernelPlan(
            steps=tuple(self._step(name, passes[name]) for name in served),
            passes=sum(group.passes for group in self.groups)
            + sum(passes[name] for name in self.large),
        )

    def bundles(self, name: str) -> list[tuple[Bundle, Bundle]]:
        """Return a parameter's outer products on both sides, in pairs; none if rows are needed."""
        return self._bundles[name]

    def order(self, bundle: Bundle) -> tuple[str, float]:
        """Return the cheapest order for a bundle and its multiplications."""
        count = self.left.count if self.right is None else max(self.left.count, self.right.count)
        return cheapest_order(
            count,
            self.rows,
            bundle.length,
            bundle.depth,
            bundle.width,
            full=self.full,
            indexed=bundle.indexed,
        )

    def _paired(self, name: str) -> list[tuple[Bundle, Bundle]]:
        first = self.left.parameters[name].bundles
        if self.right is None:
            return [(bundle, bundle) for bundle in first]
        second = {bundle.layout: bundle for bundle in self.right.parameters[name].bundles}
        if set(second) != {bundle.layout for bundle in first}:
            return []
        return [(bundle, second[bundle.layout]) for bundle in first]

    def _too_many(self, name: str) -> bool:
        """Whether rows, or the gradients that they are made of, take too much memory."""
        parameter = self.left.parameters[name]
        rows = self.rows * parameter.row_size
        made = sum(size_of([shape_of(use.derived)]) for use in parameter.uses)
        return self.samples * max(rows, made) * self.itemsize > self.budget // 4

    def _bytes(self, name: str) -> int:
        """Operands of all samples and directions."""
        pairs = self._bundles[name]
        if not pairs:
            each = self.left.parameters[name].row_size
        else:
            each = sum(bundle.length * bundle.width for bundle, _ in pairs)
        return self.samples * self.rows * each * self.itemsize

    def _working(self, name: str) -> int:
        """Memory while a parameter is contracted: unfolded activations, and what any takes."""
        need = _SCRATCH
        for bundle, _ in self._bundles[name]:
            if bundle.copies:  # once unfolded and once more in the order of a matrix product
                need += 2 * self.samples * bundle.length * bundle.depth * self.itemsize
        return need

    def _held(self, names: list[str]) -> int:
        """Memory for parameters that share passes: operands, one pass's cotangents, one's work."""
        edges = {e for n in names for e in self.left.parameters[n].edges}
        if self.rows == 1:  # a single use keeps what autograd gave
            edges -= {
                e
                for n in names
                for bundle, _ in self._bundles[n]
                if len(bundle.uses) == 1
                for e in bundle.uses[0].edges
            }
        cotangents = sum(size_of([shape_of(edge)]) for edge in edges) * self.itemsize
        operands = sum(self._bytes(name) for name in names)
        return operands + cotangents + max(self._working(name) for name in names)

    def _grouped(self, names: list[str]) -> list[Group]:
        """From the outputs down, so that most groups' passes need not go to the bottom."""
        number = self.left.tape.graph.number
        names = sorted(
            names,
            key=lambda name: max(number[e.node] for e in self.left.parameters[name].edges),
        )
        groups: list[list[str]] = []
        for name in names:
            if groups and self._held([*groups[-1], name]) <= self.budget:
                groups[-1].append(name)
            else:
                groups.append([name])
        return [self._group(group) for group in groups]

    def _group(self, names: list[str]) -> Group:
        """Directions in blocks, if all of them are too many even for one parameter."""
        need = self._held(names) - _SCRATCH
        fit = max(0, self.budget - _SCRATCH) * self.rows // max(1, need)
        # Between two blocks of directions both are held.
        step = self.rows if fit >= self.rows else max(1, fit // (2 if self.full else 1))
        blocks = tuple(
            range(start, min(start + step, self.rows)) for start in range(0, self.rows, step)
        )
        count = len(blocks)
        each = (count + 1) / 2 if self.full else 1  # as often as a block is collected, on average
        return Group(
            names=tuple(names),
            as_rows=frozenset(name for name in names if not self._bundles[name]),
            blocks=blocks,
            passes=round(self.rows * each) * (1 if self.right is None else 2),
        )

    def _sample_passes(self, name: str) -> int:
        """Passes for rows made by blocks of samples, as ``blocks.contract`` makes them."""
        # At most: small parameters that were made of large tensors may share passes there.
        each = self.rows * self.left.parameters[name].row_size * self.itemsize
        step = self.samples
        if self.samples * each > self.budget // 2:
            step = max(1, self.budget // 2 // (2 * each))
        first = -(-self.left.count // step)
        if self.right is None:
            return self.rows * first * (first + 1) // 2
        return self.rows * first * (1 + -(-self.right.count // step))

    def _step(self, name: str, passes: int) -> Step:
        parameter, pairs = self.left.parameters[name], self._bundles[name]
        operations = tuple(dict.fromkeys(use.node.name() for use in parameter.uses))
        if not pairs:
            n, p = self.left.count, parameter.row_size
            entries = (n * self.rows) ** 2 if self.full else n * n * self.rows
            return Step(
                parameter=name,
                operations=operations,
                route="generic" if parameter.generic else "structured",
                order="rows",
                length=0,
                depth=0,
                width=p,
                multiplications=0.5 * entries * p,
                nbytes=self._bytes(name),
                passes=passes,
            )
        costs = [self.order(bundle) for bundle, _ in pairs]
        return Step(
            parameter=name,
            operations=operations,
            route="structured",
            order="+".join(dict.fromkeys(order for order, _ in costs)),
            length=pairs[0][0].length,
            depth=pairs[0][0].depth,
            width=pairs[0][0].width,
            multiplications=sum(count for _, count in costs),
            nbytes=self._bytes(name),
            passes=passes,
        )
