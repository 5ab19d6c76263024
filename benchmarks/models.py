"""The models that the benchmarks of the structured engine run: random weights, random inputs.

What they share with the sizes that people train is the shape of their work, not what they learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:  # other libraries' environments have torch, and no ntkwatch
    from ntkwatch.jacobian.forward import ForwardFn

__all__ = [
    "MODELS",
    "Gpt2",
    "Position",
    "Problem",
    "ResNet18",
    "ViT",
    "mean_log_probability",
    "mlp",
    "token_problem",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A model with the samples whose kernel is wanted.

    Attributes:
        model: In evaluation mode.
        inputs: N samples.
        forward: How to call the model; None for ``model(inputs)``.
        outputs: Settings of ``outputs=`` to measure.
        small: Whether ways that hold every row of the Jacobian can be run beside.
    """

    model: nn.Module
    inputs: Tensor
    forward: ForwardFn | None = None
    outputs: tuple[str, ...] = ("full", "trace")
    small: bool = True

    def values(self, inputs: Tensor | None = None) -> Tensor:
        """Return the outputs, of all samples by default."""
        inputs = self.inputs if inputs is None else inputs
        return self.model(inputs) if self.forward is None else self.forward(self.model, inputs)


def mlp(sizes: tuple[int, ...] = (784, 1024, 1024, 1024, 10)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """He et al. 2016, as used on 32x32 images: no pooling at the start, w channels in front."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, before = [], width
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage and not block else 1
                blocks.append(_Block(before, width * 2**stage, stride))
                before = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn(self.conv(x))))
        return self.head(x.mean(dim=(2, 3)))


class _Layer(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm, each beside a shortcut."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        heads = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=self.causal)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, t, width))
        hidden = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(hidden)


class Position(nn.Module):
    """What is added to each place; a module, as some libraries want each parameter in a leaf."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(1, places, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class ViT(nn.Module):
    """Patches of 4x4 of a 32x32 image as 64 tokens, averaged at the end."""

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = Position(64, width)
        self.layers = nn.Sequential(*(_Layer(width, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.position(self.patches(x).flatten(2).mT)
        return self.head(self.norm(self.layers(tokens)).mean(dim=1))


class Gpt2(nn.Module):
    """The shape of GPT-2 (Radford et al. 2019), 124M parameters by default, its head tied."""

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        vocabulary: int = 50257,
        *,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(1024, width)
        self.layers = nn.Sequential(*(_Layer(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.tokens(tokens) + self.positions(place)
        return self.head(self.norm(self.layers(x)))


def mean_log_probability(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return, per sample, what a language model is trained on: one number, (N, 1)."""
    logits = model(tokens)[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return -loss.view(len(tokens), -1).mean(dim=1, keepdim=True)


def _mlp() -> Problem:
    return Problem(model=mlp(), inputs=torch.randn(64, 784))


def _resnet() -> Problem:
    model = ResNet18()
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():  # statistics as of a training that has begun
        for _ in range(20):
            model(images)
    return Problem(model=model.eval(), inputs=images)


def _vit() -> Problem:
    return Problem(model=ViT().eval(), inputs=torch.randn(16, 3, 32, 32))


def _gpt2() -> Problem:
    tokens = torch.randint(50257, (8, 128))
    return Problem(
        model=Gpt2().eval(),
        inputs=tokens,
        forward=mean_log_probability,
        outputs=("trace",),
        small=False,
    )


def token_problem() -> Problem:
    """GPT-2's shape with the logits of every token as outputs, along four random directions."""
    tokens = torch.randint(50257, (4, 64))
    return Problem(model=Gpt2().eval(), inputs=tokens, outputs=("random:4",), small=False)


MODELS: dict[str, tuple[str, Callable[[], Problem]]] = {
    "mlp": ("MLP 784-1024-1024-1024-10, N=64", _mlp),
    "resnet": ("ResNet-18 w=16, 32x32, N=16, C=10", _resnet),
    "vit": ("ViT d=192, 6 layers, 64 tokens, N=16, C=10", _vit),
    "gpt2": ("GPT-2 124M, N=8, T=128, mean log-probability", _gpt2),
}
