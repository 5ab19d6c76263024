"""Kernels that are kept along a run to be compared with each other, within a bound.

Only what an angle needs is kept: the triangle of each kernel, and of its parts by layer, as a unit
vector in single precision on the CPU. What to conclude from the angles is another file's business.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from ntkwatch.watch.angles import KernelAngles

__all__ = ["KeptKernels"]

_MOST = 64  # kernels; a picture of more shows no more
_FEWEST = 8  # below so many, layers are given up first
_CAP = 64 * 2**20  # bytes, of all of them together

_WHOLE = ""  # the key of the whole kernel among its layers


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
        self._rows: dict[int, dict[str, Tensor]] = {}
        self._known: dict[tuple[int, int], float | None] = {}
        self._steps: list[int] = []
        self._counted: frozenset[str] = frozenset()
        self._why = why_none

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the kernels take."""
        return sum(row.nbytes for rows in self._rows.values() for row in rows.values())

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
        self._insert(step, {_WHOLE: _unit(trace), **{n: _unit(part) for n, part in layers.items()}})
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
                parts = {n: _unit(part) for n, part in layers_at.get(step, {}).items()}
                self._rows[step] = {_WHOLE: _unit(trace), **parts}
            earlier = zip(angles.steps, angles.below[place], strict=False)
            self._known |= {(then, step): angle for then, angle in earlier}

    @property
    def angles(self) -> KernelAngles:
        """The angles between all of them, and of each layer to the last of them."""
        steps = self._steps
        below = tuple(
            tuple(self._known[then, step] for then in steps[:i]) for i, step in enumerate(steps)
        )
        last = self._rows.get(steps[-1], {}) if steps else {}
        layers = {
            name: tuple(_angle(self._rows.get(step, {}).get(name), row) for step in steps)
            for name, row in last.items()
            if name != _WHOLE
        }
        counted = [row for name, row in layers.items() if name in self._counted]
        medians = [_median(values) for values in zip(*counted, strict=True)]
        return KernelAngles(
            steps=tuple(steps),
            below=below,
            layers=layers,
            medians=tuple(medians),
            left_out=self._why,
        )

    def _insert(self, step: int, rows: dict[str, Tensor]) -> None:
        for then in self._steps:
            pair = (min(then, step), max(then, step))
            self._known[pair] = _angle(self._rows.get(then, {}).get(_WHOLE), rows[_WHOLE])
        self._rows[step] = rows
        self._steps = sorted([*self._steps, step])

    def _forget(self, step: int) -> None:
        if step in self._steps:
            self._steps.remove(step)
            self._rows.pop(step, None)
            self._known = {pair: a for pair, a in self._known.items() if step not in pair}

    def _thin(self) -> None:
        """Let go of the kernel that is the smallest detour between its neighbours."""

        def detour(place: int) -> tuple[float, float]:
            before, step, after = self._steps[place - 1 : place + 2]
            way = [self._known[before, step], self._known[step, after]]
            length = math.fsum(0.0 if angle is None else angle for angle in way)
            return length, (after - before) / after

        self._forget(self._steps[min(range(1, len(self._steps) - 1), key=detour)])


def _unit(kernel: Tensor) -> Tensor:
    """The triangle of a kernel as a vector of length 1; NaN where the kernel is zero."""
    n = kernel.shape[0]
    rows, columns = torch.triu_indices(n, n)
    wide = kernel.detach().to("cpu", torch.float64)
    entries = wide[rows, columns] * torch.where(rows == columns, 1.0, math.sqrt(2))
    return (entries / entries.norm()).float()


def _angle(a: Tensor | None, b: Tensor | None) -> float | None:
    """``2 arcsin(|a - b| / 2)``, which keeps its digits where a cosine loses them."""
    if a is None or b is None or a.shape != b.shape:
        return None
    gap = float((a.double() - b.double()).norm())
    return 2 * math.asin(min(1.0, gap / 2)) if math.isfinite(gap) else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
