"""Rules for products with a matrix: linear layers, projections, einsum."""

import torch
from torch import Tensor

from ntkwatch.jacobian.structured.graph import shape_of
from ntkwatch.jacobian.structured.ownership import Owner, RaggedOwner
from ntkwatch.jacobian.structured.rules.forms import Outer, Rows, elementwise, rule
from ntkwatch.jacobian.structured.uses import Use

__all__: list[str] = []


@rule("AddmmBackward0")
def _addmm(use: Use) -> Outer | Rows | None:
    """``beta * M + alpha * A B``."""
    node = use.node
    if use.slot == 0:
        beta = node._saved_beta  # type: ignore[attr-defined]
        return elementwise(use, lambda cotangent: beta * cotangent)
    alpha = node._saved_alpha  # type: ignore[attr-defined]
    saved = "_saved_mat2" if use.slot == 1 else "_saved_mat1"
    return _product(use, getattr(node, saved), left=use.slot == 1, scale=float(alpha))


@rule("MmBackward0")
def _mm(use: Use) -> Outer | Rows | None:
    saved = use.node._saved_mat2 if use.slot == 0 else use.node._saved_self  # type: ignore[attr-defined]
    return _product(use, saved, left=use.slot == 0)


@rule("BmmBackward0")
def _bmm(use: Use) -> Outer | Rows | None:
    """One product per item; with a single item, as einsum makes them, it is an ordinary one."""
    saved = use.node._saved_mat2 if use.slot == 0 else use.node._saved_self  # type: ignore[attr-defined]
    left = use.slot == 0
    owner = use.owners[0]
    axis = 2 if left else 1
    if isinstance(owner, RaggedOwner) or owner.axis != axis:
        return None

    def rows_last(tensor: Tensor) -> Tensor:
        """(n, items, T, width): positions before widths, whichever factor is given."""
        return tensor.mT if left else tensor

    if len(saved) == 1:
        return Outer(
            saved=saved,
            act=lambda part: rows_last(part)[:, 0],
            cot=lambda part: rows_last(part)[:, 0],
            act_axes=(0, 2) if left else (0, 1),
            cot_axes=(1,) if left else (2,),
        )

    def gradients(cotangent: Tensor) -> Tensor:
        acts, cots = rows_last(owner.split(saved)), rows_last(owner.split(cotangent))
        found = acts.mT @ cots
        return found.mT if left else found

    return Rows(of=gradients)


def _product(use: Use, data: Tensor, *, left: bool, scale: float = 1.0) -> Outer | None:
    """``A B`` with the rule's input as A (left) or B."""
    owner: Owner = use.owners[0]
    if isinstance(owner, RaggedOwner):
        if left or owner.lead != 1:
            return None
    elif owner.axis != (1 if left else 0):
        return None

    def rows_first(part: Tensor) -> Tensor:
        return part.mT if left else part

    return Outer(
        saved=data,
        act=rows_first,
        cot=rows_first,
        act_axes=(1,) if left else (0,),
        cot_axes=(0,) if left else (1,),
        scale=scale,
    )


@rule("EmbeddingBackward0")
def _embedding(use: Use) -> Outer | None:
    """Rows of a table, picked by an index; the padding row gets no gradient."""
    node, owner = use.node, use.owners[0]
    if node._saved_scale_grad_by_freq:  # type: ignore[attr-defined]
        return None
    indices: Tensor = node._saved_indices  # type: ignore[attr-defined]
    last = len(shape_of(use.edges[0])) - 1
    if (owner.lead > last) if isinstance(owner, RaggedOwner) else (owner.axis == last):
        return None
    padding = int(node._saved_padding_idx)  # type: ignore[attr-defined]
    padding = padding - 2**64 if padding >= 2**63 else padding
    # Shifted by one, so that the zeros of padded ragged rows mean "none" as well.
    shifted = torch.where(indices == padding, 0, indices + 1)
    return Outer(
        saved=shifted,
        act=lambda part: part.flatten(1) - 1,
        cot=lambda part: part.flatten(1, -2),
        act_axes=(0,),
        cot_axes=(1,),
    )
