"""What a second measurement leaves out, and what makes it look again.

The oracles are a counter in the forward pass, ``oracles.dense_ntk`` and the weights' own bytes.
"""

import gc
import weakref

import pytest
import torch
from jacobian.models import gap
from torch import nn

from ntkwatch.errors import ModelChangedError, SampleCouplingError
from ntkwatch.jacobian.engine import empirical_ntk

from oracles import dense_ntk

CALLS = []


class Counted(nn.Module):
    """Counts its forward passes where a measurement does not put everything back."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.coupled = False

    def forward(self, x):
        CALLS.append(len(x))
        x = self.body(x)
        return x - x.mean(0) if self.coupled else x


def _passes(model, *arguments, **settings):
    CALLS.clear()
    kernel = empirical_ntk(model, *arguments, **settings)
    return len(CALLS), kernel


@pytest.mark.parametrize("engine", ["auto", "structured", "loop"])
def test_a_second_measurement_takes_fewer_forward_passes_and_is_as_right(engine):
    model, inputs = Counted().double(), torch.randn(4, 4, dtype=torch.float64)
    first, _ = _passes(model, inputs, engine=engine)
    with torch.no_grad():
        model.body[0].weight.mul_(1.5)
    second, kernel = _passes(model, inputs, engine=engine)
    assert second < first
    if engine != "loop":
        assert second == 1
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 1e-12


def _new_shape(model, inputs):
    return (model, inputs[:3]), {}


def _new_mode(model, inputs):
    model.body[1].register_module("inner", nn.Dropout())
    return (model, inputs), {}


def _new_attribute(model, inputs):
    model.body[0].note = 3
    return (model, inputs), {}


def _new_module(model, inputs):
    model.body[1] = nn.ReLU()
    return (model, inputs), {}


def _new_forward(model, inputs):
    return (model, inputs), {"forward": lambda net, x: net(x) * 2}


def _new_outputs(model, inputs):
    return (model, inputs), {"outputs": "trace"}


def _new_parameters(model, inputs):
    return (model, inputs), {"params": "body.0.*"}


def _new_dtype(model, inputs):
    return (model, inputs), {"dtype": torch.float32}


CHANGES = [
    _new_shape,
    _new_mode,
    _new_attribute,
    _new_module,
    _new_forward,
    _new_outputs,
    _new_parameters,
    _new_dtype,
]


@pytest.mark.parametrize("change", CHANGES)
def test_another_use_is_looked_at_anew(change):
    model, inputs = Counted().double(), torch.randn(4, 4, dtype=torch.float64)
    first, _ = _passes(model, inputs)
    known, _ = _passes(model, inputs)
    arguments, settings = change(model, inputs)
    again, _ = _passes(*arguments, **settings)
    assert known < again
    assert again >= first - 1  # how it is called may be known


def test_the_mode_in_which_a_model_comes_is_no_other_use():
    """It is measured in evaluation mode either way."""
    model, inputs = Counted(), torch.randn(4, 4)
    _passes(model.train(), inputs)
    assert _passes(model.eval(), inputs)[0] == _passes(model.train(), inputs)[0] == 1


def test_a_model_that_couples_its_samples_after_a_first_look_is_refused():
    model, inputs = Counted(), torch.randn(4, 4)
    empirical_ntk(model, inputs)
    model.coupled = True
    with pytest.raises(SampleCouplingError, match="Counted mixes samples"):
        empirical_ntk(model, inputs)
    model.coupled = False
    empirical_ntk(model, inputs)


def test_a_coupled_model_is_refused_each_time():
    model, inputs = Counted(), torch.randn(4, 4)
    model.coupled = True
    for _ in range(2):
        with pytest.raises(SampleCouplingError, match="Counted mixes samples"):
            empirical_ntk(model, inputs)


def test_a_forward_function_that_couples_is_not_taken_for_one_that_does_not():
    model, inputs = Counted(), torch.randn(4, 4)

    def made(share):
        return lambda net, x: net(x) - share * net(x).mean(0)

    empirical_ntk(model, inputs, forward=made(0.0))
    with pytest.raises(SampleCouplingError, match="Counted mixes samples"):
        empirical_ntk(model, inputs, forward=made(1.0))


def test_equal_functions_are_one_use_and_functions_over_tensors_never():
    model, inputs = Counted(), torch.randn(4, 4)

    def made(factor):
        return lambda net, x: net(x) * factor

    first, _ = _passes(model, inputs, forward=made(2.0))
    assert _passes(model, inputs, forward=made(2.0))[0] < first
    factor = torch.tensor(2.0)
    first, _ = _passes(model, inputs, forward=made(factor))
    assert _passes(model, inputs, forward=made(factor))[0] >= first - 1

    def by_default(net, x, factor=factor):
        return net(x) * factor

    first, _ = _passes(model, inputs, forward=by_default)
    assert _passes(model, inputs, forward=by_default)[0] >= first - 1


def test_a_tensor_in_a_closure_may_couple_samples_later():
    model, inputs = Counted(), torch.randn(4, 4)
    share = torch.zeros(())

    def forward(net, x):
        return net(x) - share * net(x).mean(0)

    empirical_ntk(model, inputs, forward=forward)
    share.fill_(1.0)
    with pytest.raises(SampleCouplingError, match="Counted mixes samples"):
        empirical_ntk(model, inputs, forward=forward)


class Turncoat(nn.Module):
    """Writes to its weights from some call on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.state = {"writes": False}

    def forward(self, x):
        if self.state["writes"]:
            self.body.weight.data.mul_(0.5)
        return self.body(x)


@pytest.mark.parametrize("engine", ["auto", "structured"])
def test_a_forward_that_begins_to_write_to_weights_at_the_third_call_is_stopped(engine):
    model, inputs = Turncoat(), torch.randn(4, 4)
    empirical_ntk(model, inputs, engine=engine)
    empirical_ntk(model, inputs, engine=engine)
    before = model.body.weight.detach().clone()
    model.state["writes"] = True
    with pytest.raises(ModelChangedError, match="Turncoat was about to write to one of its own"):
        empirical_ntk(model, inputs, engine=engine)
    assert torch.equal(model.body.weight, before)
    model.state["writes"] = False
    kernel = empirical_ntk(model, inputs, engine=engine)
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 5e-6


@pytest.mark.parametrize("engine", ["auto", "loop", "vmap"])
def test_what_is_known_of_a_model_does_not_keep_it(engine):
    model, inputs = Counted(), torch.randn(4, 4)
    empirical_ntk(model, inputs, engine=engine)
    known = weakref.ref(model), weakref.ref(model.body[0].weight)
    del model
    gc.collect()
    assert [reference() for reference in known] == [None, None]
