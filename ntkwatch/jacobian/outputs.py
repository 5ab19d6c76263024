"""Which combinations of a model's outputs enter the kernel.

Every choice comes down to R output directions per sample: rows of a matrix that the outputs are
multiplied by. "full" and "trace" take the C unit vectors, "sum" the vector of ones, "random:k"
takes k fixed directions scaled so that the sum over them estimates the trace kernel.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError, OutputError

__all__ = [
    "AUTO_DIRECTIONS",
    "AUTO_FULL",
    "Reduction",
    "check_outputs_named",
    "random_directions",
    "resolve_outputs",
]

OutputsSpec = str | Callable[[Tensor], Tensor]

AUTO_FULL = 10  # outputs up to which "auto" takes all of them: 10 classes are the usual benchmark
AUTO_DIRECTIONS = 8

_SEED = 0x4E544B  # fixed: kernels of one run, and of two runs, must use the same directions
# Of their norm: far above rounding, far below what another sample's target makes of it.
_ORDER_GAP = 1e-3
_WORDS = ("auto", "auto:plain", "full", "trace", "sum")
_RANDOM = re.compile(r"random:([1-9]\d*)(:plain)?")
_WIDE_LIMIT = 2**20  # above this many outputs the directions are drawn in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How outputs of a given shape enter the kernel.

    Attributes:
        name: "full", "trace", "sum", "random:8", "random:8:plain" or "callable:NAME".
        full: Whether the kernel keeps its output axes.
        directions: Rows to multiply the flattened outputs by, (R, C); None for the C unit vectors.
        rows: R.
        shape: Shape of one sample's outputs.
        model_shape: The same as the model gives it, before ``function``.
        function: Applied to the outputs first, or None.
    """

    name: str
    full: bool
    directions: Float[Tensor, "r c"] | None
    rows: int
    shape: tuple[int, ...]
    model_shape: tuple[int, ...]
    function: Callable[[Tensor], Tensor] | None = None

    def flatten(self, outputs: Tensor) -> Tensor:
        """Return the outputs as (N, C), after the user's function if there is one."""
        # A model that ends in squeeze() gives its only sample without the first dimension.
        outputs = outputs.reshape(-1, *self.model_shape)
        values = outputs if self.function is None else self.function(outputs)
        return values.reshape(len(outputs), -1)

    def cotangents(self, like: Tensor, rows: range | None = None) -> Float[Tensor, "r c"]:
        """Return the directions as a dense matrix in the dtype and on the device of a tensor.

        Args:
            like: Flattened outputs.
            rows: Which directions; all by default, which are many numbers if outputs are many.

        Returns:
            One direction per row.
        """
        rows = range(self.rows) if rows is None else rows
        if self.directions is None:
            unit = torch.zeros(len(rows), self.rows, dtype=like.dtype, device=like.device)
            unit.diagonal(rows.start).fill_(1)
            return unit
        return self.directions[rows.start : rows.stop].to(dtype=like.dtype, device=like.device)


def check_outputs_named(outputs: object) -> None:
    """Refuse what names no outputs.

    Args:
        outputs: As in ``resolve_outputs``.

    Raises:
        InputError: If it is neither a known word nor a function.
    """
    named = isinstance(outputs, str) and (outputs in _WORDS or _RANDOM.fullmatch(outputs))
    if not (named or callable(outputs)):
        raise InputError(
            f"outputs={outputs!r} is not known, so it is not clear which kernel is meant. Use "
            '"full", "trace", "sum", "random:8" (class logits), "random:8:plain" (regression), '
            '"auto" or a function (N, ...) -> (N, C).'
        )


def resolve_outputs(outputs: OutputsSpec, example: Tensor) -> Reduction:
    """Return the reduction that a setting means for a model's outputs.

    Args:
        outputs: "full", "trace", "sum", "random:k", "auto" (the last two also with ":plain") or a
            function ``(N, ...) -> (N, C)``.
        example: Outputs of the model on some samples.

    Returns:
        The reduction; "auto" is full up to 10 outputs, 8 random directions beyond.

    Raises:
        InputError: If the setting is not one of these, or is a function to which the order of the
            samples matters.
        OutputError: If the function returns values that have no derivative.
    """
    shape = tuple(example.shape[1:])
    if callable(outputs):
        values = outputs(example)
        if values.ndim == 0 or values.shape[0] != example.shape[0]:
            raise InputError(
                f"outputs= returned shape {tuple(values.shape)} for {example.shape[0]} samples, "
                "so it is not clear which value belongs to which sample. Return (N, C)."
            )
        if not values.is_floating_point():
            raise OutputError(
                f"outputs= returned {values.dtype}, and only floating values have a derivative. "
                "Return scores rather than the index of the largest."
            )
        _check_order(outputs, example, values)
        name = getattr(outputs, "__qualname__", type(outputs).__name__)
        return Reduction(
            name=f"callable:{name}",
            full=False,
            directions=None,
            rows=max(1, math.prod(values.shape[1:])),
            shape=tuple(values.shape[1:]),
            model_shape=shape,
            function=outputs,
        )
    count = max(1, math.prod(shape))
    if outputs in ("auto", "auto:plain"):
        plain = ":plain" if outputs == "auto:plain" or shape[-1:] == (1,) else ""
        outputs = "full" if count <= AUTO_FULL else f"random:{AUTO_DIRECTIONS}{plain}"
    if outputs in ("full", "trace"):
        return Reduction(
            name=outputs,
            full=outputs == "full",
            directions=None,
            rows=count,
            shape=shape,
            model_shape=shape,
        )
    if outputs == "sum":
        ones = torch.ones(1, count, device="cpu")
        return Reduction(
            name="sum", full=False, directions=ones, rows=1, shape=shape, model_shape=shape
        )
    check_outputs_named(outputs)
    match = _RANDOM.fullmatch(outputs)
    assert match is not None
    k = int(match[1])
    directions = random_directions(k, shape, plain=match[2] is not None)
    return Reduction(
        name=outputs, full=False, directions=directions, rows=k, shape=shape, model_shape=shape
    )


def _check_order(function: Callable[[Tensor], Tensor], example: Tensor, values: Tensor) -> None:
    """Refuse a function that holds something for each place in the batch, such as targets."""
    if example.is_meta:
        return
    again = function(example.flip(0)).flip(0)
    if again.shape == values.shape:
        gap, size = (again - values).nan_to_num().norm(), values.nan_to_num().norm()
        if bool(gap <= _ORDER_GAP * size):
            return
    raise InputError(
        f"outputs= gives other values for the same {len(example)} samples in reverse order, so a "
        "kernel of it would mix up its samples, which are taken in any order and number. What "
        "belongs to each sample, such as its target, goes among the inputs: pass forward=, a "
        "function (model, inputs) -> tensor, which finds it there."
    )


def random_directions(
    k: int, shape: tuple[int, ...], *, plain: bool = False
) -> Float[Tensor, "k c"]:
    """Return k fixed random directions whose Gram sums estimate the trace kernel without bias.

    ``sum_v v' K v = (D / k) * sum_u u' K u`` for unit vectors ``u`` drawn uniformly from a
    D-dimensional space. For class logits that space is orthogonal to the all-ones vector of the
    last axis, which softmax never sees: D = C - C / V for V classes. Plain directions take all of
    it: D = C. Up to D directions are drawn orthogonal to each other, which lowers the variance and
    leaves each of them uniform.

    Args:
        k: Number of directions.
        shape: Shape of one sample's outputs, classes last.
        plain: Whether to keep the all-ones part (regression).

    Returns:
        The scaled directions ``v``, always the same ones for the same arguments.

    Raises:
        InputError: If no direction is left: logits of a single class.
    """
    count = max(1, math.prod(shape))
    classes = 1 if plain or not shape else shape[-1]
    dimension = count - count // classes if classes > 1 else count
    if not plain and (not shape or shape[-1] == 1):
        raise InputError(
            f"outputs of shape {shape} have one class, and no direction of it is orthogonal to the "
            f'all-ones vector. Use outputs="trace", or "random:{k}:plain" for regression.'
        )
    dtype = torch.float64 if count <= _WIDE_LIMIT else torch.float32
    generator = torch.Generator().manual_seed(_SEED)
    draws = torch.randn(k, count, generator=generator, dtype=dtype, device="cpu")
    if classes > 1:
        by_class = draws.view(k, -1, classes)
        draws = (by_class - by_class.mean(dim=-1, keepdim=True)).flatten(1)
    if k <= dimension:
        # With the signs of R's diagonal, Q is uniformly distributed and so is each of its columns.
        q, r = torch.linalg.qr(draws.mT)
        draws = (q * r.diagonal().sign()).mT
    draws = draws / draws.norm(dim=1, keepdim=True)
    return draws * math.sqrt(dimension / k)
