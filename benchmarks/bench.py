"""Every comparison of the package in one page: writes ``benchmarks/RESULTS.md``.

Run: ``make bench`` (half an hour on two idle processors), or
``python benchmarks/bench.py --quick -o FILE`` to see that it runs at all. In this order:

- ``peers.py``: ntkwatch beside the other libraries and the floor, kernel by kernel;
- ``growth.py``: how the time grows with samples, outputs, width, depth and tokens;
- ``memory.py``: whether the memory budget is kept.

The page is written anew after each part, so that one that was cut short shows what there is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
import torch
from measuring import machine, multiplications_per_second

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"

_GROWTH = ["--threads", "1"]
_MEMORY = ["--threads", "1", "--models", "mlp", "resnet", "vit", "--budgets", "256MiB", "1GiB"]


def head(options: Any) -> str:
    """Return on what machine and how the page came about."""
    rate = multiplications_per_second(clock=time.process_time) / 1e9
    load = os.getloadavg()[0]
    command = "make bench" if not options.quick else "python benchmarks/bench.py --quick"
    return f"""# Results

Written by `{command}` on {time.strftime("%Y-%m-%d", time.gmtime())}: {machine(1)},
{rate:.0f} G multiplications per second in large float32 products, load {load:.1f} when it began
(above 0.5, others were using the machine). Versions of the other libraries are those of
`benchmarks/peers.txt` and `benchmarks/peers-jax.txt`. Nothing here has run on a GPU."""


def summary(cells: Sequence[peers.Cell]) -> str:
    """Return each kernel's line: ours, the floor and the fastest of the others."""
    lines = [
        "## Beside the other libraries",
        "",
        peers.__doc__.split("\n\n", 2)[2].strip(),
        "",
        "| kernel | ntkwatch, s | floor, s | fastest other | its time / ours |",
        "| --- | ---: | ---: | --- | ---: |",
        *map(_line, cells),
        "",
        _beaten(cells),
    ]
    return "\n".join(lines)


def _line(cell: peers.Cell) -> str:
    name = f"{cell.title.split(',')[0]}, {cell.outputs}"
    ours, best = cell.seen["ntkwatch"].seconds, peers.fastest_peer(cell)
    if ours is None or best is None:
        return f"| {name} | {'fails' if ours is None else f'{ours:.3f}'} | | none | |"
    return (
        f"| {name} | {ours:.3f} | {sum(cell.floor.values()):.3f} "
        f"| {peers.WAYS[best].label} | {peers.times(cell, best):.2f} |"
    )


def _beaten(cells: Sequence[peers.Cell]) -> str:
    """Return in words where another library was faster."""
    lost = []
    for cell in cells:
        best = peers.fastest_peer(cell)
        if best is not None and peers.times(cell, best) < 1:
            lost.append(f"{cell.title} ({cell.outputs}): {peers.WAYS[best].label}")
    if not lost:
        return f"In none of these {len(cells)} kernels is another library faster."
    return f"Another library is faster in {len(lost)} of {len(cells)}: {'; '.join(lost)}."


def printed(script: str, arguments: Sequence[str]) -> str:
    """Return what another script of this folder prints, as a block."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    said = done.stdout.rstrip()
    if done.returncode:
        said += f"\nended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    return f"`python benchmarks/{script} {' '.join(arguments)}`\n\n```text\n{said}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peers.arguments(parser)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options: Any = parser.parse_args()
    peers.one_processor()
    torch.set_num_threads(1)
    top, cells, further = head(options), [], ["", ""]

    def write() -> None:
        shown = [summary(cells), *map(peers.show, cells), *filter(None, further)]
        options.output.write_text("\n\n".join([top, *shown]) + "\n", encoding="utf-8")

    for name in options.problems:
        for outputs in options.outputs:
            cells.append(peers.compare(name, outputs, options))
            print(peers.show(cells[-1]), end="\n\n", flush=True)
            write()
    growth = [*_GROWTH, "--quick"] if options.quick else _GROWTH
    further[0] = f"## Growth\n\n{printed('growth.py', growth)}"
    write()
    if not options.quick:
        further[1] = f"## Memory budget\n\n{printed('memory.py', _MEMORY)}"
        write()
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
