"""Model inputs as a flat list of tensors with the samples first, and back.

Inputs are a tensor, or a tuple, list or mapping of tensors (nested as deep as one likes); what is
not a tensor is passed on to the model as it is. Nothing here knows of models.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import InputError

__all__ = [
    "MIN_SAMPLES",
    "Inputs",
    "cast_inputs",
    "count_samples",
    "dense",
    "fingerprint",
    "leaves",
    "map_inputs",
    "ordinary",
    "rebuild",
    "take",
    "to_dtype",
]

Inputs = Any  # Tensor | tuple[Inputs, ...] | list[Inputs] | Mapping[str, Inputs]

MIN_SAMPLES = 2  # a kernel of one point has no direction to compare


_PIECE = 2**18  # elements looked at at once


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return inputs of the same structure with ``function`` applied to every tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):  # a plain dict: torch.func knows those, not HF's encodings
        return {key: map_inputs(function, value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        parts = [map_inputs(function, value) for value in inputs]
        if hasattr(inputs, "_fields"):
            return type(inputs)(*parts)
        return type(inputs)(parts)
    return inputs


def leaves(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of the inputs in a fixed order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_inputs(keep, inputs)
    return found


def rebuild(inputs: Inputs, tensors: list[Tensor]) -> Inputs:
    """Return inputs of the same structure made of other tensors, in the order of ``leaves``."""
    queue = iter(tensors)
    return map_inputs(lambda _: next(queue), inputs)


def take(inputs: Inputs, index: Tensor | slice) -> Inputs:
    """Return the samples that ``index`` picks, in its order."""
    return map_inputs(lambda tensor: tensor[index], inputs)


def cast_inputs(inputs: Inputs, *, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Return detached inputs on a device; floating ones in ``dtype``, integer ones as they are."""

    def cast(tensor: Tensor) -> Tensor:
        return to_dtype(tensor.detach().to(device), dtype)

    return map_inputs(cast, inputs)


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a floating tensor in a real dtype, a complex one in its complex kin, others as is."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient that an embedding may have given as a sparse tensor."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can save: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def count_samples(inputs: Inputs, *, at_least: int = 1) -> int:
    """Return the size N of the first dimension that all tensors share.

    Args:
        inputs: Model inputs.
        at_least: Smallest number of samples that will do.

    Returns:
        N.

    Raises:
        InputError: If there is no tensor, their first dimensions differ, or N is too small.
    """
    tensors = leaves(inputs)
    if not tensors:
        raise InputError(
            f"the probe inputs ({type(inputs).__name__}) hold no tensor, so there is nothing to "
            "call the model on. Give a tensor, or a tuple or mapping of tensors, samples first."
        )
    sizes = [tuple(tensor.shape) for tensor in tensors]
    if any(len(size) == 0 or size[0] != sizes[0][0] for size in sizes):
        raise InputError(
            f"the probe's tensors have shapes {', '.join(map(str, sizes))}: their first "
            "dimensions differ, so it is not clear what a sample is. Give every tensor the "
            "samples as its first dimension, and bind what is not per sample inside forward=."
        )
    n = sizes[0][0]
    if n < at_least:
        raise InputError(
            f"the probe has {n} sample{'' if n == 1 else 's'} and a kernel to be compared needs at "
            f"least {at_least}. Use 64 or more for a verdict."
        )
    return n


def fingerprint(inputs: Inputs) -> tuple[tuple[float, ...], ...]:
    """Return numbers that differ, but for chance, where the values of inputs differ.

    Args:
        inputs: Any inputs; on the meta device, which has no values, all are alike.

    Returns:
        Two sums per tensor, with and without regard to position.
    """
    found = []
    for tensor in leaves(inputs):
        sums = torch.zeros(2, dtype=torch.float32, device=tensor.device)
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten()
        if tensor.device.type != "meta":
            wide = torch.float32 if tensor.device.type == "mps" else torch.float64
            sums = sums.to(wide)
            for start in range(0, len(flat), _PIECE):
                piece = flat[start : start + _PIECE].to(wide)
                place = torch.arange(len(piece), device=piece.device, dtype=wide)
                turn = torch.sin(place + 1 + start % 9973)
                sums += torch.stack([piece.sum(), piece @ turn])
            found.append(tuple(sums.tolist()))
    return tuple(found)
