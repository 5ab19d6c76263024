"""Rung 6, shortened: the larger the output scale alpha, the lazier; the bands follow.

The reference values are a numpy simulation's: geometric means over eight seeds, with a scatter of
a factor 1.5 between data draws.
"""

import math

import pytest
import torch

from ntkwatch import KernelTracker, ProbeBatch, judge

from regimes.recipes import TwoLayer, gradient_descent, tanh_slope, unit_inputs

SEEDS = 3
REFERENCE = {  # alpha: relative change on the training points, linearization error, strengths
    0.03: (2.16, 0.53, {"feature-learning"}),
    0.3: (0.18, 0.081, {"lazy", "transitional"}),
    1.0: (0.0256, 0.0117, {"lazy"}),
    10.0: (0.00166, 6.9e-4, {"lazy"}),
}


def _run(alpha: float, seed: int):
    torch.manual_seed(seed)
    net = TwoLayer(16, 256, torch.tanh, alpha)
    x, probe = unit_inputs(8, 16), unit_inputs(32, 16)
    y = torch.randint(2, (8,)).double() * 2 - 1
    training, fresh = KernelTracker(ProbeBatch(x)), KernelTracker(ProbeBatch(probe))
    for tracker in (training, fresh):
        tracker.observe(net, 0, loss=1.0)

    def rate(model: TwoLayer) -> float:
        return float(0.3 / torch.linalg.eigvalsh(model.kernel(x, tanh_slope))[-1])

    kernel = training.kernel.trace
    torch.testing.assert_close(kernel, net.kernel(x, tanh_slope), rtol=1e-10, atol=0)
    steps = gradient_descent(net, x, y, rate, stop=0.02)
    on_training = training.observe(net, steps, loss=4e-4)
    fresh.observe(net, steps, loss=4e-4)
    return on_training, fresh.history


def _geometric_mean(values) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@pytest.mark.slow
def test_drift_and_verdict_follow_the_output_scale():
    changes, errors = {}, {}
    for alpha, (change, error, strengths) in REFERENCE.items():
        runs = [_run(alpha, seed) for seed in range(SEEDS)]
        changes[alpha] = _geometric_mean([seen.relative_kernel_change for seen, _ in runs])
        errors[alpha] = _geometric_mean([h[-1].linearization_error for _, h in runs])
        assert changes[alpha] == pytest.approx(change, rel=0.6)
        assert errors[alpha] == pytest.approx(error, rel=0.6)
        labels = [judge(h).strength for _, h in runs]
        assert sum(label in strengths for label in labels) >= 2
    assert sorted(changes.values(), reverse=True) == list(changes.values())
    assert sorted(errors.values(), reverse=True) == list(errors.values())
    slope = math.log(changes[10.0] / changes[1.0]) / math.log(10)
    assert slope == pytest.approx(-1, abs=0.3)
