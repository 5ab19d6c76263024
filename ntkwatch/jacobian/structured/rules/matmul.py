"""Rules for products with a matrix: linear layers, projections, einsum."""

import torch
from torch import Tensor

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
    return _products(use, saved, left=use.slot == 0)


@rule("BaddbmmBackward0")
def _baddbmm(use: Use) -> Outer | Rows | None:
    """``beta * M + alpha * A B`` per item."""
    node = use.node
    if use.slot == 0:
        beta = node._saved_beta  # type: ignore[attr-defined]
        return elementwise(use, lambda cotangent: beta * cotangent)
    alpha = float(node._saved_alpha)  # type: ignore[attr-defined]
    saved = "_saved_batch2" if use.slot == 1 else "_saved_batch1"
    return _products(use, getattr(node, saved), left=use.slot == 1, scale=alpha)


def _products(use: Use, saved: Tensor, *, left: bool, scale: float = 1.0) -> Outer | Rows | None:
    """``A B`` per item with the rule's input as A (left) or B."""
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
            scale=scale,
        )

    def gradients(cotangent: Tensor) -> Tensor:
        acts, cots = rows_last(owner.split(saved)), rows_last(owner.split(cotangent))
        found = acts.mT @ cots if scale == 1 else scale * (acts.mT @ cots)
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


@rule("TrilinearBackward0")
def _bilinear(use: Use) -> Outer | None:
    """``x' W_k y``, as ``bilinear`` calls it: the weight sees the outer product of x and y."""
    node, owner = use.node, use.owners[0]
    axes = [tuple(getattr(node, f"_saved_{name}")) for name in _TRILINEAR]
    if use.slot != 1 or axes != list(_TRILINEAR.values()):
        return None
    if isinstance(owner, RaggedOwner) or owner.axis != 0:
        return None
    x: Tensor = node._saved_i1  # type: ignore[attr-defined]
    width = x.shape[1]

    def outer(part: Tensor) -> Tensor:
        """(n, T, width of x and y) -> (n, T, product of the widths)."""
        return (part[..., :width, None] * part[..., None, width:]).flatten(-2)

    return Outer(
        saved=torch.cat([x, node._saved_i3], dim=1),  # type: ignore[attr-defined]
        act=outer,
        cot=lambda part: part,
        act_axes=(1, 2),
        cot_axes=(0,),
        copies=True,
    )


# Which axes the three factors lack, and which are added up, where ``bilinear`` calls.
_TRILINEAR = {"expand1": (1, 3), "expand2": (0,), "expand3": (1, 2), "sumdim": (2, 3)}
