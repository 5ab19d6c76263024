"""ntkwatch beside the other libraries: time, memory and the same numbers, kernel by kernel.

Run: ``python benchmarks/peers.py [--problems mlp vit] [--quick]`` in this package's environment,
after ``make peers`` has made those of the others (without: a line that says so).

Every way of computing a kernel is a process of its own on one processor with one thread, in float32
with the same weights and inputs. After compilation, where a library compiles, and a first kernel,
they take turns, forwards and backwards, and medians are shown; "times ntkwatch" is the median of
the ratios within a turn. Seconds are the processor's: those of the clock on an idle machine, and
less moved by what else runs on a busy one. MiB are the peak beyond the loaded process. "Difference"
is that of the kernel from ntkwatch's; where it is above 1e-6, rounding may have turned a ReLU, of
which the derivative jumps. ntkwatch's own error is from plain autograd in float64, on two samples.
The floor is a forward pass, a backward pass to the activations per output and the multiplications
of the plan at the rate of large products. A library that fails gets a line with the reason.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import apart
from problems import PROBLEMS, problem, title
from turns import Measured, Process, take_turns
from weights import write_weights

__all__ = [
    "OUTPUTS",
    "WAYS",
    "Cell",
    "arguments",
    "compare",
    "fastest_peer",
    "one_processor",
    "show",
    "times",
]

ROOT = Path(__file__).parent.parent
OUTPUTS = ("full", "trace")
_MIB = 2**20
_GIB = 2**30
_COMPILED = 0.1  # seconds of preparation that are worth a word


@dataclass(frozen=True)
class _Way:
    """Label in the tables, environment below the root ("" for this one), script."""

    label: str
    environment: str
    script: str


_TORCH = (".venv-peers", "peers_torch.py")
_JAX = (".venv-jax", "peers_jax.py")
WAYS: dict[str, _Way] = {
    "ntkwatch": _Way("ntkwatch", "", "peers_torch.py"),
    "contraction": _Way("PyTorch tutorial, Jacobian contraction", "", "peers_torch.py"),
    "one-sided": _Way("PyTorch tutorial, contraction of one side", "", "peers_torch.py"),
    "products": _Way("PyTorch tutorial, NTK-vector products", "", "peers_torch.py"),
    "gram": _Way("nngeometry, GramMatrix", *_TORCH),
    "jacobian": _Way("nngeometry, Jacobian", *_TORCH),
    "autogram": _Way("TorchJD, autogram", *_TORCH),
    "operators": _Way("curvlinops, J and J' operators", *_TORCH),
    "nt-contraction": _Way("neural-tangents, Jacobian contraction", *_JAX),
    "nt-products": _Way("neural-tangents, NTK-vector products", *_JAX),
    "nt-structured": _Way("neural-tangents, structured derivatives", *_JAX),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kernel, by all ways.

    Attributes:
        title: Of the problem.
        outputs: "full" or "trace".
        seen: What was measured of each way.
        difference: Of each way's kernel from ntkwatch's, relative in the Frobenius norm.
        floor: Seconds that no exact way can do without, by part.
        error: Of ntkwatch's kernel of two samples, from plain autograd in float64.
    """

    title: str
    outputs: str
    seen: dict[str, Measured]
    difference: dict[str, float]
    floor: dict[str, float]
    error: float


def one_processor() -> None:
    """Keep this process and those it starts on one processor, where the system lets us."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def compare(name: str, outputs: str, given: argparse.Namespace) -> Cell:
    """Measure one kernel by all ways."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = folder / "weights.npz"
        write_weights(problem(name, given.quick), weights)
        load = {"problem": name, "outputs": outputs, "quick": given.quick, "threads": 1}
        here = [way for way in given.ways if _installed(WAYS[way])]
        processes = {way: _process(WAYS[way], given) for way in here}
        try:
            seen = take_turns(
                processes,
                folder,
                rounds=given.rounds,
                patience=given.patience,
                weights=str(weights),
                **load,
            )
        finally:
            for process in processes.values():
                process.end()
        difference = {way: _difference(folder, way) for way in here if not seen[way].failed}
    missing = {way: Measured(failed="not installed") for way in given.ways if way not in here}
    settings = {"name": name, "outputs": outputs, "quick": given.quick, "threads": 1}
    ground = apart(str(ROOT / "benchmarks" / "floor.py"), settings)
    return Cell(
        title=title(name, given.quick),
        outputs=outputs,
        seen={way: (seen | missing)[way] for way in given.ways},
        difference=difference,
        floor=ground.get("floor", {}),
        error=ground.get("error", float("nan")),
    )


def _installed(way: _Way) -> bool:
    """Whether ``make peers`` came to its end."""
    return not way.environment or (ROOT / way.environment / ".installed").exists()


def _python(way: _Way) -> Path:
    """Return the Python of a way's environment."""
    if not way.environment:
        return Path(sys.executable)
    return ROOT / way.environment / "bin" / "python"


def _process(way: _Way, given: argparse.Namespace) -> Process:
    environment = {
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # memory freed by one thread is seen by the others
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": "",  # nothing of this environment in the others
    }
    if not way.environment:
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [str(_python(way)), str(ROOT / "benchmarks" / way.script)]
    memory = int(given.memory * _GIB)
    return Process(command, environment, memory=memory, patience=given.timeout)


def _difference(folder: Path, way: str) -> float:
    ours, theirs = (np.load(folder / f"{name}.npy").astype(float) for name in ("ntkwatch", way))
    return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))


def fastest_peer(cell: Cell) -> str | None:
    """Return the fastest of the other ways, if any gave a kernel."""
    given = {way: seen.seconds for way, seen in cell.seen.items() if not seen.failed}
    given.pop("ntkwatch", None)
    return min(given, key=lambda way: given[way] or float("inf"), default=None)


def times(cell: Cell, way: str) -> float:
    """Return how many times ntkwatch's time a way takes: the median over the turns."""
    ours, theirs = cell.seen["ntkwatch"], cell.seen[way]
    pairs = list(zip(theirs.later, ours.later, strict=False))
    if not pairs:
        return (theirs.seconds or float("nan")) / (ours.seconds or float("nan"))
    return statistics.median(a / b for a, b in pairs)


def show(cell: Cell) -> str:
    """Return the Markdown table of a kernel."""
    lowest = sum(cell.floor.values())
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in cell.floor.items())
    lines = [
        f"### {cell.title}: {cell.outputs} kernel",
        "",
        f"Floor {lowest:.3f} s ({parts}). ntkwatch's error {cell.error:.0e}.",
        "",
        "| way | seconds | times ntkwatch | compile | first | MiB | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_row(cell, way) for way in cell.seen]
    return "\n".join(lines)


def _row(cell: Cell, way: str) -> str:
    seen = cell.seen[way]
    if seen.failed:
        return f"| {WAYS[way].label} | fails: {seen.failed.replace('|', '/')} | | | | | |"
    assert seen.first is not None
    assert seen.prepared is not None
    assert seen.bytes is not None
    cells = (
        WAYS[way].label,
        f"{seen.seconds:.3f}" if seen.later else f"{seen.first:.3f} (first)",
        f"{times(cell, way):.2f}",
        f"{seen.prepared:.1f}" if seen.prepared > _COMPILED else "",
        f"{seen.first:.2f}",
        f"{seen.bytes / _MIB:.0f}",
        "-" if way == "ntkwatch" else f"{cell.difference[way]:.0e}",
    )
    return "| " + " | ".join(cells) + " |"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the comparison can be told."""
    parser.add_argument("--problems", nargs="*", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--outputs", nargs="*", choices=OUTPUTS, default=list(OUTPUTS))
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3, help="later kernels of each")
    parser.add_argument("--timeout", type=float, default=60, help="seconds of one kernel")
    parser.add_argument("--patience", type=float, default=8, help="seconds of one way's turns")
    parser.add_argument("--memory", type=float, default=12, help="GiB that a process may take")
    parser.add_argument("--quick", action="store_true", help="small models: does it run at all?")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments(parser)
    options: Any = parser.parse_args(given)
    one_processor()
    for name in options.problems:
        for outputs in options.outputs:
            print(show(compare(name, outputs, options)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
