"""Rung 7, one hidden layer: what width does to laziness in three parametrizations.

Recipe R at alpha = 1, eight seeds. Drift falls as one over the width for smooth activations and as
its power of -3/4 for ReLU; not at all in mean field; faster where the learning rate falls with the
width and the read-out dominates.
"""

import pytest

from regimes.stacked import Measured, drawn, geometric_mean, measured, slope, train

pytestmark = pytest.mark.slow

WIDTHS = (64, 256, 1024, 4096)
# Mean relative change at each width, in a numpy simulation with draws of its own.
REFERENCE = {
    "tanh": (0.085, 0.026, 0.0063, 0.0017),
    "ReLU": (0.068, 0.022, 0.0072, 0.0023),
    "linear": (0.050, 0.014, 0.0030, 7.6e-4),
}
Sweep = list[list[Measured]]


def _sweep(activation: str, parametrization: str = "NTK") -> Sweep:
    ends = [train(drawn(activation, width=m, parametrization=parametrization)) for m in WIDTHS]
    return [[measured(end, i) for i in range(len(end.w))] for end in ends]


def _means(sweep: Sweep, key: str) -> list[float]:
    return [geometric_mean([getattr(run, key) for run in runs]) for runs in sweep]


def _slope(sweep: Sweep, key: str) -> float:
    return slope(list(WIDTHS), _means(sweep, key))


@pytest.fixture(scope="module")
def ntk() -> dict[str, Sweep]:
    return {activation: _sweep(activation) for activation in REFERENCE}


@pytest.mark.parametrize("activation", REFERENCE)
def test_means_are_those_of_the_reference(ntk, activation):
    """A factor of 1.8 at single widths: eight draws of data each, of which two means differ."""
    for found, expected in zip(
        _means(ntk[activation], "change"), REFERENCE[activation], strict=True
    ):
        assert expected / 1.8 < found < 1.8 * expected


@pytest.mark.parametrize(
    ("activation", "key", "exponent", "allowed"),
    [
        ("tanh", "change", -1.0, 0.12),
        ("ReLU", "change", -0.78, 0.1),
        ("linear", "change", -1.05, 0.15),
        ("tanh", "distance", -2.0, 0.25),
        ("ReLU", "distance", -1.5, 0.2),
        ("tanh", "relative_displacement", -0.5, 0.03),
        ("ReLU", "relative_displacement", -0.5, 0.03),
        ("linear", "relative_displacement", -0.5, 0.03),
        ("tanh", "error", -0.95, 0.15),
    ],
)
def test_wide_networks_grow_lazy_at_the_known_rate(ntk, activation, key, exponent, allowed):
    assert _slope(ntk[activation], key) == pytest.approx(exponent, abs=allowed)


@pytest.mark.parametrize("activation", REFERENCE)
def test_wide_networks_are_called_lazy(ntk, activation):
    labels = [run.label for runs in ntk[activation][1:] for run in runs]
    assert sum(label == "lazy" for label in labels) > len(labels) / 2


@pytest.mark.parametrize(("activation", "low", "high"), [("tanh", 1.15, 1.4), ("ReLU", 1.3, 1.5)])
def test_in_mean_field_width_changes_nothing(activation, low, high):
    sweep = _sweep(activation, "mean-field")
    assert _slope(sweep, "change") == pytest.approx(0, abs=0.05)
    assert all(low < mean < high for mean in _means(sweep, "change"))
    labels = [run.label for runs in sweep for run in runs]
    rich = {"transitional", "feature-learning"}
    assert sum(label in rich for label in labels) > len(labels) / 2


@pytest.mark.parametrize("activation", ["tanh", "ReLU"])
def test_in_standard_parametrization_the_read_out_dominates_and_is_frozen(activation):
    sweep = _sweep(activation, "standard")
    assert _slope(sweep, "change") == pytest.approx(-1.8, abs=0.2)
    assert _slope(sweep, "input_share") == pytest.approx(-0.94, abs=0.06)
