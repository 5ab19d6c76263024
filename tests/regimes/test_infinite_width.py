"""Rung 3: kernels of finite ReLU networks at the start against their infinite-width limit.

The limit is written out here, in the angle between inputs, for networks whose first layer does not
divide by the number of inputs. Reference values are a numpy simulation's.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ntkwatch import empirical_ntk
from ntkwatch.kernel.analytic import infinite_width_kernels
from ntkwatch.kernel.drift import relative_kernel_change

from regimes.deep import DeepNet
from regimes.recipes import f64, relu2, unit_inputs
from regimes.stacked import geometric_mean, slope

SAMPLES, INPUTS = 32, 16
MEASURED = {
    1: {32: 0.42, 128: 0.22, 512: 0.108, 1024: 0.072, 2048: 0.048},
    3: {128: 0.281, 512: 0.161, 1024: 0.107},
}


def _limit(x: Tensor, depth: int) -> Tensor:
    """``Theta <- Theta kappa_0(Sigma) + kappa_1(Sigma)``, ``Sigma <- kappa_1(Sigma)``."""
    sigma = theta = (x @ x.T).clamp(-1, 1)
    for _ in range(depth):
        angle = sigma.arccos()
        theta = theta * (math.pi - angle) / math.pi
        sigma = ((1 - sigma**2).sqrt() + (math.pi - angle) * sigma) / math.pi
        theta, sigma = theta + sigma, sigma.clamp(-1, 1)
    return theta


def _kernel(x: Tensor, width: int, depth: int, activation=relu2) -> Tensor:
    sizes = [INPUTS, *[width] * depth, 1]
    weights = [torch.randn(b, a, **f64) for a, b in pairwise(sizes)]
    net = DeepNet(weights, activation, 1 / math.sqrt(width))
    return empirical_ntk(net, x, outputs="trace").matrix


def _inputs() -> Tensor:
    torch.manual_seed(0)
    return unit_inputs(SAMPLES, INPUTS)


def test_the_packages_limit_is_the_one_written_out():
    x = _inputs()
    for depth in (1, 2, 3):
        variances = [1.0] + [2.0] * depth
        found = infinite_width_kernels(x, depth=depth, activation="relu", weight_variance=variances)
        torch.testing.assert_close(INPUTS * found.ntk, _limit(x, depth), rtol=1e-7, atol=1e-7)
        assert torch.allclose(_limit(x, depth).diagonal(), torch.tensor(depth + 1.0, **f64))


@pytest.mark.parametrize("depth", MEASURED)
def test_finite_kernels_approach_the_limit_as_the_root_of_their_width(depth):
    x = _inputs()
    limit, errors = _limit(x, depth), {}
    for width, measured in MEASURED[depth].items():
        runs = [_kernel(x, width, depth) for _ in range(max(8, min(32, 8192 // width)))]
        errors[width] = geometric_mean([float(relative_kernel_change(k, limit)) for k in runs])
        assert errors[width] == pytest.approx(measured, rel=0.25)
        if (depth, width) in ((1, 128), (1, 1024)):
            off = geometric_mean([float((k.diagonal() / 2 - 1).abs().mean()) for k in runs])
            assert off == pytest.approx(0.14 if width == 128 else 0.045, rel=0.25)
    assert slope(list(errors), list(errors.values())) == pytest.approx(-0.5, abs=0.06)


def test_without_the_root_of_two_a_relu_kernel_is_half_of_the_limit():
    x = _inputs()
    plain = _kernel(x, 8192, 1, activation=torch.relu)
    assert float(relative_kernel_change(2 * plain, _limit(x, 1))) < 0.05
    assert float(relative_kernel_change(plain, _limit(x, 1))) == pytest.approx(0.5, abs=0.03)
