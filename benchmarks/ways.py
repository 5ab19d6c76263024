"""The ways of computing a kernel that the benchmarks set side by side."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from models import Problem
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.parameters import layer_of, select_parameters
from ntkwatch.jacobian.problem import prepare
from ntkwatch.jacobian.structured.engine import Served, serve
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.watch.record.records import Observation

__all__ = [
    "engine_alone",
    "forward_and_backward",
    "forward_to_activations",
    "loop_kernel",
    "observation",
    "tutorial_kernel",
    "whole_call",
]

BUDGET = "1GiB"


def whole_call(
    problem: Problem, outputs: str, budget: str = BUDGET, engine: str = "structured"
) -> Callable[[], Tensor]:
    """Return ``empirical_ntk`` as a user calls it, with every check of the model."""
    return lambda: (
        empirical_ntk(
            problem.model,
            problem.inputs,
            forward=problem.forward,
            outputs=outputs,
            engine=engine,
            memory_budget=budget,
        ).matrix
    )


def engine_alone(problem: Problem, outputs: str, budget: str = BUDGET) -> Callable[[], Served]:
    """Return the structured engine without the checks around it."""
    selected = select_parameters(problem.model, None)
    with undisturbed(problem.model):
        ready = prepare(
            problem.model,
            problem.inputs,
            forward=problem.forward,
            outputs=outputs,
            names=list(selected),
            dtype=torch.float32,
            batchnorms=[],
        )

    def run() -> Served:
        with undisturbed(problem.model):
            return serve(
                ready.make,
                ready.function,
                ready.inputs,
                None,
                ready.reduction,
                {name: layer_of(name) for name in ready.names},
                ready.buffers,
                parse_bytes(budget),
            )

    return run


def observation(problem: Problem, outputs: str, budget: str = BUDGET) -> Callable[[], Observation]:
    """Return an observation as the monitor makes it; the first time, the reference.

    The weights move a little before each, or there would be no linearization error.
    """
    probe = ProbeBatch(problem.inputs)
    tracker = KernelTracker(probe, forward=problem.forward, outputs=outputs, memory_budget=budget)

    def run() -> Observation:
        with torch.no_grad():
            for parameter in problem.model.parameters():
                parameter.mul_(1.001)
        return tracker.observe(problem.model, len(tracker.history))

    return run


def tutorial_kernel(problem: Problem, outputs: str) -> Tensor:
    """PyTorch's tutorial "Neural Tangent Kernels": all rows of both sides, then one einsum."""
    params = {name: p.detach() for name, p in problem.model.named_parameters()}

    def one(theta: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(problem.model, theta, (sample[None],))[0]

    left = vmap(jacrev(one), (None, 0))(params, problem.inputs)
    right = vmap(jacrev(one), (None, 0))(params, problem.inputs)
    formula = "naf,mbf->nmab" if outputs == "full" else "naf,maf->nm"
    parts = [
        torch.einsum(formula, left[name].flatten(2), right[name].flatten(2)) for name in params
    ]
    return torch.stack(parts).sum(dim=0)


def loop_kernel(problem: Problem, outputs: str, samples: int) -> Tensor:
    """Plain autograd in float64, output by output of each of the first samples."""
    model = copy.deepcopy(problem.model).double()
    inputs = problem.inputs[:samples]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    params = list(model.parameters())
    rows = []
    for index in range(samples):
        one = inputs[index : index + 1]
        values = model(one) if problem.forward is None else problem.forward(model, one)
        rows += [torch.autograd.grad(v, params, retain_graph=True) for v in values.flatten()]
    grams = []
    for parts in zip(*rows, strict=True):
        jacobian = torch.stack([part.flatten() for part in parts])
        grams.append(jacobian @ jacobian.T)
    kernel = torch.stack(grams).sum(dim=0)
    kernel = kernel.unflatten(0, (samples, -1)).unflatten(2, (samples, -1)).transpose(1, 2)
    return kernel if outputs == "full" else torch.einsum("nmaa->nm", kernel)


def forward_to_activations(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the outputs of a forward pass and those of the first module in it.

    The gradient of the one by the other goes through every activation and forms none of a weight.
    """
    first: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if not first:
            first.append(output)

    leaf = next(module for module in problem.model.modules() if not list(module.children()))
    handle = leaf.register_forward_hook(keep)
    try:
        return problem.values(), first[0]
    finally:
        handle.remove()


def forward_and_backward(problem: Problem) -> None:
    """One step of training without the step: gradients of all weights, then forgotten."""
    problem.values().sum().backward()
    problem.model.zero_grad(set_to_none=True)
