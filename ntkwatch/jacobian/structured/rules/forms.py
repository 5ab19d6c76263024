"""The two forms in which a rule gives per-sample gradients, and the table of rules.

A rule is a function ``(use) -> Outer | Rows | None`` registered under the name of an autograd node.
It says how the gradient of the rule's input follows, sample by sample, from the cotangent of the
operation. None, or no rule at all, means that the operation itself is called sample by sample:
slower, never wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ntkwatch.jacobian.structured.graph import shape_of
from ntkwatch.jacobian.structured.ownership import Owner, RaggedOwner
from ntkwatch.jacobian.structured.uses import Use

__all__ = ["Outer", "Rows", "Rule", "elementwise", "reduced", "rule", "rule_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """``G[n] = scale * sum_t act[n, t] (x) cot[n, t]``: outer products, added up over positions.

    Attributes:
        saved: What the activations are made of, samples anywhere.
        act: Makes activations (n, T, d) of the saved rows of some samples (n, ...), or, for rows
            picked by an index, the indices (n, T), negative where there is none.
        cot: Makes cotangents (n, T, e) of the operation's cotangent of some samples (n, ...).
        act_axes: Axes of the rule's input that the activations run along.
        cot_axes: Axes that the cotangents run along.
        scale: A constant factor.
        copies: Whether ``act`` takes memory of its own, as an unfolded image does.
    """

    saved: Tensor
    act: Callable[[Tensor], Tensor]
    cot: Callable[[Tensor], Tensor]
    act_axes: tuple[int, ...]
    cot_axes: tuple[int, ...]
    scale: float = 1.0
    copies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Per-sample gradients as they are.

    Attributes:
        of: Makes (N, *shape) of the operation's cotangent.
    """

    of: Callable[[Tensor], Float[Tensor, " n *shape"]]


Rule = Callable[[Use], Outer | Rows | None]

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under the names of autograd nodes, such as "AddmmBackward0"."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return register


def rule_for(use: Use) -> Rule | None:
    """Return the rule of an operation, or None."""
    return _RULES.get(use.node.name())


def reduced(
    owner: Owner, axes: Sequence[int], shape: Sequence[int]
) -> Callable[[Tensor], Tensor] | None:
    """Return what adds a tensor up, sample by sample, over all axes but some.

    Args:
        owner: Of the tensor's rows.
        axes: Where the axes of the result lie in the tensor; a negative one marks an axis of
            size 1 that has none.
        shape: Of the result.

    Returns:
        A function from the tensor to (N, *shape); None if a sample's rows lie along a kept axis.
    """
    if isinstance(owner, RaggedOwner):
        if any(0 <= axis < owner.lead for axis in axes):
            return None
        # The rows of a sample stand in one axis behind the samples.
        kept = {axis - owner.lead + 2 for axis in axes if axis >= 0}
    else:
        if any(axis == owner.axis and size != 1 for axis, size in zip(axes, shape, strict=True)):
            return None
        kept = {axis + 1 for axis in axes if axis >= 0}

    def add_up(tensor: Tensor) -> Tensor:
        parts = owner.split(tensor)
        over = [axis for axis in range(1, parts.ndim) if axis not in kept]
        return (parts.sum(dim=over) if over else parts).reshape(len(parts), *shape)

    return add_up


def elementwise(
    use: Use, values: Callable[[Tensor], Tensor], axes: Sequence[int] | None = None
) -> Rows | None:
    """Return the rule of an operation that treats elements one by one, broadcasting its input.

    Args:
        use: Where the input enters.
        values: Makes the gradient before broadcasting is undone, in the shape of the cotangent.
        axes: Where the input's axes lie in the output; aligned at the last one by default.

    Returns:
        The rule; None if the input has rows of its own for each sample.
    """
    (edge, *_), (owner, *_) = use.edges, use.owners
    shape, whole = shape_of(use.derived), shape_of(edge)
    if axes is None:
        axes = range(len(whole) - len(shape), len(whole))
    if len(axes) != len(shape) or any(axis < 0 for axis in axes):
        return None
    # An axis of size 1 was broadcast, unless the output has that size too.
    placed = [
        -1 if size == 1 and whole[axis] != 1 else axis
        for axis, size in zip(axes, shape, strict=True)
    ]
    add_up = reduced(owner, placed, shape)
    if add_up is None:
        return None
    return Rows(of=lambda cotangent: add_up(values(cotangent)))
