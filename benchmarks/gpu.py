"""Everything that can be said of a GPU, in one command: writes ``benchmarks/RESULTS-GPU.md``.

Run: ``make test-gpu``. Where torch sees no accelerator it says so and ends with 1. Otherwise:

- the fast tests marked ``gpu``: those that take a device, on this one;
- kernels of four models, each held against the same kernel on the processor in float64, with the
  time beside PyTorch's tutorial, waited for, and the most memory that tensors took.

``--device cpu`` rehearses it on the processor. Nothing of this has been run on a GPU so far.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import seconds
from models import Problem
from peers_torch import one_sided
from problems import PROBLEMS, problem, title
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ntkwatch import empirical_ntk

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS-GPU.md"
_MIB = 2**20
_ROUNDS = 5
# Rounding of single precision, with a ReLU or two that it turns; a wrong kernel is far from it.
_AGREE = 1e-3


def accelerator() -> torch.device | None:
    """Return the device that torch can compute on beside the processor, or None."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None and found.type != "cpu" else None


def run_tests() -> tuple[str, bool]:
    """Run the tests of this machine's devices; return their last line, and whether they passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr[-300:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([*failed, lines[-1]]), done.returncode == 0


def wait(device: torch.device) -> None:
    """Let what was started on a device end."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(run: Callable[[], Tensor], device: torch.device) -> float:
    wait(device)
    return seconds(lambda: (run(), wait(device)))


def most_memory(run: Callable[[], Tensor], device: torch.device) -> str:
    """Return the MiB of tensors that a call adds, where the device counts them."""
    if device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    wait(device)
    return f"{(torch.cuda.max_memory_allocated(device) - before) / _MIB:.0f}"


def row(name: str, outputs: str, device: torch.device, quick: bool) -> tuple[str, bool]:
    """Return the line of one kernel, and whether it is the processor's."""
    here = problem(name, quick)
    there = Problem(model=copy.deepcopy(here.model).to(device), inputs=here.inputs.to(device))
    ours = lambda: empirical_ntk(there.model, there.inputs, outputs=outputs).matrix  # noqa: E731
    first = timed(ours, device)
    tutorial = one_sided(there, outputs)
    times: dict[str, list[float]] = {"ours": [], "tutorial": []}
    try:
        for _ in range(_ROUNDS):
            times["ours"].append(timed(ours, device))
            with sdpa_kernel(SDPBackend.MATH):
                times["tutorial"].append(timed(tutorial, device))
    except RuntimeError as error:  # out of memory, in the tutorial
        print(f"{title(name, quick)}: {error}", file=sys.stderr)
    exact = empirical_ntk(
        copy.deepcopy(here.model), here.inputs, outputs=outputs, dtype=torch.float64
    ).matrix
    gap = float((ours().cpu().double() - exact).norm() / exact.norm())
    later = statistics.median(times["ours"])
    theirs = statistics.median(times["tutorial"]) if times["tutorial"] else float("nan")
    cells = (title(name, quick), outputs, f"{first:.3f}", f"{later:.4f}", f"{theirs:.4f}")
    agrees = gap < _AGREE
    shown = f"{gap:.0e}" if agrees else f"{gap:.0e} WRONG"
    return "| " + " | ".join((*cells, most_memory(ours, device), shown)) + " |", agrees


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, help="by default the accelerator here")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    device = given.device or accelerator()
    if device is None:
        print(
            f"There is no GPU here: torch {torch.__version__} sees no accelerator, so nothing was "
            "tested on one and nothing was written. Run this where there is one, with a torch "
            "built for it.",
            file=sys.stderr,
        )
        return 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    said, passed = ("left out", True) if given.no_tests else run_tests()
    rows = [row(p, o, device, given.quick) for p in PROBLEMS for o in ("full", "trace")]
    good = passed and all(agrees for _, agrees in rows)
    lines = [
        "# Results on a GPU",
        "",
        f"Written by `make test-gpu` on {time.strftime('%Y-%m-%d', time.gmtime())}: {name}, torch "
        f"{torch.__version__}. {'All as it should be.' if good else 'NOT all as it should be.'}",
        "",
        f"Tests marked `gpu`:\n\n```text\n{said}\n```",
        "",
        "Seconds are waited for; `tutorial` is PyTorch's Jacobian contraction, rows of one side. "
        "The difference is from the processor's kernel in float64.",
        "",
        "| kernel | outputs | first | later | tutorial | MiB | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(line for line, _ in rows),
    ]
    given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
