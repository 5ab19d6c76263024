"""Processes that take turns: each computes its kernel when asked, nobody else's time in it.

Nothing here knows libraries or kernels; what a process answers is described in ``worker.py``.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FailedError", "Measured", "Process", "take_turns"]

_GIB = 2**30
_COMPILING = 3  # times the patience for a kernel
_NO_MEMORY = ("allocate memory", "RESOURCE_EXHAUSTED", "MemoryError", "bad_alloc", "Out of memory")


class FailedError(Exception):
    """Why a process gave no kernel, in a few words."""


@dataclass(kw_only=True)
class Measured:
    """What was seen of one way of computing a kernel.

    Attributes:
        prepared: Processor seconds before the first kernel: compilation, where a library compiles.
        first: Processor seconds of the first kernel.
        later: Processor seconds of later ones, one per round; none where patience was short.
        wall: Seconds by the clock of all later kernels, or of the first.
        bytes: Peak beyond the loaded process, of the later ones where there are any.
        failed: Why there is no kernel; None if there is one.
    """

    prepared: float | None = None
    first: float | None = None
    later: list[float] = field(default_factory=list)
    wall: float = 0.0
    bytes: int | None = None
    failed: str | None = None

    @property
    def seconds(self) -> float | None:
        """The median of the later ones; the first where it is the only one."""
        return statistics.median(self.later) if self.later else self.first


class Process:
    """A process of ``worker.py``, asked one thing at a time.

    Args:
        command: How to start it.
        environment: Variables beside this process's own.
        memory: Bytes that it may take.
        patience: Seconds to wait for an answer; may be changed later.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        memory: int,
        patience: float,
    ) -> None:
        self._memory, self.patience = memory, patience
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in end)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | dict(environment),
        )

    def ask(self, do: str, *, longer: int = 1, **more: Any) -> dict[str, Any]:
        """Return the answer to a request, waiting no longer than there is patience, or so often."""
        patience = longer * self.patience
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"do": do, "memory": self._memory, **more}
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise FailedError(self._last_words()) from None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            what = " of preparation" if do == "prepare" else ""
            raise FailedError(f"longer than {patience:.0f} s{what}")
        line = self._process.stdout.readline()
        if not line:
            raise FailedError(self._last_words())
        answer = json.loads(line)
        if "failed" in answer:
            raise FailedError(self._in_short(answer["failed"]))
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines() or [""]
        if any(word in line for word in _NO_MEMORY for line in lines[-20:]):
            return self._in_short(_NO_MEMORY[0])
        return f"the process ended with {code}: {lines[-1][:120]}"

    def _in_short(self, reason: str) -> str:
        if any(word in reason for word in _NO_MEMORY):
            return f"more than {self._memory / _GIB:.0f} GiB"
        first = re.split(r"(?<=[.!])\s|\n", reason.strip())[0]
        return first if len(first) <= 160 else first[:157] + "..."


def take_turns(
    processes: Mapping[str, Process], folder: Path, *, rounds: int, patience: float, **load: Any
) -> dict[str, Measured]:
    """Let every process load and compute a first kernel, then all of them again in turns.

    Args:
        processes: By name, which is the way that they are asked to go.
        folder: Where each leaves its kernel, ``NAME.npy``.
        rounds: Of later kernels; every other one goes backwards.
        patience: Processor seconds of one process in all, after which it sits out; the first of
            them, which the others are compared with, never does.
        load: The rest of the request to load.

    Returns:
        What was seen of each.
    """
    found = {name: Measured() for name in processes}
    for name, process in processes.items():
        try:
            process.ask("load", way=name, **load)
            seen = found[name]
            seen.prepared = process.ask("prepare", longer=_COMPILING)["seconds"]
            answer = process.ask("first", save=str(folder / f"{name}.npy"))
            seen.first, seen.bytes, seen.wall = (answer[k] for k in ("seconds", "bytes", "wall"))
        except FailedError as failure:
            found[name].failed = str(failure)
            process.end()
    for turn in range(rounds):
        names = list(processes) if turn % 2 == 0 else list(reversed(processes))
        for name in names:
            own = math.inf if name == next(iter(processes)) else patience
            _once_more(processes[name], found[name], own)
    return found


def _once_more(process: Process, seen: Measured, patience: float) -> None:
    if seen.failed or (sum(seen.later) or seen.first or 0.0) > patience:
        return
    try:
        answer = process.ask("again")
    except FailedError as failure:
        seen.failed = str(failure)
        process.end()
        return
    if not seen.later:
        seen.bytes, seen.wall = 0, 0.0
    seen.bytes = max(seen.bytes or 0, answer["bytes"])
    seen.wall += answer["wall"]
    seen.later.append(answer["seconds"])
