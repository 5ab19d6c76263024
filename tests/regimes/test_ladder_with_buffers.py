"""A network with buffers that move grows lazy with its output scale, and its numbers say so.

The linearization error is of a function of the weights alone. A BatchNorm runs on the probe's
statistics, differentiated: with running statistics, or with the probe's held constant, the error
stays near 1 however lazy the run, since the first-order motion of the statistics is then missing
from the derivative. A spectral norm keeps the vectors of the start: theirs is motion, too, and the
output scale multiplies it while it makes that of the weights small.
"""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from ntkwatch import KernelTracker, ProbeBatch, judge
from ntkwatch.watch.verdict.bands import Strength

WIDTH, TRAINING, PROBE, BATCH = 8, 512, 64, 64


class Centred(nn.Module):
    """``F = alpha (f - f_0)``."""

    def __init__(self, net: nn.Module, alpha: float) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha
        self.start = copy.deepcopy(net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.net(x) - self.start(x))


def _with_batchnorm(alpha: float) -> Centred:
    """Both networks run on the statistics of their batch."""
    net = nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(2 * WIDTH),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * WIDTH, 10),
    )
    return Centred(net, alpha).train()


def _with_spectral_norm(alpha: float) -> Centred:
    """Only the vectors of the network that trains go on to converge."""
    net = nn.Sequential(
        nn.Flatten(),
        spectral_norm(nn.Linear(64, 64)),
        nn.Tanh(),
        spectral_norm(nn.Linear(64, 64)),
        nn.Tanh(),
        nn.Linear(64, 10),
    )
    model = Centred(net, alpha).train()
    model.start.eval()
    return model


def _digits() -> tuple[Tensor, Tensor]:
    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(images))
    pixels = torch.tensor(images / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    return pixels[order], torch.tensor(digits)[order]


def _train(
    build: Callable[[float], Centred], alpha: float, seed: int = 0, *, epochs: int = 40
) -> tuple[Centred, KernelTracker]:
    """SGD with momentum, its rate divided by ``alpha^2``; the first observation is the start."""
    torch.manual_seed(seed)
    x, y = _digits()
    model = build(alpha)
    held_out = slice(TRAINING, TRAINING + PROBE)
    tracker = KernelTracker(
        ProbeBatch(x[held_out], y[held_out]), outputs="random:4", metrics="minimal"
    )
    tracker.observe(model, 0, loss=math.log(10))
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1 / alpha**2, momentum=0.9)
    for step in range(epochs * TRAINING // BATCH):
        if step % (TRAINING // BATCH) == 0:
            order = torch.randperm(TRAINING)
        rows = order[(step * BATCH) % TRAINING :][:BATCH]
        loss = functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tracker.observe(model, step + 1, loss=loss.item())
    return model, tracker


@pytest.mark.parametrize("build", [_with_batchnorm, _with_spectral_norm])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_error_falls_at_every_step_of_the_output_scale(build, seed):
    errors, strengths = [], []
    for alpha in (10, 100, 1000):
        _, tracker = _train(build, alpha, seed)
        last = tracker.history[-1]
        assert last.loss_ratio < 0.2  # all of them learn the task
        assert last.linearization_method == "jvp"
        errors.append(last.linearization_error)
        strengths.append(judge(tracker.history).strength)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.1
    assert strengths[2] is Strength.LAZY
    assert strengths[0].rank > Strength.LAZY.rank


def test_growth_of_weights_that_a_batchnorm_divides_away_is_no_error():
    """Scaled by 0.8, they leave the batch function as it is (up to epsilon), and the error too."""
    model, tracker = _train(_with_batchnorm, 100)
    before, step = tracker.history[-1], tracker.history[-1].step
    with torch.no_grad():
        model.net[0].weight.mul_(0.8)
        model.net[3].weight.mul_(0.8)
    after = tracker.observe(model, step)
    assert after.linearization_error == pytest.approx(before.linearization_error, rel=0.02)
    assert after.relative_displacement > 3 * before.relative_displacement
