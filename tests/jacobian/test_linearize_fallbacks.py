"""Where forward mode, the double-vjp trick and differences disagree or fail, against each other.

The oracles are plain autograd's Jacobian and a difference quotient of their own.
"""

import pytest
import torch
from jacobian.models import MLP, Padded, gap
from jacobian.products import autograd_product, direction_of, product
from torch import nn

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.linearize import _double_vjp, jacobian_vector_product

from oracles import finite_difference_jvp


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 2000])
def test_the_padding_row_stays_as_training_leaves_it(dtype, width):
    """Forward mode moves it, reverse mode does not, and neither says so: 1 % of what moves here."""
    model, tokens = Padded(), torch.randint(1, 11, (8, 5))
    model.head = nn.Linear(4, width)
    tokens[:, 0] = 0
    tangents = direction_of(model)
    tangents["embed.weight"][0] *= 0.1
    found = product(model, tokens, tangents, dtype)
    still = {name: v.clone() for name, v in tangents.items()}
    still["embed.weight"][0] = 0
    expected = finite_difference_jvp(model, tokens, still)
    assert gap(found.change, expected) < 5e-6
    assert found.method == "double-vjp"
    assert 1e-3 < gap(finite_difference_jvp(model, tokens, tangents), expected) < 0.03


def test_a_part_under_no_grad_does_not_move():
    """Forward mode moves it, reverse mode does not; a frozen backbone is often written so."""

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            with torch.no_grad():
                h = self.body(x).tanh()
            return self.head(h)

    model, x = Backbone(), torch.randn(5, 4)
    tangents = direction_of(model)
    still = tangents | {name: 0 * v for name, v in tangents.items() if name.startswith("body")}
    found = product(model, x, tangents)
    assert gap(found.change, finite_difference_jvp(model, x, still)) < 1e-9


def test_outputs_that_depend_on_other_tensors_only_do_not_change():
    model, x = MLP(), torch.randn(5, 4)
    params = {name: p.detach() for name, p in model.named_parameters()}
    assert not _double_vjp(lambda _: model(x), params, params).any()


class _Tanh(torch.autograd.Function):
    """Has no forward mode and, by how it is written, no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()


class _Once(_Tanh):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class _Silent(_Tanh):
    """Its gradient is cut from the graph: differentiated again it is zero, without an error."""

    @staticmethod
    def backward(ctx, gradient):
        with torch.no_grad():
            return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class _Twice(_Tanh):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class _Steps(torch.autograd.Function):
    """Rounds; its gradient pretends that it did not, and cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


class _With(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function

    def forward(self, x):
        return self.last(self.function.apply(self.first(x)))


def test_without_forward_mode_the_double_vjp_trick_is_taken():
    model, x = _With(_Twice), torch.randn(5, 4)
    tangents = direction_of(model)
    found = product(model, x, tangents)
    assert found.method == "double-vjp"
    assert gap(found.change, autograd_product(model, x, tangents)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [_Once, _Silent])
def test_without_a_second_derivative_a_difference_in_float64_is_taken(function, dtype):
    model, x = _With(function), torch.randn(5, 4)
    tangents = direction_of(model)
    found = product(model, x, tangents, dtype)
    assert found.method == "finite-difference"
    assert found.change.dtype == dtype
    assert gap(found.change, autograd_product(model, x, tangents)) < 1e-6


class _NoBackward(_Tanh):
    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


def test_a_difference_needs_no_gradient_and_is_zero_along_no_direction():
    model, x = _With(_NoBackward), torch.randn(5, 4)
    tangents = direction_of(model)
    found = product(model, x, tangents)
    assert found.method == "finite-difference"
    assert gap(found.change, finite_difference_jvp(model, x, tangents)) < 1e-6
    still = product(model, x, {name: 0 * v for name, v in tangents.items()})
    assert still.method == "finite-difference"
    assert not still.change.any()


def test_a_difference_that_gradients_contradict_is_refused():
    """A straight-through estimator: training follows a slope that the outputs do not have."""
    model, x = _With(_Steps), torch.randn(5, 4)
    words = r"jvp: RuntimeError.*double-vjp: .*finite-difference: disagrees with reverse mode. Pass"
    with pytest.raises(CoverageError, match=words):
        product(model, x, direction_of(model))


def test_a_model_that_fails_everywhere_is_refused_with_each_failure():
    class Fails(MLP):
        def forward(self, x):
            raise ValueError("out of order")

    words = r"jvp: ValueError: out of order; double-vjp: .*; finite-difference: ValueError: out"
    with pytest.raises(CoverageError, match=words):
        product(Fails(), torch.randn(5, 4), direction_of(MLP()))


def test_without_float64_a_difference_is_taken_in_what_there_is():
    model, x = _With(_Once), torch.randn(5, 4)
    tangents = direction_of(model)
    found = product(model, x, tangents, torch.float32, wide=False)
    assert found.method == "finite-difference"
    assert gap(found.change, autograd_product(model, x, tangents)) < 0.01


def test_outputs_that_no_parameter_reaches_do_not_change():
    model, x = MLP(), torch.randn(5, 4)
    with torch.no_grad():
        outputs = model(x)
    params = dict(model.named_parameters())
    tangents = {name: torch.ones_like(p) for name, p in params.items()}
    found = jacobian_vector_product(lambda _: outputs * 1, params, tangents)
    assert not found.change.any()
