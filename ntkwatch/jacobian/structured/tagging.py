"""Owners told by values: two or three backward passes with tagged samples."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ntkwatch.jacobian.structured.graph import Edge, shape_of
from ntkwatch.jacobian.structured.ownership import Owner, digits, owner_of, tags
from ntkwatch.jacobian.structured.tape import Tape

__all__ = ["OwnersByTags"]

_SAMPLED = 1024  # elements looked at per cotangent, before all of them are
_SEED = 0x0E7
# Cotangents within this many powers of two of 1 are left as they are.
_TOLERATED = 16
# Looking at every element takes about this many times the memory of the cotangent.
_EACH = 10


class OwnersByTags:
    """Says whose rows the cotangents at some edges hold.

    Args:
        tape: A forward pass; its ``scale`` is set so that cotangents are near 1.
        budget: Bytes that cotangents may take.
    """

    def __init__(self, tape: Tape, budget: int) -> None:
        self.tape, self.budget, self._scaled = tape, budget, False

    def __call__(self, edges: Sequence[Edge]) -> dict[Edge, Owner | Literal["mixed"]]:
        """Return the owners; edges without any gradient are left out."""
        found: dict[Edge, Owner | str] = {}
        unclear: list[Edge] = []
        for group in self._groups(edges):
            for edge, owner in self._tagged(group, sampled=True).items():
                if owner == "unclear":
                    unclear.append(edge)
                else:
                    found[edge] = owner
        for group in self._groups(unclear, weight=_EACH):
            found |= self._tagged(group, sampled=False)
        return {
            edge: "mixed" if isinstance(owner, str) else owner
            for edge, owner in found.items()
            if owner != "none"
        }

    def _groups(self, edges: Sequence[Edge], weight: int = 1) -> list[list[Edge]]:
        """Edges whose cotangents fit the budget together."""
        groups: list[list[Edge]] = []
        held = 0
        for edge in edges:
            need = weight * _size(edge) * self.tape.outputs.element_size()
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
        if not self._scaled:
            self._scaled = True
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
