"""A checksum over every bit of a model's weights and buffers, which shows whether any was changed.

Torch counts the writes to a tensor that go through torch, and only those: a write through a numpy
view, an extension or ``.data`` is not counted. So the bytes themselves are added up, as 64-bit
whole numbers, each times an odd number of its own place. Modulo 2^64 a change of one word always
shows, since an odd factor has an inverse; changes of several would have to cancel by chance, and
an exchange of two words does not. Nothing is copied, and comparing waits for the device once.
"""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ntkwatch.jacobian.parameters import clean_name
from ntkwatch.jacobian.shards import local_part

__all__ = ["Checksum"]

_WORD = 8  # bytes
_CHUNK = 2**18  # words that are added up at once: 2 MiB of factors


class Checksum:
    """The sums of a model's tensors at one moment.

    Args:
        model: The model. Tensors without memory of their own (lazy, meta, sparse) are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [*model.named_parameters(), *model.named_buffers()]
        self._tensors = {clean_name(name): t for name, t in named if _has_memory(t)}
        self._before = {name: _sums(tensor) for name, tensor in self._tensors.items()}

    def changed(self) -> list[str]:
        """Return the clean names of the tensors whose bits are no longer what they were."""
        now = {name: _sums(tensor) for name, tensor in self._tensors.items()}
        by_device: dict[torch.device, list[str]] = {}
        for name, sums in now.items():
            by_device.setdefault(sums.device, []).append(name)
        found: list[str] = []
        for names in by_device.values():
            # A tensor that was given other memory may have another size, and so other sums.
            same = [name for name in names if now[name].shape == self._before[name].shape]
            found += [name for name in names if name not in same]
            if not same:
                continue
            differ = [now[name] != self._before[name] for name in same]
            if bool(torch.cat(differ).any()):  # the one synchronisation with the device
                found += [n for n, d in zip(same, differ, strict=True) if bool(d.any())]
        return found

    def put_back(self, *copies: Mapping[str, Tensor]) -> list[str]:
        """Put changed tensors back from copies that hold just the bits that they had.

        Args:
            copies: Tensors by clean name, of any moment; those that do not fit are passed over.

        Returns:
            The names of tensors that are still changed.
        """
        for name in self.changed():
            tensor = self._tensors[name]
            for kept in copies:
                copy = kept.get(name)
                if copy is not None and self._is_what_was(name, tensor, copy):
                    tensor.data.copy_(copy)
        return self.changed()

    def _is_what_was(self, name: str, tensor: Tensor, copy: Tensor) -> bool:
        if copy.dtype != tensor.dtype or copy.shape != tensor.shape:
            return False
        # Sums are of places in memory, which are those of the tensor, not of its copy.
        alike = torch.empty_like(tensor).copy_(copy)
        return torch.equal(_sums(alike), self._before[name])


def _has_memory(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and not tensor.is_meta and tensor.layout == torch.strided


@torch.no_grad()
def _sums(tensor: Tensor) -> Tensor:
    """One sum for every chunk of a tensor's bytes."""
    flat = _in_memory_order(local_part(tensor.detach()))
    if flat.storage_offset() * flat.element_size() % _WORD:
        flat = flat.clone()  # a copy begins where words may begin
    size = flat.numel() * flat.element_size()
    whole = size // _WORD * _WORD
    if whole == size:
        words, rest = flat.view(torch.int64), []
    else:
        raw = flat.view(torch.uint8)
        words, rest = raw[:whole].view(torch.int64), [raw[whole:].long()]
    factors = _factors(flat.device)
    return torch.stack([_dot(part, factors) for part in [*words.split(_CHUNK), *rest]])


def _dot(words: Tensor, factors: Tensor) -> Tensor:
    factors = factors[: len(words)]
    # Torch has dot products of whole numbers on the CPU only, where they are by far the faster way.
    return torch.dot(words, factors) if words.is_cpu else (words * factors).sum()


def _in_memory_order(tensor: Tensor) -> Tensor:
    """All entries in one row; of a tensor that lies in memory without gaps, no copy."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    return tensor.resolve_neg().reshape(-1)


@cache
def _factors(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-(2**62), 2**62, (_CHUNK,), generator=generator)
    return (2 * drawn + 1).to(device)
