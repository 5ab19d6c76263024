"""Custom functions, checkpointing, hooks, and models that differentiate or cast inside."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.autograd import Function
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

NO_SETUP = "its Function has no setup_context, which torch.func needs"


# Custom functions and checkpointing.


class _Affine(Function):
    """Several outputs, of which one may go unused, and a parameter among the inputs."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias, x @ weight.T

    @staticmethod
    def backward(ctx, with_bias, without):
        x, weight = ctx.saved_tensors
        both = with_bias + without
        return both @ weight, both.T @ x, with_bias.sum(0)


class _Scale(Function):
    """Does not ask for gradients that do not exist, and works under vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale):
        return x * scale, x + 1.0

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, scaled, shifted):
        x, scale = ctx.saved_tensors
        to_x = None if scaled is None else scaled * scale
        if shifted is not None:
            to_x = shifted if to_x is None else to_x + shifted
        return to_x, None if scaled is None else (scaled * x).sum_to_size(scale.shape)


@case(vmap=NO_SETUP)
def a_custom_function_with_parameters_of_which_one_output_is_used():
    parts = {"weight": torch.randn(3, 4), "bias": torch.randn(3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        return net.head(_Affine.apply(x, net.weight, net.bias)[0].tanh())

    return Net(compute, **parts), torch.randn(5, 4)


@case(vmap=NO_SETUP)
def a_custom_function_with_parameters_of_which_both_outputs_are_used():
    parts = {"weight": torch.randn(3, 4), "bias": torch.randn(3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        a, b = _Affine.apply(x, net.weight, net.bias)
        return net.head(a.tanh() * b.sigmoid())

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_custom_function_that_is_given_no_gradient_for_unused_outputs():
    parts = {"up": nn.Linear(4, 3), "scale": torch.randn(3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        scaled, _ = _Scale.apply(net.up(x), net.scale)
        _, shifted = _Scale.apply(scaled.tanh(), net.scale)
        return net.head(shifted)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def activations_computed_again_in_the_backward_pass():
    parts = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        h = checkpoint(lambda z: net.b(net.a(z).tanh()).tanh(), x, use_reentrant=False)
        return net.head(h)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_sequence_of_layers_checkpointed_by_segments():
    layers = [part for _ in range(3) for part in (nn.Linear(4, 4), nn.Tanh())]

    def compute(net, x):
        return net.head(checkpoint_sequential(net.body, 3, x, use_reentrant=False).mean(1))

    return Net(compute, body=nn.Sequential(*layers), head=nn.Linear(4, 2)), torch.randn(5, 3, 4)


@case(vmap="torch.func allows no requires_grad_ in a forward pass")
def a_model_that_differentiates_itself():
    """An energy's forces: the forward pass holds a derivative with respect to the input."""
    parts = {"up": nn.Linear(4, 6), "energy": nn.Linear(6, 1)}

    def compute(net, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            total = net.energy(net.up(x).tanh()).sum()
            return torch.autograd.grad(total, x, create_graph=True)[0]

    return Net(compute, **parts), torch.randn(5, 4)


# Gradients that the forward pass meddles with.


@case
def a_gradient_that_is_reversed():
    """Domain adaptation; the kernel is of the gradients that training sees."""
    parts = {"up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}

    class Reverse(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            return -2 * gradient

    net = Net(lambda net, x: net.head(Reverse.apply(net.up(x).tanh())), **parts)
    return net, torch.randn(5, 4)


@case
def a_hook_that_scales_a_gradient():
    parts = {"up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        h = net.up(x).tanh()
        if h.requires_grad:
            h.register_hook(lambda gradient: 0.5 * gradient)
        return net.head(h)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def features_without_gradient():
    parts = {"up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        with torch.no_grad():
            h = net.up(x).tanh()
        return net.head(h)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def an_input_overwritten_after_a_frozen_layer_used_it():
    """Nothing keeps the rows of a layer whose weight is frozen, and its bias needs none."""
    parts = {"start": nn.Linear(4, 4), "up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    parts["up"].weight.requires_grad_(False)

    def compute(net, x):
        h = net.start(x)
        out = net.up(h)
        h.mul_(3.0)
        return net.head((out + h).tanh())

    return Net(compute, **parts), torch.randn(5, 4)


@case(tolerance=1e-6, loose="one layer computes in float32")
def a_layer_that_computes_in_single_precision():
    parts = {"up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        h = functional.linear(x.float(), net.up.weight.float(), net.up.bias.float())
        return net.head(h.tanh().to(x.dtype))

    return Net(compute, **parts), torch.randn(5, 4)
