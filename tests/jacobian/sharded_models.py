"""Models to be sharded, the same in every process."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

__all__ = ["MODELS", "ByMethod", "Centred", "Encoder", "Normed", "Perceptron", "Writes", "build"]


class Perceptron(nn.Module):
    """Two blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 5)])
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        for block in self.blocks:
            x = self.drop(torch.tanh(block(x)))
        return self.head(x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 7), nn.Linear(7, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        h = self.before(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.drop(self.down(functional.gelu(self.up(self.between(x)))))


class Transformer(nn.Module):
    """Convolution, group norm, positions, attention, a bare scale, a tied and a derived weight."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(2, 6, 2, 2), nn.GroupNorm(2, 6)
        self.positions = nn.Parameter(torch.randn(1, 4, 6) / 10)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.mix, self.mixed_again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.mixed_again.weight = self.mix.weight
        self.head = parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x):
        x = self.norm(self.patch(x)).flatten(2).mT + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.mixed_again(torch.tanh(self.mix(x * self.scale)))
        return self.head(x.mean(dim=1))


class Normed(nn.Module):
    """With running statistics, which no process shards."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.BatchNorm1d(6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.blocks[1](self.blocks[0](x))))


MODELS = {"perceptron": (Perceptron, (4,)), "transformer": (Transformer, (2, 4, 4))}


def build(kind, dtype=torch.float64):
    """A model held whole and its samples, the same in every process."""
    torch.manual_seed(3)
    make, shape = (Normed, (4,)) if kind == "normed" else MODELS[kind]
    return make().to(dtype), torch.randn(5, *shape, dtype=torch.float64).to(dtype)


class Centred(Perceptron):
    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(dim=0)


class Writes(Perceptron):
    def forward(self, x):
        with torch.no_grad():
            self.head.weight.mul_(0.5)
        return super().forward(x)


class ByMethod(Perceptron):
    def forward(self, x):
        for block in self.blocks:
            x = block.encode(x)
        return self.head(x)


class Encoder(nn.Linear):
    def encode(self, x):
        return torch.tanh(functional.linear(x, self.weight, self.bias))
