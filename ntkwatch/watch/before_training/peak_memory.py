"""The memory that something takes at its height, where the system tells."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["Peak", "peak_memory"]

_STATM = Path("/proc/self/statm")
_SECONDS = 0.002  # between two looks; what is held for less may be missed


class Peak:
    """The height reached while it was watched.

    Attributes:
        nbytes: Beyond what was there before; None where the system does not tell.
    """

    def __init__(self) -> None:
        self.nbytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of a device, or of this process.

    Args:
        device: Where is computed; for any but CUDA and the CPU nothing is known.

    Yields:
        The peak, which holds its number afterwards.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.nbytes = torch.cuda.max_memory_allocated(device) - before
    elif device.type == "cpu" and _STATM.exists():
        yield from _watched(peak)
    else:
        yield peak


def _watched(peak: Peak) -> Iterator[Peak]:
    before, seen, over = _resident(), [0], threading.Event()

    def look() -> None:
        while not over.wait(_SECONDS):
            seen.append(max(seen.pop(), _resident()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
    peak.nbytes = max(0, max(seen[0], _resident()) - before)


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
