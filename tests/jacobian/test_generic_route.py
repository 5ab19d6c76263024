"""Operations without a rule: called by themselves, and left to plain autograd where that fails.

The oracle is ``oracles.dense_ntk``.
"""

import pytest
import torch
from jacobian.cases.case import Net
from jacobian.models import gap
from torch import nn

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.structured import rows
from ntkwatch.jacobian.structured.graph import Unstructured

from oracles import dense_ntk


class _Scaled(torch.autograd.Function):
    """``x * w`` by hand."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient * w, (gradient * x).sum(tuple(range(x.ndim - 1)))


def _custom(net, x):
    return net.head(_Scaled.apply(x, net.scale).tanh())


# Models with the parameters whose operations have no rule.
MODELS = {
    "an angle": lambda: (
        Net(
            lambda net, x: net.head(torch.atan2(x, net.other)),
            other=torch.rand(4) + 1,
            head=nn.Linear(4, 2),
        ),
        torch.randn(5, 4),
        {"other"},
    ),
    "the largest of a bag of embeddings": lambda: (
        Net(
            lambda net, x: net.head(net.bag(x).tanh()),
            bag=nn.EmbeddingBag(6, 4, mode="max"),
            head=nn.Linear(4, 2),
        ),
        torch.randint(6, (5, 3)),
        {"bag.weight"},
    ),
    "a function of one's own": lambda: (
        Net(_custom, scale=torch.randn(4), head=nn.Linear(4, 2)),
        torch.randn(5, 3, 4),
        {"scale"},
    ),
    "a power": lambda: (
        Net(
            lambda net, x: net.head(x.abs() ** net.power),
            power=torch.rand(4) + 1,
            head=nn.Linear(4, 2),
        ),
        torch.randn(5, 4),
        {"power"},
    ),
}


def _build(name):
    model, inputs, generic = MODELS[name]()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return model.double(), inputs, generic


@pytest.mark.parametrize("budget", ["1 GiB", 1])
@pytest.mark.parametrize("engine", ["auto", "structured"])
@pytest.mark.parametrize("name", MODELS)
def test_an_operation_without_a_rule_is_called_by_itself(name, engine, budget):
    model, inputs, generic = _build(name)
    kernel = empirical_ntk(model, inputs, engine=engine, memory_budget=budget)
    assert {each for each, route in kernel.coverage.items() if route == "generic"} == generic
    assert set(kernel.coverage.values()) == {"generic", "structured"}
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 1e-12
    steps = {step.parameter: step for step in kernel.plan.steps}
    assert {each for each, step in steps.items() if step.route == "generic"} == generic


@pytest.fixture
def _uncallable(monkeypatch):
    """No operation can be called by itself."""

    def fails(use, arguments):
        raise Unstructured(f"{use.node.name()} cannot be called by itself: gone", use.node)

    monkeypatch.setattr(rows, "_call", fails)


@pytest.mark.usefixtures("_uncallable")
@pytest.mark.parametrize("name", MODELS)
def test_an_operation_that_cannot_be_called_costs_its_own_parameters_only(name):
    model, inputs, generic = _build(name)
    kernel = empirical_ntk(model, inputs)
    assert {each for each, route in kernel.coverage.items() if route != "structured"} == generic
    assert {kernel.coverage[each] for each in generic} <= {"vmap", "loop"}
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 1e-12
    assert {step.parameter for step in kernel.plan.steps} == set(kernel.coverage) - generic
    blocks = {n: dense_ntk(model, inputs, params=[n]) for n, _ in model.named_parameters()}
    for layer, part in kernel.layers.items():
        mine = [b for n, b in blocks.items() if (n.rpartition(".")[0] or "(root)") == layer]
        assert gap(part, sum(torch.einsum("ijaa->ij", block) for block in mine)) < 1e-12


@pytest.mark.usefixtures("_uncallable")
@pytest.mark.parametrize("name", MODELS)
def test_a_parameter_that_the_engine_cannot_serve_is_refused_by_name(name):
    model, inputs, (generic,) = _build(name)
    message = rf"cannot serve {generic} of Net: \w+ cannot be called by itself: gone\. Use engine="
    with pytest.raises(CoverageError, match=message):
        empirical_ntk(model, inputs, engine="structured")


@pytest.mark.usefixtures("_uncallable")
def test_a_cross_kernel_is_put_together_from_both_engines_too():
    model, inputs, generic = _build("an angle")
    kernel = empirical_ntk(model, inputs[:2], other=inputs[2:])
    assert {each for each, route in kernel.coverage.items() if route != "structured"} == generic
    assert gap(kernel.matrix, dense_ntk(model, inputs)[:2, 2:]) < 1e-12
