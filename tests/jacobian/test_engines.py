"""Which engine serves a model: vmap where it runs and agrees with plain autograd, else the loop."""

import logging

import pytest
import torch
from jacobian.models import MLP, Alias, Cancels, Checkpointed, LastHidden, Routed, gap
from torch import nn
from versions import needs

from ntkwatch.errors import CoverageError, OutputError
from ntkwatch.jacobian import compute
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.functional import ModelFunction
from ntkwatch.jacobian.problem import prepare
from ntkwatch.jacobian.structured.engine import Served
from ntkwatch.jacobian.undisturbed import undisturbed

from oracles import dense_ntk


def _mistaken(mistake):
    """The square of x with a batching rule that does something else."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 2 * x * gradient

        @staticmethod
        def vmap(info, in_dims, x):
            return mistake(x), in_dims[0]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(Square.apply(self.first(x)))

    return Model()


MISTAKES = {
    "another function": lambda x: x * x * x,
    "a little off": lambda x: x * x * 1.01,
    # With a single sample in the batch these two are right.
    "adds up over the batch": lambda x: (x * x).sum(dim=0, keepdim=True).expand_as(x),
    "takes the first sample for all": lambda x: (x * x)[:1].expand_as(x),
}


@pytest.fixture
def without_structured(monkeypatch):
    """As if the structured engine could serve nothing, so that the others are seen to take over."""

    def nothing(make, function, inputs, other, reduction, layers, buffers, budget, *, checked):
        return Served(parts=None, left_out=tuple(layers), reason="not asked")

    monkeypatch.setattr(compute, "serve", nothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("without_structured")
def test_a_wrong_batching_rule_is_caught_and_the_loop_takes_over(mistake, dtype, caplog):
    model, x = _mistaken(MISTAKES[mistake]), torch.randn(5, 4)
    with caplog.at_level(logging.INFO, logger="ntkwatch"):
        kernel = empirical_ntk(model, x, dtype=dtype)
    assert set(kernel.coverage.values()) == {"loop"}
    assert gap(kernel.matrix, dense_ntk(model, x)) < 5e-6
    assert "off those of plain autograd" in caplog.text
    with pytest.raises(CoverageError, match=r"cannot differentiate Model: its gradients are"):
        empirical_ntk(model, x, engine="vmap", dtype=dtype)


@pytest.mark.usefixtures("without_structured")
def test_a_wrong_gradient_of_one_small_parameter_is_caught():
    """Its share of the whole gradient is a thousandth."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.quiet = nn.Linear(4, 3), _mistaken(lambda x: x * x * 1.5)

        def forward(self, x):
            return self.loud(1000 * x) + 1e-2 * self.quiet(x)

    model, x = Model(), torch.randn(5, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert set(kernel.coverage.values()) == {"loop"}


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (LastHidden(nn.LSTM), torch.randn(4, 3, 4)),
        (Routed(), torch.randn(4, 4)),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.PReLU(3)), torch.randn(4, 4)),
    ],
    ids=["LSTM", "routed", "PReLU"],
)
@pytest.mark.usefixtures("without_structured")
def test_what_vmap_cannot_do_the_loop_does(model, inputs):
    kernel = empirical_ntk(model, inputs, dtype=torch.float64)
    assert kernel.coverage == dict.fromkeys(dict(model.named_parameters()), "loop")
    assert gap(kernel.matrix, dense_ntk(model, inputs)) < 1e-13
    with pytest.raises(CoverageError, match=r"engine='vmap' cannot differentiate .*'loop'"):
        empirical_ntk(model, inputs, engine="vmap", dtype=torch.float64)


@pytest.mark.usefixtures("without_structured")
def test_an_error_without_a_message_is_no_obstacle():
    class Picky(MLP):
        def forward(self, x):
            if torch._C._functorch.maybe_current_level() is not None:
                raise NotImplementedError
            return super().forward(x)

    kernel = empirical_ntk(Picky(), torch.randn(4, 4))
    assert set(kernel.coverage.values()) == {"loop"}


@pytest.mark.usefixtures("without_structured")
def test_rounding_in_float32_does_not_cost_the_fast_engine():
    """The features are rounding, which two orders of arithmetic do not share; float64 tells."""
    kernel = empirical_ntk(Cancels(), torch.randn(6, 300), outputs="trace")
    assert set(kernel.coverage.values()) == {"vmap"}


# Weights that an engine could miss. ---------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "structured", "vmap", "loop"])
def test_a_weight_read_past_its_attribute_is_refused_by_name(engine):
    """Substitution does not reach it: its part of the kernel would be zero without a word."""
    with pytest.raises(CoverageError, match=r"Alias reads 1 of its parameters \(weight\) by a ref"):
        empirical_ntk(Alias(), torch.randn(4, 4), engine=engine)


def test_a_frozen_weight_read_past_its_attribute_does_no_harm():
    class Model(MLP):
        def __init__(self):
            super().__init__()
            self.shelf = [nn.Parameter(torch.randn(3), requires_grad=False)]

        def forward(self, x):
            return super().forward(x) * self.shelf[0].to(x.dtype)

    model, x = Model(), torch.randn(4, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-13


def test_a_model_that_differentiates_itself_has_a_kernel():
    """Forces are gradients of an energy: outputs have a graph of their own, of the inputs."""

    class Force(MLP):
        def forward(self, x):
            with torch.enable_grad():
                x = x if x.requires_grad else x.requires_grad_()
                energy = super().forward(x).square().sum()
                return torch.autograd.grad(energy, x, create_graph=True)[0]

    model, x = Force(), torch.randn(4, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    expected = dense_ntk(model, x.clone())
    assert gap(kernel.matrix, expected) < 1e-12


@pytest.mark.parametrize("engine", ["auto", "structured", "vmap", "loop"])
@pytest.mark.parametrize("how", ["no_grad", "detach", "another model"])
def test_outputs_without_a_derivative_are_refused_rather_than_zero(engine, how):
    model, other = MLP(), MLP()
    forwards = {
        "no_grad": torch.no_grad()(lambda m, x: m(x)),
        "detach": lambda m, x: m(x).detach(),
        "another model": lambda _, x: other(x),
    }
    with pytest.raises(OutputError, match="do not depend on any of its parameters as autograd"):
        empirical_ntk(model, torch.randn(4, 4), forward=forwards[how], engine=engine)


def test_a_kernel_that_is_rightly_zero_is_given():
    """The first factor of a low-rank adapter, whose second one starts at zero."""

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.A, self.B = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
            nn.init.zeros_(self.B.weight)

        def forward(self, x):
            return self.B(self.A(x))

    model, x = Adapter(), torch.randn(4, 4)
    assert not empirical_ntk(model, x, params="A").matrix.any()
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert not kernel.layers["A"].any()
    assert gap(kernel.layers["B"], kernel.trace) == 0


def test_an_expert_that_no_sample_meets_has_a_zero_part():
    model, x = Routed(), torch.randn(4, 4)
    with torch.no_grad():
        model.gate.bias[1] = -1e3
    kernel = empirical_ntk(model, x, params="experts.*")
    assert not kernel.layers["experts.1"].any()
    assert not empirical_ntk(model, x, params="experts.1").matrix.any()


@pytest.mark.parametrize("use_reentrant", [False, True])
@needs("torch", "2.13")  # an older vmap engine refuses checkpointing
def test_checkpointing_is_differentiated_at_the_weights_it_was_called_with(use_reentrant):
    """Computed again in the backward pass, it would see the model's own weights by then."""
    model, other = Checkpointed(use_reentrant=use_reentrant), Checkpointed(use_reentrant=False)
    x = torch.randn(4, 4)
    with undisturbed(model):
        problem = prepare(
            model,
            x,
            forward=None,
            outputs="full",
            names=[name for name, _ in model.named_parameters()],
            dtype=torch.float64,
            batchnorms=[],
            state=dict(other.named_parameters()),
        )
        for engine in ("vmap", "loop"):
            kernel = problem.kernel(engine=engine, budget=10**9)
            assert gap(kernel.matrix, dense_ntk(other, x)) < 1e-13


@pytest.mark.parametrize("engine", ["structured", "vmap", "loop"])
def test_a_problem_at_other_weights_is_that_of_a_model_with_these(engine):
    model, other, x = MLP(), MLP(), torch.randn(4, 4)
    with undisturbed(model):
        problem = prepare(
            model,
            x,
            forward=None,
            outputs="full",
            names=[name for name, _ in model.named_parameters()],
            dtype=torch.float64,
            batchnorms=[],
        )
        moved = problem.at(dict(other.named_parameters()))
        moved.check_samples_independent()
        kernel = moved.kernel(engine=engine, budget=10**9)
        assert gap(kernel.matrix, dense_ntk(other, x)) < 1e-14
        wide = moved.make(torch.float64)
        assert torch.equal(wide.params["0.weight"], other[0].weight.double())
        kernel = problem.kernel(engine=engine, budget=10**9)
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-14


def test_a_function_of_parameters_is_the_model_at_those_parameters():
    model, other, x = MLP(), MLP(), torch.randn(4, 4)
    function = ModelFunction(model, dtype=torch.float64)
    found = function({name: p.double() for name, p in other.named_parameters()}, x.double())
    torch.testing.assert_close(found, other.double()(x.double()))
    torch.testing.assert_close(function({}, x.double()), model.double()(x.double()))


def test_the_order_of_samples_only_permutes_the_kernel():
    model, x = MLP(), torch.randn(5, 4)
    names = [name for name, _ in model.named_parameters()]
    with undisturbed(model):
        problem = prepare(
            model,
            x,
            forward=None,
            outputs="full",
            names=names,
            dtype=torch.float64,
            batchnorms=[],
        )
        order = torch.tensor([3, 0, 4, 2, 1])
        plain = problem.kernel(engine="vmap", budget=10**9)
        mixed = problem.kernel(engine="vmap", budget=10**9, order=order)
        cross = problem.kernel(engine="vmap", budget=10**9, order=order, other=x[:2])
    assert gap(mixed.matrix, plain.matrix) < 1e-14
    assert gap(mixed.layers["0"], plain.layers["0"]) < 1e-14
    assert gap(cross.matrix, plain.matrix[:, :2]) < 1e-14
