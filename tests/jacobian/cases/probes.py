"""Probes, outputs and selections at their limits: sizes, scales, zeros, shapes and frozen parts."""

import torch
from jacobian.cases.case import Net, case
from torch import nn

SQUEEZED = "one sample alone comes without its axis"


def _mlp(outputs=3, activation=nn.Tanh):
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, outputs))


# How many.


@case
def one_sample():
    return _mlp(), torch.randn(1, 4)


@case
def one_sample_of_tokens():
    return Net(lambda net, x: net.body(x).mean(1), body=_mlp()), torch.randn(1, 3, 4)


@case
def two_samples():
    return _mlp(), torch.randn(2, 4)


@case
def two_hundred_samples():
    return _mlp(outputs=1), torch.randn(200, 4)


@case
def one_output():
    return _mlp(outputs=1), torch.randn(5, 4)


@case
def a_thousand_outputs_in_eight_random_directions():
    return _mlp(outputs=1000), torch.randn(5, 4), {"outputs": "random:8"}


@case
def as_many_tokens_as_samples():
    """Axes of equal length are easily taken for each other."""
    net = Net(lambda net, x: net.body((x + x.cumsum(1)).mT).mean(1), body=_mlp())
    return net, torch.randn(4, 4, 4)


# How large.


@case
def outputs_of_size_1e_minus_25():
    return Net(lambda net, x: 1e-25 * net.body(x), body=_mlp()), torch.randn(5, 4)


@case
def outputs_of_size_1e_25():
    return Net(lambda net, x: 1e25 * net.body(x), body=_mlp()), torch.randn(5, 4)


@case
def samples_of_very_different_sizes():
    sizes = torch.tensor([1e-6, 1.0, 1e-3, 1e3, 10.0])
    return _mlp(activation=nn.ReLU), sizes[:, None] * torch.randn(5, 4)


@case
def one_layer_whose_gradients_are_far_smaller_than_the_others():
    parts = {"faint": nn.Linear(4, 3), "strong": nn.Linear(4, 3)}
    return Net(lambda net, x: 1e-6 * net.faint(x).tanh() + net.strong(x), **parts), torch.randn(
        5, 4
    )


# Zeros and twins.


@case
def samples_whose_relus_are_all_dead():
    """Without biases their rows of the kernel are zero."""
    body = nn.Linear(4, 5, bias=False)
    nn.init.uniform_(body.weight, 1.0, 2.0)
    x = torch.rand(5, 4) + 0.1
    x[[1, 4]] *= -1
    return nn.Sequential(body, nn.ReLU(), nn.Linear(5, 3, bias=False)), x


@case
def a_sample_of_zeros():
    x = torch.randn(5, 4)
    x[2] = 0
    return _mlp(activation=nn.ReLU), x


@case
def a_sample_of_zeros_without_biases():
    x = torch.randn(5, 4)
    x[0] = 0
    layers = nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)
    return nn.Sequential(*layers), x


@case
def two_samples_that_are_the_same():
    x = torch.randn(5, 4)
    x[3] = x[1]
    return _mlp(), x


@case
def samples_that_are_all_the_same():
    return _mlp(), torch.ones(5, 4)


@case
def an_output_that_depends_on_no_parameter():
    net = Net(lambda net, x: torch.cat([net.body(x), x[:, :1]], dim=1), body=_mlp(2))
    return net, torch.randn(5, 4)


@case
def a_parameter_that_is_not_used():
    return Net(lambda net, x: net.body(x), body=_mlp(), spare=nn.Linear(3, 3)), torch.randn(5, 4)


@case
def a_parameter_whose_gradient_is_zero_for_all_samples():
    parts = {"body": _mlp(), "off": nn.Linear(4, 3), "gate": nn.Parameter(torch.tensor(-9.0))}
    net = Net(lambda net, x: net.body(x) + net.gate.relu() * net.off(x), **parts)
    return net, torch.randn(5, 4)


@case
def a_parameter_behind_a_detach():
    parts = {"up": nn.Linear(4, 4), "gate": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    net = Net(lambda net, x: net.head(net.up(x) * net.gate(x).sigmoid().detach()), **parts)
    return net, torch.randn(5, 4)


@case
def a_head_that_is_zero():
    net = Net(
        lambda net, x: net.body(x) @ (net.head - net.head.detach()),
        body=_mlp(),
        head=torch.randn(3, 2),
    )
    return net, torch.randn(5, 4)


# Shapes of what is returned.


@case(whole=SQUEEZED)
def an_output_that_is_squeezed():
    return Net(lambda net, x: net.body(x).squeeze(), body=_mlp(1)), torch.randn(5, 4)


@case
def one_number_for_each_sample():
    return Net(lambda net, x: net.body(x).logsumexp(dim=-1), body=_mlp()), torch.randn(5, 4)


@case
def logits_for_every_token():
    parts = {"up": nn.Linear(2, 4), "body": _mlp(3)}
    net = Net(lambda net, x: net.body((net.up(x) + net.up(x).cumsum(1)).tanh()), **parts)
    return net, torch.randn(4, 3, 2)


@case
def logits_in_a_dictionary():
    return Net(lambda net, x: {"loss": None, "logits": net.body(x)}, body=_mlp()), torch.randn(5, 4)


@case
def the_first_of_several_results():
    net = Net(lambda net, x: (net.body(x), net.other(x)), body=_mlp(), other=nn.Linear(4, 2))
    return net, torch.randn(5, 4)


@case
def outputs_that_a_forward_chooses():
    parts = {"body": nn.Linear(4, 3), "head": nn.Linear(3, 2)}
    net = Net(lambda net, x: net.head(net.body(x).tanh()), **parts)
    return net, torch.randn(5, 4), {"forward": lambda model, x: model.body(x).tanh() ** 2}


@case
def a_loss_of_each_sample_as_the_output():
    """The target comes in with the inputs."""

    def losses(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    batch = {"x": torch.randn(5, 4), "y": torch.tensor([0, 2, 1, 1, 0])}
    return _mlp(), batch, {"forward": losses}


@case
def tokens_that_do_not_come_samples_first_inside():
    """The model works time first from end to end; only the caller's view has samples first."""
    parts = {"up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    net = Net(lambda net, x: net.head((net.up(x) + net.up(x).cumsum(0)).tanh()).mean(0), **parts)
    return net, torch.randn(5, 3, 4), {"forward": lambda model, x: model(x.transpose(0, 1))}


@case
def samples_as_the_last_axis_inside():
    parts = {"a": torch.randn(5, 4), "b": torch.randn(5, 1), "head": torch.randn(2, 5)}
    net = Net(lambda net, x: (net.head @ (net.a @ x.T + net.b).tanh()).T, **parts)
    return net, torch.randn(6, 4)


# What is differentiated.


@case
def a_frozen_base_with_few_trainable_tensors():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    model.requires_grad_(False)
    model[2].bias.requires_grad_()
    model[4].weight.requires_grad_()
    return model, torch.randn(5, 4)


@case
def a_frozen_head_over_a_trainable_convolution():
    layers = nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2).requires_grad_(False)
    return nn.Sequential(*layers), torch.randn(5, 2, 4)


@case
def one_chosen_layer_of_many():
    layers = [part for _ in range(4) for part in (nn.Linear(4, 4), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(4, 2)), torch.randn(5, 4), {"params": "2"}


@case
def chosen_biases_only():
    return _mlp(), torch.randn(5, 4), {"params": ["*bias"]}


@case
def one_chosen_name_of_a_tied_tensor():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 2))
    return model, torch.randn(5, 4), {"params": ["0.weight"]}


@case
def the_last_layer_only_so_that_the_graph_is_short():
    return _mlp(), torch.randn(5, 4), {"params": ["2.*"]}
