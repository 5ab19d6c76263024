"""Which rows of a cotangent belong to which sample.

Every sample's part of the output cotangent is multiplied by a power of two of its own. That
commutes with rounding, so wherever samples do not mix the cotangent is multiplied by exactly that
power, whose exponent names the sample; wherever they mix the ratio is no power of two. No law about
batch dimensions is assumed: time first, windows, flattened tokens and routed rows are all told.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Owner", "RaggedOwner", "RegularOwner", "digits", "owner_of", "tags"]

_BASE = 64  # values of one digit: exponents from -32 to 31 leave float32 room on both sides
_HALF = _BASE // 2
_NOBODY, _SEVERAL = -1, -2


@dataclass(frozen=True, slots=True)
class RegularOwner:
    """Samples lie along one axis, in blocks of neighbours or in turns.

    Attributes:
        count: Samples N.
        axis: The axis, of size N q.
        turns: Whether index i belongs to sample i mod N; otherwise to i // q.
    """

    count: int
    axis: int
    turns: bool

    def split(self, tensor: Tensor) -> Tensor:
        """Return a view (N, ...) in which the axis has size q."""
        q = tensor.shape[self.axis] // self.count
        if self.turns:
            return tensor.unflatten(self.axis, (q, self.count)).movedim(self.axis + 1, 0)
        return tensor.unflatten(self.axis, (self.count, q)).movedim(self.axis, 0)

    def only(self, tensor: Tensor, sample: int) -> Tensor:
        """Return the tensor with zeros where it belongs to other samples."""
        alone = torch.zeros_like(tensor)
        self.split(alone)[sample] = self.split(tensor)[sample]
        return alone


@dataclass(frozen=True, slots=True, eq=False)
class RaggedOwner:
    """Samples own rows in any order and number.

    Attributes:
        count: Samples N.
        lead: How many leading axes make up the rows.
        owners: Sample of each row, -1 for rows without gradient.
        rows: (N, T), the rows of each sample, padded.
        valid: (N, T), False at padding.
    """

    count: int
    lead: int
    owners: Tensor
    rows: Tensor
    valid: Tensor

    def split(self, tensor: Tensor) -> Tensor:
        """Return the rows of each sample, (N, T, ...), zero at padding."""
        found = tensor.flatten(0, self.lead - 1)[self.rows]
        return found * self.valid.view(*self.valid.shape, *(1,) * (found.ndim - 2)).to(found.dtype)

    def only(self, tensor: Tensor, sample: int) -> Tensor:
        """Return the tensor with zeros where it belongs to other samples."""
        mine = (self.owners == sample).view(
            *tensor.shape[: self.lead], *(1,) * (tensor.ndim - self.lead)
        )
        return torch.where(mine, tensor, 0)


Owner = RegularOwner | RaggedOwner


def digits(count: int) -> int:
    """Return how many tagged passes tell this many samples apart."""
    return 1 if count <= _BASE else 2


def tags(count: int, digit: int, like: Tensor) -> Tensor:
    """Return the factor of each sample in a tagged pass, (N, 1)."""
    sample = torch.arange(count, device=like.device)
    part = sample % _BASE if digit == 0 else sample // _BASE
    return torch.ldexp(torch.ones(count, dtype=like.dtype, device=like.device), part - _HALF)[
        :, None
    ]


def owner_of(
    plain: Tensor, tagged: list[Tensor], places: Tensor | None, shape: tuple[int, ...], count: int
) -> Owner | str:
    """Return whose rows a cotangent holds.

    Args:
        plain: The cotangent's elements, flat, or some of them.
        tagged: The same elements of the tagged passes.
        places: Positions of these elements; None for all.
        shape: Of the cotangent.
        count: Samples N.

    Returns:
        The owner; "mixed" if some element belongs to several samples, "none" if all are zero,
        "unclear" if only all elements can tell.
    """
    elements = _owners(plain, tagged)
    if bool((elements == _SEVERAL).any()) or bool((elements >= count).any()):
        return "mixed"
    seen = elements != _NOBODY
    if not bool(seen.any()):
        return "none" if places is None else "unclear"
    where = torch.arange(len(elements), device=elements.device) if places is None else places
    if int(seen.sum()) >= min(_ENOUGH, len(elements)) or places is None:
        for guess in _guesses(shape, count):
            if _fits(guess, shape, where[seen], elements[seen]):
                return guess
    return _ragged(elements, shape, count) if places is None else "unclear"


_ENOUGH = 64  # nonzero elements that make a chance agreement with a wrong guess impossible


def _owners(plain: Tensor, tagged: list[Tensor]) -> Tensor:
    """The sample of each element, from the exponents by which it was multiplied."""
    mantissa, exponent = torch.frexp(plain)
    owners = torch.zeros_like(exponent, dtype=torch.long)
    wrong = torch.zeros_like(plain, dtype=torch.bool)
    for digit, values in enumerate(tagged):
        mantissa_tagged, exponent_tagged = torch.frexp(values)
        shift = exponent_tagged.long() - exponent.long() + _HALF
        wrong |= (mantissa_tagged != mantissa) | (shift < 0) | (shift >= _BASE)
        owners += shift * _BASE**digit
    nobody = (plain == 0) & torch.stack([values == 0 for values in tagged]).all(dim=0)
    owners = torch.where(wrong, _SEVERAL, owners)
    return torch.where(nobody, _NOBODY, owners)


def _guesses(shape: tuple[int, ...], count: int) -> Iterator[RegularOwner]:
    for axis, size in enumerate(shape):
        if size and size % count == 0:
            yield RegularOwner(count, axis, turns=False)
            if size > count:
                yield RegularOwner(count, axis, turns=True)


def _fits(guess: RegularOwner, shape: tuple[int, ...], where: Tensor, owners: Tensor) -> bool:
    """Whether a guess names the sample of each element; a single sample proves nothing."""
    inner = 1
    for size in shape[guess.axis + 1 :]:
        inner *= size
    index = (where // inner) % shape[guess.axis]
    q = shape[guess.axis] // guess.count
    expected = index % guess.count if guess.turns else index // q
    return bool((expected == owners).all()) and bool((owners != owners[0]).any())


def _ragged(elements: Tensor, shape: tuple[int, ...], count: int) -> RaggedOwner | str:
    for lead in range(1, len(shape) + 1):
        rows = 1
        for size in shape[:lead]:
            rows *= size
        table = elements.view(rows, -1)
        highest = table.max(dim=1).values
        known = table != _NOBODY
        if bool((~known | (table == highest[:, None])).all()):
            return _ragged_owner(highest, lead, count)
    return "mixed"


def _ragged_owner(owners: Tensor, lead: int, count: int) -> RaggedOwner:
    order = torch.argsort(owners, stable=True)
    order = order[owners[order] >= 0]
    lengths = torch.bincount(owners[order], minlength=count)
    longest = int(lengths.max())
    starts = lengths.cumsum(0) - lengths
    steps = torch.arange(longest, device=owners.device)
    valid = steps < lengths[:, None]
    rows = order[(starts[:, None] + steps).clamp(max=len(order) - 1)]
    return RaggedOwner(count, lead, owners, rows, valid)
