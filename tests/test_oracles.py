"""The oracles against another library's kernels, closed forms and each other.

neural-tangents on JAX shares no code with torch; it validates the network builders too.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from oracles import (
    ORACLES,
    dense_jacobian,
    dense_ntk,
    finite_difference_jvp,
    load_infinite_width,
    load_oracle,
    naive_angle,
    naive_distance,
    naive_relative_change,
    naive_scale,
)


def _assert_equal_to(actual, expected, tolerance):
    """The largest error, over the largest entry, is within the tolerance."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == torch.float64
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", ORACLES)
def test_a_builder_computes_the_outputs_of_the_other_library(name):
    model, inputs, outputs, _ = load_oracle(name)
    _assert_equal_to(model(inputs).detach(), outputs, 1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_dense_ntk_is_the_kernel_of_the_other_library(name):
    model, inputs, _, kernel = load_oracle(name)
    _assert_equal_to(dense_ntk(model, inputs), kernel, 1e-12)


@pytest.mark.parametrize(
    ("name", "step", "tolerance"),
    [
        ("mlp_tanh", 1e-3, 1e-10),
        ("tiny_gpt_tied", 1e-3, 1e-10),
        # A step so short that no gate opens or shuts on the way; rounding then counts for more.
        ("mlp_relu", 1e-5, 1e-9),
        ("resnet_block_eval_bn", 1e-5, 1e-9),
    ],
)
def test_a_difference_quotient_is_the_jacobian_along_a_direction(name, step, tolerance):
    model, inputs, _, _ = load_oracle(name)
    direction = {key: torch.randn_like(p) for key, p in model.named_parameters()}
    expected = sum(
        block @ direction[key].flatten() for key, block in dense_jacobian(model, inputs).items()
    )
    quotient = finite_difference_jvp(model, inputs, direction, step=step)
    _assert_equal_to(quotient, expected, tolerance)


def test_a_difference_quotient_scales_with_its_direction_and_is_zero_along_none():
    """For f(x) = Wx, J V = V x at any W: here V is 0, then 1e-6, then 1e6 times a matrix."""
    x, v = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    model = nn.Linear(4, 3, bias=False)
    for size in (0, 1e-6, 1e6):
        quotient = finite_difference_jvp(model, x, {"weight": size * v})
        _assert_equal_to(quotient, size * x @ v.T, 1e-11)


def test_a_linear_layer_has_the_closed_form_kernel():
    """For f(x) = Wx + b, K = (X X^T + 1) on the diagonal over outputs and 0 off it."""
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = torch.einsum("ij,ab->ijab", x @ x.T + 1, torch.eye(3, dtype=torch.float64))
    _assert_equal_to(dense_ntk(nn.Linear(4, 3), x), expected, 1e-15)


def test_parts_named_by_parameter_and_frozen_ones_add_up_as_they_should():
    x = torch.randn(5, 4, dtype=torch.float64)
    model = nn.Linear(4, 1)
    ones = torch.ones(5, 5, 1, 1, dtype=torch.float64)
    _assert_equal_to(dense_ntk(model, x, params=["bias"]), ones, 1e-15)
    model.weight.requires_grad_(False)
    _assert_equal_to(dense_ntk(model, x), ones, 1e-15)


def test_a_weight_used_twice_counts_once_with_both_its_uses():
    """For f(x) = w(wx), df/dw = 2wx; two separate weights would give 2 (wx)(wx')."""
    shared = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(shared, shared).double()
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    row = 2 * shared.weight.item() * x
    _assert_equal_to(dense_ntk(model, x), (row @ row.T).reshape(2, 2, 1, 1), 1e-15)


def test_the_model_given_keeps_its_dtype_and_has_no_gradients():
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    dense_ntk(model, torch.randn(2, 4))
    finite_difference_jvp(model, torch.randn(2, 4), {"weight": torch.ones(3, 4)})
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("inputs", "forward"),
    [
        (lambda x: (x, 2 * x), None),
        (lambda x: {"input1": x, "input2": 2 * x}, None),
        (lambda x: x, lambda model, x: model(x, 2 * x)),
    ],
    ids=["tuple", "mapping", "forward"],
)
def test_inputs_of_every_form_reach_the_model(inputs, forward):
    """For f = x^T W (2x) + b, df/dW = 2 x x^T: K = 4 (x.x')^2 + 1."""
    x = torch.randn(3, 2, dtype=torch.float64)
    expected = (4 * (x @ x.T) ** 2 + 1).reshape(3, 3, 1, 1)
    _assert_equal_to(dense_ntk(nn.Bilinear(2, 2, 1), inputs(x), forward), expected, 1e-14)


def test_a_forward_that_ignores_the_model_it_is_given_is_refused():
    model = nn.Linear(2, 1).double()
    with pytest.raises(AssertionError, match="no parameter was used"):
        dense_ntk(model, torch.randn(3, 2), lambda _, x: model(x))


def test_naive_metrics_of_plane_vectors_are_those_of_a_right_triangle():
    """R = (3, 0), K = (3, 4): sides 3, 4, 5."""
    reference, kernel = np.array([[3.0, 0.0]]), np.array([[3.0, 4.0]])
    assert naive_relative_change(kernel, reference) == pytest.approx(4 / 3, rel=1e-15)
    assert naive_scale(kernel, reference) == 1
    assert naive_distance(kernel, reference) == pytest.approx(2 / 5, rel=1e-15)
    assert naive_angle(kernel, reference) == pytest.approx(math.atan2(4, 3), rel=1e-15)
    assert naive_angle(7 * reference, reference) == 0
    assert naive_scale(7 * reference, reference) == 7


def test_naive_distance_is_right_where_floats_cancel():
    """For R = (1, 0), K = (1, e): the distance is e^2/2 - 3e^4/8 + ..., here 5e-21."""
    reference, kernel = np.array([1.0, 0.0]), np.array([1.0, 1e-10])
    assert naive_distance(kernel, reference) == pytest.approx(5e-21, rel=1e-12, abs=0)
    assert naive_angle(kernel, reference) == pytest.approx(1e-10, rel=1e-12, abs=0)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_infinite_width_relu_kernels_have_the_stated_diagonal(depth):
    """L + 1 over the input dimension, 5, for unit inputs: the normalisation in data/README.md."""
    arrays = load_infinite_width()
    np.testing.assert_allclose(np.linalg.norm(arrays["unit_inputs"], axis=1), 1, rtol=1e-12)
    diagonal = np.diag(arrays[f"relu_depth{depth}_ntk_unit_inputs"])
    np.testing.assert_allclose(5 * diagonal, depth + 1, rtol=1e-7)


def test_a_sparse_gradient_and_a_complex_one_have_their_closed_forms():
    """A looked up row has derivative one; ``|w x|`` has ``|x| w / |w|``, real part first."""
    table = nn.Embedding(3, 1, sparse=True)
    rows = dense_jacobian(table, torch.tensor([2, 0]))["weight"]
    _assert_equal_to(rows[:, 0], torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).double(), 0)

    class Size(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.6 + 0.8j], dtype=torch.cdouble))

        def forward(self, x):
            return (self.w * x).abs()

    rows = dense_jacobian(Size(), torch.tensor([[2.0], [-3.0]]))["w"]
    expected = torch.tensor([[1.2, 1.6], [1.8, 2.4]], dtype=torch.float64)
    _assert_equal_to(rows[:, 0], expected, 1e-15)
