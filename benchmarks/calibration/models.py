"""The networks that the verdict is calibrated on, each as ``F = alpha (f - f_0)``."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from calibration.data import Data
from calibration.settings import Setting

__all__ = ["Centred", "network"]


class Centred(nn.Module):
    """``F = alpha (f - f_0)``: the larger ``alpha``, the lazier (Chizat et al., 2019)."""

    def __init__(self, net: nn.Module, alpha: float) -> None:
        super().__init__()
        self.net, self.alpha = net, alpha
        self.start = copy.deepcopy(net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.net(x) - self.start(x))


def relu2(z: Tensor) -> Tensor:
    """Keeps the second moment of a standard normal."""
    return math.sqrt(2) * z.clamp(min=0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": relu2,
    "linear": torch.clone,
}


class TwoLayer(nn.Module):
    """``f(x) = s sum_j a_j act(w_j x)``, all weights N(0, 1).

    Args:
        inputs: Their dimension.
        width: m.
        activation: Name of one in ``ACTIVATIONS``.
        power: ``s = m^-power``: 1/2 is NTK parameterization and 1 the mean field.
    """

    def __init__(self, inputs: int, width: int, activation: str, power: float = 0.5) -> None:
        super().__init__()
        self.w = nn.Linear(inputs, width, bias=False)
        self.a = nn.Linear(width, 1, bias=False)
        for layer in (self.w, self.a):
            nn.init.normal_(layer.weight)
        self.activation, self.scale = ACTIVATIONS[activation], width**-power

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.a(self.activation(self.w(x)))


def _he_initialised(net: nn.Module) -> nn.Module:
    """Weights of variance 2 / fan-in, biases zero."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def _mlp(inputs: int, classes: int, width: int = 128) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def _cnn(classes: int, *, normalised: bool, width: int = 8) -> nn.Sequential:
    """Two convolutions on 8x8 images, with or without BatchNorm."""

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if normalised else nn.Identity()

    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=not normalised),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2, bias=not normalised),
        norm(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


class _Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A transformer on the eight rows of a digit: two pre-norm blocks, mean over tokens."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.Sequential(*(_Block(width, 4) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1).view(len(x), 8, 8)) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def network(setting: Setting, data: Data) -> nn.Module:
    """Return the setting's network with random weights."""
    match setting.architecture:
        case "two-layer":
            return TwoLayer(data.x.shape[1], setting.width, setting.activation, setting.power)
        case "mlp":
            return _he_initialised(_mlp(data.x[0].numel(), data.outputs))
        case "cnn" | "cnn-batchnorm" as name:
            return _he_initialised(_cnn(data.outputs, normalised=name == "cnn-batchnorm"))
        case "transformer":
            return Transformer(data.outputs)
    raise ValueError(setting.architecture)
