"""The peak of a process's memory; the standard library alone, for environments without torch."""

import re
import resource
import sys
from pathlib import Path

__all__ = ["forget_peak", "peak_bytes", "resident_bytes"]

_SELF = Path("/proc/self")


def forget_peak() -> None:
    """Start the count of ``peak_bytes`` anew, where the system lets us (Linux does)."""
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Return the most memory this process has had resident (since ``forget_peak``)."""
    return _status("VmHWM") or _largest()


def resident_bytes() -> int:
    """Return the memory this process has resident now, or its peak where that is not told."""
    return _status("VmRSS") or _largest()


def _status(field: str) -> int:
    try:
        found = re.search(rf"{field}:\s*(\d+) kB", (_SELF / "status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found is not None else 0


def _largest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
