"""Per-sample gradients of a parameter as rows, for uses that are no plain outer product.

Gradients are formed where the parameter meets the data and carried from there to the parameter: by
its strides if what enters the operation is a view of it, by autograd if it was made by more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from ntkwatch.jacobian.inputs import dense
from ntkwatch.jacobian.memory import is_out_of_memory
from ntkwatch.jacobian.structured.graph import Edge, Unstructured, dtype_of, shape_of
from ntkwatch.jacobian.structured.layout import view_of_parameter
from ntkwatch.jacobian.structured.rules.forms import Outer, Rows
from ntkwatch.jacobian.structured.tape import Tape
from ntkwatch.jacobian.structured.uses import Use

__all__ = ["Form", "called", "carried_to", "gradients_of"]

Form = Outer | Rows | None


def gradients_of(use: Use, form: Form, cotangents: Sequence[Tensor | None], kept: int) -> Tensor:
    """Return the gradients (n, *shape) of what enters an operation, for one direction.

    Args:
        use: Where it enters.
        form: What its rule says; None without one.
        cotangents: At each of the operation's edges.
        kept: Samples wanted, the first ones.

    Returns:
        One gradient per sample.
    """
    cotangent = cotangents[0]
    if form is None or len(cotangents) > 1 or cotangent is None:
        return called(use, cotangents, kept)
    if isinstance(form, Rows):
        return form.of(cotangent)[:kept]
    owner = use.owners[0]
    act = form.act(owner.split(form.saved)[:kept])
    cot = form.cot(owner.split(cotangent)[:kept]) * form.scale
    return _outer(act, cot, form, shape_of(use.derived))


def _outer(act: Tensor, cot: Tensor, form: Outer, shape: tuple[int, ...]) -> Tensor:
    n, _, e = cot.shape
    if act.is_floating_point():
        found = act.mT @ cot
    else:
        (axis,) = form.act_axes
        found = cot.new_zeros(n, shape[axis] + 1, e)  # the last row takes what has no index
        at = torch.where(act < 0, shape[axis], act)
        found.scatter_add_(1, at[:, :, None].expand(-1, -1, e), cot)
        found = found[:, :-1]
    axes = (*form.act_axes, *form.cot_axes)
    found = found.reshape(n, *(shape[axis] for axis in axes))
    # Axes of size 1 that neither side runs along, such as the single item of a batched product.
    order = [axes.index(axis) + 1 for axis in range(len(shape))]
    return found.permute(0, *order)


def called(use: Use, cotangents: Sequence[Tensor | None], kept: int) -> Tensor:
    """Return per-sample gradients by calling the operation on one sample's cotangent at a time.

    Args:
        use: The operation.
        cotangents: At each of its edges.
        kept: Samples wanted.

    Returns:
        (n, *shape) of what enters it.

    Raises:
        Unstructured: If the operation cannot be called.
    """
    shape, dtype = shape_of(use.derived), dtype_of(use.derived)
    device = next(c.device for c in cotangents if c is not None)
    found = torch.zeros(kept, *shape, dtype=dtype, device=device)
    count = len(use.node._input_metadata)
    for sample in range(kept):
        arguments: list[Tensor | None] = [None] * count
        for edge, owner, cotangent in zip(use.edges, use.owners, cotangents, strict=True):
            if cotangent is not None:
                arguments[edge.output] = owner.only(cotangent, sample)
        gradient = _call(use, arguments)
        if gradient is not None:
            found[sample] = dense(gradient).sum_to_size(shape)
    return found


def _call(use: Use, arguments: list[Tensor | None]) -> Tensor | None:
    node: Any = use.node  # callable, though its declared type does not say so
    try:
        with torch.no_grad():
            if isinstance(node, BackwardCFunction):
                filled = [_filled(a, use, i) for i, a in enumerate(arguments)]
                results = node.apply(*filled)
            else:
                results = node(*arguments)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise Unstructured(f"{node.name()} cannot be called by itself: {error}", node) from error
    results = results if isinstance(results, tuple) else (results,)
    return results[use.slot]


def _filled(argument: Tensor | None, use: Use, output: int) -> Tensor | None:
    """A function written in Python expects zeros where there is no gradient."""
    if argument is not None or not getattr(use.node, "materialize_grads", True):
        return argument
    edge = Edge(use.node, output)
    some = use.node._input_metadata[output]
    return torch.zeros(shape_of(edge), dtype=dtype_of(edge), device=some.device)


def carried_to(tape: Tape, name: str, gradients: Mapping[Edge, Tensor]) -> Tensor:
    """Carry gradients of what entered operations to the parameter it was made of.

    Args:
        tape: The pass that they belong to.
        name: The parameter.
        gradients: (K, *shape) by what entered: all uses of this parameter, and no others.

    Returns:
        (K, *shape) of the parameter.
    """
    leaf, node = tape.leaves[name], tape.graph.leaves[name]
    count = len(next(iter(gradients.values())))
    found = torch.zeros(count, *leaf.shape, dtype=leaf.dtype, device=leaf.device)
    rest: dict[Edge, Tensor] = {}
    for derived, rows in gradients.items():
        view = view_of_parameter(derived, node, leaf.shape)
        if view is None:
            rest[derived] = rows
            continue
        shape, stride = (count, *view.shape), (leaf.numel(), *view.stride())
        found.as_strided(shape, stride, view.storage_offset()).add_(rows)
    return found + _pulled(tape, name, rest) if rest else found


def _pulled(tape: Tape, name: str, gradients: Mapping[Edge, Tensor]) -> Tensor:
    edges = [GradientEdge(edge.node, edge.output) for edge in gradients]
    leaf, rows = tape.leaves[name], list(gradients.values())
    try:
        (found,) = torch.autograd.grad(edges, leaf, rows, retain_graph=True, is_grads_batched=True)
    except RuntimeError:  # an operation without a batching rule: one row at a time
        pulled = [
            torch.autograd.grad(edges, leaf, [r[k] for r in rows], retain_graph=True)[0]
            for k in range(len(rows[0]))
        ]
        return torch.stack([dense(gradient) for gradient in pulled])
    return found
