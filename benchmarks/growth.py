"""How the cost of the structured engine grows with samples, outputs, width, depth and length.

Run: ``python benchmarks/growth.py [--axes N C] [--threads 2] [--quick]`` (a minute or two).

Each line is one model at several sizes. Printed are the seconds of the engine alone (its later
calls), the exponent fitted to them, the exponent fitted in the same way to the multiplications
counted (forward and backward passes and the contractions of the plan), and what theory says of
large sizes:

- N: the passes grow as N, the contractions as N^2;
- C: C backward passes; a full kernel has C^2 entries per pair of samples, a trace kernel C;
- width: the passes multiply by matrices of width^2, pairs of samples by vectors of width;
- depth: every layer costs the same;
- T: attention and pairs of positions T^2, all else T.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence

import torch
from measuring import machine, seconds
from models import Position, Problem, ViT, mlp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ways import engine_alone

_REPEATS = 3


def _dense(n: int = 64, c: int = 10, width: int = 512, depth: int = 3) -> Problem:
    return Problem(model=mlp((width,) * (depth + 1) + (c,)), inputs=torch.randn(n, width))


def _tokens(t: int) -> Problem:
    model = ViT(width=96, depth=2)
    model.patches = nn.Conv2d(3, 96, (1, 4), (1, 4))
    model.position = Position(t, 96)
    return Problem(model=model.eval(), inputs=torch.randn(8, 3, 1, 4 * t))


# What grows, which kernel, how large, what of, what theory says.
_Line = tuple[str, str, Sequence[int], Callable[[int], Problem], str]
LINES: tuple[_Line, ...] = (
    ("N", "full", (16, 32, 64, 128, 256), lambda n: _dense(n=n), "1 to 2"),
    ("N", "trace", (64, 128, 256, 512, 1024), lambda n: _dense(n=n), "1 to 2"),
    ("C", "full", (4, 8, 16, 32, 64), lambda c: _dense(n=32, c=c), "1 to 2"),
    ("C", "trace", (8, 16, 32, 64, 128), lambda c: _dense(n=32, c=c), "1"),
    ("width", "full", (128, 256, 512, 1024), lambda w: _dense(width=w), "1 to 2"),
    ("width", "trace", (128, 256, 512, 1024), lambda w: _dense(width=w), "1 to 2"),
    ("depth", "full", (2, 4, 8, 16), lambda d: _dense(depth=d), "1"),
    ("depth", "trace", (2, 4, 8, 16), lambda d: _dense(depth=d), "1"),
    ("T", "full", (16, 32, 64, 128), _tokens, "1 to 2"),
    ("T", "trace", (16, 32, 64, 128), _tokens, "1 to 2"),
)


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the logarithms."""
    x = torch.tensor([math.log(size) for size in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(cost) for cost in costs], dtype=torch.float64)
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def cost(
    problem: Problem, outputs: str, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Return the least of some times, and the multiplications counted."""
    run = engine_alone(problem, outputs)
    parts = run().parts
    assert parts is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        values = problem.values()
    forward = counter.get_total_flops() / 2  # of which half are additions
    contractions = parts.plan.multiplications
    counted = forward * (1 + values[0].numel()) + contractions
    return min(seconds(run, clock) for _ in range(_REPEATS)), counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    axes = list(dict.fromkeys(line[0] for line in LINES))
    parser.add_argument("--axes", nargs="*", choices=axes, default=axes)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two sizes of each, one time")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    # With one thread, the processor's time: what else runs on the machine counts little.
    clock = time.process_time if given.threads == 1 else time.perf_counter
    print(machine(given.threads))
    print(f"{'grows':<6} {'outputs':<8} measured  counted  theory  seconds")
    for axis, outputs, sizes, make, theory in LINES:
        if axis not in given.axes:
            continue
        sizes = sizes[:2] if given.quick else sizes
        found = [cost(make(size), outputs, clock) for size in sizes]
        times, counts = zip(*found, strict=True)
        shown = "  ".join(f"{s}: {t:.3f}" for s, t in zip(sizes, times, strict=True))
        print(
            f"{axis:<6} {outputs:<8} {exponent(sizes, times):8.2f}  "
            f"{exponent(sizes, counts):7.2f}  {theory:<6}  {shown}",
            flush=True,
        )


if __name__ == "__main__":
    main()
