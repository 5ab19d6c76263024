"""Where each parameter meets the data: the operations at which per-sample gradients are formed.

From a parameter the search goes up the graph, through transposes, slices, weight norms and merged
weights, as long as the cotangent there still mixes samples, and stops at the first operation where
it does not.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ntkwatch.jacobian.structured.graph import Edge, Graph, Unstructured, outputs_of, shape_of
from ntkwatch.jacobian.structured.layout import is_view
from ntkwatch.jacobian.structured.ownership import Owner, RegularOwner, digits, owner_of, tags
from ntkwatch.jacobian.structured.tape import Tape

__all__ = ["Use", "find_uses"]

_log = logging.getLogger(__name__)

_SAMPLED = 1024  # elements looked at per cotangent, before all of them are
_SEED = 0x0E7


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

_known: WeakKeyDictionary[nn.Module, dict[tuple[int, int], _Known]] = WeakKeyDictionary()


def find_uses(tape: Tape, model: nn.Module, budget: int) -> dict[str, list[Use]]:
    """Return the uses of every parameter that the outputs depend on.

    The result for one structure of the graph is remembered with the model, except where it follows
    from values (routed rows, layers without gradient so far).

    Args:
        tape: A forward pass.
        model: Whose pass it is.
        budget: Bytes that cotangents may take.

    Returns:
        By parameter; a use appears with each parameter that it depends on.

    Raises:
        Unstructured: If samples mix up to the outputs.
    """
    key = (tape.graph.signature(), tape.count)
    memory = _known.setdefault(model, {})
    decisions = _recall(tape.graph, memory.get(key, {}))
    search = _Search(tape, decisions, budget)
    uses = search.run()
    if not tape.graph.routes() and "dead" not in search.decisions.values():
        kept = _remember(tape.graph, search.decisions)
        if kept is not None:
            memory[key] = kept
    return uses


class _Search:
    def __init__(self, tape: Tape, decisions: dict[Node, _Decision], budget: int) -> None:
        self.tape, self.decisions, self.budget = tape, decisions, budget
        self.scaled = bool(decisions)

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
        verdicts = self._owners(edges)
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

    def _owners(self, edges: Sequence[Edge]) -> dict[Edge, Owner | str]:
        """Whose rows; edges without any gradient are left out."""
        found: dict[Edge, Owner | str] = {}
        unclear: list[Edge] = []
        for group in self._groups(edges):
            for edge, owner in self._tagged(group, sampled=True).items():
                if owner == "unclear":
                    unclear.append(edge)
                else:
                    found[edge] = owner
        for group in self._groups(unclear):
            found |= self._tagged(group, sampled=False)
        return {edge: owner for edge, owner in found.items() if owner != "none"}

    def _groups(self, edges: Sequence[Edge]) -> list[list[Edge]]:
        """Edges whose cotangents fit the budget together."""
        groups: list[list[Edge]] = []
        held = 0
        for edge in edges:
            need = _size(edge) * self.tape.outputs.element_size()
            if groups and held + need <= self.budget:
                groups[-1].append(edge)
                held += need
            else:
                groups.append([edge])
                held = need
        return groups

    def _tagged(self, edges: list[Edge], *, sampled: bool) -> dict[Edge, Owner | str]:
        count = self.tape.count
        places = [_places(edge, self.tape.outputs.device) if sampled else None for edge in edges]
        plain = self._pass(edges, places, None)
        if not self.scaled:
            self.scaled = True
            if self._rescale(plain):
                plain = self._pass(edges, places, None)
        tagged = [self._pass(edges, places, digit) for digit in range(digits(count))]
        found: dict[Edge, Owner | str] = {}
        for index, edge in enumerate(edges):
            values = plain[index]
            if values is None:
                continue
            others = [
                t if t is not None else torch.zeros_like(values)
                for t in (one[index] for one in tagged)
            ]
            shape = shape_of(edge)
            if len(values) != _size(edge) and places[index] is None:
                shape = (*shape, 2)  # complex: real and imaginary part
            found[edge] = owner_of(values, others, places[index], shape, count)
        return found

    def _pass(
        self, edges: list[Edge], places: Sequence[Tensor | None], digit: int | None
    ) -> list[Tensor | None]:
        outputs = self.tape.outputs
        generator = torch.Generator().manual_seed(_SEED)
        one = torch.randn(outputs.shape[1], generator=generator, device="cpu").to(outputs)
        many = torch.randn(self.tape.count, 1, generator=generator, device="cpu").to(outputs)
        cotangent = (many + torch.sign(many)) * one * self.tape.scale
        if digit is not None:
            cotangent = cotangent * tags(self.tape.count, digit, outputs)
        kept: list[Tensor | None] = []
        for found, where in zip(self.tape.cotangents(edges, cotangent), places, strict=True):
            if found is None:
                kept.append(None)
                continue
            flat = (torch.view_as_real(found) if found.is_complex() else found).flatten()
            kept.append(flat if where is None else flat[where])
        return kept

    def _rescale(self, values: Sequence[Tensor | None]) -> bool:
        """Bring cotangents near 1 where they are so small or large that tags would be lost."""
        sizes = [v.abs().max() for v in values if v is not None and v.numel()]
        if not sizes:
            return False
        largest = torch.stack([size.double() for size in sizes])
        largest = largest[largest > 0]
        if not len(largest):
            return False
        middle = float(largest.median())
        if middle != middle or middle == float("inf"):
            self.tape.scale *= 2.0**-100
            return True
        exponent = round(torch.log2(torch.tensor(middle, dtype=torch.float64)).item())
        if abs(exponent) <= _TOLERATED:
            return False
        self.tape.scale *= 2.0**-exponent
        return True


_TOLERATED = 16


def _size(edge: Edge) -> int:
    size = 1
    for length in shape_of(edge):
        size *= length
    return size


def _places(edge: Edge, device: torch.device) -> Tensor | None:
    size = _size(edge)
    if size <= 4 * _SAMPLED:
        return None
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(size, (_SAMPLED,), generator=generator, device="cpu").to(device)


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
