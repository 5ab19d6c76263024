"""What else models do: einsum, branches, writes in place, rare products, spectra."""

import torch
from jacobian.cases.case import Net, case
from torch import nn
from torch.nn import functional

# Einsum.


@case
def einsum_of_rows_and_a_matrix():
    parts = {"weight": torch.randn(4, 3), "head": nn.Linear(3, 2)}
    net = Net(
        lambda net, x: net.head(torch.einsum("ntd,df->ntf", x, net.weight).tanh().sum(1)), **parts
    )
    return net, torch.randn(5, 3, 4)


@case
def einsum_that_splits_into_heads():
    parts = {"weight": torch.randn(2, 3, 4), "out": torch.randn(2, 3, 2)}

    def compute(net, x):
        h = torch.einsum("ntd,hkd->nhtk", x, net.weight).tanh()
        return torch.einsum("nhtk,hkc->ntc", h, net.out).mean(1)

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def einsum_of_two_parameters_and_the_data():
    parts = {"a": torch.randn(4, 2), "b": torch.randn(2, 3), "head": nn.Linear(3, 2)}
    net = Net(
        lambda net, x: net.head(torch.einsum("nd,dr,rf->nf", x, net.a, net.b).tanh()), **parts
    )
    return net, torch.randn(5, 4)


@case
def einsum_that_pairs_features_one_by_one():
    parts = {"weight": torch.randn(3, 4), "core": torch.randn(4, 4, 2)}

    def compute(net, x):
        h = torch.einsum("ntd,td->nd", x, net.weight)
        return torch.einsum("ni,ijc,nj->nc", h.tanh(), net.core, h.sigmoid())

    return Net(compute, **parts), torch.randn(5, 3, 4)


@case
def einsum_with_a_parameter_that_is_an_outer_factor():
    parts = {"vector": torch.randn(3), "up": nn.Linear(4, 2)}
    net = Net(lambda net, x: torch.einsum("nd,k->nkd", net.up(x).tanh(), net.vector).sin(), **parts)
    return net, torch.randn(5, 4)


# Branches and selections.


@case
def a_branch_taken_from_a_parameter():
    """Masked tokens are replaced by a learned one."""
    parts = {"token": torch.randn(4), "head": nn.Linear(4, 2)}

    def compute(net, x, masked):
        return net.head(torch.where(masked[..., None], net.token, x).tanh().mean(1))

    return Net(compute, **parts), (torch.randn(5, 3, 4), torch.rand(5, 3) < 0.4)


@case
def a_branch_chosen_by_the_sign_of_the_data():
    parts = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3), "slope": torch.tensor(0.2)}

    def compute(net, x):
        h = torch.where(x[:, :1] > 0, net.a(x), net.b(x))
        return torch.where(h > 0, h, h * net.slope)

    signs = torch.tensor([[1.0], [-1.0], [-1.0], [1.0], [-1.0]])
    return Net(compute, **parts), signs * torch.rand(5, 4)


@case
def the_larger_of_data_and_parameter():
    parts = {"floor": torch.randn(4), "up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    net = Net(lambda net, x: net.head(torch.maximum(net.up(x), net.floor)).mean(1), **parts)
    return net, torch.randn(5, 3, 4)


@case
def the_best_entries_of_each_sample_kept_and_sorted():
    parts = {"up": nn.Linear(4, 6), "head": nn.Linear(3, 2)}
    net = Net(lambda net, x: net.head(net.up(x).sort(dim=-1).values.topk(3).values), **parts)
    return net, torch.randn(5, 4)


@case
def interpolation_towards_a_parameter():
    parts = {"target": torch.randn(4), "share": torch.tensor(0.3), "head": nn.Linear(4, 2)}
    net = Net(lambda net, x: net.head(torch.lerp(x, net.target, net.share).tanh()), **parts)
    return net, torch.randn(5, 4)


@case(vmap="torch.func gives wrong gradients of cdist")
def distances_to_learned_centres():
    """Radial basis functions and cdist."""
    parts = {"centres": torch.randn(3, 4), "width": torch.zeros(3), "head": nn.Linear(3, 2)}
    net = Net(
        lambda net, x: net.head((-torch.cdist(x, net.centres) * net.width.exp()).exp()), **parts
    )
    return net, torch.randn(5, 4)


# Rare products.


@case
def products_that_few_use():
    parts = {
        "matrix": torch.randn(4, 4),
        "vector": torch.randn(4),
        "square": torch.randn(4, 4, 2),
        "head": nn.Linear(4, 2),
    }

    def compute(net, x):
        h = torch.addcmul(x, x, net.vector, value=0.5) + torch.outer(x @ net.vector, net.vector)
        h = torch.addcdiv(h, x, net.vector.exp(), value=-1.0).tanh()
        h = h + torch.stack([torch.addmv(net.vector, net.matrix, row, alpha=0.5) for row in h])
        return net.head(h.sin()) + torch.tensordot(h, net.square, dims=([1], [0])).mean(1)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_chain_of_matrices_multiplied_in_the_cheapest_order():
    parts = {"a": torch.randn(4, 3), "b": torch.randn(3, 4), "head": nn.Linear(4, 2)}
    net = Net(
        lambda net, x: net.head(torch.linalg.multi_dot([x, net.a, net.b, net.a @ net.b]).tanh()),
        **parts,
    )
    return net, torch.randn(5, 4)


# In place.


@case
def columns_of_a_buffer_written_one_by_one():
    parts = {"a": nn.Linear(4, 1), "b": nn.Linear(4, 2), "head": nn.Linear(3, 2)}

    def compute(net, x):
        h = net.b(x).new_zeros(len(x), 3)
        h[:, 0] = net.a(x)[:, 0]
        h[:, 1:] = net.b(x)
        return net.head(h.tanh())

    return Net(compute, **parts), torch.randn(5, 4)


@case
def a_parameter_written_into_masked_places():
    parts = {"token": torch.randn(4), "up": nn.Linear(4, 4), "head": nn.Linear(4, 2)}

    def compute(net, x, masked):
        h = net.up(x).clone()
        h = torch.where(masked[..., None], net.token.to(h.dtype), h)
        h[:, 0] += net.token
        return net.head(h.tanh().mean(1))

    return Net(compute, **parts), (torch.randn(5, 3, 4), torch.rand(5, 3) < 0.4)


# Spectra and complex numbers.


@case
def complex_weights():
    parts = {"weight": torch.randn(4, 3, dtype=torch.cdouble), "bias": torch.randn(3)}
    net = Net(lambda net, x: (x.to(net.weight.dtype) @ net.weight).abs() + net.bias, **parts)
    return net, torch.randn(5, 4)


@case
def complex_weights_looked_at_as_pairs_of_real_ones_in_a_spectrum():
    """A Fourier layer: real parameters, multiplied in as complex numbers frequency by frequency."""
    parts = {"weight": torch.randn(4, 3, 3, 2), "up": nn.Linear(2, 3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        spectrum = torch.fft.rfft(net.up(x), dim=1)
        mixed = torch.einsum("nkd,kde->nke", spectrum, torch.view_as_complex(net.weight))
        return net.head(torch.fft.irfft(mixed, n=x.shape[1], dim=1).tanh().mean(1))

    return Net(compute, **parts), torch.randn(5, 6, 2)


@case
def a_long_convolution_by_fast_fourier_transform():
    parts = {"filter": torch.randn(3, 6), "up": nn.Linear(2, 3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        h = net.up(x).mT
        spectrum = torch.fft.rfft(h, n=12) * torch.fft.rfft(net.filter, n=12)
        return net.head(torch.fft.irfft(spectrum, n=12)[..., :6].tanh().mean(2))

    return Net(compute, **parts), torch.randn(5, 6, 2)


@case
def a_system_of_equations_solved_for_each_sample():
    parts = {"matrix": torch.randn(3, 3) / 3, "up": nn.Linear(4, 3), "head": nn.Linear(3, 2)}

    def compute(net, x):
        system = torch.eye(3).to(x) + net.matrix
        return net.head(torch.linalg.solve(system, net.up(x).tanh().mT).mT)

    return Net(compute, **parts), torch.randn(5, 4)


@case
def integers_and_booleans_beside_the_weights():
    parts = {"up": nn.Linear(4, 3), "head": nn.Linear(3, 2)}
    net = Net(lambda net, x: net.head(net.up(x)[:, net.order].tanh() * net.kept), **parts)
    net.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
    net.register_buffer("kept", torch.tensor([True, False, True]))
    net.register_buffer("calls", torch.tensor(0))
    return net, torch.randn(5, 4)


@case
def every_activation_that_torch_has():
    names = [
        "gelu",
        "elu",
        "selu",
        "celu",
        "mish",
        "silu",
        "softplus",
        "softsign",
        "hardswish",
        "logsigmoid",
        "leaky_relu",
    ]

    def compute(net, x):
        h = net.up(x)
        for name in names:
            h = h + getattr(functional, name)(net.mix(h))
        return net.head(functional.glu(h))

    parts = {"up": nn.Linear(4, 4), "mix": nn.Linear(4, 4), "head": nn.Linear(2, 2)}
    return Net(compute, **parts), torch.randn(5, 4)
