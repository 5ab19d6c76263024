"""A compiled model still runs its compiled graph after a measurement, and its names are its own.

The backend counts the runs of the graphs that it made: the oracle for "compiled".
"""

import copy

import pytest
import torch
from jacobian.models import MLP, Counter, gap
from torch import nn

from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.parameters import clean_name, layer_of

from oracles import dense_ntk


def _classes():
    """A fresh class per test: what torch.compile learns, it keeps by code object."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    class Outer(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x) * 2

    return Net, Outer


def _wrapped(counter):
    return torch.compile(_classes()[0](), backend=counter)


def _in_place(counter):
    model = _classes()[0]()
    model.compile(backend=counter)
    return model


def _inside(counter):
    Net, Outer = _classes()
    return Outer(torch.compile(Net(), backend=counter))


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("engine", ["auto", "structured", "vmap", "loop"])
@pytest.mark.parametrize("already", [True, False], ids=["compiled before", "compiled after"])
@pytest.mark.parametrize("compiled", [_wrapped, _in_place, _inside])
def test_the_compiled_graph_runs_again_after_a_measurement(compiled, already, engine):
    counter, x = Counter(), torch.randn(4, 4)
    model = compiled(counter)
    expected_runs = 0
    if already:
        model(x).sum().backward()
        expected_runs = 1
        assert counter.runs == expected_runs
    kernel = empirical_ntk(model, x, engine=engine)
    assert counter.runs == expected_runs
    for _ in range(3):
        model(x).sum().backward()
    assert counter.runs == expected_runs + 3
    assert counter.graphs == 1
    assert set(kernel.coverage.values()) == {"structured" if engine == "auto" else engine}


@pytest.mark.parametrize("engine", ["structured", "vmap"])
@pytest.mark.parametrize("compiled", [_wrapped, _in_place, _inside])
def test_names_show_no_wrapper_and_the_kernel_is_that_of_the_plain_model(compiled, engine):
    model, x = compiled(Counter()), torch.randn(4, 4)
    plain = getattr(model, "_orig_mod", model)
    kernel = empirical_ntk(model, x, engine=engine, dtype=torch.float64)
    prefix = "net." if compiled is _inside else ""
    names = [
        f"{prefix}{layer}.{kind}" for layer in ("first", "last") for kind in ("weight", "bias")
    ]
    assert list(kernel.coverage) == names
    assert list(kernel.layers) == [f"{prefix}first", f"{prefix}last"]
    assert kernel.spec.params == tuple(names)
    if compiled is _inside:
        plain = copy.copy(model)
        plain._modules = {"net": model.net._orig_mod}
    assert gap(kernel.matrix, dense_ntk(plain, x)) < 1e-14
    chosen = empirical_ntk(model, x, engine=engine, params=f"{prefix}first.*", dtype=torch.float64)
    assert gap(chosen.trace, kernel.layers[f"{prefix}first"]) < 1e-14


def test_modes_of_a_compiled_model_come_back():
    model = torch.compile(nn.Sequential(MLP(), nn.Dropout()), backend=Counter())
    model.train()
    empirical_ntk(model, torch.randn(4, 4))
    assert model.training
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("_orig_mod.weight", "weight"),
        ("net._orig_mod.first.weight", "net.first.weight"),
        ("net._orig_mod", "net"),
        ("_orig_mod", ""),
        ("block._checkpoint_wrapped_module.norm", "block.norm"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("a.b.weight", "a.b.weight"),
    ],
)
def test_wrappers_are_taken_out_of_names_and_nothing_else_is(name, clean):
    assert clean_name(name) == clean


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("weight", "(root)"),
        ("encoder.0.weight", "encoder.0"),
        ("fc.parametrizations.weight.original0", "fc"),
        ("parametrizations.weight.original", "(root)"),
    ],
)
def test_a_layer_is_the_module_that_owns_the_weight(name, layer):
    assert layer_of(name) == layer
