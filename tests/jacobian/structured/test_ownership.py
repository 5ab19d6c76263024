"""Whose rows a cotangent holds: on made cotangents with known owners, and in the graphs of models.

The oracles are the owners that a cotangent was made with and, for models, plain ``autograd.grad``
of one sample's outputs alone.
"""

import pytest
import torch
from jacobian.cases.case import Net
from jacobian.models import gap
from torch import nn
from torch.autograd.graph import GradientEdge

from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.functional import ModelFunction
from ntkwatch.jacobian.outputs import resolve_outputs
from ntkwatch.jacobian.structured.ownership import (
    RaggedOwner,
    RegularOwner,
    digits,
    owner_of,
    tags,
)
from ntkwatch.jacobian.structured.passes import run_pass

from oracles import dense_ntk

NOBODY = -1


def _told(owners, count, *, values=None, spoilt=(), dtype=torch.float64):
    """What is found of a cotangent of normal numbers whose elements have these owners."""
    values = torch.randn(owners.shape, dtype=dtype) if values is None else values
    values = torch.where(owners == NOBODY, 0, values).flatten()
    passes = []
    for digit in range(digits(count)):
        factor = tags(count, digit, values)[:, 0][owners.flatten().clamp(min=0)]
        tagged = values * factor
        for place in spoilt:  # a sum of two samples' shares
            tagged[place] = values[place] * (factor[place] + 3 * factor.max()) / 4
        passes.append(tagged)
    return owner_of(values, passes, None, tuple(owners.shape), count)


def _blocks(count, q, shape, axis):
    """Owners along an axis, q neighbours each."""
    size = [1] * len(shape)
    size[axis] = count * q
    return torch.arange(count).repeat_interleave(q).view(size).expand(shape).contiguous()


def _turns(count, q, shape, axis):
    size = [1] * len(shape)
    size[axis] = count * q
    return torch.arange(count).repeat(q).view(size).expand(shape).contiguous()


COUNTS = [2, 5, 64, 65, 200]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("count", COUNTS)
def test_blocks_and_turns_are_told_on_every_axis(count, axis, dtype):
    for q, made, turns in [(1, _blocks, False), (3, _blocks, False), (3, _turns, True)]:
        shape = [2, 3, 4]
        shape[axis] = count * q
        owners = made(count, q, shape, axis)
        found = _told(owners, count, dtype=dtype)
        assert found == RegularOwner(count, axis, turns=turns)
        for sample in (0, count - 1):
            mine = torch.where(owners == sample, owners + 1, 0)
            assert torch.equal(found.only(owners + 1, sample), mine)


def test_one_of_several_axes_with_as_many_entries_as_samples_is_told():
    for axis in range(3):
        owners = _blocks(4, 1, [4, 4, 4], axis)
        assert _told(owners, 4) == RegularOwner(4, axis, turns=False)


@pytest.mark.parametrize("count", COUNTS)
def test_rows_in_any_order_and_number_are_told(count):
    rows = torch.randint(count, (3 * count,))
    rows[::7] = NOBODY
    owners = rows[:, None].expand(-1, 4).contiguous()
    found = _told(owners, count)
    assert isinstance(found, RaggedOwner)
    assert found.lead == 1
    assert torch.equal(found.owners, rows)
    data = torch.randn(3 * count, 4)
    parts = found.split(data)
    for sample in (0, 1, count - 1):
        mine = data[rows == sample]
        assert torch.equal(parts[sample, : len(mine)], mine)
        assert not parts[sample, len(mine) :].any()
        assert torch.equal(found.only(data, sample), data * (rows == sample)[:, None])


def test_rows_over_two_axes_are_told():
    """Four samples on a grid of windows, in no order."""
    rows = torch.tensor([[0, 2, 1], [3, 3, 0]])
    found = _told(rows[:, :, None].expand(-1, -1, 5).contiguous(), 4)
    assert isinstance(found, RaggedOwner)
    assert found.lead == 2
    assert torch.equal(found.owners.view(2, 3), rows)
    data = torch.randn(2, 3, 5)
    assert torch.equal(found.split(data)[3], torch.stack([data[1, 0], data[1, 1]]))


def test_rows_of_one_sample_only_are_no_proof_of_a_regular_order():
    owners = torch.full((6, 3), NOBODY)
    owners[2:4] = 1
    found = _told(owners, 3)
    assert isinstance(found, RaggedOwner)
    assert found.owners.tolist() == [NOBODY, NOBODY, 1, 1, NOBODY, NOBODY]
    assert found.valid.sum(1).tolist() == [0, 2, 0]


def test_zeros_have_no_owner():
    assert _told(torch.full((6, 3), NOBODY), 3) == "none"
    few = torch.arange(3)
    zeros = torch.zeros(3, dtype=torch.float64)
    assert owner_of(zeros, [zeros], few, (6, 3), 3) == "unclear"


@pytest.mark.parametrize("count", COUNTS)
def test_an_element_of_two_samples_is_mixed(count):
    owners = _blocks(count, 2, [2 * count, 3], 0)
    assert _told(owners, count, spoilt=[5]) == "mixed"


def test_owners_within_a_row_are_mixed_unless_the_row_can_be_cut():
    """Each entry of a vector belongs to a sample in no order: the entries are rows."""
    owners = torch.tensor([[0, 1, 1], [2, 0, 2]])
    found = _told(owners, 3)
    assert isinstance(found, RaggedOwner)
    assert found.lead == 2


@pytest.mark.parametrize("exponent", [-80, -60, 0, 60, 90])
def test_numbers_far_from_one_are_told_in_single_precision(exponent):
    owners = _blocks(64, 2, [128, 3], 0)
    values = torch.randn(128, 3) * 2.0**exponent
    assert _told(owners, 64, values=values) == RegularOwner(64, 0, turns=False)


def test_numbers_near_underflow_say_nothing_rather_than_something_wrong():
    """Tags would make them subnormal, and so round them."""
    owners = _blocks(64, 1, [64, 50], 0)
    values = torch.randn(64, 50)
    values[:, ::2] *= 2.0**-120
    assert _told(owners, 64, values=values) == RegularOwner(64, 0, turns=False)
    assert _told(owners, 64, values=torch.full((64, 50), 2.0**-130)) == "none"


def test_samples_beyond_the_last_are_not_told():
    """Two digits could name 4096 samples."""
    values = torch.ones(3, dtype=torch.float64)
    exponents = torch.tensor([0, 1, 40])
    tagged = torch.ldexp(values, exponents - 32)
    assert owner_of(values, [tagged], None, (3,), 3) == "mixed"


# Models: rows at the operations that use parameters, against passes of one sample alone.


class _Windows(nn.Module):
    """Images cut into windows that become items of a batch."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(2, 3)

    def forward(self, x):
        n, h, w, c = x.shape
        windows = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        return self.up(windows).tanh().mean(1).view(n, -1, 3).sum(1)


def _routed(net, x):
    """Two experts; tokens go where their first number says."""
    tokens = x.flatten(0, 1)
    found = torch.zeros_like(tokens @ net.a)
    for chosen, weight in [(tokens[:, 0] > 0, net.a), (tokens[:, 0] <= 0, net.b)]:
        found[chosen] = (tokens[chosen] @ weight).tanh()
    return found.view(*x.shape[:2], -1).sum(1)


def _experts():
    return Net(_routed, a=torch.randn(4, 2), b=torch.randn(4, 2))


MODELS = {
    "time first": lambda: (
        Net(lambda net, x: net.up(x.transpose(0, 1)).tanh().mean(0), up=nn.Linear(4, 3)),
        torch.randn(5, 3, 4),
    ),
    "time first and flattened": lambda: (
        Net(
            lambda net, x: (x.transpose(0, 1).reshape(-1, 4) @ net.up).view(3, -1, 2).sin().sum(0),
            up=torch.randn(4, 2),
        ),
        torch.randn(5, 3, 4),
    ),
    "windows": lambda: (_Windows(), torch.randn(3, 4, 6, 2)),
    "tokens with their samples in one axis": lambda: (
        Net(lambda net, x: net.up(x.flatten(0, 1)).tanh().view(-1, 6).sin(), up=nn.Linear(4, 2)),
        torch.randn(5, 3, 4),
    ),
    "features as many as samples": lambda: (
        Net(
            lambda net, x: net.b(net.a(x.mT).tanh().mT).mean(1),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 4),
        ),
        torch.randn(4, 4, 4),
    ),
    "experts": lambda: (_experts(), torch.randn(5, 3, 4)),
    "more samples than one digit tells": lambda: (
        Net(lambda net, x: net.up(x.transpose(0, 1)).tanh().mean(0), up=nn.Linear(4, 3)),
        torch.randn(130, 3, 4),
    ),
}


def _pass(model, inputs, budget=2**30):
    dtype = next(model.parameters()).dtype
    function = ModelFunction(model, dtype=dtype)
    with torch.no_grad():
        reduction = resolve_outputs("full", function({}, inputs))
        return run_pass(function, inputs, reduction, list(function.params), {}, budget)


@pytest.mark.parametrize("budget", [1, 2**30])
@pytest.mark.parametrize("name", MODELS)
def test_a_samples_rows_are_those_that_its_outputs_alone_reach(name, budget):
    model, inputs = MODELS[name]()
    model, inputs = model.double(), inputs.double()
    side = _pass(model, inputs, budget)
    outputs = side.tape.outputs
    cotangent = torch.randn_like(outputs)
    looked_at = 0
    for parameter in side.parameters.values():
        for use in parameter.uses:
            for edge, owner in zip(use.edges, use.owners, strict=True):
                looked_at += 1
                at = GradientEdge(edge.node, edge.output)
                (whole,) = torch.autograd.grad(outputs, at, cotangent, retain_graph=True)
                for sample in (0, 1, len(inputs) - 1):
                    alone = torch.zeros_like(cotangent)
                    alone[sample] = cotangent[sample]
                    (mine,) = torch.autograd.grad(outputs, at, alone, retain_graph=True)
                    torch.testing.assert_close(owner.only(whole, sample), mine)
    assert looked_at


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_of_any_size_have_a_kernel_in_single_precision(name, scale):
    model, inputs = MODELS[name]()
    few = inputs[:5]

    def scaled(net, x):
        return net(x) * scale

    kernel = empirical_ntk(model, few, forward=scaled, engine="structured")
    expected = dense_ntk(model, few, scaled)
    assert gap(kernel.matrix / scale**2, expected / scale**2) < 5e-6


@pytest.mark.parametrize("power", [-60, 60])
def test_complex_numbers_are_told(power):
    model = Net(
        lambda net, x: (x.to(net.up.dtype).transpose(0, 1) @ net.up).abs().sum(0) * 2.0**power,
        up=torch.randn(4, 3, dtype=torch.cdouble),
    )
    inputs = torch.randn(5, 3, 4, dtype=torch.float64)
    kernel = empirical_ntk(model, inputs, engine="structured")
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 1e-12
