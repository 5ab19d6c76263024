"""The loop of a process that computes one kernel on demand; standard library and numpy alone.

Lines of JSON come in and go out, one answer to each request, so that several libraries, each in an
environment and a process of its own, can take turns:

- ``{"do": "load", "memory": BYTES, ...}``: import the library and prepare a model; the rest is for
  the library;
- ``{"do": "prepare"}``: what comes before a first kernel, such as compilation;
- ``{"do": "first", "save": PATH}``: the first kernel, left in a file;
- ``{"do": "again"}``: the same kernel again.

The answer tells seconds of the processor (of all threads, so that what else runs on the machine
counts little), the same by the clock on the wall, and bytes beyond those of the loaded process.
What a library prints goes to the standard error. Whatever it raises is an answer: ``failed``.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from peak import forget_peak, peak_bytes, resident_bytes

__all__ = ["Make", "serve"]

Kernel = Callable[[], np.ndarray]
Make = Callable[[], Kernel]  # prepares a kernel: part of the first one


def serve(load: Callable[[dict[str, Any]], Make], requests: Iterable[str] = sys.stdin) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    desk = _Desk(load)
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(desk, request["do"])(request)
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Desk:
    """What is kept between two requests."""

    def __init__(self, load: Callable[[dict[str, Any]], Make]) -> None:
        self._load = load
        self._kernel: Kernel | None = None

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        self._make = self._load(request)
        self._loaded = resident_bytes()
        # More private memory is refused, so that the library fails and the machine lives.
        resource.setrlimit(resource.RLIMIT_DATA, (request["memory"], request["memory"]))
        return {}

    def prepare(self, _request: dict[str, Any]) -> dict[str, Any]:
        began = time.process_time()
        self._kernel = self._make()
        return {"seconds": time.process_time() - began}

    def first(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._kernel is not None
        kernel, found = self._measured(self._kernel)
        np.save(request["save"], kernel)
        return found

    def again(self, _request: dict[str, Any]) -> dict[str, Any]:
        assert self._kernel is not None
        return self._measured(self._kernel)[1]

    def _measured(self, run: Kernel) -> tuple[np.ndarray, dict[str, Any]]:
        forget_peak()
        began, processor = time.perf_counter(), time.process_time()
        kernel = run()
        processor, wall = time.process_time() - processor, time.perf_counter() - began
        found = {"seconds": processor, "wall": wall, "bytes": peak_bytes() - self._loaded}
        return kernel, found
