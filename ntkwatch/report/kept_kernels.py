"""The kernels that a run kept, read for its page: the first, the last, and classes to order by.

Arrays of numpy; torch is not needed. A file that cannot be read is a picture that is not there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ntkwatch.watch.record.history import History

__all__ = ["KernelPair", "read_kernel_pair"]

_LARGEST = 2000  # probe points: two spectra of so many take seconds, and training waits for them

_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelPair:
    """Two trace kernels of a run, in the order of the probe's classes.

    Attributes:
        start: Step of the first, which is the reference.
        end: Step of the last that was kept.
        then: The first, (N, N).
        now: The last, (N, N).
        classes: Of each point, in order; None where the probe has no classes.
    """

    start: int
    end: int
    then: _Array
    now: _Array
    classes: tuple[int, ...] | None


def read_kernel_pair(folder: Path | None, history: History) -> KernelPair | None:
    """Return the first and the last kernel of a run.

    Args:
        folder: Of the run's files; None for a history that has none.
        history: Its observations, which say what the reference is.

    Returns:
        Both, or None where one is missing, cannot be read, or is of another probe.
    """
    if folder is None or len(history) < 2 or history.run.probe.get("resampled"):
        return None
    start = history[-1].anchor_step
    kept = (o.step for o in reversed(history.observations) if _file(folder, o.step).is_file())
    end = next(kept, start)
    if end == start:
        return None
    then, now = (_kernel(_file(folder, step)) for step in (start, end))
    if then is None or now is None or then.shape != now.shape:
        return None
    classes = _classes(folder / "probe.safetensors", len(then))
    if classes is not None:
        order = np.argsort(classes, kind="stable")
        then, now, classes = then[np.ix_(order, order)], now[np.ix_(order, order)], classes[order]
    named = None if classes is None else tuple(int(label) for label in classes)
    return KernelPair(start=start, end=end, then=then, now=now, classes=named)


def _file(folder: Path, step: int) -> Path:
    return folder / "kernels" / f"step={step:08d}.safetensors"


def _kernel(path: Path) -> _Array | None:
    try:
        with safe_open(path, framework="np") as file:
            kernel = np.asarray(file.get_tensor("kernel"), dtype=np.float64)
    except Exception:  # a broken file can fail in any way
        return None
    square = kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]
    fits = square and 2 <= len(kernel) <= _LARGEST
    return kernel if fits and bool(np.isfinite(kernel).all()) else None


def _classes(path: Path, size: int) -> NDArray[np.int64] | None:
    try:
        with safe_open(path, framework="np") as file:
            targets = file.get_tensor("targets")
    except Exception:  # no targets, or a broken file
        return None
    whole = targets.shape == (size,) and np.issubdtype(targets.dtype, np.integer)
    return targets.astype(np.int64) if whole else None
