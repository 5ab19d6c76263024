"""What a frozen kernel says of real trainings: shortest moves, gaps, forecasts, stable rates.

The reference values are a numpy simulation's: geometric means over eight seeds of a two-layer tanh
network of width 256 (1024 for the rates), trained on eight samples to 2 % of the residual.
"""

import math

import pytest
import torch
from torch import Tensor

from ntkwatch.kernel.descent import square_loss_curvature
from ntkwatch.kernel.drift import relative_kernel_change
from ntkwatch.kernel.frozen import frozen_training
from ntkwatch.kernel.regression import displacement_ratio, representer_gap
from ntkwatch.kernel.stability import edge_of_stability, max_stable_lr, sharpness

from regimes.recipes import TwoLayer, gradient_descent, tanh_slope, unit_inputs

SEEDS = 4
STOP = 0.02


def _made(alpha: float, seed: int, width: int = 256) -> tuple[TwoLayer, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    net = TwoLayer(16, width, torch.tanh, alpha)
    x, fresh = unit_inputs(8, 16), unit_inputs(32, 16)
    return net, x, fresh, torch.randint(2, (8,)).double() * 2 - 1


def _kernel(net: TwoLayer, a: Tensor, b: Tensor) -> Tensor:
    """Both sets of inputs in one kernel, and the part between them."""
    return net.kernel(torch.cat([a, b]), tanh_slope)[: len(a), len(a) :]


def _displacement(net: TwoLayer) -> Tensor:
    moved = (net.w.weight - net.w0).square().sum() + (net.a.weight - net.a0).square().sum()
    return moved.sqrt().detach()


def _geometric_mean(values) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _trained(alpha: float, seed: int) -> tuple[float, float]:
    """Displacement ratio on the training set, and representer gap on fresh inputs."""
    net, x, fresh, y = _made(alpha, seed)
    K, k = _kernel(net, x, x), _kernel(net, fresh, x)

    def rate(model: TwoLayer) -> float:
        return float(0.3 / torch.linalg.eigvalsh(model.kernel(x, tanh_slope))[-1])

    gradient_descent(net, x, y, rate, stop=STOP)
    change, there = net(x).detach(), net(fresh).detach()
    ratio = displacement_ratio(_displacement(net), K, change, ridge=0.0)
    return float(ratio), float(representer_gap(K, k, change, there, ridge=0.0))


def test_the_shortest_move_is_taken_by_lazy_training_and_undercut_by_feature_learning():
    found = {alpha: [_trained(alpha, seed) for seed in range(SEEDS)] for alpha in (0.1, 1.0, 10.0)}
    ratios = {alpha: _geometric_mean([r for r, _ in runs]) for alpha, runs in found.items()}
    assert ratios[0.1] == pytest.approx(0.77, abs=0.06)
    assert ratios[1.0] == pytest.approx(0.99, abs=0.01)
    assert ratios[10.0] == pytest.approx(1.0, abs=1e-3)
    gaps = {alpha: _geometric_mean([g for _, g in runs]) for alpha, runs in found.items()}
    assert gaps[0.1] > 5 * gaps[1.0]
    assert math.log10(gaps[10.0] / gaps[1.0]) == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize(
    ("alpha", "forecast", "actual"),
    [(0.3, 0.077, 0.18), (1.0, 0.0175, 0.0256), (10.0, 1.65e-3, 1.66e-3)],
)
def test_a_forecast_from_the_frozen_path_tells_how_far_the_kernel_will_move(
    alpha, forecast, actual
):
    """Gradient flow to the loss at which training stops, then the kernel at those parameters."""
    changes = []
    for seed in range(SEEDS):
        net, x, _, y = _made(alpha, seed)
        K = _kernel(net, x, x)
        training = frozen_training(K, -y[:, None])
        weights = training.weights(training.time_to_loss_ratio(STOP**2))
        parameters = [net.w.weight, net.a.weight]
        steps = torch.autograd.grad((net(x) * weights).sum(), parameters)
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter += step
        changes.append(float(relative_kernel_change(_kernel(net, x, x), K)))
    found = _geometric_mean(changes)
    assert found == pytest.approx(forecast, rel=0.5)
    assert actual / 4 < found < 4 * actual


@pytest.mark.parametrize("share", [0.95, 1.25])
def test_training_is_lazy_below_the_stable_rate_and_leaves_the_kernel_above_it(share):
    """At 1.25 of it the loss rises at first, the kernel shrinks until the rate is stable again."""
    net, x, _, y = _made(1.0, 0, width=1024)
    K = _kernel(net, x, x)
    full = K[:, :, None, None]
    rate = share * float(max_stable_lr(sharpness(full, loss="half-square-sum")))
    assert rate == pytest.approx(2 * share / float(torch.linalg.eigvalsh(K)[-1]))
    # Any square loss has the same dynamics at its own stable rate.
    mean = max_stable_lr(sharpness(full, loss="square-mean"))
    h = square_loss_curvature("square-mean", samples=8, outputs=1)
    assert float(mean) * h == pytest.approx(rate / share)

    largest = 1.0

    def watched(model: TwoLayer) -> float:
        nonlocal largest
        largest = max(largest, float((model(x).flatten() - y).norm() / y.norm()))
        return rate

    gradient_descent(net, x, y, watched, stop=STOP)
    now = _kernel(net, x, x)
    change = float(relative_kernel_change(now, K))
    edge = edge_of_stability(rate, sharpness(now[:, :, None, None], loss="half-square-sum"))
    assert edge < 1
    if share < 1:
        assert largest < 1.05
        assert change < 0.02
    else:
        assert largest > 2
        assert change > 0.2
