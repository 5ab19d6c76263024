"""Owners told by shapes alone, for models without values: what costs are estimated from.

The axis of an operation's output that grows with the number of samples is that of the samples. No
value is looked at, so this says nothing about coupling and serves estimates only.
"""

from collections.abc import Sequence
from typing import Literal

from ntkwatch.jacobian.structured.graph import Edge, Unstructured, shape_of
from ntkwatch.jacobian.structured.ownership import Owner, RegularOwner
from ntkwatch.jacobian.structured.tape import Tape

__all__ = ["OwnersByShapes"]


class OwnersByShapes:
    """Says along which axis of some edges the samples lie.

    Args:
        tape: A forward pass.
        larger: The same with one sample more.

    Raises:
        Unstructured: If the two passes are of different operations.
    """

    def __init__(self, tape: Tape, larger: Tape) -> None:
        self.tape, self.larger = tape, larger
        names = [node.name() for node in tape.graph.nodes]
        if names != [node.name() for node in larger.graph.nodes]:
            raise Unstructured("other operations run when there is one sample more")

    def __call__(self, edges: Sequence[Edge]) -> dict[Edge, Owner | Literal["mixed"]]:
        """Return the owners."""
        found: dict[Edge, Owner | Literal["mixed"]] = {}
        for edge in edges:
            twin = self.larger.graph.nodes[self.tape.graph.number[edge.node]]
            found[edge] = "mixed"
            sizes = zip(shape_of(edge), shape_of(Edge(twin, edge.output)), strict=True)
            for axis, (size, grown) in enumerate(sizes):
                if size < grown and size * self.larger.count == grown * self.tape.count:
                    found[edge] = RegularOwner(self.tape.count, axis, turns=False)
                    break
        return found
