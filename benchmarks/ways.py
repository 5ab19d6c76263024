"""The ways of computing a kernel that the benchmarks set side by side."""

import copy
from collections.abc import Callable

import torch
from models import Problem
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from ntkwatch import empirical_ntk
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.parameters import layer_of, select_parameters
from ntkwatch.jacobian.problem import prepare
from ntkwatch.jacobian.structured.engine import Served, serve
from ntkwatch.jacobian.undisturbed import undisturbed

__all__ = ["engine_alone", "loop_kernel", "tutorial_kernel", "whole_call"]

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
        rows.append([torch.autograd.grad(v, params, retain_graph=True) for v in values.flatten()])
    flat = [gradients for row in rows for gradients in row]
    kernel = (
        torch.stack([torch.stack([_dot(a, b) for b in flat]) for a in flat])
        .unflatten(0, (samples, -1))
        .unflatten(2, (samples, -1))
    )
    kernel = kernel.transpose(1, 2)
    return kernel if outputs == "full" else torch.einsum("nmaa->nm", kernel)


def _dot(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
