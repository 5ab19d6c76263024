"""Rung 9: fitting first and generalising later is leaving the lazy regime, and the scale decides.

A quadratic form learned by one layer (Kumar et al. 2023, arXiv:2310.06110, smaller sizes).
Reference values are means over two seeds of a numpy simulation, which differ by up to a quarter.
"""

import pytest
import torch

from ntkwatch import empirical_ntk

from regimes.grokking import (
    ALPHAS,
    NEURONS,
    Grokked,
    QuadraticNet,
    drawn,
    grokked,
    kernel_by_hand,
)

REFERENCE = {  # in the order of ALPHAS
    "fitted_at": (48, 85, 150, 261, 432),
    "test_error_then": (0.17, 0.19, 0.21, 0.26, 0.34),
    "test_error": (0.0018, 0.0057, 0.017, 0.048, 0.12),
    "change_then": (1.09, 0.54, 0.267, 0.132, 0.065),
    "change": (1.21, 0.60, 0.295, 0.145, 0.070),
    "distance": (0.30, 0.12, 0.037, 0.0096, 0.0023),
    "alignment": (0.28, 0.195, 0.12, 0.074, 0.049),
}


@pytest.fixture(scope="module")
def runs() -> dict[float, list[Grokked]]:
    return grokked()


def _means(runs: dict[float, list[Grokked]], key: str) -> list[float]:
    return [sum(getattr(run, key) for run in runs[a]) / len(runs[a]) for a in ALPHAS]


def test_the_packages_kernel_is_the_one_written_out():
    w, x, _ = drawn(0)
    found = empirical_ntk(QuadraticNet(w, 0.5), x[:20], outputs="trace").matrix
    by_hand = 0.25 / NEURONS * kernel_by_hand(w, x[:20])
    torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("key", REFERENCE)
def test_sizes_are_those_of_the_reference(runs, key):
    assert _means(runs, key) == pytest.approx(list(REFERENCE[key]), rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["change", "distance", "alignment"])
def test_a_larger_scale_moves_the_kernel_less(runs, key):
    means = _means(runs, key)
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == len(means)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["fitted_at", "test_error"])
def test_a_larger_scale_fits_later_and_generalises_worse(runs, key):
    means = _means(runs, key)
    assert means == sorted(means)


@pytest.mark.slow
def test_what_moves_features_goes_on_to_generalise_after_it_has_fitted(runs):
    for run in (run for alpha in ALPHAS if alpha <= 1 for run in runs[alpha]):
        assert run.test_error < run.test_error_then / 10
    for run in (run for alpha in ALPHAS for run in runs[alpha]):
        assert run.change > 1.05 * run.change_then
