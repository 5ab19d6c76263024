"""Weights that are computed from parameters before they meet the data."""

import warnings

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune


def _old(wrap, layer, **options):
    """Wrappers that write a plain attribute at each call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = wrap(layer, **options)
    layer.weight = layer.weight.detach()  # a tensor with a history cannot be copied
    return layer


def _through(layer):
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2)), torch.randn(5, 4)


def _matrix(weight_of, **parts):
    """``head(tanh(x weight_of(net)'))`` with a (3, 4) weight."""

    def compute(net, x):
        return net.head(functional.linear(x, weight_of(net)).tanh())

    return Net(compute, **parts, head=nn.Linear(3, 2)), torch.randn(5, 4)


# Reparametrisations that torch ships.


@case
def old_weight_norm():
    return _through(_old(nn.utils.weight_norm, nn.Linear(4, 3)))


@case
def weight_norm_of_a_convolution():
    layer = parametrizations.weight_norm(nn.Conv1d(2, 3, 2))
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)), torch.randn(5, 2, 4)


@case
def old_spectral_norm():
    return _through(_old(nn.utils.spectral_norm, nn.Linear(4, 3)))


@case
def spectral_norm():
    return _through(parametrizations.spectral_norm(nn.Linear(4, 3)))


@case
def an_orthogonal_weight_by_matrix_exponential():
    return _through(parametrizations.orthogonal(nn.Linear(4, 3), orthogonal_map="matrix_exp"))


@case(rough=False)
def an_orthogonal_weight_by_reflections():
    """The signs of its diagonal are part of the parameter and must stay."""
    return _through(parametrizations.orthogonal(nn.Linear(4, 3), orthogonal_map="householder"))


class _Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


@case
def a_symmetric_weight_used_twice():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    return nn.Sequential(nn.Linear(4, 3), layer, nn.Tanh(), layer), torch.randn(5, 4)


@case
def a_pruned_weight():
    options = {"name": "weight", "amount": 0.4}
    return _through(_old(prune.random_unstructured, nn.Linear(4, 3), **options))


# Functions of parameters.


@case
def a_weight_through_an_exponential():
    return _matrix(lambda net: net.log.exp(), log=torch.randn(3, 4))


@case
def a_weight_through_softplus_and_a_scalar():
    parts = {"raw": torch.randn(3, 4), "scale": torch.tensor(0.5)}
    return _matrix(lambda net: functional.softplus(net.raw) * net.scale, **parts)


@case
def a_weight_through_softmax():
    return _matrix(lambda net: net.raw.softmax(dim=-1), raw=torch.randn(3, 4))


@case
def powers_of_a_parameter():
    """A polynomial in one matrix, which is met three times."""
    net = Net(
        lambda net, x: net.head((x @ net.a + x @ (net.a**2) + x @ (net.a @ net.a)).tanh()),
        a=torch.randn(4, 4) / 2,
        head=nn.Linear(4, 2),
    )
    return net, torch.randn(5, 4)


@case
def a_weight_summed_up_along_an_axis():
    return _matrix(lambda net: net.steps.cumsum(dim=1), steps=torch.randn(3, 4))


@case
def thresholds_that_increase_by_cumsum():
    """An ordinal head: thresholds are a sum of positive steps and are added to one score."""
    parts = {"score": nn.Linear(4, 1), "steps": torch.randn(3)}
    net = Net(lambda net, x: net.score(x.tanh()) - net.steps.exp().cumsum(0), **parts)
    return net, torch.randn(5, 4)


@case
def parameters_stacked_into_one_weight():
    rows = nn.ParameterList([torch.randn(4) for _ in range(3)])
    return _matrix(lambda net: torch.stack(list(net.rows)), rows=rows)


@case
def parameters_put_beside_each_other_in_one_weight_with_a_frozen_part():
    parts = {"left": torch.randn(3, 2), "right": torch.randn(3, 1)}
    frozen = nn.Parameter(torch.randn(3, 1), requires_grad=False)
    return _matrix(
        lambda net: torch.cat([net.left, net.frozen, net.right], 1), frozen=frozen, **parts
    )


@case
def slices_of_one_flat_parameter():
    """All weights of two layers in one vector, as hypernetworks and FSDP keep them."""

    def compute(net, x):
        a, b, c, d = net.flat.split([12, 3, 6, 2])
        return functional.linear(functional.linear(x, a.view(3, 4), b).tanh(), c.view(2, 3), d)

    return Net(compute, flat=torch.randn(23)), torch.randn(5, 4)


@case
def slices_of_one_flat_parameter_that_overlap():
    def compute(net, x):
        h = functional.linear(x, net.flat[:12].view(3, 4), net.flat[10:13]).tanh()
        return h @ net.flat[4:10].view(3, 2)

    return Net(compute, flat=torch.randn(13)), torch.randn(5, 4)


@case
def one_weight_shared_by_a_convolution_and_a_linear_layer():
    parts = {"weight": torch.randn(3, 2, 3), "head": nn.Linear(6, 2)}

    def compute(net, x):
        by_conv = functional.conv1d(x, net.weight).tanh().mean(2)
        by_rows = functional.linear(x[:, :, :3].flatten(1), net.weight.view(3, 6)).tanh()
        return net.head(torch.cat([by_conv, by_rows], dim=1))

    return Net(compute, **parts), torch.randn(5, 2, 5)


@case
def a_weight_used_straight_and_transposed():
    """A tied autoencoder."""
    parts = {"weight": torch.randn(3, 4), "a": torch.zeros(3), "b": torch.zeros(4)}

    def compute(net, x):
        h = functional.linear(x, net.weight, net.a).tanh()
        return functional.linear(h, net.weight.T, net.b)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_permuted_convolution_kernel():
    parts = {"weight": torch.randn(2, 3, 3, 3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        h = functional.conv2d(x, net.weight.transpose(0, 1).flip((2, 3)))
        return net.head(h.tanh().mean((2, 3)))

    return Net(compute, **parts), torch.randn(5, 2, 4, 4)


@case
def a_parameter_expanded_into_a_weight():
    """One row for all outputs, one column of scales."""
    parts = {"row": torch.randn(1, 4), "column": torch.randn(3, 1)}
    return _matrix(lambda net: net.row.expand(3, 4) * net.column, **parts)


@case
def a_circulant_weight_read_by_index():
    places = (torch.arange(4)[None] - torch.arange(3)[:, None]) % 4
    return _matrix(lambda net: net.first[places], first=torch.randn(4))


@case
def a_triangular_weight_written_by_index():
    def weight_of(net):
        return torch.zeros(3, 4).to(net.few).index_put(tuple(torch.tril_indices(3, 4)), net.few)

    return _matrix(weight_of, few=torch.randn(6))


@case
def a_kronecker_product():
    return _matrix(lambda net: torch.kron(net.a, net.b), a=torch.randn(3, 1), b=torch.randn(1, 4))


@case
def a_rounded_weight_with_a_straight_through_gradient():
    def weight_of(net):
        return net.raw + ((4 * net.raw).round() / 4 - net.raw).detach()

    return _matrix(weight_of, raw=torch.randn(3, 4))


@case
def a_weight_clamped_and_one_through_where():
    parts = {"raw": torch.randn(3, 4), "other": torch.randn(3, 4)}
    return _matrix(lambda net: torch.where(net.raw > 0, net.raw.clamp(max=0.5), net.other), **parts)
