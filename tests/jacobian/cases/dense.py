"""Dense layers: every way in which rows meet a matrix, and what is added to or multiplied in."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional


@case
def dense_layers_with_bias():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 4)


@case
def dense_layers_without_bias():
    layers = nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    return nn.Sequential(*layers), torch.randn(5, 4)


@case
def a_single_linear_layer():
    return nn.Linear(4, 3), torch.randn(5, 4)


@case
def tokens_through_dense_layers():
    parts = {"up": nn.Linear(4, 6), "down": nn.Linear(6, 4, bias=False), "head": nn.Linear(4, 3)}
    return Net(lambda net, x: net.head((x + net.down(net.up(x).relu())).mean(1)), **parts), (
        torch.randn(5, 3, 4)
    )


@case
def a_grid_of_tokens_through_dense_layers():
    net = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2), nn.Flatten())
    return net, torch.randn(5, 2, 3, 4)


@case
def more_tokens_than_features_and_few_outputs():
    net = Net(
        lambda net, x: net.head(net.up(x).tanh()).sum(1), up=nn.Linear(2, 3), head=nn.Linear(3, 1)
    )
    return net, torch.randn(5, 17, 2)


@case
def dense_layers_over_the_first_of_two_inner_axes():
    """Mixing over tokens, as an MLP mixer does: the weight meets a transposed view."""
    parts = {"mix": nn.Linear(3, 3), "head": nn.Linear(4, 2)}
    return Net(lambda net, x: net.head(net.mix(x.mT).tanh().mT).mean(1), **parts), torch.randn(
        5, 3, 4
    )


@case
def a_low_rank_pair_of_factors():
    parts = {"left": torch.randn(4, 2), "right": torch.randn(2, 5), "head": nn.Linear(5, 3)}
    return Net(lambda net, x: net.head((x @ net.left @ net.right).tanh()), **parts), torch.randn(
        5, 4
    )


@case
def a_bilinear_form_of_two_inputs():
    parts = {"form": nn.Bilinear(4, 3, 5), "head": nn.Linear(5, 2)}
    net = Net(lambda net, x, y: net.head(net.form(x, y).tanh()), **parts)
    return net, (torch.randn(5, 4), torch.randn(5, 3))


@case(vmap="torch.func confuses the axes of prelu's gradient")
def one_slope_for_all_channels():
    return nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 3)), torch.randn(5, 4)


@case(vmap="torch.func confuses the axes of prelu's gradient")
def a_slope_for_each_channel():
    layers = nn.Conv1d(3, 4, 2), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*layers), torch.randn(5, 3, 5)


@case
def rows_scaled_elementwise():
    """LayerScale."""
    parts = {"up": nn.Linear(4, 4), "scale": torch.full((4,), 0.1), "head": nn.Linear(4, 3)}
    net = Net(lambda net, x: net.head(x + net.scale * net.up(x).tanh()).mean(1), **parts)
    return net, torch.randn(5, 3, 4)


@case
def a_scalar_temperature():
    parts = {"up": nn.Linear(4, 3), "temperature": torch.tensor(1.5)}
    return Net(lambda net, x: net.up(x).tanh() / net.temperature, **parts), torch.randn(5, 4)


@case
def a_scalar_gate_multiplied_into_a_branch_that_is_summed():
    parts = {"up": nn.Linear(4, 3), "gate": torch.tensor([0.3])}
    net = Net(
        lambda net, x: (x + net.gate.sigmoid() * net.up(x).repeat(1, 1, 2)[..., :4]).mean(1),
        **parts,
    )
    return net, torch.randn(5, 3, 4)


@case
def biases_that_broadcast_over_different_leading_axes():
    parts = {
        "feature": torch.randn(4),
        "token": torch.randn(3, 1),
        "table": torch.randn(1, 3, 4),
        "whole": torch.randn(1, 1, 1),
        "head": nn.Linear(4, 2),
    }

    def compute(net, x):
        h = (x + net.feature).tanh() + net.token
        return net.head(((h + net.table).tanh() + net.whole).tanh()).mean(1)

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def a_bias_subtracted_and_divided_by_and_added_from_the_left():
    parts = {
        "a": torch.randn(4),
        "b": torch.rand(3, 4) + 1,
        "c": torch.randn(3, 1),
        "head": nn.Linear(4, 2),
    }

    def compute(net, x):
        h = torch.rsub(x, net.a, alpha=2.0).tanh() / net.b
        return net.head((torch.sub(net.c, h, alpha=0.5)).tanh()).mean(1)

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def a_learned_table_of_positions():
    parts = {"up": nn.Linear(2, 4), "position": torch.randn(7, 4), "head": nn.Linear(4, 3)}
    net = Net(
        lambda net, x: net.head((net.up(x) + net.position[: x.shape[1]]).tanh().mean(1)), **parts
    )
    return net, torch.randn(5, 3, 2)


@case
def a_class_token_expanded_and_put_before_the_others():
    parts = {"token": torch.randn(1, 1, 4), "mix": nn.Linear(4, 4), "head": nn.Linear(4, 3)}

    def compute(net, x):
        h = torch.cat([net.token.expand(len(x), -1, -1), x], dim=1)
        return net.head((h + net.mix(h).softmax(1)).tanh().mean(1))

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def addmm_with_alpha_and_beta():
    parts = {"bias": torch.randn(3), "weight": torch.randn(4, 3), "head": nn.Linear(3, 2)}
    net = Net(
        lambda net, x: net.head(torch.addmm(net.bias, x, net.weight, beta=0.5, alpha=2.0).tanh()),
        **parts,
    )
    return net, torch.randn(5, 4)


@case
def addmm_whose_added_matrix_is_the_data():
    parts = {"weight": torch.randn(4, 4), "head": nn.Linear(4, 2)}
    net = Net(
        lambda net, x: net.head(torch.addmm(x, x.tanh(), net.weight, beta=3.0).tanh()), **parts
    )
    return net, torch.randn(5, 4)


@case
def baddbmm_with_a_matrix_for_each_head():
    """Heads first, samples second: the batch of the products is an axis of the parameter."""
    parts = {"bias": torch.randn(2, 1, 3), "weight": torch.randn(2, 4, 3), "head": nn.Linear(6, 2)}

    def compute(net, x):
        rows = x.expand(2, -1, -1)
        h = torch.baddbmm(net.bias, rows, net.weight, beta=0.5, alpha=2.0).tanh()
        return net.head(h.transpose(0, 1).flatten(1))

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_matrix_times_the_rows_from_the_left():
    parts = {"weight": torch.randn(3, 4), "head": nn.Linear(3, 2)}
    return Net(lambda net, x: net.head((net.weight @ x.T).T.tanh()), **parts), torch.randn(5, 4)


@case
def a_vector_times_the_rows():
    parts = {"up": nn.Linear(4, 3), "vector": torch.randn(3)}
    return Net(lambda net, x: net.up(x).tanh() @ net.vector, **parts), torch.randn(5, 4)


@case
def four_axes_times_a_matrix():
    parts = {"weight": torch.randn(4, 3), "head": nn.Linear(3, 2)}
    net = Net(lambda net, x: net.head((x @ net.weight).tanh().mean((1, 2))), **parts)
    return net, torch.randn(5, 2, 3, 4)


@case
def four_axes_times_a_stack_of_matrices():
    """Experts as bmm: (N, E, T, d) @ (E, d, f), the parameter broadcast over samples."""
    parts = {"weight": torch.randn(2, 4, 3), "bias": torch.randn(2, 1, 3), "head": nn.Linear(3, 2)}
    net = Net(lambda net, x: net.head((x @ net.weight + net.bias).tanh().mean((1, 2))), **parts)
    return net, torch.randn(5, 2, 3, 4)


@case
def the_same_rows_times_a_stack_of_matrices():
    parts = {"weight": torch.randn(3, 4, 2), "head": nn.Linear(6, 2)}
    net = Net(lambda net, x: net.head((x[:, None, None] @ net.weight).tanh().flatten(1)), **parts)
    return net, torch.randn(5, 4)


@case
def a_weight_that_each_sample_picks_from_a_bank():
    parts = {"bank": torch.randn(3, 2, 4), "bias": torch.randn(3, 2), "head": nn.Linear(2, 2)}

    def compute(net, x, which):
        weight, bias = net.bank.index_select(0, which), net.bias[which]
        return net.head((weight @ x[..., None]).squeeze(-1).add(bias).tanh())

    return Net(compute, **parts), (torch.randn(5, 4), torch.tensor([0, 2, 2, 0, 2]))


@case
def a_linear_weight_put_together_from_rows_of_a_bank():
    parts = {"bank": torch.randn(5, 4), "head": nn.Linear(4, 2)}

    def compute(net, x):
        rows = torch.tensor([3, 0, 0, 2])
        return net.head(functional.linear(x, net.bank.index_select(0, rows)).tanh())

    return Net(compute, **parts), torch.randn(5, 4)


@case
def one_layer_called_twice():
    parts = {"hidden": nn.Linear(4, 4), "head": nn.Linear(4, 3)}
    return Net(
        lambda net, x: net.head(net.hidden(net.hidden(x).tanh()).tanh()), **parts
    ), torch.randn(5, 4)


@case
def one_layer_called_on_sequences_of_different_lengths():
    parts = {"hidden": nn.Linear(4, 4), "head": nn.Linear(4, 3)}

    def compute(net, x, y):
        return net.head(
            net.hidden(x).tanh().mean(1) + net.hidden(y).relu().sum(1) + net.hidden(x[:, 0])
        )

    return Net(compute, **parts), (torch.randn(5, 3, 4), torch.randn(5, 6, 4))


@case
def two_layers_that_share_one_weight_with_biases_of_their_own():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 4)


@case
def an_activation_in_place_after_a_linear_layer():
    layers = (
        nn.Linear(4, 6),
        nn.ReLU(inplace=True),
        nn.Linear(6, 6),
        nn.SiLU(inplace=True),
        nn.Linear(6, 3),
    )
    return nn.Sequential(*layers), torch.randn(5, 4)


@case
def a_residual_added_in_place():
    parts = {"up": nn.Linear(4, 4), "down": nn.Linear(4, 4), "head": nn.Linear(4, 3)}

    def compute(net, x):
        h = net.up(x)
        h += net.down(x.tanh())
        return net.head(h.mul_(2).tanh())

    return Net(compute, **parts), torch.randn(5, 4)
