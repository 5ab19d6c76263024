"""How fast the structured engine is, beside the usual ways, the floor and the loop's exact numbers.

Run: ``python benchmarks/speed.py [--models mlp gpt2] [--repeats 5] [--threads 2]`` (minutes).

Ways that are timed, in turns in one process, medians printed:

- ``tutorial``: PyTorch's own, ``vmap(jacrev)`` rows of both sides and an einsum;
- ``vmap``: this package's ``empirical_ntk(engine="vmap")``;
- ``first``: ``empirical_ntk(engine="structured")`` on a model not seen before, which includes
  learning which rows belong to which sample and the engine's check of itself;
- ``later``: the same again; ``engine first`` and ``engine later``: without the checks of the model;
- ``pass``: one forward and backward pass of the whole batch with gradients of all weights.

The floor is a forward pass, one backward pass to the activations per output and the multiplications
of the plan at the rate of large matrix products: no exact way that takes this plan can be faster.
Memory is the growth of a process's peak over that of a ``pass``, each way in a process of its own;
``of pass`` sets both growths, counted from the loaded model, in relation. The error is that of the
kernel of the first samples against plain autograd in float64.

GPT-2's outputs are one number per sample, the mean log-probability of its tokens: what a language
model is trained on, so that a ``pass`` is a step of ordinary training.
"""

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch
from floor import error, floor
from measuring import (
    apart,
    forget_peak,
    machine,
    medians,
    multiplications_per_second,
    peak_bytes,
    seconds,
    table,
)
from models import MODELS, Problem
from ways import (
    engine_alone,
    forward_and_backward,
    tutorial_kernel,
    whole_call,
)

_MIB = 2**20
_SAMPLES = 4  # whose exact kernel is cheap enough
_WAYS = ("tutorial", "vmap", "first", "later", "engine first", "engine later", "pass")
_SMALL_ONLY = ("tutorial", "vmap")


def prepared(way: str, problem: Problem, outputs: str) -> Callable[[], Any]:
    """Return a way of computing the kernel, ready to be timed."""
    if way.endswith("first"):  # what is remembered is remembered with the model
        problem = dataclasses.replace(problem, model=copy.deepcopy(problem.model))
    if way == "tutorial":
        return lambda: tutorial_kernel(problem, outputs)
    if way == "pass":
        return lambda: forward_and_backward(problem)
    if way.startswith("engine"):
        return engine_alone(problem, outputs)
    return whole_call(problem, outputs, engine="vmap" if way == "vmap" else "structured")


def measure_time(model: str, outputs: str, threads: int, repeats: int) -> dict[str, Any]:
    problem = _problem(model, threads)
    ways: dict[str, Callable[[], float]] = {}
    for way in _ways(problem):
        if way.endswith("first"):
            ways[way] = lambda way=way: seconds(prepared(way, problem, outputs))
        else:
            run = prepared(way, problem, outputs)
            ways[way] = lambda run=run: seconds(run)
    forward_and_backward(problem)
    found: dict[str, Any] = {"seconds": medians(ways, repeats)}
    found["floor"] = floor(problem, outputs)
    found["error"] = error(problem, outputs, _SAMPLES if problem.small else 2)
    return found


def measure_memory(model: str, outputs: str, threads: int, way: str) -> dict[str, int]:
    problem = _problem(model, threads)
    run = prepared(way, problem, outputs)
    forget_peak()
    loaded = peak_bytes()
    for _ in range(2):
        forget_peak()
        forward_and_backward(problem)
    one_pass = peak_bytes()
    if way.endswith("later"):
        run()
    forget_peak()
    run()
    return {"beyond": peak_bytes() - one_pass, "pass": one_pass - loaded}


def _problem(model: str, threads: int) -> Problem:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return MODELS[model][1]()


def _ways(problem: Problem) -> list[str]:
    return [way for way in _WAYS if problem.small or way not in _SMALL_ONLY]


def show(model: str, outputs: str, given: argparse.Namespace, small: bool) -> None:
    arguments = {"model": model, "outputs": outputs, "threads": given.threads}
    times = apart(__file__, {**arguments, "repeats": given.repeats})
    if "failed" in times:
        print(f"{MODELS[model][0]}, outputs={outputs}: the process ended with {times['failed']}")
        return
    floor_parts, taken = times["floor"], times["seconds"]
    lowest = sum(floor_parts.values())
    reference = "tutorial" if small else "pass"
    memory = {}
    if not given.no_memory:
        measured = [way for way in taken if way != "pass"]
        memory = {way: apart(__file__, {**arguments, "way": way}) for way in measured}
    rows = [
        _row(way, taken[way], taken[reference], lowest, memory.get(way), memory.get(reference))
        for way in taken
    ]
    print(
        f"\n{MODELS[model][0]}, outputs={outputs}: error {times['error']:.0e}\n"
        f"floor {lowest:.3f} s: forward {floor_parts['forward']:.3f}, backward passes "
        f"{floor_parts['passes']:.3f}, least multiplications {floor_parts['products']:.3f}"
    )
    head = ("way", "seconds", f"{reference} / it", "it / floor", "MiB", "memory", "of pass")
    print(table(head, rows), flush=True)


def _row(
    way: str,
    taken: float,
    reference: float,
    lowest: float,
    memory: dict[str, int] | None,
    most: dict[str, int] | None,
) -> tuple[str, ...]:
    cells = [way, f"{taken:.3f}", f"{reference / taken:.2f}x", f"{taken / lowest:.2f}"]
    if memory is None or "failed" in memory:
        return *cells, "-", "-", "-"
    beyond = memory["beyond"]
    share = "-"
    if most is not None and "failed" not in most and beyond > 0:
        share = f"1/{most['beyond'] / beyond:.1f}"
    ratio = (beyond + memory["pass"]) / max(1, memory["pass"])
    return *cells, f"{beyond / _MIB:.0f}", share, f"{ratio:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--outputs", nargs="*", help="by default all that a model has")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        measure = measure_memory if "way" in given.child else measure_time
        print(json.dumps(measure(**given.child)))
        return
    torch.set_num_threads(given.threads)
    rate = f"{multiplications_per_second() / 1e9:.0f} G multiplications per second"
    print(f"{machine(given.threads)}, {rate} in large products")
    for model in given.models:
        problem = MODELS[model][1]()
        for outputs in given.outputs or problem.outputs:
            show(model, outputs, given, problem.small)


if __name__ == "__main__":
    main()
