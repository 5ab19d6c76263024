"""Whether values decide which row goes where: then owners found once may be others next time.

Operations that pick rows say so by their name; a product with a one-hot matrix, as some routed
experts use, shows by what it adds up over: samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch.autograd.graph import Node

from ntkwatch.jacobian.structured.graph import Edge, Graph, shape_of
from ntkwatch.jacobian.structured.ownership import RegularOwner

__all__ = ["values_route"]

# Places of the two factors among a product's inputs.
_PRODUCTS = {"MmBackward0": 0, "BmmBackward0": 0, "AddmmBackward0": 1, "BaddbmmBackward0": 1}


def values_route(
    graph: Graph, uses: Iterable[Node], tell: Callable[[Sequence[Edge]], Mapping[Edge, object]]
) -> bool:
    """Return whether rows of samples may be elsewhere in a graph that looks the same.

    Args:
        graph: Of one forward pass.
        uses: The operations at which parameters meet the data.
        tell: Says whose rows the cotangents of operations hold.

    Returns:
        Also True where that cannot be told.
    """
    if graph.routes():
        return True
    data = _above(graph, uses)
    summed: dict[Edge, int] = {}  # factors made of data, with the axis that a product adds up over
    for node in data:
        if node.name() == "EmbeddingBackward0" and node.next_functions[0][0] in data:
            return True  # rows of data picked by an index
        first = _PRODUCTS.get(node.name())
        if first is None:
            continue
        for left, (child, output) in zip((True, False), node.next_functions[first:], strict=False):
            if child is not None and child in data:
                edge = Edge(child, output)
                summed[edge] = len(shape_of(edge)) - (1 if left else 2)
    owners = tell(list(summed)) if summed else {}
    return any(
        not isinstance(owner, RegularOwner) or owner.axis == summed[edge]
        for edge, owner in owners.items()
    )


def _above(graph: Graph, nodes: Iterable[Node]) -> dict[Node, None]:
    """These operations and all that depend on them, in an order."""
    found = dict.fromkeys(nodes)
    waiting = list(found)
    for node in waiting:  # grows meanwhile
        for consumer, _ in graph.consumers(node):
            if consumer not in found:
                found[consumer] = None
                waiting.append(consumer)
    return found
