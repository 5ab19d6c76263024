"""From Jacobian rows to a kernel, block by block within a memory budget.

The rows of a group of parameters are held for all samples if they fit; a parameter too large for
that is contracted by pairs of sample blocks, computing rows again. The whole Jacobian never exists.
How rows are computed is not known here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.kernel.gram import widest_float

__all__ = ["RowSource", "contract", "gram_of_rows", "mirrored"]

# Columns multiplied at once in single precision before adding up in double: long enough for fast
# products, short enough that rounding stays at the size of one float32 digit.
_COLUMNS = 4096
# A symmetric product is computed in this many bands, each from the diagonal on: 5/8 of the work.
# Bands of fewer rows than this would lose more in speed than they save.
_BANDS = 4
_BAND_ROWS = 24
# Entries of this size have products and sums of products well within single precision.
_SAFE = 2.0**40


@runtime_checkable
class RowSource(Protocol):
    """Something that computes Jacobian rows."""

    count: int
    """Samples."""
    rows: int
    """Output directions R per sample."""

    def row_blocks(
        self, names: Sequence[str], samples: range, budget: int
    ) -> dict[str, Float[Tensor, "n r p"]]:
        """Return, per named parameter, the gradients of each direction of each sample."""


def contract(
    left: RowSource,
    right: RowSource | None,
    sizes: Mapping[str, int],
    layers: Mapping[str, str],
    *,
    full: bool,
    itemsize: int,
    device: torch.device,
    budget: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the kernel between two sets of samples and its parts by layer.

    Args:
        left: Rows of the first samples.
        right: Rows of the second; None for the same samples.
        sizes: Number of entries of each parameter.
        layers: Layer of each parameter.
        full: Whether to keep the output axes.
        itemsize: Bytes per entry of a row.
        device: Where the kernel is to be.
        budget: Bytes that rows may take.

    Returns:
        The kernel, (N·R, M·R) if full and (N, M) otherwise, and per layer its (N, M) part of the
        trace kernel, all in float64 where the device has it.
    """
    columns = left if right is None else right
    n, m, r = left.count, columns.count, left.rows
    wide = widest_float(device)
    shape = (n * r, m * r) if full else (n, m)
    total = torch.zeros(shape, dtype=wide, device=device)
    parts = {
        layer: torch.zeros(n, m, dtype=wide, device=device)
        for layer in dict.fromkeys(layers[name] for name in sizes)
    }

    def add(blocks_a: dict[str, Tensor], blocks_b: dict[str, Tensor], a: range, b: range) -> None:
        for name, rows_a in blocks_a.items():
            block = _gram_in_range(rows_a, blocks_b[name], full=full)
            if full:
                target = total[a.start * r : a.stop * r, b.start * r : b.stop * r]
                trace = torch.einsum("irjr->ij", block.view(len(a), r, len(b), r))
            else:
                target, trace = total[a.start : a.stop, b.start : b.stop], block
            target += block
            parts[layers[name]][a.start : a.stop, b.start : b.stop] += trace

    samples = n if right is None else n + m
    # Half for the rows kept, half for the working memory of making and multiplying them.
    for names, whole in _groups(sizes, samples * r * itemsize, budget // 2):
        if whole:
            rows_a = left.row_blocks(names, range(n), budget // 2)
            rows_b = rows_a if right is None else right.row_blocks(names, range(m), budget // 2)
            add(rows_a, rows_b, range(n), range(m))
            continue
        step = max(1, budget // 2 // (2 * r * itemsize * sizes[names[0]]))
        for a in _ranges(n, step):
            rows_a = left.row_blocks(names, a, budget // 2)
            for b in _ranges(m, step):
                if right is None and b.start < a.start:
                    continue
                same = right is None and b == a
                rows_b = rows_a if same else columns.row_blocks(names, b, budget // 2)
                add(rows_a, rows_b, a, b)
    if right is None:
        total = mirrored(total)
        parts = {layer: mirrored(part) for layer, part in parts.items()}
    return total, parts


def mirrored(kernel: Tensor) -> Tensor:
    """Return a symmetric kernel of which only what lies on and above the diagonal is given.

    Args:
        kernel: Square; below the diagonal it may hold anything.

    Returns:
        The whole kernel.
    """
    upper = kernel.triu()
    return upper + kernel.triu(1).mT


def gram_of_rows(
    a: Float[Tensor, "n r p"], b: Float[Tensor, "m s p"], *, full: bool
) -> Float[Tensor, "x y"]:
    """Return ``A B'`` over parameters (and, unless full, over outputs), added up in float64.

    Args:
        a: Rows of the first samples.
        b: Rows of the second; the same tensor for the same samples, whose kernel is symmetric:
            then only what lies on and above the diagonal is sure to be filled.
        full: Whether to keep output directions apart.

    Returns:
        (n r, m s) if full, else (n, m), for which r and s are the same.
    """
    flat_a, flat_b = (x.flatten(0, 1) if full else x.flatten(1) for x in (a, b))
    wide = widest_float(a.device)
    step = flat_a.shape[1] if flat_a.dtype == wide else _COLUMNS
    gram = torch.zeros(len(flat_a), len(flat_b), dtype=wide, device=a.device)
    banded = a is b and len(flat_a) >= _BANDS * _BAND_ROWS
    rows = -(-len(flat_a) // _BANDS) if banded else len(flat_a)
    for start in range(0, flat_a.shape[1], max(1, step)):
        part_a, part_b = flat_a[:, start : start + step], flat_b[:, start : start + step]
        for top in range(0, len(flat_a), max(1, rows)):
            left = top if a is b else 0
            gram[top : top + rows, left:] += part_a[top : top + rows] @ part_b[left:].mT
    return gram


def _gram_in_range(a: Tensor, b: Tensor, *, full: bool) -> Tensor:
    """The same for rows whose products would leave the range of single precision."""
    if a.dtype == widest_float(a.device) or a.numel() == 0:
        return gram_of_rows(a, b, full=full)
    sizes = [float(rows.abs().max()) for rows in ((a,) if a is b else (a, b))]
    if all(size == 0 or 1 / _SAFE < size < _SAFE or not math.isfinite(size) for size in sizes):
        return gram_of_rows(a, b, full=full)
    # Powers of two, which round nothing; two steps, since one may be out of range itself.
    shifts = [-math.frexp(size)[1] if size else 0 for size in sizes]
    first = _shifted(a, shifts[0])
    second = first if a is b else _shifted(b, shifts[-1])
    return _shifted(gram_of_rows(first, second, full=full), -(shifts[0] + shifts[-1]))


def _shifted(tensor: Tensor, exponent: int) -> Tensor:
    half = exponent // 2
    return tensor * 2.0**half * 2.0 ** (exponent - half)


def _groups(
    sizes: Mapping[str, int], bytes_per_entry: int, budget: int
) -> list[tuple[list[str], bool]]:
    """Parameters whose rows fit the budget together, in order; False marks one that never fits."""
    groups: list[tuple[list[str], bool]] = []
    held = 0
    for name, size in sizes.items():
        need = size * bytes_per_entry
        if need > budget:
            groups.append(([name], False))
        elif groups and groups[-1][1] and held + need <= budget:
            groups[-1][0].append(name)
            held += need
        else:
            groups.append(([name], True))
            held = need
    return groups


def _ranges(count: int, step: int) -> list[range]:
    return [range(start, min(start + step, count)) for start in range(0, count, step)]
