"""Views of parameters: which entries of a parameter a transpose, slice or reshape of it shows.

A chain of views is followed on a tensor without data, whose strides then say it all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ntkwatch.jacobian.structured.graph import Edge, shape_of

__all__ = ["Layout", "is_view", "layout_of", "overlap", "picked_entries", "view_of_parameter"]


def _signed(value: int) -> int:
    """Autograd keeps some negative numbers as unsigned ones."""
    return value - 2**64 if value >= 2**63 else value


def _reshape(_node: Node, source: Tensor, shape: tuple[int, ...], _output: int) -> Tensor:
    return source.view(shape)


def _same(_node: Node, source: Tensor, _shape: tuple[int, ...], _output: int) -> Tensor:
    return source


def _slice(node: Node, source: Tensor, shape: tuple[int, ...], _output: int) -> Tensor:
    dim = _signed(node._saved_dim) % source.ndim  # type: ignore[attr-defined]
    start, step = _signed(node._saved_start or 0), node._saved_step  # type: ignore[attr-defined]
    start = start % source.shape[dim] if start < 0 else min(start, source.shape[dim])
    return source.narrow(dim, start, (shape[dim] - 1) * step + 1)[
        (slice(None),) * dim + (slice(None, None, step),)
    ]


def _select(node: Node, source: Tensor, _shape: tuple[int, ...], _output: int) -> Tensor:
    return source.select(_signed(node._saved_dim), _signed(node._saved_index))  # type: ignore[attr-defined]


def _split(node: Node, source: Tensor, shape: tuple[int, ...], output: int) -> Tensor:
    dim = _signed(node._saved_dim) % source.ndim  # type: ignore[attr-defined]
    start = sum(shape_of(Edge(node, before))[dim] for before in range(output))
    return source.narrow(dim, start, shape[dim])


def _unbind(node: Node, source: Tensor, _shape: tuple[int, ...], output: int) -> Tensor:
    return source.select(_signed(node._saved_dim), output)  # type: ignore[attr-defined]


def _permute(node: Node, source: Tensor, _shape: tuple[int, ...], _output: int) -> Tensor:
    return source.permute([_signed(dim) for dim in node._saved_dims])  # type: ignore[attr-defined]


def _transpose(node: Node, source: Tensor, _shape: tuple[int, ...], _output: int) -> Tensor:
    return source.transpose(_signed(node._saved_dim0), _signed(node._saved_dim1))  # type: ignore[attr-defined]


_View = Callable[[Node, Tensor, tuple[int, ...], int], Tensor]
_VIEWS: dict[str, _View] = {
    "TBackward0": lambda _node, source, _shape, _output: source.t(),
    "PermuteBackward0": _permute,
    "TransposeBackward0": _transpose,
    "ViewBackward0": _reshape,
    "UnsafeViewBackward0": _reshape,
    "ReshapeAliasBackward0": _reshape,
    "UnsqueezeBackward0": _reshape,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "SqueezeBackward2": _reshape,
    "AliasBackward0": _same,
    "CloneBackward0": _same,
    "SliceBackward0": _slice,
    "SelectBackward0": _select,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
    "ChunkBackward0": _split,
    "UnbindBackward0": _unbind,
}


def is_view(node: Node) -> bool:
    """Return whether an operation only moves entries about, or leaves some out."""
    return node.name() in _VIEWS


def view_of_parameter(derived: Edge, leaf: Node, shape: Sequence[int]) -> Tensor | None:
    """Return a tensor without data whose strides are those of a view into a parameter.

    Args:
        derived: What enters an operation.
        leaf: The node of the parameter.
        shape: Of the parameter, taken as contiguous.

    Returns:
        The view; None if it is not a plain view of this parameter.
    """
    chain: list[Edge] = []
    edge = derived
    while edge.node is not leaf:
        if not is_view(edge.node):
            return None
        chain.append(edge)
        ((child, output),) = edge.node.next_functions
        if child is None:
            return None
        edge = Edge(child, output)
    view = torch.empty(tuple(shape), device="meta")
    for edge in reversed(chain):
        try:
            view = _VIEWS[edge.node.name()](edge.node, view, shape_of(edge), edge.output)
        except (RuntimeError, IndexError, AttributeError, TypeError):
            return None  # a reshape that copied, or an attribute of another version of torch
        if tuple(view.shape) != shape_of(edge):
            return None
    return view


def picked_entries(derived: Edge, leaf: Node, shape: Sequence[int]) -> Tensor | None:
    """Return which entries of a parameter something made of it consists of, if each comes once.

    A kernel may then be taken between gradients of what was made: those of the entries left out,
    such as the positions beyond a text's end, are zero.

    Args:
        derived: What enters an operation.
        leaf: The node of the parameter.
        shape: Of the parameter.

    Returns:
        Indices into the flat parameter in the order of ``derived``, on the CPU; None for the
        parameter itself and for anything but views of it and distinct rows of a table.
    """
    if derived.node is leaf:
        return None
    if derived.node.name() == "EmbeddingBackward0":
        ((child, _),) = derived.node.next_functions
        rows: Tensor = derived.node._saved_indices.flatten().cpu()  # type: ignore[attr-defined]
        dropped = _signed(derived.node._saved_padding_idx)  # type: ignore[attr-defined]
        if child is not leaf or len(rows.unique()) < len(rows) or bool((rows == dropped).any()):
            return None
        width = shape[1]
        return (rows[:, None] * width + torch.arange(width, device="cpu")).flatten()
    view, size = view_of_parameter(derived, leaf, shape), torch.Size(shape).numel()
    if view is None or view.numel() == size:
        return None
    entries = torch.arange(size, device="cpu")
    return entries.as_strided(view.shape, view.stride(), view.storage_offset()).flatten()


_Axes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The entries of a parameter as a matrix: input axes by output axes.

    Attributes:
        offset: First entry.
        act: Sizes and strides of the axes that meet the activations, neighbours merged.
        cot: The same for the axes that meet the cotangents.
    """

    offset: int
    act: _Axes
    cot: _Axes

    def turned(self) -> "Layout":
        """Return the layout of the transposed matrix."""
        return Layout(self.offset, self.cot, self.act)


def layout_of(view: Tensor, act: Sequence[int], cot: Sequence[int]) -> Layout:
    """Return the layout of a view whose axes are told apart.

    Args:
        view: A view of a parameter.
        act: Axes that meet the activations.
        cot: Axes that meet the cotangents.

    Returns:
        The layout.
    """

    def merged(axes: Sequence[int]) -> _Axes:
        found: list[tuple[int, int]] = []
        for axis in axes:
            size, stride = view.shape[axis], view.stride(axis)
            if size == 1:
                continue
            if found and found[-1][1] == size * stride:
                found[-1] = (found[-1][0] * size, stride)
            else:
                found.append((size, stride))
        return tuple(found)

    return Layout(int(view.storage_offset()), merged(act), merged(cot))


def overlap(first: Layout, second: Layout, size: int) -> bool:
    """Return whether two layouts share an entry of a parameter of this size."""
    seen = torch.zeros(size, dtype=torch.bool, device="cpu")
    _entries(seen, first).fill_(True)
    return bool(_entries(seen, second).any())


def _entries(flat: Tensor, layout: Layout) -> Tensor:
    axes = layout.act + layout.cot
    return flat.as_strided(
        [length for length, _ in axes], [stride for _, stride in axes], layout.offset
    )
