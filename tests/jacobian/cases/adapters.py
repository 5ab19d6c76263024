"""Adapters beside or inside a frozen weight, and weights that another network generates."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional

# Low-rank adapters.


@case
def an_adapter_added_to_the_activations():
    """LoRA: the base is frozen, the factors are not."""
    parts = {"base": nn.Linear(4, 3), "a": nn.Linear(4, 2, bias=False), "b": torch.randn(3, 2)}
    parts["base"].requires_grad_(False)

    def compute(net, x):
        h = net.base(x) + functional.linear(net.a(x), net.b) * 0.5
        return h.tanh().mean(1)

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def an_adapter_merged_into_the_weight():
    parts = {"base": nn.Linear(4, 3), "a": torch.randn(2, 4), "b": torch.randn(3, 2)}
    parts["base"].requires_grad_(False)

    def compute(net, x):
        return functional.linear(x, net.base.weight + net.b @ net.a, net.base.bias).tanh().mean(1)

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def an_adapter_with_direction_and_magnitude():
    """DoRA: the norm of the merged weight is held constant in the derivative."""
    parts = {"base": nn.Linear(4, 3), "a": torch.randn(2, 4), "b": torch.randn(3, 2)}

    def compute(net, x):
        weight = net.base.weight + net.b @ net.a
        scale = net.magnitude / weight.norm(dim=1, keepdim=True).detach()
        return functional.linear(x, scale * weight, net.base.bias).tanh()

    return Net(compute, **parts, magnitude=torch.ones(3, 1)), torch.randn(5, 4)


@case
def an_adapter_whose_second_factor_is_zero():
    """Right after its start: half of the gradients are zero for all samples."""
    net, x = an_adapter_merged_into_the_weight.builder()
    with torch.no_grad():
        net.b.zero_()
    return net, x


# Hypernetworks.


@case
def weights_generated_from_another_input_of_each_sample():
    """Each sample has its own matrix: no parameter meets the data as a matrix for all."""
    parts = {"hyper": nn.Linear(2, 12), "head": nn.Linear(3, 2)}

    def compute(net, x, code):
        weight = net.hyper(code).tanh().view(-1, 3, 4)
        return net.head((weight @ x[..., None]).squeeze(-1).tanh())

    return Net(compute, **parts), (torch.randn(5, 4), torch.randn(5, 2))


@case
def weights_generated_from_a_vector_of_parameters():
    """The generator's rows belong to no sample."""
    parts = {"code": torch.randn(2), "hyper": nn.Linear(2, 12), "head": nn.Linear(3, 2)}

    def compute(net, x):
        weight = net.hyper(net.code).tanh().view(3, 4)
        return net.head(functional.linear(x, weight).tanh())

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_feature_scale_and_shift_generated_for_each_sample():
    parts = {"film": nn.Linear(2, 6), "up": nn.Linear(4, 3), "head": nn.Linear(3, 2)}

    def compute(net, x, code):
        scale, shift = net.film(code).chunk(2, dim=-1)
        return net.head((net.up(x) * (1 + scale[:, None]) + shift[:, None]).tanh().mean(1))

    return Net(compute, **parts), (torch.randn(5, 3, 4), torch.randn(5, 2))
