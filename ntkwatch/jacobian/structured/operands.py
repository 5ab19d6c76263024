"""What a backward pass leaves behind for one parameter: the operands of its contraction."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ntkwatch.jacobian.functional import real_entries
from ntkwatch.jacobian.structured.contraction import Factors
from ntkwatch.jacobian.structured.graph import Edge, below, shape_of
from ntkwatch.jacobian.structured.layout import (
    Layout,
    layout_of,
    overlap,
    picked_entries,
    view_of_parameter,
)
from ntkwatch.jacobian.structured.ownership import RaggedOwner
from ntkwatch.jacobian.structured.rows import Form, carried_to, gradients_of
from ntkwatch.jacobian.structured.rules.forms import Outer
from ntkwatch.jacobian.structured.rules.table import form_of
from ntkwatch.jacobian.structured.tape import Tape
from ntkwatch.jacobian.structured.uses import Use

__all__ = ["Bundle", "Parameter", "length_of", "size_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Uses of a parameter that see the same entries in the same orientation.

    Attributes:
        layout: Which entries, and which way round.
        uses: The operations.
        forms: Their rules' answers.
    """

    layout: Layout
    uses: tuple[Use, ...]
    forms: tuple[Outer, ...]

    @property
    def length(self) -> int:
        """Positions T per sample of all uses together."""
        return sum(length_of(u, f) for u, f in zip(self.uses, self.forms, strict=True))

    @property
    def width(self) -> int:
        """Cotangents e per position."""
        return size_of([self.layout.cot])

    @property
    def depth(self) -> int:
        """Activations d per position."""
        return size_of([self.layout.act])

    @property
    def indexed(self) -> bool:
        """Whether the activations are indices."""
        return not self.forms[0].saved.is_floating_point()

    @property
    def copies(self) -> bool:
        """Whether activations take memory of their own."""
        return any(form.copies for form in self.forms)


class Parameter:
    """A parameter in one forward pass, with its uses sorted.

    Args:
        tape: The pass.
        name: Of the parameter.
        uses: All its uses.

    Attributes:
        bundles: Outer products by layout, pairwise disjoint or turned; empty if rows are needed.
        edges: Where cotangents are to be taken.
        generic: Whether some operation has no rule.
    """

    def __init__(self, tape: Tape, name: str, uses: Sequence[Use]) -> None:
        self.tape, self.name, self.uses = tape, name, tuple(uses)
        self.forms: tuple[Form, ...] = tuple(form_of(use) for use in uses)
        self.edges = list(dict.fromkeys(edge for use in uses for edge in use.edges))
        self.generic = any(form is None for form in self.forms)
        self.bundles = self._bundles()

    @property
    def size(self) -> int:
        """Real numbers in the parameter."""
        leaf = self.tape.leaves[self.name]
        return leaf.numel() * (2 if leaf.is_complex() else 1)

    @cached_property
    def picked(self) -> Tensor | None:
        """Indices of the entries that rows hold, where the rest of them would be zeros."""
        derived, leaf = {use.derived for use in self.uses}, self.tape.leaves[self.name]
        if len(derived) > 1 or leaf.is_complex():
            return None
        return picked_entries(derived.pop(), self.tape.graph.leaves[self.name], leaf.shape)

    @property
    def row_size(self) -> int:
        """Real numbers in a row."""
        return self.size if self.picked is None else len(self.picked)

    def match(self, other: "Parameter") -> None:
        """Let rows hold all entries unless those of another pass hold the same.

        Args:
            other: The same parameter there.
        """
        mine, yours = self.picked, other.picked
        if mine is None or yours is None or not torch.equal(mine, yours):
            self.picked = other.picked = None

    def _bundles(self) -> list[Bundle]:
        leaf = self.tape.leaves[self.name]
        by_layout: dict[Layout, list[tuple[Use, Outer]]] = {}
        for use, form in zip(self.uses, self.forms, strict=True):
            if not isinstance(form, Outer):
                return []
            view = view_of_parameter(use.derived, self.tape.graph.leaves[self.name], leaf.shape)
            if view is None:
                return []
            layout = layout_of(view, form.act_axes, form.cot_axes)
            by_layout.setdefault(layout, []).append((use, form))
        bundles = [
            Bundle(layout, tuple(u for u, _ in pairs), tuple(f for _, f in pairs))
            for layout, pairs in by_layout.items()
        ]
        return bundles if self._orderly(bundles) else []

    def _orderly(self, bundles: list[Bundle]) -> bool:
        """No bundle of two kinds, no two bundles that overlap unless one is the other turned."""
        for i, bundle in enumerate(bundles):
            if len({form.saved.is_floating_point() for form in bundle.forms}) > 1:
                return False
            for other in bundles[:i]:
                turned = other.layout == bundle.layout.turned()
                if turned and bundle.indexed and other.indexed:
                    return False
                if not turned and overlap(bundle.layout, other.layout, self.size):
                    return False
        return True

    def held(self) -> AbstractContextManager[None]:
        """Have in memory what the operations between this parameter and the data saved of it."""
        if not self._called:
            return nullcontext()
        return self.tape.function.gathered(self.name, self._called)

    @cached_property
    def _called(self) -> list[Node]:
        """Operations that are called by themselves to make rows, outside any backward pass."""
        leaf, shape = self.tape.graph.leaves[self.name], self.tape.leaves[self.name].shape
        nodes: list[Node] = []
        for use, form in zip(self.uses, self.forms, strict=True):
            if form is None or len(use.edges) > 1:
                nodes.append(use.node)
            if view_of_parameter(use.derived, leaf, shape) is None:
                nodes += below(use.derived.node)
        return nodes

    def pieces(self, bundle: Bundle, cotangents: Mapping[Edge, Tensor]) -> list[Tensor]:
        """Return the cotangents (n, T, e) of each use of a bundle, for one direction.

        Args:
            bundle: One of ``bundles``.
            cotangents: By edge.

        Returns:
            One tensor per use, a view where that is possible.
        """
        found = []
        for use, form in zip(bundle.uses, bundle.forms, strict=True):
            (edge,), (owner,) = use.edges, use.owners
            piece = form.cot(owner.split(cotangents[edge])[: self.tape.kept])
            found.append(piece if form.scale == 1 else piece * form.scale)
        return found

    def factors(self, bundle: Bundle, cot: Tensor) -> Factors:
        """Return the operands of one bundle.

        Args:
            bundle: One of ``bundles``.
            cot: Its cotangents (n, T, R, e).

        Returns:
            Activations and cotangents.
        """

        def act(samples: range) -> Tensor:
            found = [
                form.act(use.owners[0].split(form.saved)[samples.start : samples.stop])
                for use, form in zip(bundle.uses, bundle.forms, strict=True)
            ]
            return torch.cat(found, dim=1) if len(found) > 1 else found[0]

        return Factors(act=act, cot=cot, depth=bundle.depth)


def rows_of(
    parameters: Sequence[Parameter], cotangents: dict[Edge, Tensor], kept: int
) -> dict[str, Tensor]:
    """Return the gradients (n, p) of some parameters for one direction, as real numbers.

    Args:
        parameters: Of one pass.
        cotangents: By edge.
        kept: Samples, the first ones.

    Returns:
        One row per sample and parameter, of ``row_size``.
    """
    made: dict[tuple[Node, int], Tensor] = {}
    found: dict[str, Tensor] = {}
    for parameter in parameters:
        with parameter.held():
            gradients: dict[Edge, Tensor] = {}
            for use, form in zip(parameter.uses, parameter.forms, strict=True):
                place = (use.node, use.slot)
                if place not in made:
                    own = [cotangents.get(edge) for edge in use.edges]
                    made[place] = gradients_of(use, form, own, kept)
                before = gradients.get(use.derived)
                gradients[use.derived] = made[place] if before is None else before + made[place]
            if parameter.picked is None:
                rows = real_entries(carried_to(parameter.tape, parameter.name, gradients))
            else:
                (rows,) = gradients.values()
            found[parameter.name] = rows.reshape(len(rows), -1)
    return found


def length_of(use: Use, form: Outer) -> int:
    """Return the positions T per sample of an outer product."""
    (edge, *_), (owner, *_) = use.edges, use.owners
    shape = shape_of(edge)
    if isinstance(owner, RaggedOwner):
        return int(owner.valid.shape[1]) * size_of([shape[owner.lead : -1]])
    example = torch.empty(shape, device="meta")
    return int(form.cot(owner.split(example)).shape[1])


def size_of(parts: Sequence[Sequence[int] | Sequence[tuple[int, int]]]) -> int:
    """Return the product of sizes, or of the sizes in (size, stride) pairs."""
    size = 1
    for part in parts:
        for item in part:
            size *= item if isinstance(item, int) else item[0]
    return size
