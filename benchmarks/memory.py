"""Whether ``memory_budget`` keeps its promise: extra memory of a process, measured, and its price.

Run: ``python benchmarks/memory.py [--models mlp vit] [--budgets 64MiB 1GiB] [--threads 2]``
(a few minutes; ``--whole`` measures ``empirical_ntk`` with its checks of the model instead of the
engine alone; ``--watched`` measures observations as the monitor makes them, with all that they
keep: the reference as "first", another one as "later"; libraries are loaded before).

Each line is a process of its own. It runs a forward pass and a backward pass to the activations,
remembers the peak of its resident memory, then computes a kernel twice (the first call learns which
rows belong to which sample and checks itself; the second remembers). Printed is by how much the
peak of each exceeds the remembered one, beside the promise of 1.2 budgets plus 32 MiB of scratch
for the libraries.
"""

import argparse
import json
from collections.abc import Sequence

import torch
from measuring import apart, forget_peak, machine, peak_bytes, seconds
from models import MODELS, Problem, token_problem
from ways import engine_alone, forward_to_activations, observation, whole_call

from ntkwatch.jacobian.memory import parse_bytes

TASKS = {**MODELS, "tokens": ("GPT-2 124M, N=4, T=64, logits of all tokens", token_problem)}
BUDGETS = ("64MiB", "256MiB", "1GiB")
_HEAD = ("outputs", "budget", "promise", "first", "later", "s first", "s later", "")
_MIB = 2**20


def promised(budget: int) -> float:
    """Return the bytes that a budget may cost in all."""
    return 1.2 * budget + 32 * _MIB


def one_pass(problem: Problem) -> None:
    """One forward pass, and one backward pass that forms no gradient of a weight."""
    outputs, first = forward_to_activations(problem)
    torch.autograd.grad(outputs, first, torch.ones_like(outputs))


def load_libraries() -> None:
    """Observe a small model, so that what torch loads for it is there before anything is counted.

    Its compiler, which is asked not to compile, and the rules of forward mode: 54 MiB of code and
    tables, once in a process. A training that has made an optimizer has most of it already.
    """
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    small = Problem(model=net, inputs=torch.randn(8, 4))
    observe = observation(small, "trace")
    for _ in range(2):
        observe()


def measure(
    model: str, outputs: str, budget: str, threads: int, whole: bool, watched: bool
) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    problem = TASKS[model][1]()
    if watched:
        load_libraries()
    for _ in range(2):
        forget_peak()
        one_pass(problem)
    before = peak_bytes()
    way = observation if watched else whole_call if whole else engine_alone
    kernel = way(problem, outputs, budget)
    found: dict[str, float] = {"pass": before}
    for name in ("first", "later"):
        forget_peak()
        found[f"{name} seconds"] = seconds(kernel)
        found[name] = peak_bytes() - before
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--outputs", nargs="*", help="by default all that a model has")
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="empirical_ntk with all its checks")
    parser.add_argument("--watched", action="store_true", help="observations of the monitor")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(measure(**given.child)))
        return
    print(f"Extra memory in MiB beyond a forward and a backward pass; {machine(given.threads)}")
    for model in given.models:
        title, make = TASKS[model]
        print(f"\n{title}", flush=True)
        print(_line(_HEAD))
        for outputs in given.outputs or make().outputs:
            for budget in given.budgets:
                settings = {"model": model, "outputs": outputs, "budget": budget}
                more = {"threads": given.threads, "whole": given.whole, "watched": given.watched}
                print(_line(_row(outputs, budget, apart(__file__, settings | more))), flush=True)


def _line(cells: Sequence[str]) -> str:
    first, *others = cells
    return (first.ljust(9) + "".join(cell.rjust(9) for cell in others)).rstrip()


def _row(outputs: str, budget: str, seen: dict[str, float]) -> tuple[str, ...]:
    most = promised(parse_bytes(budget))
    if "failed" in seen:
        return outputs, budget, f"{most / _MIB:.0f}", "-", "-", "-", "-", "FAILED"
    kept = max(seen["first"], seen["later"]) <= most
    return (
        outputs,
        budget,
        f"{most / _MIB:.0f}",
        *(f"{seen[name] / _MIB:.0f}" for name in ("first", "later")),
        *(f"{seen[f'{name} seconds']:.2f}" for name in ("first", "later")),
        "" if kept else "BROKEN",
    )


if __name__ == "__main__":
    main()
