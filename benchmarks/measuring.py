"""Time and memory of a process, as the benchmarks measure them; nothing here knows of kernels."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peak import forget_peak, peak_bytes

__all__ = [
    "apart",
    "forget_peak",
    "machine",
    "medians",
    "multiplications_per_second",
    "peak_bytes",
    "seconds",
    "table",
]


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a call takes; by ``time.process_time``, what else runs counts little."""
    began = clock()
    run()
    return clock() - began


def medians(
    ways: dict[str, Callable[[], float]], repeats: int, patience: float = 8.0
) -> dict[str, float]:
    """Return the median time of each way, run in turns.

    Args:
        ways: Each runs once and returns its time.
        repeats: Rounds.
        patience: Seconds of one way in all, after which it sits out the remaining rounds.

    Returns:
        Seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            if sum(times[name]) < patience:
                times[name].append(way())
    return {name: statistics.median(found) for name, found in times.items()}


def multiplications_per_second(
    dtype: torch.dtype = torch.float32,
    size: int = 1024,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the rate of large matrix products: the best of some."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return size**3 / min(seconds(lambda: a @ b, clock) for _ in range(12))


def apart(script: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a script in a process of its own and return what it prints on its last line.

    One arena for all threads, or memory freed by one is not seen by the others.
    """
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, script, "--child", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        return {"failed": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


def machine(threads: int) -> str:
    """Return what the times below were taken on."""
    return (
        f"torch {torch.__version__}, {threads} threads, {platform.machine()}, "
        f"{os.cpu_count()} processors"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text under their heads, the first column to the left."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )
