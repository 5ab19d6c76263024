"""A plan says what will be done, and that is what is done.

The oracles are a counter of backward passes and ``oracles.dense_ntk``.
"""

import copy

import pytest
import torch
from jacobian.cases.case import Net
from jacobian.models import MLP, gap
from torch import nn

from ntkwatch.errors import CoverageError, ForwardError, InputError, SelectionError
from ntkwatch.jacobian.cost import plan
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.structured.tape import Tape

from oracles import dense_ntk


def _tied():
    def compute(net, x):
        h = net.norm(net.table(x) + net.place)
        h = h + net.up(h).tanh()
        return (h @ net.table.weight.mT).mean(1)

    return Net(
        compute,
        table=nn.Embedding(7, 6),
        place=torch.randn(3, 6),
        norm=nn.LayerNorm(6),
        up=nn.Linear(6, 6),
    ), torch.randint(7, (5, 3))


MODELS = {
    "dense": lambda: (MLP(), torch.randn(5, 4)),
    "tied": _tied,
    "images": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        torch.randn(5, 2, 7, 7),
    ),
    "time first": lambda: (
        Net(
            lambda net, x: net.b(net.a(x.transpose(0, 1)).tanh()).mean(0),
            a=nn.Linear(4, 5),
            b=nn.Linear(5, 2),
        ),
        torch.randn(5, 3, 4),
    ),
    "without a rule": lambda: (
        Net(lambda net, x: torch.atan2(x, net.other), other=torch.rand(4) + 1),
        torch.randn(5, 4),
    ),
}
OUTPUTS = ["full", "trace", "sum", "random:2"]


def _on_meta(model, inputs):
    return copy.deepcopy(model).to("meta"), inputs.to("meta")


@pytest.mark.parametrize("budget", ["1 GiB", 1])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_weights_has_the_plan_of_the_model(name, outputs, budget):
    model, inputs = MODELS[name]()
    settings = {"outputs": outputs, "memory_budget": budget}
    assert plan(*_on_meta(model, inputs), **settings) == plan(model, inputs, **settings)


@pytest.mark.parametrize("samples", [1, 70])
def test_a_model_without_weights_may_have_one_sample_or_many(samples):
    model, inputs = MLP(), torch.randn(samples, 4)
    assert plan(*_on_meta(model, inputs)) == plan(model, inputs)


def test_rows_that_values_would_pick_from_a_table_all_count_without_values():
    parts = {"table": nn.Embedding(9, 4), "head": nn.Linear(4, 2)}
    places = torch.arange(3)
    model = Net(lambda net, x: net.head(x + net.table(places.to(x.device))).sum(1), **parts)
    inputs = torch.randn(5, 3, 4)
    known, told = plan(model, inputs), plan(*_on_meta(model, inputs))
    assert [step.parameter for step in told.steps] == [step.parameter for step in known.steps]
    assert told.steps[0].nbytes == 3 * known.steps[0].nbytes
    assert told.steps[1:] == known.steps[1:]


def test_a_model_that_looks_at_values_is_refused_where_there_are_none():
    def look(model, x):
        return model(x) if bool((x > 0).any()) else model(-x)

    model, inputs = _on_meta(MLP(), torch.randn(5, 4))
    with pytest.raises(ForwardError, match=r"MLP looks at values .*on the meta device.*forward="):
        plan(model, inputs, forward=look)


@pytest.mark.parametrize("budget", ["1 GiB", "14 MB", 1])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_passes_of_the_plan_are_those_that_are_run(name, outputs, budget, monkeypatch):
    """Once owners and the engine are known, at the second measurement."""
    model, inputs = MODELS[name]()
    settings = {"outputs": outputs, "memory_budget": budget}
    empirical_ntk(model, inputs, engine="structured", **settings)
    passes = []
    pull = Tape.cotangents

    def counting(self, edges, cotangent):
        passes.append(len(edges))
        return pull(self, edges, cotangent)

    monkeypatch.setattr(Tape, "cotangents", counting)
    kernel = empirical_ntk(model, inputs, engine="structured", **settings)
    assert len(passes) == kernel.plan.passes
    monkeypatch.undo()
    assert kernel.plan == plan(model, inputs, **settings)


@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_budget_costs_more_passes_and_gives_the_same_kernel(name):
    model, inputs = MODELS[name]()
    model = model.double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    expected = dense_ntk(model, inputs)
    passes = []
    for budget in ["1 GiB", "12600 kB", "100 kB", 1]:
        kernel = empirical_ntk(model, inputs, engine="structured", memory_budget=budget)
        passes.append(kernel.plan.passes)
        assert gap(kernel.matrix, expected) < 1e-12
    assert passes == sorted(passes)
    assert passes[0] == expected.shape[-1]  # one for each output, when all fits
    assert passes[-1] > passes[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_has_one_line_for_each_parameter(name):
    model, inputs = MODELS[name]()
    found = plan(model, inputs)
    head, *body, last = str(found).splitlines()
    assert head.split()[0] == "parameter"
    assert [line.split()[0] for line in body] == [step.parameter for step in found.steps]
    assert {line.split()[0] for line in body} == {n for n, _ in model.named_parameters()}
    assert f"{found.passes} backward passes" in last


def test_the_numbers_of_a_plan_are_those_of_the_layers():
    found = {step.parameter: step for step in plan(*MODELS["images"]()).steps}
    first, last = found["0.weight"], found["6.weight"]
    assert (first.length, first.depth, first.width) == (25, 18, 4)
    assert (last.length, last.depth, last.width) == (1, 4, 3)
    assert last.order == "ghost"
    assert first.operations == ("ConvolutionBackward0",)
    assert (found["3.weight"].order, found["3.weight"].width) == ("rows", 4 * 2 * 9)
    assert last.multiplications == 0.5 * 25 * (4 + 9 * 3)
    generic = plan(*MODELS["without a rule"]()).steps[0]
    assert (generic.route, generic.order, generic.depth) == ("generic", "rows", 0)


def test_a_plan_of_some_parameters_leaves_out_the_others():
    found = plan(MLP(), torch.randn(5, 4), params="2.*")
    assert [step.parameter for step in found.steps] == ["2.weight", "2.bias"]


def test_outputs_that_are_parameters_themselves_have_no_plan():
    model = Net(lambda net, x: net.table.t(), table=torch.randn(3, 5))
    with pytest.raises(CoverageError, match=r"cannot serve Net: .*mix up to the outputs"):
        plan(model, torch.randn(5, 4))


def test_other_operations_for_one_sample_more_have_no_plan_without_weights():
    def compute(net, x):
        h = net.up(x)
        return h.tanh() if len(x) % 2 else h.sin()

    model = Net(compute, up=nn.Linear(4, 3)).to("meta")
    with pytest.raises(CoverageError, match="other operations run when there is one sample more"):
        plan(model, torch.randn(5, 4, device="meta"))


def test_what_cannot_be_used_is_refused_as_the_kernel_refuses_it():
    with pytest.raises(SelectionError):
        plan(MLP(), torch.randn(5, 4), params="nothing")
    with pytest.raises(InputError):
        plan(MLP(), torch.randn(5, 4), memory_budget="much")
