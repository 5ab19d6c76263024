"""A structured engine that is wrong somewhere says so, and the kernel is right all the same.

Every rule is broken on purpose, then uses and owners. The oracle is ``oracles.dense_ntk``.
"""

from dataclasses import replace

import pytest
import torch
from jacobian.cases.case import Net
from jacobian.models import gap
from torch import nn
from torch.nn import functional

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.structured import passes
from ntkwatch.jacobian.structured.ownership import RegularOwner
from ntkwatch.jacobian.structured.rules import forms
from ntkwatch.jacobian.structured.tagging import OwnersByTags

from oracles import dense_ntk

N = 4

# For each rule a model, with the parameters that meet the data at the rule's operation.
MODELS = {
    "AddmmBackward0": lambda: (
        Net(
            lambda net, x: torch.addmm(net.column, net.left, net.up(x).tanh().mT, alpha=0.5).mT,
            up=nn.Linear(4, 3),
            column=torch.randn(2, 1),
            left=torch.randn(2, 3),
        ),
        torch.randn(N, 4),
        ["up.weight", "up.bias", "column", "left"],
    ),
    "MmBackward0": lambda: (
        Net(
            lambda net, x: (net.left @ (x.flatten(0, 1) @ net.right).tanh().mT).mT.view(-1, 3, 2),
            left=torch.randn(2, 5),
            right=torch.randn(4, 5),
        ),
        torch.randn(N, 3, 4),
        ["left", "right"],
    ),
    "BmmBackward0": lambda: (
        Net(
            lambda net, x: torch.bmm(torch.bmm(x.movedim(1, 0), net.a).tanh(), net.b).sum(0),
            a=torch.randn(3, 4, 5),
            b=torch.randn(3, 5, 2),
        ),
        torch.randn(N, 3, 4),
        ["a", "b"],
    ),
    "BaddbmmBackward0": lambda: (
        Net(
            lambda net, x: (
                torch.baddbmm(net.m, net.b.sin(), x.movedim(1, 0).mT.tanh(), beta=0.5, alpha=2.0)
                .sum(0)
                .mT
                + torch.baddbmm(net.m.mT, x.movedim(1, 0), net.b.mT, beta=2.0, alpha=0.5).sum(0)
            ),
            m=torch.randn(3, 2, 1),
            b=torch.randn(3, 2, 4),
        ),
        torch.randn(N, 3, 4),
        ["m", "b"],
    ),
    "TrilinearBackward0": lambda: (
        Net(
            lambda net, x: net.pair(x, x.sin()).tanh().sum(1), pair=nn.Bilinear(4, 4, 3, bias=False)
        ),
        torch.randn(N, 2, 4),
        ["pair.weight"],
    ),
    "EmbeddingBagBackward0": lambda: (
        Net(
            lambda net, x: (
                net.sums(x[:, 0]).sin() + net.means(x.flatten(0, 1)).view(len(x), 2, 3).sum(1).cos()
            ),
            sums=nn.EmbeddingBag(5, 3, mode="sum"),
            means=nn.EmbeddingBag(5, 3, mode="mean"),
        ),
        torch.randint(5, (N, 2, 4)),
        ["sums.weight", "means.weight"],
    ),
    "RepeatBackward0": lambda: (
        Net(
            lambda net, x: (
                (x * net.a.repeat(len(x), 1)).sin()
                + (x.flatten() * net.b.repeat(2 * len(x))).view(x.shape).cos()
            ),
            a=torch.randn(1, 4),
            b=torch.randn(2),
        ),
        torch.randn(N, 4),
        ["a", "b"],
    ),
    "EmbeddingBackward0": lambda: (
        Net(lambda net, x: net.table(x).sin().mean(1), table=nn.Embedding(5, 3)),
        torch.randint(5, (N, 6)),
        ["table.weight"],
    ),
    "ConvolutionBackward0": lambda: (
        Net(
            lambda net, x: net.up(net.b(net.a(x).tanh()).tanh()).mean((2, 3)),
            a=nn.Conv2d(2, 4, 3, padding=1),
            b=nn.Conv2d(4, 4, 2, groups=2, stride=2),
            up=nn.ConvTranspose2d(4, 2, 2),
        ),
        torch.randn(N, 2, 5, 5),
        ["a.weight", "a.bias", "b.weight", "b.bias", "up.weight", "up.bias"],
    ),
    "NativeLayerNormBackward0": lambda: (
        Net(lambda net, x: net.norm(x).tanh().mean(1), norm=nn.LayerNorm(4)),
        torch.randn(N, 3, 4),
        ["norm.weight", "norm.bias"],
    ),
    "NativeGroupNormBackward0": lambda: (
        Net(lambda net, x: net.norm(x).tanh().mean(2), norm=nn.GroupNorm(2, 4)),
        torch.randn(N, 4, 3),
        ["norm.weight", "norm.bias"],
    ),
    "NativeBatchNormBackward0": lambda: (
        Net(lambda net, x: net.norm(x).tanh().mean(2), norm=nn.BatchNorm1d(4)),
        torch.randn(N, 4, 3),
        ["norm.weight", "norm.bias"],
    ),
    "AddBackward0": lambda: (
        Net(lambda net, x: (x + net.shift).tanh().mean(1), shift=torch.randn(3, 4)),
        torch.randn(N, 3, 4),
        ["shift"],
    ),
    "SubBackward0": lambda: (
        Net(lambda net, x: torch.sub(x, net.shift, alpha=2).tanh().mean(1), shift=torch.randn(4)),
        torch.randn(N, 3, 4),
        ["shift"],
    ),
    "ExpandBackward0": lambda: (
        Net(
            lambda net, x: (
                torch.cat([net.token.expand(len(x), 1, 4), x], dim=1).cumsum(1).tanh()[:, -1]
            ),
            token=torch.randn(1, 1, 4),
        ),
        torch.randn(N, 3, 4),
        ["token"],
    ),
    "MulBackward0": lambda: (
        Net(lambda net, x: (x * net.scale).tanh().mean(1), scale=torch.randn(4)),
        torch.randn(N, 3, 4),
        ["scale"],
    ),
    "DivBackward0": lambda: (
        Net(lambda net, x: (net.scale / x.exp()).tanh().mean(1), scale=torch.randn(4)),
        torch.randn(N, 3, 4),
        ["scale"],
    ),
    "WhereBackward0": lambda: (
        Net(
            lambda net, x: torch.where(x > 0, net.a, torch.where(x > -1, x, net.b)).sin().mean(1),
            a=torch.randn(4),
            b=torch.randn(4),
        ),
        torch.randn(N, 6, 4),
        ["a", "b"],
    ),
    "PreluKernelBackward0": lambda: (
        Net(lambda net, x: net.kink(x).tanh().mean(2), kink=nn.PReLU(4)),
        torch.randn(N, 4, 3),
        ["kink.weight"],
    ),
}
# Of other devices, or (the first) in single precision only: the rules are those of nodes above.
ELSEWHERE = {
    "MkldnnConvolutionBackward0": "ConvolutionBackward0",
    "CudnnConvolutionBackward0": "ConvolutionBackward0",
    "CudnnBatchNormBackward0": "NativeBatchNormBackward0",
    "MiopenBatchNormBackward0": "NativeBatchNormBackward0",
}


def test_every_rule_has_a_model_here():
    assert set(forms._RULES) == set(MODELS) | set(ELSEWHERE)
    for other, known in ELSEWHERE.items():
        assert forms._RULES[other] is forms._RULES[known]


def _swapped(rows):
    return rows[[1, 0, *range(2, len(rows))]]


def _first_dropped(rows):
    """Without the first entry behind the samples: a position, or an entry where there is one."""
    rows = rows.clone()
    rows[:, 0] = 0
    return rows


# What a broken rule does to cotangents (n, T, e), or to gradients (N, *shape).
MISTAKES = {
    "one percent too much": lambda rows: rows * 1.01,
    "two samples swapped": _swapped,
    "a position dropped": _first_dropped,
}


def _broken(rule, mistake, met):
    def broken(use):
        form = rule(use)
        if isinstance(form, forms.Outer):
            met.append(use)
            return replace(form, cot=lambda part: mistake(form.cot(part)))
        if isinstance(form, forms.Rows):
            met.append(use)
            return replace(form, of=lambda cotangent: mistake(form.of(cotangent)))
        return None

    return broken


def _build(name):
    torch.manual_seed(0)
    model, inputs, names = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return model.double().eval(), inputs, names


@pytest.mark.parametrize("name", MODELS)
def test_the_models_here_need_the_rules(name, monkeypatch):
    """Each parameter listed meets the data at the operation, and the rule serves it."""
    model, inputs, names = _build(name)
    met = []
    monkeypatch.setitem(forms._RULES, name, _broken(forms._RULES[name], lambda rows: rows, met))
    kernel = empirical_ntk(model, inputs, engine="structured")
    assert set(kernel.coverage) == set(names)
    assert set(kernel.coverage.values()) == {"structured"}
    assert {use.node.name() for use in met} == {name}
    assert {step.parameter for step in kernel.plan.steps if name in step.operations} == set(names)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", MODELS)
def test_a_broken_rule_is_caught_by_name_and_does_not_reach_the_kernel(name, mistake, monkeypatch):
    model, inputs, names = _build(name)
    expected = dense_ntk(model, inputs)
    met = []
    monkeypatch.setitem(forms._RULES, name, _broken(forms._RULES[name], MISTAKES[mistake], met))
    found = "|".join(names)
    message = rf"kernel of ({found}) \(used by {name}\) differs from plain autograd"
    with pytest.raises(CoverageError, match=message):
        empirical_ntk(model, inputs, engine="structured")
    assert met
    kernel = empirical_ntk(model, inputs)
    assert gap(kernel.matrix, expected) < 1e-12
    assert set(kernel.coverage.values()) <= {"vmap", "loop"}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_called_by_its_librarys_name_is_served_by_the_rule(groups):
    """The oracle takes torch's own convolution instead."""

    def compute(net, x):
        if x.dtype == torch.float64:
            h = functional.conv2d(x, net.weight, net.bias, 2, 1, 1, groups)
        else:
            places = [1, 1], [2, 2], [1, 1]
            h = torch.mkldnn_convolution(x, net.weight, net.bias, *places, groups)
        return h.tanh().mean((2, 3))

    model = Net(compute, weight=torch.randn(4, 4 // groups, 3, 3), bias=torch.randn(4))
    inputs = torch.randn(N, 4, 5, 5)
    kernel = empirical_ntk(model, inputs, engine="structured")
    assert set(kernel.coverage.values()) == {"structured"}
    assert {step.operations for step in kernel.plan.steps} == {("MkldnnConvolutionBackward0",)}
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 5e-6


# A tied weight, one of whose uses goes missing; rows in turns that are taken for blocks.


def _tied():
    return Net(lambda net, x: net.up(net.up(x).tanh()), up=nn.Linear(4, 4)).double(), torch.randn(
        N, 4, dtype=torch.float64
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_use_is_caught(lost, monkeypatch):
    model, inputs = _tied()
    find = passes.find_uses

    def without(*arguments):
        uses = find(*arguments)
        assert len(uses["up.weight"]) == 2
        del uses["up.weight"][lost]
        return uses

    monkeypatch.setattr(passes, "find_uses", without)
    with pytest.raises(CoverageError, match=r"kernel of up\.weight .*differs from plain autograd"):
        empirical_ntk(model, inputs, engine="structured")
    assert gap(empirical_ntk(model, inputs).matrix, dense_ntk(model, inputs)) < 1e-12


def test_a_parameter_all_of_whose_uses_are_lost_is_caught(monkeypatch):
    model, inputs = _tied()
    find = passes.find_uses
    monkeypatch.setattr(passes, "find_uses", lambda *given: {**find(*given), "up.weight": []})
    with pytest.raises(CoverageError, match=r"up\.weight \(used by no operation that was found\)"):
        empirical_ntk(model, inputs, engine="structured")
    assert gap(empirical_ntk(model, inputs).matrix, dense_ntk(model, inputs)) < 1e-12


def _turned_round(owner):
    return replace(owner, turns=not owner.turns)


def _other_axis(owner):
    return replace(owner, axis=1 - owner.axis)


@pytest.mark.parametrize("change", [_turned_round, _other_axis])
def test_a_wrong_owner_is_caught(change, monkeypatch):
    """Tokens flattened with their samples, as many features as samples."""
    changed = []

    class Mistaken(OwnersByTags):
        def __call__(self, edges):
            told = super().__call__(edges)
            changed.extend(owner for owner in told.values() if isinstance(owner, RegularOwner))
            return {
                edge: change(owner) if isinstance(owner, RegularOwner) else owner
                for edge, owner in told.items()
            }

    model = Net(
        lambda net, x: (x.flatten(0, 1) * net.scale).tanh().view(-1, 3, N).sum(1),
        scale=torch.randn(N),
    ).double()
    inputs = torch.randn(N, 3, N, dtype=torch.float64)
    monkeypatch.setattr(passes, "OwnersByTags", Mistaken)
    with pytest.raises(CoverageError, match=r"kernel of scale \(used by MulBackward0\) differs"):
        empirical_ntk(model, inputs, engine="structured")
    assert gap(empirical_ntk(model, inputs).matrix, dense_ntk(model, inputs)) < 1e-12
    assert changed
