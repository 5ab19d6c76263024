"""What is remembered of owners from one measurement to the next, and what is looked at each time.

The oracle is ``oracles.dense_ntk``.
"""

import copy

import pytest
import torch
from jacobian.cases.case import Net
from jacobian.models import gap
from torch import nn
from torch.nn import functional

from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.structured import uses

from oracles import dense_ntk


def _time_first():
    model = Net(lambda net, x: net.up(x.transpose(0, 1)).tanh().mean(0), up=nn.Linear(4, 3))
    return model, torch.randn(5, 3, 4)


def _routed(net, x):
    """Two experts; tokens go where their first number says."""
    tokens = x.flatten(0, 1)
    found = torch.zeros_like(tokens @ net.a)
    for chosen, weight in [(tokens[:, 0] > 0, net.a), (tokens[:, 0] <= 0, net.b)]:
        found[chosen] = (tokens[chosen] @ weight).tanh()
    return found.view(*x.shape[:2], -1).sum(1)


def _experts():
    return Net(_routed, a=torch.randn(4, 2), b=torch.randn(4, 2))


@pytest.fixture
def looks(monkeypatch):
    """Counts the times at which owners were asked for."""
    counted = []
    decide = uses._Search._decide

    def counting(self, nodes):
        before = len(self.decisions)
        decide(self, nodes)
        counted.append(len(self.decisions) - before)

    monkeypatch.setattr(uses._Search, "_decide", counting)
    return counted


def test_a_regular_model_is_looked_at_once(looks):
    model, inputs = _time_first()
    empirical_ntk(model, inputs, engine="structured")
    assert sum(looks) > 0
    looks.clear()
    with torch.no_grad():
        model.up.weight.mul_(2.0)
    kernel = empirical_ntk(model, inputs, engine="structured", dtype=torch.float32)
    assert sum(looks) == 0
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 5e-6
    empirical_ntk(model, inputs[:4], engine="structured")
    assert sum(looks) > 0


@pytest.mark.parametrize("engine", ["auto", "structured"])
def test_experts_whose_tokens_change_have_the_right_kernel_each_time(engine, looks):
    """Equal shapes and equal numbers of tokens per expert, in another order."""
    model = _experts().double()
    values = torch.rand(4, 3, 4, dtype=torch.float64) + 0.1
    orders = [[1, 1, 1, -1, -1, -1] * 2, [1, -1] * 6, [-1] * 6 + [1] * 6]
    for order in orders:
        inputs = values.clone()
        inputs[..., 0] *= torch.tensor(order).view(4, 3)
        looks.clear()
        kernel = empirical_ntk(model, inputs, engine=engine)
        assert gap(kernel.matrix, dense_ntk(model, inputs)) < 1e-12
        assert sum(looks) > 0
        assert set(kernel.coverage.values()) == {"structured"}


def _dispatched(net, x):
    """Two experts with room for two tokens each; a token is sent there by a one-hot matrix."""
    gate = (x[:, 3:] @ net.scores > 0).long()
    places = [torch.where(gate == e, (gate == e).long().cumsum(0) - 1, -1) for e in range(2)]
    sent = torch.stack([torch.stack(places, 1) == c for c in range(2)], 2).to(x).flatten(1)
    return sent @ ((sent.mT @ x[:, :3]) @ net.weight).tanh()


def _looked_up(net, x):
    """Rows of the data, sorted by their scores and put back, as rows of a table."""
    order = (x[:, 3:] @ net.scores).argsort()
    h = functional.embedding(order, x[:, :3] @ net.first)
    return functional.embedding(order.argsort(), (h @ net.weight).tanh())


USED = {_dispatched: ["weight"], _looked_up: ["first", "weight"]}


@pytest.mark.parametrize("route", USED)
def test_rows_that_values_route_through_products_are_looked_at_each_time(route, looks):
    """The same inputs, at weights that change; at first in the order of the samples, by chance."""
    parts = {"first": torch.randn(3, 3), "weight": torch.randn(3, 5), "scores": torch.ones(4)}
    model = Net(route, **parts).double()
    inputs = torch.cat([torch.randn(4, 3), torch.eye(4)], dim=1).double()
    for scores in ([-4, -3, 1, 2], [1, -3, 2, -4], [1, 2, -4, -3]):
        model.scores.data = torch.tensor(scores, dtype=torch.float64)
        looks.clear()
        kernel = empirical_ntk(model, inputs, params=["first", "weight"])
        expected = dense_ntk(model, inputs, params=USED[route])
        assert gap(kernel.matrix, expected) < 1e-12
        assert sum(looks) > 0


def _attending(net, x):
    """Products of data with data, within samples; and with frozen matrices on both sides."""
    h = x @ net.up
    shares = (h @ h.mT).softmax(-1)
    h = (shares @ h).flatten(0, 1) @ torch.eye(4).to(x)
    return (torch.ones(1, 4).to(x) @ h.mT).view(len(x), -1).sin()


def test_products_within_samples_are_looked_at_once(looks):
    model, inputs = Net(_attending, up=torch.randn(4, 4)), torch.randn(5, 3, 4)
    empirical_ntk(model, inputs, engine="structured")
    looks.clear()
    with torch.no_grad():
        model.up.mul_(2.0)
    kernel = empirical_ntk(model, inputs, engine="structured")
    assert sum(looks) == 0
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 5e-6


def test_an_adapter_that_starts_at_zero_has_the_right_kernel_later():
    """Behind a second factor of zeros the first one sees no gradient."""
    model = Net(
        lambda net, x: net.head((x @ net.base + x @ net.down @ net.up).tanh()).mean(1),
        base=torch.randn(4, 4),
        down=torch.randn(4, 2),
        up=torch.zeros(2, 4),
        head=nn.Linear(4, 2),
    ).double()
    inputs = torch.randn(5, 3, 4, dtype=torch.float64)
    for _ in range(3):
        kernel = empirical_ntk(model, inputs, engine="structured")
        assert gap(kernel.matrix, dense_ntk(model, inputs)) < 1e-12
        with torch.no_grad():
            model.up.normal_()


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_very_small_and_large_outputs_are_scaled_at_later_looks_too(size):
    """Remembered owners come with the scale that keeps single precision in its range."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)

    def scaled(m, inputs):
        return m(inputs) * size

    kernels = [empirical_ntk(model, x, forward=scaled, engine="structured") for _ in range(3)]
    expected = dense_ntk(copy.deepcopy(model).double(), x.double()) * size**2
    for kernel in kernels:
        assert float((kernel.matrix - expected).norm() / expected.norm()) < 5e-6
