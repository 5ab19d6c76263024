"""Rung 11: a CNN and a ResNet on real digits grow lazy with their output scale, at equal loss.

Order alone is asserted; the accuracies of network and kernel machines are printed by the benchmark.
"""

import pytest

from regimes.digits import ALPHAS, NETS, Sweep, learned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NETS)
def sweep(request) -> tuple[str, list[Sweep]]:
    return request.param, [learned(request.param, alpha) for alpha in ALPHAS]


def test_error_and_angle_fall_with_the_output_scale(sweep):
    _, runs = sweep
    for key in ("error", "angle"):
        values = [getattr(run, key) for run in runs]
        assert values == sorted(values, reverse=True), key
    assert runs[0].label.startswith("feature-learning")
    assert runs[-1].label == "lazy"


def test_every_network_and_kernel_machine_tells_digits_apart(sweep):
    _, runs = sweep
    for run in runs:
        assert min(float(score) for score in run.triple[:3]) > 0.85


def test_batch_statistics_rescale_the_kernel_of_evaluation_mode_more_than_they_turn_it(sweep):
    """Of a network in torch's own initialization, whose activations are far from unit size."""
    name, runs = sweep
    for run in runs:
        if name == "ResNet":
            assert abs(run.running_scale) > 3 * run.running_angle
            assert run.train_mode_gap > 0.01
        else:
            assert run.running_scale == pytest.approx(run.scale, rel=1e-9)
            assert run.train_mode_gap == 0
