"""Rules for operations on elements: sums, products, broadcasting, choices."""

import torch

from ntkwatch.jacobian.structured.graph import shape_of
from ntkwatch.jacobian.structured.ownership import RaggedOwner
from ntkwatch.jacobian.structured.rules.forms import Outer, Rows, elementwise, rule
from ntkwatch.jacobian.structured.uses import Use

__all__: list[str] = []


@rule("AddBackward0", "SubBackward0")
def _sum(use: Use) -> Outer | Rows | None:
    factor = 1 if use.slot == 0 else use.node._saved_alpha  # type: ignore[attr-defined]
    sign = -1 if use.slot == 1 and use.node.name().startswith("Sub") else 1
    return elementwise(use, lambda cotangent: sign * factor * cotangent)


@rule("ExpandBackward0")
def _expand(use: Use) -> Outer | Rows | None:
    return elementwise(use, lambda cotangent: cotangent)


@rule("RepeatBackward0")
def _repeat(use: Use) -> Rows | None:
    """Copies side by side; along the axis of the samples each sample has whole copies, or none."""
    owner = use.owners[0]
    if isinstance(owner, RaggedOwner) or owner.turns:
        return None
    shape, whole = shape_of(use.derived), shape_of(use.edges[0])
    sizes = (1,) * (len(whole) - len(shape)) + shape
    if whole[owner.axis] // owner.count % sizes[owner.axis]:
        return None

    def rows(cotangent: torch.Tensor) -> torch.Tensor:
        parts = owner.split(cotangent)
        copies = [
            number
            for length, size in zip(parts.shape[1:], sizes, strict=True)
            for number in (length // size, size)
        ]
        parts = parts.reshape(len(parts), *copies)
        return parts.sum(dim=list(range(1, parts.ndim, 2))).reshape(len(parts), *shape)

    return Rows(of=rows)


@rule("MulBackward0")
def _product(use: Use) -> Outer | Rows | None:
    other = use.node._saved_other if use.slot == 0 else use.node._saved_self  # type: ignore[attr-defined]
    return None if other is None else elementwise(use, lambda cotangent: cotangent * other)


@rule("DivBackward0")
def _quotient(use: Use) -> Outer | Rows | None:
    if use.slot == 1:
        return None
    other = use.node._saved_other  # type: ignore[attr-defined]
    return elementwise(use, lambda cotangent: cotangent / other)


@rule("WhereBackward0")
def _choice(use: Use) -> Outer | Rows | None:
    first: torch.Tensor = use.node._saved_condition  # type: ignore[attr-defined]
    chosen = first if use.slot == 0 else ~first
    return elementwise(use, lambda cotangent: cotangent * chosen)


@rule("PreluKernelBackward0")
def _prelu(use: Use) -> Outer | Rows | None:
    """``max(x, 0) + w min(x, 0)``."""
    if use.slot == 0:
        return None
    image = use.node._saved_self  # type: ignore[attr-defined]
    return elementwise(use, lambda cotangent: cotangent * image.clamp(max=0))
