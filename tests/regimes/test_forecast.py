"""Rung 13: what is said before training, against what training then does.

The oracle is training itself: gradient descent to the loss that the forecast was asked for, with
kernels written out by hand. Rungs of output scale and width, the polynomial that is grokked, and a
small transformer, whose kernels are products of autograd's Jacobian.
"""

import math

import pytest

from ntkwatch.watch.verdict.bands import Strength

from regimes.foretold import grokked, transformer, two_layers


def _is_within(factor: float, run, *keys: str) -> None:
    for key in keys:
        said, found = getattr(run.said, key), getattr(run.found, key)
        assert found / factor < said < factor * found, key


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("activation", ["tanh", "linear"])
def test_drift_is_foretold_within_a_factor_of_four_on_the_rung_of_output_scales(activation, alpha):
    for seed in range(3):
        _is_within(4, two_layers(activation, alpha, seed), "change", "distance")


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_drift_is_foretold_within_a_factor_of_four_on_the_rung_of_widths(width):
    for seed in range(2):
        _is_within(4, two_layers("tanh", 1.0, seed, width), "change", "distance")


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_drift_of_relu_networks_is_foretold_in_the_mean_over_seeds(alpha):
    runs = [two_layers("ReLU", alpha, seed) for seed in range(8)]
    mean = sum(math.log(run.said.change / run.found.change) for run in runs) / 8
    assert 0.5 < math.exp(mean) < 2


def test_the_regime_is_named_before_training():
    lazy = two_layers("tanh", 10.0, 0).forecast
    assert lazy.strength is Strength.LAZY
    assert two_layers("tanh", 0.1, 0).forecast.strength in (
        Strength.TRANSITIONAL,
        Strength.FEATURE_LEARNING,
    )
    assert two_layers("tanh", 0.01, 0).forecast.strength is Strength.FEATURE_LEARNING
    first, last = lazy.points
    assert first.linearization_error < last.linearization_error, "later is further"
    assert first.time < last.time


@pytest.mark.parametrize("activation", ["tanh", "linear"])
def test_the_change_is_foretold_far_into_feature_learning(activation):
    for seed in range(3):
        _is_within(4, two_layers(activation, 0.03, seed), "change")


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_drift_of_a_network_that_groks_is_foretold(alpha):
    """From feature learning to nearly lazy."""
    run = grokked(alpha)
    _is_within(1.5, run, "change")
    _is_within(2, run, "distance", "error")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 10.0])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_drift_of_a_small_transformer_is_foretold_within_a_factor_of_four(
    optimizer, alpha, seed
):
    _is_within(4, transformer(optimizer, alpha, seed), "change", "error")
