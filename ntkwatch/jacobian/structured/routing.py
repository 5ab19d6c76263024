"""Whether values may decide which row of a tensor belongs to which sample.

Where they may, as in routed experts, what was found for one batch and one set of weights says
nothing about the next, and is not remembered. Indexing is the usual way to route; products with a
one-hot matrix, sums over masked rows and attention within packed rows do it as well, and are told
by the samples lying along an axis that the operation adds up or mixes.
"""

from collections.abc import Mapping
from typing import Literal

from torch.autograd.graph import Node

from ntkwatch.jacobian.structured.graph import Edge, Graph, shape_of
from ntkwatch.jacobian.structured.ownership import Owner, RegularOwner

__all__ = ["routes", "suspects"]

_INDEXING = (
    "Index",
    "Gather",
    "Scatter",
    "MaskedSelect",
    "MaskedScatter",
    "Take",
    "Sort",
    "Topk",
    "Unique",
)
_PRODUCTS = {"Mm": (1, 0), "Addmm": (1, 0), "Bmm": (2, 1), "Baddbmm": (2, 1)}
_SUMS = ("Sum", "Mean", "Cumsum", "Logsumexp", "Logcumsumexp", "Prod", "Max", "Amax", "Amin", "Min")


def suspects(graph: Graph) -> list[tuple[Edge, frozenset[int]]]:
    """Return the operands of operations that mix rows, each with the axes along which they do.

    Args:
        graph: Of a forward pass.

    Returns:
        What enters such an operation, and the axes that samples must not lie along.
    """
    found = []
    for node in graph.nodes:
        for slot, (child, output) in enumerate(node.next_functions):
            if child is not None:
                edge = Edge(child, output)
                axes = _mixed_axes(node, slot, len(shape_of(edge)))
                if axes:
                    found.append((edge, axes))
    return found


def routes(graph: Graph, owners: Mapping[Edge, Owner | Literal["mixed"]]) -> bool:
    """Return whether values may decide whose a row is.

    Args:
        graph: Of a forward pass.
        owners: Of the edges in ``suspects``; those without any gradient are left out.

    Returns:
        True if they may; parameters, whose gradients mix all samples, do not count.
    """
    if any(node.name().startswith(_INDEXING) for node in graph.nodes):
        return True
    for edge, axes in suspects(graph):
        owner = owners.get(edge)
        if owner is None or owner == "mixed":
            continue
        if not isinstance(owner, RegularOwner) or owner.axis in axes:
            return True
    return False


def _mixed_axes(node: Node, slot: int, ndim: int) -> frozenset[int]:
    name = node.name().removesuffix("Backward0").removesuffix("Backward1")
    if name in _PRODUCTS:
        first = 0 if name in ("Mm", "Bmm") else 1  # the others add a third operand, elementwise
        return frozenset() if slot < first else frozenset({_PRODUCTS[name][slot - first]})
    if name == "Embedding":  # rows picked from a table; one that is a parameter routes nothing
        made = node.next_functions[0][0]
        return frozenset() if hasattr(made, "variable") else frozenset({0})
    if name.startswith("ScaledDotProduct"):
        return frozenset(range(2, ndim))
    if "Convolution" in name:
        return frozenset(range(1, ndim)) if slot == 0 else frozenset()
    if name.startswith(_SUMS):
        dims = getattr(node, "_saved_dim", None)
        if dims is None:
            return frozenset(range(ndim))
        each = dims if isinstance(dims, tuple | list) else [dims]
        return frozenset((dim - 2**64 if dim >= 2**63 else dim) % max(1, ndim) for dim in each)
    return frozenset()
