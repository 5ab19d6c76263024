"""Rungs 8 and 11: real digits of 8 x 8 pixels, learned by small networks at several output scales.

``F = alpha (f - f_0)``, half the squared error against one-hot targets, rates divided by
``alpha^2``; all trainings of a sweep stop at one loss.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk, judge
from ntkwatch.kernel.stability import edge_of_stability, max_stable_lr, sharpness
from ntkwatch.kernel.triple import Triple, class_code, triple

__all__ = ["ALPHAS", "NETS", "Centred", "Sweep", "digits", "learned", "sharpness_on_the_way"]

ALPHAS = (0.1, 1.0, 10.0, 100.0)
TRAINING, TEST, PROBE, BATCH = 512, 256, 64, 64
STOP = 0.2  # of the loss at the start


class Centred(nn.Module):
    """``F = alpha (f - f_0)``."""

    def __init__(self, net: nn.Module, alpha: float) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha
        self.start = copy.deepcopy(net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.net(x) - self.start(x))


class _Block(nn.Module):
    """A residual block with two BatchNorms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(h)))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        _Block(12),
        _Block(12),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


NETS: dict[str, Callable[[], nn.Module]] = {"CNN": _cnn, "ResNet": _resnet}
# With momentum 0.9; about half of what makes the lazy training of each diverge.
_RATES = {"CNN": 0.04, "ResNet": 0.02}


def _he(net: nn.Module) -> nn.Module:
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def digits(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images in [-1, 1], flat and in float64, and their labels."""
    images, labels = load_digits(return_X_y=True)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.tensor(images / 8 - 1)[chosen], torch.tensor(labels)[chosen]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the package says of one training on digits."""

    epochs: int
    error: float
    angle: float
    scale: float
    running_angle: float
    running_scale: float
    label: str
    triple: Triple
    train_mode_gap: float


def learned(name: str, alpha: float, *, seed: int = 0) -> Sweep:
    """Train to a twentieth of the loss at the start and return what was measured."""
    torch.manual_seed(seed)
    images, labels = digits(TRAINING + TEST + PROBE, seed=seed)
    x, y = images.float().view(-1, 1, 8, 8), class_code(labels, classes=10)
    net = NETS[name]() if name == "ResNet" else _he(NETS[name]())
    model = Centred(net, alpha).train()
    probe = ProbeBatch(x[-PROBE:], labels[-PROBE:])
    tracker = KernelTracker(probe, outputs="random:4")
    train, test = slice(0, TRAINING), slice(TRAINING, TRAINING + TEST)
    # The function of evaluation mode: its kernel also moves as running statistics settle.
    running = KernelTracker(probe, outputs="random:4", batchnorm="running", metrics="minimal")
    for one in (tracker, running):
        one.observe(model, 0, loss=1.0)
    before = _kernels(model, x[train], x[test])
    begun = _outputs(model, x[train]), _outputs(model, x[test])
    epochs, loss = _trained(model, x[train], y[train], _RATES[name] / alpha**2)
    steps = epochs * TRAINING // BATCH
    seen, run = (one.observe(model, steps, loss=loss) for one in (tracker, running))
    after = _kernels(model, x[train], x[test])
    return Sweep(
        epochs=epochs,
        error=seen.linearization_error or math.nan,
        angle=seen.layer_angle_median or math.nan,
        scale=seen.kernel_scale or math.nan,
        running_angle=run.layer_angle_median or math.nan,
        running_scale=run.kernel_scale or math.nan,
        label=judge(tracker.history).label,
        triple=triple(
            _outputs(model, x[test]), before, after, (y[train], y[test]), start=begun, ridge=1e-6
        ),
        train_mode_gap=_train_mode_gap(model, x[-PROBE:]),
    )


def _trained(model: Centred, x: Tensor, y: Tensor, rate: float) -> tuple[int, float]:
    """Epochs until the mean loss of one falls to the share of the first loss, and that share."""
    optimizer = torch.optim.SGD(model.net.parameters(), lr=rate, momentum=0.9)
    start = float(0.5 * y.square().sum(dim=1).mean())
    for epoch in range(1, 200):
        total = 0.0
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = 0.5 * (model(x[rows]) - y[rows].float()).square().sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / len(x)
        if total <= STOP * start:
            return epoch, total / start
    raise AssertionError(f"the loss is still at {total / start:.2f} of its start after 199 epochs")


def _kernels(model: nn.Module, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Trace kernels between training samples, and between test and training samples."""
    K = empirical_ntk(model, train, outputs="trace").matrix
    return K, empirical_ntk(model, test, other=train, outputs="trace").matrix


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        outputs = model.eval()(x).double()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return outputs


def _train_mode_gap(model: nn.Module, x: Tensor) -> float:
    """Relative difference of the kernels of the two functions, that of eval and of train mode."""
    running = empirical_ntk(model, x, outputs="random:4").matrix
    batch = empirical_ntk(model, x, outputs="random:4", batchnorm="probe").matrix
    return float((batch - running).norm() / running.norm())


def sharpness_on_the_way(alpha: float, *, steps: int = 2400, looks: int = 12) -> list[float]:
    """Return ``eta lambda_max`` times the curvature of the loss, from looks at full-batch descent.

    A tanh network with two hidden layers on 100 digits, at 0.3 times the stable rate of the start.
    """
    torch.manual_seed(0)
    images, labels = digits(100)
    wanted = functional.one_hot(labels, 10).double()
    sizes = (64, 50, 50, 10)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b).double(), nn.Tanh())]
    model = Centred(nn.Sequential(*layers[:-1]), alpha)

    def curvature() -> Tensor:
        return sharpness(empirical_ntk(model, images).matrix, loss="square-mean")

    rate = 0.3 * float(max_stable_lr(curvature()))
    optimizer = torch.optim.SGD(model.net.parameters(), lr=rate)
    found = []
    for step in range(steps + 1):
        if step % (steps // looks) == 0:
            found.append(2 * float(edge_of_stability(rate, curvature())))
        optimizer.zero_grad()
        functional.mse_loss(model(images), wanted).backward()
        optimizer.step()
    return found
