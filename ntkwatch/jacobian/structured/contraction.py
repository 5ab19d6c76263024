"""Kernels of gradients that are sums of outer products, in the cheapest exact order.

With activations A (T x d) and cotangents B (T x e) of each sample and direction, the gradient is
``G = A' B`` and a kernel entry ``<G, G'>`` is one of

- materialise: G itself, then a Gram matrix;
- ghost: ``sum_tt' (A A')[t, t'] (B B')[t, t']``;
- mixed: ``sum_t'e ((A' A)' B)[t', e] B'[t', e]``, for full kernels.

Which is cheapest is decided in ``planner``; all give the same numbers. Blocks are multiplied in the
dtype of the model and added up in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.jacobian.blocks import gram_of_rows
from ntkwatch.kernel.gram import widest_float

__all__ = ["Factors", "Order", "contract_outer", "contract_turned"]

_CACHE = 2**22  # bytes: larger intermediates leave a processor's cache, at half the speed


class Activations(Protocol):
    """Makes the activations (n, T, d) of a range of samples, or indices (n, T)."""

    def __call__(self, samples: range) -> Tensor: ...


Order = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One side of a contraction.

    Attributes:
        act: Activations of a range of samples.
        cot: Cotangents (N, T, R, e), with constant factors in them.
        depth: d.
    """

    act: Activations
    cot: Float[Tensor, "n t r e"]
    depth: int


def contract_outer(
    left: Factors, right: Factors | None, order: Order, *, full: bool, budget: int
) -> Tensor:
    """Return the kernel of two sets of gradients.

    Args:
        left: Gradients of the first samples.
        right: Of the second; None for the same.
        order: "materialise", "ghost" or "mixed".
        full: Whether to keep directions apart; otherwise they are added up.
        budget: Bytes that intermediates may take.

    Returns:
        (N, R, M, S) if full, else (N, M); of a symmetric kernel only what lies on and above the
        diagonal is computed, block by block.
    """
    same = right is None
    columns = left if right is None else right
    n, m = len(left.cot), len(columns.cot)
    shape = (n, left.cot.shape[2], m, columns.cot.shape[2]) if full else (n, m)
    total = torch.zeros(shape, dtype=widest_float(left.cot.device), device=left.cot.device)
    step_a, step_b = _steps(left, columns, order, full=full, budget=budget)
    for a in _ranges(range(n), step_a):
        act_a = left.act(a)
        for b in _ranges(range(a.start if same else 0, m), step_b):
            act_b = act_a if same and a == b else columns.act(b)
            cot_a, cot_b = left.cot[a.start : a.stop], columns.cot[b.start : b.stop]
            block = _block(order, act_a, cot_a, act_b, cot_b, full=full, budget=budget)
            if full:
                total[a.start : a.stop, :, b.start : b.stop] += block
            else:
                total[a.start : a.stop, b.start : b.stop] += block
    return total


def contract_turned(left: Factors, right: Factors, *, full: bool, budget: int) -> Tensor:
    """Return the kernel between gradients ``A' B`` and transposed ones ``B' A``, as of a tied head.

    ``sum_tt' (A[t] . B'[t']) (B[t] . A'[t'])``.

    Args:
        left: Gradients in one orientation.
        right: Gradients of the same parameter in the other one.
        full: Whether to keep directions apart.
        budget: Bytes that intermediates may take.

    Returns:
        (N, R, M, S) if full, else (N, M).
    """
    n, t, r, _ = left.cot.shape
    m, u, s, _ = right.cot.shape
    wide = widest_float(left.cot.device)
    total = torch.zeros((n, r, m, s) if full else (n, m), dtype=wide, device=left.cot.device)
    each = 2 * t * u * (r + s) * left.cot.element_size()
    for b in _ranges(range(m), max(1, min(budget, _CACHE) // max(1, each))):
        act_b, cot_b = right.act(b), right.cot[b.start : b.stop].transpose(1, 2)  # (b, S, U, d)
        for a in range(n):
            act_a, cot_a = left.act(range(a, a + 1))[0], left.cot[a].transpose(0, 1)  # (R, T, e)
            first = _dots_with_one(cot_b, act_a)
            second = _dots_with_each(cot_a, act_b)
            if full:
                block = torch.einsum("bsut,brut->rbs", first, second)
                total[a, :, b.start : b.stop] = block.to(wide)
            else:
                total[a, b.start : b.stop] = first.mul_(second).sum(dim=(1, 2, 3), dtype=wide)
    return total


def _dots_with_one(cot: Tensor, act: Tensor) -> Tensor:
    """Products (b, S, U, T) of cotangents (b, S, U, d) with (T, d) or indices (T)."""
    if act.is_floating_point():
        return cot @ act.mT
    return cot.index_select(-1, act.clamp(min=0)) * (act >= 0)


def _dots_with_each(cot: Tensor, act: Tensor) -> Tensor:
    """Products (b, R, U, T) of cotangents (R, T, e) with (b, U, e) or indices (b, U)."""
    if act.is_floating_point():  # one product for all
        found = act.flatten(0, 1) @ cot.flatten(0, 1).mT
        return found.view(*act.shape[:2], *cot.shape[:2]).transpose(1, 2)
    found = cot[:, :, act.clamp(min=0)] * (act >= 0)  # (R, T, b, U)
    return found.permute(2, 0, 3, 1)


def _block(
    order: Order,
    act_a: Tensor,
    cot_a: Tensor,
    act_b: Tensor,
    cot_b: Tensor,
    *,
    full: bool,
    budget: int,
) -> Tensor:
    if order == "materialise":
        same = act_a is act_b
        return _materialise(act_a, cot_a, act_b, cot_b, full=full, same=same, budget=budget)
    overlaps = _overlaps(act_a, act_b)
    if order == "mixed":
        return _mixed(overlaps, cot_a, cot_b)
    return _ghost(overlaps, cot_a, cot_b, full=full)


def _overlaps(act_a: Tensor, act_b: Tensor) -> Tensor:
    """``A A'`` between all positions, (a, T, b, U)."""
    if act_a.is_floating_point():
        flat = act_a.flatten(0, 1) @ act_b.flatten(0, 1).mT
        return flat.view(*act_a.shape[:2], *act_b.shape[:2])
    return (act_a[:, :, None, None] == act_b) & (act_a >= 0)[:, :, None, None]


def _ghost(overlaps: Tensor, cot_a: Tensor, cot_b: Tensor, *, full: bool) -> Tensor:
    (a, t, r, _), (b, u, s, _) = cot_a.shape, cot_b.shape
    wide = widest_float(cot_a.device)
    if full:  # one position only
        products = cot_a.flatten(0, 2) @ cot_b.flatten(0, 2).mT
        return products.view(a, r, b, s).to(wide) * overlaps.view(a, 1, b, 1).to(wide)
    first, second = cot_a.flatten(2).flatten(0, 1), cot_b.flatten(2).flatten(0, 1)
    products = (first @ second.mT).view(a, t, b, u)
    if t == u == 1:
        return (products.to(wide) * overlaps)[:, 0, :, 0]
    return products.mul_(overlaps).sum(dim=(1, 3), dtype=wide)


def _mixed(overlaps: Tensor, cot_a: Tensor, cot_b: Tensor) -> Tensor:
    """One sample on the left: its cotangents, carried to the positions of the others."""
    (_, t, r, e), (b, u, s, _) = cot_a.shape, cot_b.shape
    carried = overlaps.view(t, b * u).mT.to(cot_a.dtype) @ cot_a.reshape(t, r * e)
    products = carried.view(b * u, r, e) @ cot_b.reshape(b * u, s, e).mT
    block = products.view(b, u, r, s).sum(dim=1, dtype=widest_float(cot_a.device))
    return block.permute(1, 0, 2)[None]


def _materialise(
    act_a: Tensor,
    cot_a: Tensor,
    act_b: Tensor,
    cot_b: Tensor,
    *,
    full: bool,
    same: bool,
    budget: int,
) -> Tensor:
    """Gradients of some output columns at a time: (n, R, columns, d)."""
    if not full:  # directions are added up like columns, so they may be cut like columns
        cot_a, cot_b = cot_a.flatten(2)[:, :, None], cot_b.flatten(2)[:, :, None]
    a, _, r, width = cot_a.shape
    b, _, s, _ = cot_b.shape
    depth = act_a.shape[2]
    each = (a * r + (0 if same else b * s)) * depth * cot_a.element_size()
    step = max(1, min(width, min(budget, _CACHE) // max(1, each)))
    shape = (a * r, b * s) if full else (a, b)
    total = torch.zeros(shape, dtype=widest_float(cot_a.device), device=cot_a.device)

    def gradients(act: Tensor, cot: Tensor, part: slice) -> Tensor:
        some = cot[..., part].permute(0, 2, 3, 1)  # (n, R, columns, T)
        return (some.flatten(1, 2) @ act).view(*some.shape[:3], depth)

    for start in range(0, width, step):
        part = slice(start, start + step)
        rows_a = gradients(act_a, cot_a, part).flatten(2)
        rows_b = rows_a if same else gradients(act_b, cot_b, part).flatten(2)
        total += gram_of_rows(rows_a, rows_b, full=full)
    return total.view(a, r, b, s) if full else total


def _steps(
    left: Factors, right: Factors, order: Order, *, full: bool, budget: int
) -> tuple[int, int]:
    """Samples per block on both sides."""
    n, t, r, e = left.cot.shape
    m, u, s, _ = right.cot.shape
    size = left.cot.element_size()
    if order == "materialise":
        # All samples at once, unless one output column of theirs or their activations are too many.
        need = size * left.depth * max(r, t)
        both = max(1, budget // (2 * max(1, need)))
        return (n, m) if both >= n else (both, both)
    limit = min(budget, _CACHE)
    if order == "mixed":
        each = size * u * (t + r * e)
        return 1, max(1, min(m, limit // each))
    each = size * (2 * t * u if not full else 3 * r * s)
    if t == u == 1:
        limit = budget
    a = max(1, min(n if t == u == 1 else -(-n // 8), limit // each))
    return a, max(1, min(m, limit // (a * each)))


def _ranges(whole: range, step: int) -> Iterator[range]:
    for start in range(whole.start, whole.stop, step):
        yield range(start, min(start + step, whole.stop))
