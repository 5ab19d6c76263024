"""Kernels that are kept along a run to be compared with each other, within a bound.

Only what an angle needs is kept: the triangle of each kernel, and of its parts by layer, as a unit
vector in single precision on the CPU. What to conclude from the angles is another file's business.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from ntkwatch.watch.record.angles import KernelAngles

__all__ = ["KeptKernels"]

_MOST = 64  # kernels; a picture of more shows no more
_FEWEST = 8  # below so many, layers are given up first
_CAP = 64 * 2**20  # bytes, of all of them together


class _Kernel(NamedTuple):
    """A kernel and its parts by layer as rows of unit length, the whole first."""

    rows: Tensor
    layers: tuple[str, ...]


class KeptKernels:
    """The kernels of a run, at most 64 and within 64 MiB, with the angles between them.

    The first and the last kernel always stay; of the others, the one goes first that lies most
    nearly on the way from its neighbour before to its neighbour after, so that turns are kept.

    Args:
        cap: Bytes that all kernels together may take.
    """

    def __init__(self, cap: int = _CAP) -> None:
        self._cap = cap
        self.start_over()

    def start_over(self, why_none: str | None = None) -> None:
        """Forget all kernels; ``why_none`` says why there will be no others."""
        self._kernels: dict[int, _Kernel] = {}
        self._known: dict[tuple[int, int], float | None] = {}
        self._steps: list[int] = []
        self._counted: frozenset[str] = frozenset()
        self._why = why_none

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the kernels take."""
        return sum(kernel.rows.nbytes for kernel in self._kernels.values())

    def add(
        self, step: int, trace: Tensor, layers: Mapping[str, Tensor], counted: Iterable[str]
    ) -> None:
        """Keep a kernel; one of the same step is replaced.

        Args:
            step: Optimizer steps taken so far.
            trace: Trace kernel, (N, N).
            layers: Its parts by module.
            counted: Modules with a matrix weight, which enter the median.
        """
        self._forget(step)
        size = trace.shape[0] * (trace.shape[0] + 1) // 2 * 4
        most = min(_MOST, self._cap // (size * (1 + len(layers))))
        if most < _FEWEST:
            layers, most = {}, min(_MOST, self._cap // size)
            self._why = "kernels of so many samples or layers are not kept by layer"
        if most < 2:
            self._why = f"kernels of {trace.shape[0]} samples are too large to be kept"
            return
        self._counted = frozenset(counted)
        new = _units(trace, layers)
        for then in self._steps:
            old = self._kernels.get(then)
            angle = None if old is None else _angles(old.rows[:1], new.rows[:1])[0]
            self._known[min(then, step), max(then, step)] = angle
        self._kernels[step] = new
        self._steps = sorted([*self._steps, step])
        while len(self._steps) > most:
            self._thin()

    def put_back(
        self,
        angles: KernelAngles,
        trace_at: Callable[[int], Tensor | None],
        layers_at: Mapping[int, Mapping[str, Tensor]],
    ) -> None:
        """Go on with the kernels of an interrupted run.

        Args:
            angles: Between the kernels that it kept.
            trace_at: The trace kernel of a step, or None where it is gone.
            layers_at: Parts by layer of the steps that have them.
        """
        self.start_over(angles.left_out)
        for place, step in enumerate(angles.steps):
            trace = trace_at(step)
            self._steps.append(step)
            if trace is not None:
                self._kernels[step] = _units(trace, layers_at.get(step, {}))
            earlier = zip(angles.steps, angles.below[place], strict=False)
            self._known |= {(then, step): angle for then, angle in earlier}

    @property
    def angles(self) -> KernelAngles:
        """The angles between all of them, and of each layer to the last of them."""
        steps = self._steps
        below = [
            tuple(self._known[then, step] for then in steps[:i]) for i, step in enumerate(steps)
        ]
        layers = self._layer_angles()
        counted = [row for name, row in layers.items() if name in self._counted]
        return KernelAngles(
            steps=tuple(steps),
            below=tuple(below),
            layers=layers,
            medians=tuple(_median(values) for values in zip(*counted, strict=True)),
            left_out=self._why,
        )

    def _layer_angles(self) -> dict[str, tuple[float | None, ...]]:
        """Of each layer of the last kernel to its part of every kernel."""
        last = self._kernels.get(self._steps[-1]) if self._steps else None
        if last is None:
            return {}
        columns = []
        for step in self._steps:
            kernel = self._kernels.get(step)
            known = kernel is not None and kernel.layers == last.layers
            columns.append(
                _angles(kernel.rows[1:], last.rows[1:])
                if kernel is not None and known
                else [None] * len(last.layers)
            )
        return dict(zip(last.layers, zip(*columns, strict=True), strict=True))

    def _forget(self, step: int) -> None:
        if step in self._steps:
            self._steps.remove(step)
            self._kernels.pop(step, None)
            self._known = {pair: a for pair, a in self._known.items() if step not in pair}

    def _thin(self) -> None:
        """Let go of the kernel that is the smallest detour between its neighbours."""

        def detour(place: int) -> tuple[float, float]:
            before, step, after = self._steps[place - 1 : place + 2]
            way = [self._known[before, step], self._known[step, after]]
            length = math.fsum(0.0 if angle is None else angle for angle in way)
            return length, (after - before) / after

        self._forget(self._steps[min(range(1, len(self._steps) - 1), key=detour)])


def _units(trace: Tensor, layers: Mapping[str, Tensor]) -> _Kernel:
    """Triangles as vectors of length 1, in one transfer; NaN where a kernel is zero."""
    n = trace.shape[0]
    together = torch.stack([trace, *(part.to(trace) for part in layers.values())]).detach()
    wide = together.to("cpu").double()
    rows, columns = torch.triu_indices(n, n)
    entries = wide[:, rows, columns] * torch.where(rows == columns, 1.0, math.sqrt(2))
    units = entries / entries.norm(dim=1, keepdim=True)
    return _Kernel(units.float(), tuple(layers))


def _angles(now: Tensor, then: Tensor) -> list[float | None]:
    """``2 arcsin(|a - b| / 2)``, which keeps its digits where a cosine loses them."""
    if now.shape != then.shape:
        return [None] * len(then)
    # The difference of two units in single precision is exact where they are close.
    gaps = (now - then).double().square().sum(dim=1).sqrt()
    found = (2 * (gaps / 2).clamp(max=1).asin()).tolist()
    return [angle if math.isfinite(angle) else None for angle in found]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
