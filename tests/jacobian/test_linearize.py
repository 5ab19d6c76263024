"""``J v`` against difference quotients, closed forms and the Jacobian of plain autograd."""

import pytest
import torch
from jacobian.models import (
    MLP,
    Attend,
    Checkpointed,
    ComplexWeights,
    ImageNet,
    LastHidden,
    Padded,
    Routed,
    gap,
)
from torch import nn

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.functional import ModelFunction
from ntkwatch.jacobian.inputs import cast_inputs
from ntkwatch.jacobian.linearize import _double_vjp, _forward_mode, jacobian_vector_product
from ntkwatch.jacobian.undisturbed import undisturbed

from oracles import dense_jacobian, finite_difference_jvp


def _product(model, inputs, tangents, dtype=torch.float64, *, wide=True):
    """J v as ntkwatch gives it, (N, C), with its method."""
    with undisturbed(model):

        def outputs_in(kind):
            function = ModelFunction(model, dtype=kind)
            samples = cast_inputs(inputs, device=torch.device("cpu"), dtype=kind)
            return lambda params: function(params, samples).flatten(1)

        params = ModelFunction(model, dtype=dtype).params
        v = {name: tangents[name].to(p.dtype) for name, p in params.items()}
        return jacobian_vector_product(
            outputs_in(dtype),
            params,
            v,
            in_float64=(lambda: outputs_in(torch.float64)) if wide else None,
        )


def _direction(model):
    return {
        name: torch.randn(p.shape, dtype=p.dtype if p.is_complex() else torch.float64)
        for name, p in model.named_parameters()
    }


def _autograd_product(model, inputs, tangents):
    """J v from the rows of the Jacobian: as autograd sees the model in reverse."""
    return sum(
        block @ tangents[name].flatten() for name, block in dense_jacobian(model, inputs).items()
    )


SMOOTH = {
    "MLP": (MLP, lambda: torch.randn(5, 4)),
    "fused attention": (Attend, lambda: torch.randn(5, 3, 8)),
    "encoder layer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ).eval(),
        lambda: torch.randn(5, 3, 8),
    ),
    "LSTM": (lambda: LastHidden(nn.LSTM), lambda: torch.randn(5, 3, 4)),
    "images": (lambda: ImageNet().eval(), lambda: torch.randn(5, 3, 8, 8)),
    "routed": (Routed, lambda: torch.randn(5, 4)),
    "checkpointing": (lambda: Checkpointed(use_reentrant=False), lambda: torch.randn(5, 4)),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        lambda: torch.randn(5, 4),
    ),
    "embedding bag": (
        lambda: nn.Sequential(nn.EmbeddingBag(11, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda: torch.randint(0, 11, (5, 3)),
    ),
}


@pytest.mark.parametrize("case", SMOOTH)
def test_a_product_is_the_slope_along_its_direction(case):
    build, draw = SMOOTH[case]
    model, inputs = build(), draw()
    tangents = _direction(model)
    found = _product(model, inputs, tangents)
    # So short that no gate opens or shuts on the way.
    slope = finite_difference_jvp(model, inputs, tangents, step=1e-5)
    assert gap(found.change, slope) < 1e-7
    assert gap(found.change, _autograd_product(model, inputs, tangents)) < 1e-7
    if case in ("fused attention", "encoder layer", "checkpointing"):
        assert found.method == "jvp"


@pytest.mark.parametrize("case", SMOOTH)
def test_float32_agrees_with_float64(case):
    build, draw = SMOOTH[case]
    model, inputs = build(), draw()
    tangents = _direction(model)
    found = _product(model, inputs, tangents, torch.float32)
    assert found.change.dtype == torch.float32
    assert gap(found.change, _autograd_product(model, inputs, tangents)) < 5e-6


def test_a_linear_model_has_the_closed_form():
    """f = W x + b along (V, c) changes by V x + c."""
    model, x = nn.Linear(4, 3), torch.randn(5, 4, dtype=torch.float64)
    tangents = _direction(model)
    found = _product(model, x, tangents)
    torch.testing.assert_close(found.change, x @ tangents["weight"].T + tangents["bias"])
    assert found.method == "jvp"


def test_a_product_is_linear_in_its_direction_and_zero_along_none():
    model, x = MLP(), torch.randn(5, 4)
    tangents = _direction(model)
    once = _product(model, x, tangents).change
    twice = _product(model, x, {name: -2 * v for name, v in tangents.items()}).change
    torch.testing.assert_close(twice, -2 * once)
    none = _product(model, x, {name: 0 * v for name, v in tangents.items()})
    assert not none.change.any()


def test_forward_mode_and_the_double_vjp_trick_agree():
    model, x = MLP(), torch.randn(5, 4, dtype=torch.float64)
    function = ModelFunction(model, dtype=torch.float64)
    tangents = _direction(model)

    def outputs_of(params):
        return function(params, x)

    first = _forward_mode(outputs_of, function.params, tangents)
    second = _double_vjp(outputs_of, function.params, tangents)
    torch.testing.assert_close(first, second, rtol=1e-13, atol=1e-13)


def test_complex_weights_move_by_real_and_imaginary_part():
    """d|z| = Re(conj(z) dz) / |z|."""
    model, x = ComplexWeights(), torch.randn(5, 4, dtype=torch.float64)
    tangents = _direction(model)
    z = x.to(torch.cdouble) @ model.weight.detach().to(torch.cdouble)
    dz = x.to(torch.cdouble) @ tangents["weight"].to(torch.cdouble)
    expected = (z.conj() * dz).real / z.abs() + tangents["bias"]
    assert gap(_product(model, x, tangents).change, expected) < 1e-13


# Where the ways disagree. -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 2000])
def test_the_padding_row_stays_as_training_leaves_it(dtype, width):
    """Forward mode moves it, reverse mode does not, and neither says so: 1 % of what moves here."""
    model, tokens = Padded(), torch.randint(1, 11, (8, 5))
    model.head = nn.Linear(4, width)
    tokens[:, 0] = 0
    tangents = _direction(model)
    tangents["embed.weight"][0] *= 0.1
    found = _product(model, tokens, tangents, dtype)
    still = {name: v.clone() for name, v in tangents.items()}
    still["embed.weight"][0] = 0
    expected = finite_difference_jvp(model, tokens, still)
    assert gap(found.change, expected) < 5e-6
    assert found.method == "double-vjp"
    assert 1e-3 < gap(finite_difference_jvp(model, tokens, tangents), expected) < 0.03


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
    tangents = _direction(model)
    found = _product(model, x, tangents)
    assert found.method == "double-vjp"
    assert gap(found.change, _autograd_product(model, x, tangents)) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [_Once, _Silent])
def test_without_a_second_derivative_a_difference_in_float64_is_taken(function, dtype):
    model, x = _With(function), torch.randn(5, 4)
    tangents = _direction(model)
    found = _product(model, x, tangents, dtype)
    assert found.method == "finite-difference"
    assert found.change.dtype == dtype
    assert gap(found.change, _autograd_product(model, x, tangents)) < 1e-6


class _NoBackward(_Tanh):
    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


def test_a_difference_needs_no_gradient_and_is_zero_along_no_direction():
    model, x = _With(_NoBackward), torch.randn(5, 4)
    tangents = _direction(model)
    found = _product(model, x, tangents)
    assert found.method == "finite-difference"
    assert gap(found.change, finite_difference_jvp(model, x, tangents)) < 1e-6
    still = _product(model, x, {name: 0 * v for name, v in tangents.items()})
    assert still.method == "finite-difference"
    assert not still.change.any()


def test_a_difference_that_gradients_contradict_is_refused():
    """A straight-through estimator: training follows a slope that the outputs do not have."""
    model, x = _With(_Steps), torch.randn(5, 4)
    words = r"jvp: RuntimeError.*double-vjp: .*finite-difference: disagrees with reverse mode. Pass"
    with pytest.raises(CoverageError, match=words):
        _product(model, x, _direction(model))


def test_a_model_that_fails_everywhere_is_refused_with_each_failure():
    class Fails(MLP):
        def forward(self, x):
            raise ValueError("out of order")

    words = r"jvp: ValueError: out of order; double-vjp: .*; finite-difference: ValueError: out"
    with pytest.raises(CoverageError, match=words):
        _product(Fails(), torch.randn(5, 4), _direction(MLP()))


def test_without_float64_a_difference_is_taken_in_what_there_is():
    model, x = _With(_Once), torch.randn(5, 4)
    tangents = _direction(model)
    found = _product(model, x, tangents, torch.float32, wide=False)
    assert found.method == "finite-difference"
    assert gap(found.change, _autograd_product(model, x, tangents)) < 0.01


def test_outputs_that_no_parameter_reaches_do_not_change():
    model, x = MLP(), torch.randn(5, 4)
    with torch.no_grad():
        outputs = model(x)
    params = dict(model.named_parameters())
    tangents = {name: torch.ones_like(p) for name, p in params.items()}
    found = jacobian_vector_product(lambda _: outputs * 1, params, tangents)
    assert not found.change.any()
