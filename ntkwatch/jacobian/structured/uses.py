"""Where each parameter meets the data: the operations at which per-sample gradients are formed.

From a parameter the search goes up the graph, through transposes, slices, weight norms and merged
weights, as long as the cotangent there still mixes samples, and stops at the first operation where
it does not.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

from torch import nn
from torch.autograd.graph import Node

from ntkwatch.jacobian.structured.graph import Edge, Graph, Unstructured, outputs_of
from ntkwatch.jacobian.structured.layout import is_view
from ntkwatch.jacobian.structured.ownership import Owner, RegularOwner
from ntkwatch.jacobian.structured.routing import routes, suspects
from ntkwatch.jacobian.structured.tape import Tape

__all__ = ["Use", "find_uses"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """An operation that takes a parameter, or what was made of one, and meets the data.

    Attributes:
        node: The operation.
        slot: Which of its inputs the parameter is.
        derived: What enters there: the parameter itself or something derived from it.
        edges: The operation's outputs that receive a gradient.
        owners: Whose rows each of these cotangents holds.
    """

    node: Node
    slot: int
    derived: Edge
    edges: tuple[Edge, ...]
    owners: tuple[Owner, ...]


# Per operation: "mixed", "dead" (all zero at present), or edges with their owners.
_Decision = Literal["mixed", "dead"] | tuple[tuple[Edge, Owner], ...]
_Known = dict[int, Literal["mixed"] | tuple[tuple[int, RegularOwner], ...]]

# With the scale of the cotangents, which is found on the way.
_known: WeakKeyDictionary[nn.Module, dict[tuple[int, Hashable], tuple[_Known, float]]] = (
    WeakKeyDictionary()
)


class TellsOwners(Protocol):
    """Says whose rows cotangents hold; those without any gradient are left out."""

    def __call__(self, edges: Sequence[Edge]) -> dict[Edge, Owner | Literal["mixed"]]: ...


def find_uses(tape: Tape, model: nn.Module | None, tell: TellsOwners) -> dict[str, list[Use]]:
    """Return the uses of every parameter that the outputs depend on.

    The result for one structure of the graph and one set of inputs is remembered with the model,
    except where it follows from values (routed rows, layers without gradient so far).

    Args:
        tape: A forward pass.
        model: Whose pass it is; None to remember nothing.
        tell: Says whose rows the cotangents of operations hold.

    Returns:
        By parameter; a use appears with each parameter that it depends on.

    Raises:
        Unstructured: If samples mix up to the outputs.
    """
    key = (tape.graph.signature(), tape.fingerprint)
    memory = {} if model is None else _known.setdefault(model, {})
    if key in memory:
        known, tape.scale = memory[key]
        return _Search(tape, _recall(tape.graph, known), tell).run()
    search = _Search(tape, {}, tell)
    uses = search.run()
    if not routes(tape.graph, search.suspects) and "dead" not in search.decisions.values():
        kept = _remember(tape.graph, search.decisions)
        if kept is not None:
            memory[key] = kept, tape.scale
    return uses


class _Search:
    def __init__(self, tape: Tape, decisions: dict[Node, _Decision], tell: TellsOwners) -> None:
        self.tape, self.decisions, self.tell = tape, decisions, tell
        # Asked about in the same passes as the first operations.
        self._also = [] if decisions else [edge for edge, _ in suspects(tape.graph)]
        self.suspects: dict[Edge, Owner | Literal["mixed"]] = {}

    def run(self) -> dict[str, list[Use]]:
        graph = self.tape.graph
        below: dict[Node, set[str]] = {leaf: {name} for name, leaf in graph.leaves.items()}
        uses: dict[tuple[Node, int], tuple[Use, set[str]]] = {}
        fresh = dict(below)
        while fresh:
            self._decide([node for leaf in fresh for node, _ in graph.consumers(leaf)])
            following: dict[Node, set[str]] = {}
            for child, names in fresh.items():
                for node, slot in graph.consumers(child):
                    decision = self._decision(node)
                    if decision == "dead":
                        continue
                    if decision == "mixed":
                        if not names <= below.setdefault(node, set()):
                            below[node] |= names
                            following[node] = below[node]
                        continue
                    edges, owners = zip(*decision, strict=True)
                    derived = Edge(child, node.next_functions[slot][1])
                    use = Use(node, slot, derived, edges, owners)
                    uses.setdefault((node, slot), (use, set()))[1].update(names)
            if self.tape.outputs.grad_fn in following:
                raise Unstructured("the gradients of all samples mix up to the outputs")
            fresh = following
        found: dict[str, list[Use]] = {name: [] for name in graph.leaves}
        for use, names in uses.values():
            for name in names:
                found[name].append(use)
        return found

    def _decision(self, node: Node) -> _Decision:
        # What only moves a parameter's entries about is no place to stop.
        return "mixed" if is_view(node) else self.decisions[node]

    def _decide(self, nodes: Sequence[Node]) -> None:
        open_nodes = [n for n in dict.fromkeys(nodes) if n not in self.decisions and not is_view(n)]
        edges = [edge for node in open_nodes for edge in outputs_of(node)]
        verdicts = self.tell(list(dict.fromkeys([*edges, *self._also])))
        self.suspects |= {e: verdicts[e] for e in self._also if e in verdicts}
        self._also = []
        for node in open_nodes:
            mine = {edge: verdicts[edge] for edge in outputs_of(node) if edge in verdicts}
            if any(owner == "mixed" for owner in mine.values()):
                self.decisions[node] = "mixed"
            elif not mine:
                self.decisions[node] = "dead"
            else:
                self.decisions[node] = tuple(
                    (edge, owner) for edge, owner in mine.items() if not isinstance(owner, str)
                )


def _remember(graph: Graph, decisions: Mapping[Node, _Decision]) -> _Known | None:
    """Decisions by a node's number; None where they rest on more than shapes."""
    kept: _Known = {}
    for node, decision in decisions.items():
        if decision == "mixed":
            kept[graph.number[node]] = "mixed"
            continue
        assert decision != "dead"
        regular = [(e.output, owner) for e, owner in decision if isinstance(owner, RegularOwner)]
        if len(regular) < len(decision):
            return None
        kept[graph.number[node]] = tuple(regular)
    return kept


def _recall(graph: Graph, known: _Known) -> dict[Node, _Decision]:
    found: dict[Node, _Decision] = {}
    for number, decision in known.items():
        node = graph.nodes[number]
        if decision == "mixed":
            found[node] = "mixed"
        else:
            found[node] = tuple((Edge(node, output), owner) for output, owner in decision)
    return found
