"""Finite networks in the NTK parameterization against their infinite-width limit."""

import math
from inspect import unwrap  # past --typecheck, which would refuse before us
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ntkwatch import empirical_ntk
from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.analytic import distance_to_infinite_width, infinite_width_kernels

from oracles import dense_ntk
from regimes.recipes import unit_inputs

f64 = {"dtype": torch.float64}


class _Finite(nn.Module):
    """A ReLU network in the NTK parameterization, first layer included."""

    def __init__(self, d: int, width: int, depth: int, outputs: int, bias: float = 0.0):
        super().__init__()
        sizes = [d, *[width] * depth, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b, **f64) for a, b in pairwise(sizes))
        self.variances, self.bias = [1.0] + [2.0] * depth, bias
        for layer in self.layers:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)

    def forward(self, x):
        for i, (layer, v) in enumerate(zip(self.layers, self.variances, strict=True)):
            x = math.sqrt(v / x.shape[1]) * x @ layer.weight.T + math.sqrt(self.bias) * layer.bias
            x = x if i == len(self.layers) - 1 else x.clamp(min=0)
        return x


def test_a_wide_network_is_near_its_limit_whichever_way_its_kernel_is_given():
    x = unit_inputs(6, 5)
    net = _Finite(5, 3000, 1, 2, bias=0.3)
    limit = infinite_width_kernels(
        x, depth=1, activation="relu", weight_variance=[1.0, 2.0], bias_variance=0.3
    ).ntk
    full = dense_ntk(net, x)
    distance = distance_to_infinite_width(full, limit, outputs=2)
    assert distance < 0.1
    expected = (full - limit[:, :, None, None] * torch.eye(2, **f64)).norm() / (
        2**0.5 * limit.norm()
    )
    torch.testing.assert_close(distance, expected)
    trace = distance_to_infinite_width(torch.einsum("ijaa->ij", full), limit, outputs=2)
    assert trace <= distance
    assert distance_to_infinite_width(2 * limit, limit, outputs=2) == 0
    plain = infinite_width_kernels(x, depth=1, activation="relu").ntk
    assert distance_to_infinite_width(full, plain, outputs=2) > 0.3


def test_a_kernel_that_has_no_limit_is_refused():
    limit = torch.eye(3)
    with pytest.raises(KernelMismatchError, match=r"neither a trace kernel .* nor a full one"):
        unwrap(distance_to_infinite_width)(torch.ones(3, 3, 2), limit, outputs=1)
    with pytest.raises(KernelMismatchError, match=r"reference kernel .* is exactly zero"):
        distance_to_infinite_width(limit, 0 * limit, outputs=1)


def _finite_kernel(x: torch.Tensor, width: int, depth: int) -> torch.Tensor:
    """NTK of a random ReLU network with one output, layer by layer by hand."""
    hidden, layers = x / math.sqrt(x.shape[1]), []
    widths = [width] * depth + [1]
    for i, size in enumerate(widths):
        weight = torch.randn(size, hidden.shape[1], **f64)
        before = hidden @ weight.T
        layers.append((weight, hidden, before))
        # Divided by the fan-in of the next layer, the variance of 2 taken along.
        hidden = before.clamp(min=0) * math.sqrt(2 / size) if i < depth else before
    signal, kernel = torch.ones(len(x), 1, **f64), 0
    for i in range(depth, -1, -1):
        weight, below, _ = layers[i]
        kernel = kernel + (signal @ signal.T) * (below @ below.T)
        if i > 0:
            slope = (layers[i - 1][2] > 0) * math.sqrt(2 / layers[i - 1][2].shape[1])
            signal = (signal @ weight) * slope
    return kernel


def _errors(depth: int, widths: list[int], seeds: int) -> np.ndarray:
    """Distances from the limit, (widths, seeds), on 32 unit inputs in 16 dimensions."""
    torch.manual_seed(0)
    x = unit_inputs(32, 16)
    weights = [1.0] + [2.0] * depth
    limit = infinite_width_kernels(x, depth=depth, activation="relu", weight_variance=weights).ntk
    return np.array(
        [
            [
                float(distance_to_infinite_width(_finite_kernel(x, m, depth), limit, outputs=1))
                for _ in range(seeds)
            ]
            for m in widths
        ]
    )


def test_the_finite_kernel_by_hand_is_that_of_the_package_and_of_autograd():
    """So that the widths below may take the fast one."""
    x = unit_inputs(4, 5)
    torch.manual_seed(1)
    by_hand = _finite_kernel(x, 7, 3)
    torch.manual_seed(1)
    net = _Finite(5, 7, 3, 1)
    for layer in net.layers:
        layer.bias.requires_grad_(False)
    torch.manual_seed(1)
    for layer in net.layers:
        layer.weight.data = torch.randn(layer.weight.shape, **f64)
    torch.testing.assert_close(by_hand, dense_ntk(net, x)[:, :, 0, 0])
    torch.testing.assert_close(by_hand, empirical_ntk(net, x, outputs="trace").matrix)


@pytest.mark.parametrize(("depth", "at_1024"), [(1, 0.072), (3, 0.107)])
def test_finite_networks_approach_the_limit_as_one_over_the_root_of_their_width(depth, at_1024):
    """Slope -0.50 over a factor of 8 in width; the size at width 1024 as measured in numpy."""
    widths = [128, 256, 512, 1024]
    errors = np.log(_errors(depth, widths, 16)).mean(axis=1)
    slope = np.polyfit(np.log(widths), errors, 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.06)
    assert math.exp(errors[-1]) == pytest.approx(at_1024, rel=0.15)
