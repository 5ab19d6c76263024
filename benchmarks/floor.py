"""What no exact way can do without, and how exact ours is: both of one problem, in one process.

The floor is a forward pass, one backward pass to the activations per output, and the fewest
multiplications that the engine's plan knows, at the rate of large matrix products here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import multiplications_per_second, seconds
from models import Problem
from problems import problem
from ways import forward_to_activations, loop_kernel

from ntkwatch import empirical_ntk

__all__ = ["error", "floor"]


def floor(
    given: Problem, outputs: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the seconds that no exact way can do without, by part."""
    forward = min(seconds(lambda: forward_to_activations(given), clock) for _ in range(3))
    values, first = forward_to_activations(given)
    count = values[0].numel()
    cotangents = torch.eye(count)[:, None].expand(count, len(values), count)

    def backward(row: int) -> float:
        cotangent = cotangents[row].reshape(values.shape)
        run = partial(torch.autograd.grad, values, first, cotangent, retain_graph=True)
        return seconds(run, clock)

    passes = count * min(backward(row % count) for row in range(3))
    kernel = empirical_ntk(
        given.model, given.inputs, forward=given.forward, outputs=outputs, engine="structured"
    )
    assert kernel.plan is not None
    products = kernel.plan.multiplications / multiplications_per_second(clock=clock)
    return {"forward": forward, "passes": passes, "products": products}


def error(given: Problem, outputs: str, samples: int) -> float:
    """Return how far the kernel of the first samples is from plain autograd in float64."""
    few = dataclasses.replace(given, inputs=given.inputs[:samples])
    exact = loop_kernel(few, outputs, samples)
    ours = empirical_ntk(
        few.model, few.inputs, forward=few.forward, outputs=outputs, engine="structured"
    ).matrix
    return float((ours - exact).norm() / exact.norm())


def main(name: str, outputs: str, quick: bool, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    given = problem(name, quick)
    return {"floor": floor(given, outputs, time.process_time), "error": error(given, outputs, 2)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=json.loads, required=True)
    print(json.dumps(main(**parser.parse_args().child)))
