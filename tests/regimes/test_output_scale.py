"""Rung 6: the larger the output scale alpha, the lazier; the exponents are known, labels follow.

Recipe R: two layers of width 256, eight samples, eight seeds, descent to 2 % of the residual. The
reference values are a numpy simulation's: geometric means over eight seeds of its own, with a
scatter of up to 0.5 in the logarithm between draws of data (more at the ends, left out here).
"""

from itertools import pairwise

import pytest

from regimes.stacked import (
    Measured,
    drawn,
    geometric_mean,
    measured,
    output_scales,
    slope,
    train,
)

pytestmark = pytest.mark.slow

SEEDS = 8
REFERENCE = {
    ("tanh", "change"): {
        0.01: 3.85, 0.03: 2.16, 0.1: 0.78, 0.3: 0.18, 1: 0.0256, 3: 0.0061, 10: 0.00166,
        100: 1.62e-4,
    },
    ("tanh", "error"): {
        0.003: 0.80, 0.01: 0.71, 0.03: 0.53, 0.1: 0.27, 0.3: 0.081, 1: 0.0117, 3: 0.0026,
        10: 6.9e-4, 100: 6.7e-5,
    },
    ("tanh", "distance"): {
        0.01: 0.19, 0.03: 0.067, 0.1: 0.0147, 0.3: 0.00165, 1: 1.07e-4, 3: 1.07e-5, 10: 9.5e-7,
        100: 9.5e-9,
    },
    ("tanh", "ratio"): {
        0.003: 0.38, 0.01: 0.42, 0.03: 0.56, 0.1: 0.77, 0.3: 0.93, 1: 0.990, 3: 0.999, 10: 1.0,
        100: 1.0,
    },
    ("linear", "change"): {
        0.003: 43, 0.01: 11.7, 0.03: 3.5, 0.1: 0.78, 0.3: 0.135, 1: 0.0138, 3: 0.0024, 10: 6.7e-4,
        100: 6.5e-5,
    },
    ("ReLU", "change"): {
        0.003: 47, 0.01: 12.7, 0.03: 3.6, 0.1: 0.72, 0.3: 0.115, 1: 0.0217, 3: 0.0089,
    },
    ("ReLU", "error"): {
        0.003: 0.77, 0.01: 0.64, 0.03: 0.44, 0.1: 0.19, 0.3: 0.051, 1: 0.0140, 3: 0.0065,
    },
}  # fmt: skip
LABELS = {
    0.003: {"feature-learning"},
    0.01: {"feature-learning"},
    0.03: {"feature-learning"},
    0.1: {"transitional"},
    0.3: {"lazy", "transitional"},
    1.0: {"lazy"},
    3.0: {"lazy"},
    10.0: {"lazy"},
    30.0: {"lazy", "static"},
    100.0: {"lazy", "static"},
    300.0: {"lazy", "static"},
}
Sweep = dict[float, list[Measured]]


@pytest.fixture(scope="module")
def sweeps() -> dict[str, Sweep]:
    return {name: output_scales(name) for name in ("tanh", "ReLU", "linear")}


def _means(sweep: Sweep, key: str) -> dict[float, float]:
    return {a: geometric_mean([getattr(run, key) for run in runs]) for a, runs in sweep.items()}


@pytest.mark.parametrize(("activation", "key"), REFERENCE)
def test_means_are_those_of_the_reference_within_a_factor_of_one_and_a_half(
    sweeps, activation, key
):
    found = _means(sweeps[activation], key)
    for alpha, expected in REFERENCE[activation, key].items():
        assert expected / 1.5 < found[alpha] < 1.5 * expected


def _lazy_slope(sweep: Sweep, key: str) -> float:
    means = {alpha: mean for alpha, mean in _means(sweep, key).items() if alpha >= 10}
    return slope(list(means), list(means.values()))


EXPONENTS = {"change": -1, "error": -1, "gap": -1, "displacement": -1, "distance": -2}


@pytest.mark.parametrize("key", EXPONENTS)
def test_the_lazy_end_of_a_tanh_network_has_its_exponents(sweeps, key):
    assert _lazy_slope(sweeps["tanh"], key) == pytest.approx(EXPONENTS[key], abs=0.05)


@pytest.mark.parametrize("key", ["change", "gap", "displacement", "distance"])
def test_the_lazy_end_of_a_linear_network_has_its_exponents(sweeps, key):
    """Twice the tolerance for the distance, which goes as the square of the angle."""
    allowed = 0.2 if key == "distance" else 0.1
    assert _lazy_slope(sweeps["linear"], key) == pytest.approx(EXPONENTS[key], abs=allowed)


def test_the_error_of_a_linear_network_has_its_exponent_in_the_mean_of_its_size(sweeps):
    """In some draws its leading term nearly cancels; a geometric mean would be theirs."""
    lazy = {a: runs for a, runs in sweeps["linear"].items() if a >= 10}
    means = [sum(run.error for run in runs) / len(runs) for runs in lazy.values()]
    assert slope(list(lazy), means) == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("activation", ["tanh", "ReLU", "linear"])
def test_between_both_ends_the_kernel_falls_steeper_than_at_either(sweeps, activation):
    means = _means(sweeps[activation], "change")
    local = [slope([a, b], [means[a], means[b]]) for a, b in pairwise((0.1, 0.3, 1.0))]
    assert min(local) <= -1.5


@pytest.mark.parametrize("activation", ["ReLU", "linear"])
def test_the_rich_end_of_a_homogeneous_network_has_its_exponent(sweeps, activation):
    means = _means(sweeps[activation], "change")
    rich = [alpha for alpha in means if alpha <= 0.03]
    assert slope(rich, [means[alpha] for alpha in rich]) == pytest.approx(-1.1, abs=0.15)


@pytest.mark.parametrize("activation", ["tanh", "ReLU", "linear"])
def test_the_verdict_of_most_seeds_follows_the_output_scale(sweeps, activation):
    for alpha, expected in LABELS.items():
        labels = [run.label for run in sweeps[activation][alpha]]
        assert sum(label in expected for label in labels) > SEEDS / 2, (alpha, labels)


def test_a_symmetrised_start_doubles_the_exponent():
    alphas = [3.0, 10.0, 30.0, 100.0]
    sweep = output_scales("tanh", alphas, symmetrised=True)
    means = _means(sweep, "change")
    assert slope(alphas, list(means.values())) == pytest.approx(-2, abs=0.05)


def test_without_centring_training_gets_no_lazier():
    means = _means(output_scales("tanh", [10.0, 100.0], centred=False), "change")
    assert means[100.0] / means[10.0] == pytest.approx(1, abs=0.1)


def test_a_rate_that_is_not_divided_leaves_an_unfinished_run_without_a_label():
    """At the rate of an alpha of 1, one of 0.03 has hardly begun when the other is done."""
    rich = drawn("tanh", width=256, alpha=0.03)
    steps = int(train(drawn("tanh", width=256)).steps.max())
    unfinished = train(rich, share=0.3 * 0.03**2, most=steps)
    for index in range(SEEDS):
        run = measured(unfinished, index)
        assert not run.finished
        assert run.error < 0.05, "it looks lazy"
        assert run.label == "undetermined"
