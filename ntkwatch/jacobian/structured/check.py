"""The engine checks itself against plain autograd, on first use with a model and a graph.

For a random direction u of the outputs and random weights w of the samples,
``w' K_u w = |sum_n w_n grad(u . f(x_n))|^2`` for every parameter on its own: the left side by the
structured engine, the right side by one ordinary backward pass. A wrong rule, a lost use or rows
given to the wrong sample show.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ntkwatch.jacobian.functional import real_entries
from ntkwatch.jacobian.inputs import dense
from ntkwatch.jacobian.structured.graph import Unstructured, dtype_of, outputs_of
from ntkwatch.jacobian.structured.kernel import structured_kernel
from ntkwatch.jacobian.structured.passes import Pass
from ntkwatch.kernel.gram import widest_float

__all__ = ["Disagrees", "check_against_autograd", "trust", "trusted"]

# Allowed gaps as shares of what the form could be at most. A wrong rule is off by the order of 1.
_ALLOWED = {torch.float64: 1e-6, torch.float32: 2e-3}
_SEED = 0xC0
_PIECE = 2**20

_checked: WeakKeyDictionary[nn.Module, set[tuple[int, tuple[str, ...]]]] = WeakKeyDictionary()


class Disagrees(Unstructured):
    """The engine and plain autograd disagree.

    Args:
        gap: By what share.
        message: In words.
    """

    def __init__(self, gap: float, message: str) -> None:
        super().__init__(message)
        self.gap = gap


def trusted(side: Pass, model: nn.Module, names: Sequence[str]) -> bool:
    """Return whether a graph like this one was found right before."""
    return (side.tape.graph.signature(), tuple(names)) in _checked.get(model, set())


def trust(side: Pass, model: nn.Module, names: Sequence[str]) -> None:
    """Remember that this graph was found right."""
    _checked.setdefault(model, set()).add((side.tape.graph.signature(), tuple(names)))


def check_against_autograd(side: Pass, names: Sequence[str], budget: int) -> None:
    """Refuse to go on if the engine and plain autograd disagree on some parameter.

    Args:
        side: A forward pass.
        names: Parameters.
        budget: Bytes that may be held.

    Raises:
        Disagrees: If they do; it names the parameter and its operations.
    """
    outputs, kept = side.tape.outputs, side.count
    if not outputs.requires_grad:
        return  # no parameter is used; whether that is right is asked elsewhere
    generator = torch.Generator().manual_seed(_SEED)
    direction = torch.randn(outputs.shape[1], generator=generator, device="cpu").to(outputs)
    weights = torch.zeros(len(outputs), device="cpu", dtype=torch.float64)
    weights[:kept] = torch.randn(kept, generator=generator, device="cpu", dtype=torch.float64)
    expected = _by_autograd(side, names, weights.to(outputs)[:, None] * direction)
    w = weights[:kept].to(outputs.device, widest_float(outputs.device))
    with side.tape.along(direction):
        found = structured_kernel(side, None, {n: n for n in names}, 1, full=False, budget=budget)
    kind = _coarsest(side)
    # Gradients that are zero but for rounding, such as those of attention's key biases, may differ.
    least = torch.finfo(kind).eps * sum(expected.values()) + _TINY
    for name in names:
        kernel = found.layers[name]
        form = w @ kernel @ w
        most = (w.abs() * kernel.diagonal().clamp(min=0).sqrt()).sum().square()
        gap = (form - expected[name]).abs() / (torch.maximum(most, expected[name]) + least)
        if not gap <= _ALLOWED[kind]:
            operations = (
                ", ".join(dict.fromkeys(use.node.name() for use in side.parameters[name].uses))
                if name in side.parameters
                else "no operation that was found"
            )
            raise Disagrees(
                float(gap),
                f"its kernel of {name} (used by {operations}) differs from plain autograd by "
                f"{float(gap):.1e} of its size",
            )


_TINY = 1e-300


def _coarsest(side: Pass) -> torch.dtype:
    """What the pass rounds to: many a float64 model takes its norms and softmaxes in float32."""
    kinds = {
        dtype_of(edge).to_real() for node in side.tape.graph.nodes for edge in outputs_of(node)
    }
    return torch.float64 if kinds <= {torch.float64} else torch.float32


def _by_autograd(side: Pass, names: Sequence[str], cotangent: Tensor) -> dict[str, Tensor]:
    """Squared norms of the summed gradients, each dropped as soon as it is measured."""
    tape = side.tape
    wide = widest_float(cotangent.device)
    found = dict.fromkeys(names, torch.zeros((), dtype=wide, device=cotangent.device))

    def measure(name: str, gradient: Tensor) -> Tensor:
        # In pieces: the gradient of an embedding in float64 would be as large again, twice.
        pieces = real_entries(dense(gradient)).flatten().split(_PIECE)
        squares = torch.stack([piece.to(wide).square().sum() for piece in pieces])
        found[name] = squares.sum() / tape.scale**2
        if gradient.layout is not torch.strided:
            return gradient
        # All gradients together are as large as the model; this one takes no memory.
        return torch.zeros((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)

    with ExitStack() as stack:
        for name in names:
            handle = tape.leaves[name].register_hook(partial(measure, name))
            stack.callback(handle.remove)
        leaves = [tape.leaves[name] for name in names]
        torch.autograd.grad(
            tape.outputs, leaves, cotangent * tape.scale, retain_graph=True, allow_unused=True
        )
    return found
