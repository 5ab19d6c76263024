"""A network made linear in its weights: outputs, the pull of cotangents, its largest curvature."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

__all__ = ["Weights", "linear_outputs", "stateless", "top_eigenvalue", "trainable"]

Weights = dict[str, Tensor]
_ITERATIONS = 12


def stateless(model: nn.Module) -> nn.Module:
    """Return a copy that trains without running averages: a function of its weights alone."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def trainable(model: nn.Module) -> Weights:
    """Return the weights that training moves, without their graph."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def linear_outputs(
    model: nn.Module, start: Weights, weights: Weights, x: Tensor
) -> tuple[Tensor, Callable[[Tensor], Weights]]:
    """Return ``F_0 + J_0 (theta - theta_0)`` and the function ``v -> J_0' v``."""

    def f(params: Weights) -> Tensor:
        return functional_call(model, params, (x,))

    moved = {name: (weights[name] - start[name]).detach() for name in start}
    value, change = jvp(f, (start,), (moved,))
    pull = vjp(f, start)[1]
    return (value + change).detach(), lambda cotangent: pull(cotangent)[0]


def top_eigenvalue(model: nn.Module, x: Tensor) -> float:
    """Return that of the kernel between outputs, ``J J'``, by power iteration."""
    weights = trainable(model)

    def f(params: Weights) -> Tensor:
        return functional_call(model, params, (x,))

    out, pull = vjp(f, weights)
    v = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    for _ in range(_ITERATIONS):
        (direction,) = pull(v / v.norm())
        v = jvp(f, (weights,), (direction,))[1]
    return float(v.norm())
