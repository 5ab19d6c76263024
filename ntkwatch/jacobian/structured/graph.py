"""The autograd graph of one forward pass, read from the outputs down to the parameters.

Every use of a parameter that autograd sees is an edge of this graph, whatever module or function
made it, so what is found here is complete.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["Edge", "Graph", "Unstructured", "below", "dtype_of", "outputs_of", "shape_of"]


class Unstructured(Exception):  # noqa: N818 - not for users: it asks for another engine
    """The structured engine cannot serve this model or parameter; the message says why.

    Args:
        message: Why.
        node: The operation that is to blame, if it is a single one.
    """

    def __init__(self, message: str, node: Node | None = None) -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True, slots=True)
class Edge:
    """One output of an operation: where a cotangent arrives in the backward pass.

    Attributes:
        node: The operation, as autograd's node.
        output: Which of its outputs.
    """

    node: Node
    output: int


class Graph:
    """The nodes below some outputs, with who consumes whom.

    Args:
        outputs: The end of a forward pass.
        leaves: Parameters by name, as they entered it.

    Attributes:
        nodes: Every node, in an order that two equal graphs share.
        number: Position of each node in that order.
        leaves: Node of each parameter that the outputs depend on, by name.
    """

    def __init__(self, outputs: Tensor, leaves: Mapping[str, Tensor]) -> None:
        self.nodes: list[Node] = []
        self.number: dict[Node, int] = {}
        self._consumers: dict[Node, list[tuple[Node, int]]] = {}
        if outputs.grad_fn is not None:
            self._walk(outputs.grad_fn)
        names = {id(tensor): name for name, tensor in leaves.items()}
        self.leaves: dict[str, Node] = {}
        for node in self.nodes:
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) in names:
                self.leaves[names[id(variable)]] = node

    def _walk(self, root: Node) -> None:
        # Breadth first and iterative: deep networks exceed Python's limit on recursion.
        self.nodes, self.number = [root], {root: 0}
        for node in self.nodes:  # grows meanwhile
            for slot, (child, _) in enumerate(node.next_functions):
                if child is None:
                    continue
                self._consumers.setdefault(child, []).append((node, slot))
                if child not in self.number:
                    self.number[child] = len(self.nodes)
                    self.nodes.append(child)

    def consumers(self, node: Node) -> Iterator[tuple[Node, int]]:
        """Return the operations that take an output of this one, each with the place it takes."""
        return iter(self._consumers.get(node, []))

    def signature(self) -> int:
        """Return a number that graphs of equal operations on equal shapes share."""
        parts = []
        for node in self.nodes:
            below = tuple(
                (-1 if child is None else self.number[child], output)
                for child, output in node.next_functions
            )
            shapes = tuple(shape_of(edge) for edge in outputs_of(node))
            parts.append((node.name(), below, shapes))
        return hash(tuple(parts))


def below(root: Node) -> list[Node]:
    """Return an operation and all that it depends on."""
    found = {root: None}
    waiting = [root]
    while waiting:
        for child, _ in waiting.pop().next_functions:
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def outputs_of(node: Node) -> list[Edge]:
    """Return every output of an operation."""
    return [Edge(node, output) for output in range(len(_metadata(node)))]


def shape_of(edge: Edge) -> tuple[int, ...]:
    """Return the shape of an operation's output."""
    return tuple(int(size) for size in _metadata(edge.node)[edge.output].shape)


def dtype_of(edge: Edge) -> torch.dtype:
    """Return the dtype of an operation's output."""
    dtype: torch.dtype = _metadata(edge.node)[edge.output].dtype
    return dtype


def _metadata(node: Node) -> list[Any]:
    try:
        return list(node._input_metadata)
    except AttributeError as error:
        raise Unstructured(f"{node.name()} does not tell the shapes of its outputs") from error
