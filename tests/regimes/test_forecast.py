"""Rung 13: what is said before training, against what training then does.

The oracle is training itself: gradient descent to the loss that the forecast was asked for, with
kernels written out by hand. Rungs of output scale and width.
"""

import math

import pytest
import torch

from ntkwatch import forecast
from ntkwatch.kernel.drift import kernel_distance, relative_kernel_change
from ntkwatch.watch.bands import Strength

from regimes.recipes import TwoLayer, gradient_descent, relu2, relu2_slope, tanh_slope, unit_inputs

STOP = 0.02
SLOPES = {torch.tanh: tanh_slope, relu2: relu2_slope, torch.clone: torch.ones_like}


def _both(activation, alpha: float, seed: int, width: int = 256):
    """Forecast and training of one network: (change, distance) of each, and the forecast."""
    torch.manual_seed(seed)
    net, slope = TwoLayer(16, width, activation, alpha), SLOPES[activation]
    x = unit_inputs(8, 16)
    y = torch.randint(2, (8,)).double() * 2 - 1
    said = forecast(net, x, y[:, None], loss_ratios=(0.1, STOP**2))
    point = said.points[-1]

    def rate(model: TwoLayer) -> float:
        return float(0.3 / torch.linalg.eigvalsh(model.kernel(x, slope))[-1])

    start = net.kernel(x, slope)
    gradient_descent(net, x, y, rate, stop=STOP)
    now = net.kernel(x, slope)
    actual = float(relative_kernel_change(now, start)), float(kernel_distance(now, start))
    foretold = point.relative_kernel_change, 1 - math.cos(point.kernel_angle)
    return foretold, actual, said


def _geometric_mean(values) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("activation", [torch.tanh, torch.clone], ids=["tanh", "linear"])
def test_drift_is_foretold_within_a_factor_of_four_on_the_rung_of_output_scales(activation, alpha):
    for seed in range(3):
        foretold, actual, _ = _both(activation, alpha, seed)
        for said, found in zip(foretold, actual, strict=True):
            assert found / 4 < said < 4 * found


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_drift_is_foretold_within_a_factor_of_four_on_the_rung_of_widths(width):
    for seed in range(2):
        foretold, actual, _ = _both(torch.tanh, 1.0, seed, width)
        for said, found in zip(foretold, actual, strict=True):
            assert found / 4 < said < 4 * found


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_drift_of_relu_networks_is_foretold_in_the_mean_over_seeds(alpha):
    runs = [_both(relu2, alpha, seed)[:2] for seed in range(8)]
    ratio = _geometric_mean([foretold[0] / actual[0] for foretold, actual in runs])
    assert 0.5 < ratio < 2


def test_the_regime_is_named_before_training():
    lazy = _both(torch.tanh, 10.0, 0)[2]
    assert lazy.strength is Strength.LAZY
    assert _both(torch.tanh, 0.1, 0)[2].strength in (
        Strength.TRANSITIONAL,
        Strength.FEATURE_LEARNING,
    )
    assert _both(torch.tanh, 0.01, 0)[2].strength is Strength.FEATURE_LEARNING
    first, last = lazy.points
    assert first.linearization_error < last.linearization_error, "later is further"
    assert first.time < last.time
