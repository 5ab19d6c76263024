"""Infinite-width kernels against another library, quadrature, 60 digits and closed forms."""

import math
from inspect import unwrap  # past --typecheck, which would refuse before us

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError
from ntkwatch.kernel.analytic import (
    arc_cosine_kernel,
    infinite_width_kernels,
)

from oracles import load_infinite_width

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}

STAX = {
    "relu": {"weight": [1.0, 2.0, 2.0, 2.0], "bias": 0.0},
    "erf": {"weight": [1.44] * 4, "bias": 0.01},
}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("activation", "inputs"), [("relu", "unit_inputs"), ("relu", "inputs"), ("erf", "inputs")]
)
def test_kernels_are_those_of_neural_tangents(activation, inputs, depth):
    """Their ReLU diagonal takes an arccos near 1, and is right to 5e-8 only: see the next test."""
    arrays, scales = load_infinite_width(), STAX[activation]
    found = infinite_width_kernels(
        torch.from_numpy(arrays[inputs]),
        depth=depth,
        activation=activation,
        weight_variance=scales["weight"][: depth + 1],
        bias_variance=scales["bias"],
    )
    for kind in ("nngp", "ntk"):
        theirs = arrays[f"{activation}_depth{depth}_{kind}_{inputs}"]
        ours = getattr(found, kind).numpy()
        off = ~np.eye(len(ours), dtype=bool)
        np.testing.assert_allclose(ours[off], theirs[off], rtol=0, atol=1e-14)
        tolerance = 1e-7 if (activation, kind) == ("relu", "ntk") else 1e-14
        np.testing.assert_allclose(np.diag(ours), np.diag(theirs), rtol=0, atol=tolerance)


@pytest.mark.parametrize("depth", [0, 1, 5, 20])
def test_the_diagonal_of_relu_networks_is_exact(depth):
    """Signals keep their size, so each of L + 1 layers adds ``|x|^2 / d``."""
    x = torch.randn(7, 5, **f64)
    weights = [1.0] + [2.0] * depth
    found = infinite_width_kernels(x, depth=depth, activation="relu", weight_variance=weights)
    size = x.square().sum(dim=1) / 5
    torch.testing.assert_close(found.ntk.diagonal(), (depth + 1) * size, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.nngp.diagonal(), size, rtol=1e-14, atol=0)


@pytest.mark.parametrize("bias", [0.0, 0.3])
@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9, 0.0])
def test_kernels_of_nearly_equal_inputs_keep_their_digits(apart, bias):
    """The derivative kernel falls linearly with the angle: its digits are those of the angle.

    The oracle takes the same recursion with arccos, in 60 digits.
    """
    x = torch.tensor([[1.0, 2.0, -1.0]], **f64)
    y = x + apart * torch.tensor([[1.0, -1.0, 2.0]], **f64)
    found = infinite_width_kernels(
        x, y, depth=3, activation="relu", weight_variance=2.0, bias_variance=bias
    )
    expected = _relu_in_60_digits(x[0].tolist(), y[0].tolist(), 3, 2.0, bias)
    assert found.nngp.item() == pytest.approx(expected[0], rel=1e-14)
    assert found.ntk.item() == pytest.approx(expected[1], rel=1e-14)


def _relu_in_60_digits(x, y, depth: int, v_w: float, v_b: float) -> tuple[float, float]:
    with mpmath.workdps(60):
        d, pi = len(x), mpmath.pi

        def first(a, b):
            products = [mpmath.mpf(p) * mpmath.mpf(q) for p, q in zip(a, b, strict=True)]
            return v_w * mpmath.fsum(products) / d + v_b

        xx, yy, xy = first(x, x), first(y, y), first(x, y)
        ntk = xy
        for _ in range(depth):
            size = mpmath.sqrt(xx * yy)
            angle = mpmath.acos(min(mpmath.mpf(1), xy / size))
            slope = (pi - angle) / (2 * pi)
            mean = size * (mpmath.sin(angle) + (pi - angle) * mpmath.cos(angle)) / (2 * pi)
            xx, yy, xy = v_w * xx / 2 + v_b, v_w * yy / 2 + v_b, v_w * mean + v_b
            ntk = xy + v_w * slope * ntk
        return float(xy), float(ntk)


def _gaussian_mean(of, covariance: np.ndarray) -> float:
    """``E[of(u, v)]`` by a product rule of 120 x 120 points, near exact for smooth functions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / math.sqrt(2 * math.pi)
    root = np.linalg.cholesky(covariance)
    u = root[0, 0] * nodes[:, None] + 0 * nodes[None, :]
    v = root[1, 0] * nodes[:, None] + root[1, 1] * nodes[None, :]
    return float(weights @ of(u, v) @ weights)


def test_one_erf_layer_is_its_integral():
    erf = np.vectorize(math.erf)
    x = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], **f64)
    v_w, v_b = 0.7, 0.2
    found = infinite_width_kernels(
        x, depth=1, activation="erf", weight_variance=v_w, bias_variance=v_b
    )
    S = v_w * x.numpy() @ x.numpy().T / 2 + v_b
    mean = _gaussian_mean(lambda u, v: erf(u) * erf(v), S)
    slopes = _gaussian_mean(lambda u, v: 4 / math.pi * np.exp(-u * u - v * v), S)
    assert found.nngp[0, 1].item() == pytest.approx(v_w * mean + v_b, rel=1e-9)
    expected = v_w * mean + v_b + v_w * slopes * S[0, 1]
    assert found.ntk[0, 1].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_linear_networks_have_a_kernel_per_layer(depth):
    """Without biases all L + 1 layers contribute ``x x' / d``; a bias of the last adds 1."""
    x, y = torch.randn(4, 3, **f64), torch.randn(5, 3, **f64)
    gram = x @ y.T / 3
    found = infinite_width_kernels(x, y, depth=depth, activation="linear")
    torch.testing.assert_close(found.nngp, gram)
    torch.testing.assert_close(found.ntk, (depth + 1) * gram)
    bias = [0.0] * depth + [0.7]
    found = infinite_width_kernels(x, y, depth=depth, activation="linear", bias_variance=bias)
    torch.testing.assert_close(found.ntk, (depth + 1) * gram + 0.7)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.4, 2.0, 3.1, math.pi])
def test_arc_cosine_kernels_are_their_integrals(order, angle):
    """In polar coordinates: ``2 E[r^2n] / 2 pi`` times an integral over half-planes in common."""
    x = torch.tensor([[2.0, 0.0]], **f64)
    y = 0.5 * torch.tensor([[math.cos(angle), math.sin(angle)]], **f64)
    with mpmath.workdps(30):
        n = order
        overlap = mpmath.quad(
            lambda t: (mpmath.cos(t) * mpmath.cos(t - angle)) ** n,
            [angle - mpmath.pi / 2, mpmath.pi / 2],
        )
        expected = float(2 * 2**n * mpmath.factorial(n) / (2 * mpmath.pi) * overlap)
    found = arc_cosine_kernel(x, y, order=order).item()
    # Opposite vectors: sin(pi) is 1.2e-16 in floats, and so is what is left of an angle of pi.
    assert found == pytest.approx(expected, rel=1e-13, abs=2e-15)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_arc_cosine_kernels_of_one_vector_are_powers_of_its_length(order):
    """``2 E[H(u) u^2n] = E[u^2n]``: 1, |x|^2, 3 |x|^4, to the last digit."""
    x = torch.randn(6, 9, **f64)
    found = arc_cosine_kernel(x, order=order).diagonal()
    expected = [1, 1, 3][order] * x.square().sum(dim=1) ** order
    torch.testing.assert_close(found, expected.to(found), rtol=1e-14, atol=0)


@law
@given(seed=st.integers(0, 1000), depth=st.integers(0, 4), bias=st.sampled_from([0.0, 0.5]))
@pytest.mark.parametrize("activation", ["relu", "erf", "linear"])
def test_limits_are_symmetric_positive_and_blind_to_rotations(activation, seed, depth, bias):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, generator=generator, **f64)
    settings_ = {"depth": depth, "activation": activation, "bias_variance": bias}
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, **f64))[0]
    turned = infinite_width_kernels(x @ turn, **settings_)
    crossed = infinite_width_kernels(x, x[:3], **settings_)
    for ours, theirs, part in zip(
        infinite_width_kernels(x, **settings_), turned, crossed, strict=True
    ):
        torch.testing.assert_close(ours, ours.mT, rtol=1e-12, atol=1e-15)
        assert torch.linalg.eigvalsh(ours)[0] > -1e-12
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(ours[:, :3], part, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("activation", ["relu", "erf", "linear"])
def test_an_input_of_zeros_has_a_kernel(activation):
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], **f64)
    nothing = infinite_width_kernels(x, depth=2, activation=activation)
    for kernel in nothing:
        assert kernel.isfinite().all()
        assert (kernel[0] == 0).all()
    for kernel in infinite_width_kernels(x, depth=2, activation=activation, bias_variance=0.1):
        assert kernel.isfinite().all()
        assert kernel[0, 0] > 0


def test_what_has_no_limit_here_is_refused():
    x = torch.eye(3)
    with pytest.raises(InputError, match="no limit known here for 2 hidden layers of activation"):
        unwrap(infinite_width_kernels)(x, depth=2, activation="tanh")
    with pytest.raises(InputError, match="-1 hidden layers"):
        infinite_width_kernels(x, depth=-1, activation="relu")
    with pytest.raises(InputError, match=r"weight variances \[1\.0, 2\.0\] do not fit 2 hidden"):
        infinite_width_kernels(x, depth=2, activation="relu", weight_variance=[1.0, 2.0])
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="bias variances"):
            infinite_width_kernels(x, depth=2, activation="relu", bias_variance=bad)
    with pytest.raises(InputError, match="no arc-cosine kernel of order 3"):
        unwrap(arc_cosine_kernel)(x, order=3)
