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
    Routed,
    gap,
)
from jacobian.products import autograd_product, direction_of, product
from torch import nn
from versions import at_least

from ntkwatch.jacobian.functional import ModelFunction
from ntkwatch.jacobian.linearize import _double_vjp, _forward_mode, jacobian_vector_product

from oracles import finite_difference_jvp

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
    tangents = direction_of(model)
    found = product(model, inputs, tangents)
    # So short that no gate opens or shuts on the way.
    slope = finite_difference_jvp(model, inputs, tangents, step=1e-5)
    assert gap(found.change, slope) < 1e-7
    assert gap(found.change, autograd_product(model, inputs, tangents)) < 1e-7
    if case in ("fused attention", "encoder layer", "checkpointing") and at_least("torch", "2.13"):
        assert found.method == "jvp"


@pytest.mark.parametrize("case", SMOOTH)
def test_float32_agrees_with_float64(case):
    build, draw = SMOOTH[case]
    model, inputs = build(), draw()
    tangents = direction_of(model)
    found = product(model, inputs, tangents, torch.float32)
    assert found.change.dtype == torch.float32
    assert gap(found.change, autograd_product(model, inputs, tangents)) < 5e-6


def test_a_linear_model_has_the_closed_form():
    """f = W x + b along (V, c) changes by V x + c."""
    model, x = nn.Linear(4, 3), torch.randn(5, 4, dtype=torch.float64)
    tangents = direction_of(model)
    found = product(model, x, tangents)
    torch.testing.assert_close(found.change, x @ tangents["weight"].T + tangents["bias"])
    assert found.method == "jvp"


def test_a_product_is_linear_in_its_direction_and_zero_along_none():
    model, x = MLP(), torch.randn(5, 4)
    tangents = direction_of(model)
    once = product(model, x, tangents).change
    twice = product(model, x, {name: -2 * v for name, v in tangents.items()}).change
    torch.testing.assert_close(twice, -2 * once)
    none = product(model, x, {name: 0 * v for name, v in tangents.items()})
    assert not none.change.any()


def test_forward_mode_and_the_double_vjp_trick_agree():
    model, x = MLP(), torch.randn(5, 4, dtype=torch.float64)
    function = ModelFunction(model, dtype=torch.float64)
    tangents = direction_of(model)

    def outputs_of(params):
        return function(params, x)

    first = _forward_mode(outputs_of, function.params, tangents)
    second = _double_vjp(outputs_of, function.params, tangents)
    torch.testing.assert_close(first, second, rtol=1e-13, atol=1e-13)


def test_complex_weights_move_by_real_and_imaginary_part():
    """d|z| = Re(conj(z) dz) / |z|."""
    model, x = ComplexWeights(), torch.randn(5, 4, dtype=torch.float64)
    tangents = direction_of(model)
    z = x.to(torch.cdouble) @ model.weight.detach().to(torch.cdouble)
    dz = x.to(torch.cdouble) @ tangents["weight"].to(torch.cdouble)
    expected = (z.conj() * dz).real / z.abs() + tangents["bias"]
    assert gap(product(model, x, tangents).change, expected) < 1e-13


def test_checking_a_product_keeps_no_gradient_of_the_whole_model(monkeypatch):
    """All gradients together are a copy of the model; what torch hands back holds no memory."""
    held, grad = [], torch.autograd.grad

    def noting(outputs, inputs, *rest, **settings):
        found = grad(outputs, inputs, *rest, **settings)
        held.append(sum(g.untyped_storage().nbytes() for g in found if g is not None))
        return found

    model = MLP().double()
    function = ModelFunction(model, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    direction = {name: torch.randn_like(p) for name, p in function.params.items()}
    monkeypatch.setattr(torch.autograd, "grad", noting)
    found = jacobian_vector_product(lambda p: function(p, x), function.params, direction)
    assert found.method == "jvp"
    assert held == [8 * len(direction)] * 2, "one number of each parameter, for two cotangents"
