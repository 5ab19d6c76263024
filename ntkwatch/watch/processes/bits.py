"""Digests of tensors that differ where a single bit does, made where the tensors are."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["bits_of"]

_PIECE = 2**20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
_ODD = 0x5DEECE66D  # makes the place of a value count, as in a linear congruential generator


def bits_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return a digest of each tensor: equal for equal bits, and hardly ever for others.

    ``sum_i b_i (1 + m i)`` modulo ``2^64``, with ``b`` the bits as integers.

    Args:
        tensors: By name.

    Returns:
        By name.
    """
    sums = {name: _digest(tensor) for name, tensor in tensors.items()}
    if not sums:
        return {}
    # One synchronisation with the device for all of them.
    device = next(iter(sums.values())).device
    together = torch.stack([digest.to(device) for digest in sums.values()]).tolist()
    return dict(zip(sums, together, strict=True))


def _digest(tensor: Tensor) -> Tensor:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    raw = flat.view(torch.uint8) if flat.dtype == torch.bool else flat
    bits = raw.view(_INTEGERS[raw.element_size()])
    found = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, piece in enumerate(bits.split(_PIECE)):
        places = torch.arange(len(piece), dtype=torch.int64, device=tensor.device)
        factors = 1 + _ODD * (places + number * _PIECE)
        found = found + (piece.to(torch.int64) * factors).sum()
    return found
