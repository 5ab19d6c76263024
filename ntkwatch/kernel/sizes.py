"""Sizes of tensors that may be as large as a model, without a copy of them in double precision."""

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.kernel.gram import widest_float

__all__ = ["squared_norm"]

_ENTRIES = {"cpu": 2**18}  # looked at together: what stays in a cache, and a few MiB
_ENTRIES_ELSEWHERE = 2**22  # where each step costs a launch


def squared_norm(tensor: Tensor, minus: Tensor | None = None) -> Float[Tensor, ""]:
    """Return ``|a|^2`` or ``|a - b|^2``, added up in float64 where the device has it.

    Args:
        tensor: ``a``, of any shape; real or complex.
        minus: ``b``, of the same shape; the difference is taken in their own precision.

    Returns:
        The sum of squares, at least 0.
    """
    wide, size = widest_float(tensor.device), _ENTRIES.get(tensor.device.type, _ENTRIES_ELSEWHERE)
    flat = tensor.detach().reshape(-1)
    if minus is None:
        parts = [part.abs().to(wide).square().sum() for part in flat.split(size)]
    else:
        other = minus.detach().reshape(-1)
        pairs = zip(flat.split(size), other.split(size), strict=True)
        parts = [(a - b).abs().to(wide).square().sum() for a, b in pairs]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()
