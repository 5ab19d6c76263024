"""Whether watching stays as cheap as it began: a long training, observed every few steps.

Run: ``python benchmarks/soak.py [--minutes 30] [--every 2]``

Printed at intervals: observations so far, resident memory of the process, Python objects that the
garbage collector knows, bytes of the history file, and what an observation took since the last
line, everything counted (measuring, judging, writing, logging, hooks); beside it the processor time
of an observation with the training between two, which a busy machine disturbs less. At the end,
straight lines fitted to these from the second line on, as a change per 1,000 observations. The
history itself is held in memory, so memory grows by its records; nothing else should.
"""

import argparse
import gc
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from measuring import machine
from trained import TRAININGS, fit

from ntkwatch import NTKMonitor

_MIB = 2**20
_HEAD = " minutes  observed   RSS MiB   objects  file MiB  ms each  cpu ms"
_LINES = 20


def resident() -> int:
    """Return the bytes that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Gauge(pl.Callback):
    """Prints a line from time to time, and ends the training when its time is over."""

    def __init__(self, watch: NTKMonitor, folder: Path, minutes: float) -> None:
        self.watch, self.folder, self.seconds = watch, folder, 60 * minutes
        self.rows: list[tuple[float, ...]] = []
        self.began = self.last = time.perf_counter()
        self.seen, self.spent, self.cpu = 0, 0.0, time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        now = time.perf_counter()
        trainer.should_stop = now - self.began >= self.seconds
        if now - self.last >= self.seconds / _LINES:
            self._look(now)
            self.last = time.perf_counter()

    def _look(self, now: float) -> None:
        seen, last = len(self.watch.history), self.watch.history[-1]
        spent = last.overhead_seconds or 0.0
        each = 1000 * (spent - self.spent) / max(1, seen - self.seen)
        cpu = 1000 * (time.process_time() - self.cpu) / max(1, seen - self.seen)
        self.seen, self.spent = seen, spent
        gc.collect()
        written = next(self.folder.rglob("history.jsonl")).stat().st_size
        self.rows.append(
            (seen, resident() / _MIB, len(gc.get_objects()), written / _MIB, each, cpu)
        )
        minutes = (now - self.began) / 60
        n, *found = self.rows[-1]
        memory, objects, size, ms, cpu = found
        line = f"{minutes:8.1f} {n:9} {memory:9.1f} {objects:9} {size:9.2f} {ms:8.2f} {cpu:7.2f}"
        print(line, flush=True)
        self.cpu = time.process_time()


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line."""
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    a = a - a.mean()
    return float((a * b).sum() / (a * a).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=int, default=2, help="optimizer steps per observation")
    parser.add_argument("--model", choices=list(TRAININGS), default="mlp")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(f"{machine(given.threads)}\n{TRAININGS[given.model]}, every {given.every} steps\n{_HEAD}")
    settings: dict[str, Any] = {"every_n_train_steps": given.every, "on_error": "raise"}
    with tempfile.TemporaryDirectory() as folder:
        watch = NTKMonitor(**settings)
        gauge = Gauge(watch, Path(folder), given.minutes)
        fit(given.model, Path(folder), 10**9, [watch, gauge])
        page = next(Path(folder).rglob("report.html"))
        size = page.stat().st_size / _MIB
    rows = gauge.rows[1:]
    names = ("MiB resident", "objects", "MiB of history.jsonl", "ms each", "cpu ms")
    print("per 1,000 observations:")
    for index, name in enumerate(names, start=1):
        change = 1000 * slope([row[0] for row in rows], [row[index] for row in rows])
        print(f"  {change:+10.3f} {name}")
    cost = watch.history.cost
    assert cost is not None
    print(f"in all {cost.observations} observations, {cost.seconds:.0f} s; report {size:.1f} MiB")


if __name__ == "__main__":
    main()
