"""Bytes: how a memory budget is written, and how much one sample takes."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ntkwatch.errors import InputError

__all__ = ["is_out_of_memory", "is_too_large", "kernel_bytes", "parse_bytes", "saved_bytes"]

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}

# On the CPU of Linux and macOS, on that of Windows, and on accelerators.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def parse_bytes(size: str | int) -> int:
    """Return a number of bytes.

    Args:
        size: A whole number, or text such as "512MiB" or "1.5 GB".

    Returns:
        Bytes, at least 1.

    Raises:
        InputError: If it cannot be read or is not positive.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([a-zA-Z]*)\s*", str(size))
    unit = _UNITS.get(match[2].lower()) if match is not None else None
    if match is None or unit is None:
        raise InputError(
            f"memory_budget={size!r} is not a size, so blocks cannot be planned. Write it like "
            '"512MiB", "1GiB" or a number of bytes.'
        )
    count = int(float(match[1]) * unit)
    if count < 1:
        raise InputError(
            f"memory_budget={size!r} leaves no memory to compute in. Give at least a few MiB."
        )
    return count


def kernel_bytes(rows: int, columns: int) -> int:
    """Return what a kernel takes in float64, with the copy that is made of it."""
    return 2 * 8 * rows * columns


def is_too_large(rows: int, columns: int, budget: int) -> bool:
    """Return whether a kernel is beyond the budget; a small budget is meant for Jacobian rows."""
    return kernel_bytes(rows, columns) > max(budget, 2**30)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, says that memory ran out."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        # Torch has a class for accelerators only; and some errors quote the one that they met.
        if isinstance(link, MemoryError | torch.OutOfMemoryError) or any(
            words in str(link) for words in _OUT_OF_MEMORY
        ):
            return True
        link = link.__cause__ or link.__context__
    return False


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Return how many bytes one run of a differentiable function keeps for its backward pass."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = run()
    return sum(seen.values()) + output.nbytes
