"""Rung 7, deep: drift against width for 1, 2 and 4 hidden layers in two parametrizations.

Six seeds, six unit inputs, fixed learning rates, descent to 3 % of the residual. Exponents and
sizes are a numpy simulation's.
"""

import pytest

from regimes.deep import deep_drifts
from regimes.stacked import geometric_mean, slope

pytestmark = pytest.mark.slow

WIDTHS, DEPTHS = [64, 128, 256, 512], (1, 2, 4)
# By parametrization and activation, for each depth: exponent of the change, its size at width 512,
# and the exponent of the relative displacement.
REFERENCE = {
    ("NTK", "tanh"): [(-0.99, 0.0044, -0.51), (-0.85, 0.0089, -0.95), (-0.87, 0.0198, -0.99)],
    ("NTK", "ReLU"): [(-0.81, 0.0127, -0.52), (-0.79, 0.0195, -0.98), (-0.58, 0.0466, -1.0)],
    ("standard", "tanh"): [(-2.07, 3.3e-5, -1.0), (-0.94, 0.0043, -1.0), (-0.87, 0.0136, -1.0)],
    ("standard", "ReLU"): [(-2.11, 4.5e-5, -1.03), (-0.77, 0.0114, -1.03), (-0.69, 0.0307, -1.03)],
}


@pytest.mark.parametrize(("parametrization", "activation"), REFERENCE)
def test_drift_falls_with_width_and_grows_with_depth(parametrization, activation):
    at_the_widest = []
    for depth, expected in zip(DEPTHS, REFERENCE[parametrization, activation], strict=True):
        standard = parametrization == "standard"
        runs = [deep_drifts(activation, depth, width, standard=standard) for width in WIDTHS]
        changes = [geometric_mean([run.change for run in each]) for each in runs]
        moves = [geometric_mean([run.relative_displacement for run in each]) for each in runs]
        assert slope(WIDTHS, changes) == pytest.approx(expected[0], abs=0.2), depth
        assert expected[1] / 1.8 < changes[-1] < 1.8 * expected[1]
        assert slope(WIDTHS, moves) == pytest.approx(expected[2], abs=0.06), depth
        at_the_widest.append(changes[-1])
    assert at_the_widest == sorted(at_the_widest)
