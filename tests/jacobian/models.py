"""Small models that real code is made of, for tests; each does one odd thing."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = [
    "MLP",
    "Alias",
    "Attend",
    "Cancels",
    "Checkpointed",
    "ComplexWeights",
    "Counter",
    "ImageNet",
    "InPlaceInput",
    "LastHidden",
    "OldWeightNorm",
    "Padded",
    "Part",
    "Routed",
    "Single",
    "Squeezed",
    "TiedPair",
    "TokenLogits",
    "Wrapped",
    "centred",
    "gap",
]


def gap(actual: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


class Counter:
    """A backend that runs graphs as they are, and counts."""

    def __init__(self):
        self.graphs = self.runs = 0

    def __call__(self, graph, _examples):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


class MLP(nn.Sequential):
    """4-5-3 with tanh."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


class ImageNet(nn.Module):
    """Convolutions, batch, group and instance norms, in-place activations, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, groups=2, bias=False),
            nn.GroupNorm(2, 4),
            nn.SiLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Squeezed(nn.Module):
    """Ends in squeeze(), so one sample alone comes without its first dimension."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.head = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.tanh()).squeeze()


class LastHidden(nn.Module):
    """A recurrent layer, read at the last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.recurrent = kind(4, 5, batch_first=True, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Padded(nn.Module):
    """Token 0 is padding: its row gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4, padding_idx=0)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.embed.weight[0] = 0.3

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).tanh().mean(dim=1))


class TokenLogits(nn.Module):
    """(N, T) tokens to (N, T, V) logits."""

    def __init__(self, vocabulary: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head((x + x.cumsum(dim=1)).tanh())


class OldWeightNorm(nn.Module):
    """The deprecated weight norm writes a plain attribute at each call."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.layer = nn.utils.weight_norm(nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Alias(nn.Module):
    """Reads its weight through a list instead of the attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.shelf = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.shelf[0].to(x.dtype)


class Checkpointed(nn.Module):
    """A hidden layer whose activations are computed again in the backward pass."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        h = checkpoint(lambda z: self.hidden(z).tanh(), h, use_reentrant=self.use_reentrant)
        return self.last(h)


class InPlaceInput(nn.Module):
    """Shifts its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(1.0)
        return self.head(x)


class ComplexWeights(nn.Module):
    """|x W| + b with a complex W."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs() + self.bias


class TiedPair(nn.Module):
    """One module under two names and one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.again(self.first(x).tanh()).tanh()) + self.right(x)


class Routed(nn.Module):
    """Each sample goes through the expert that its gate prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(dim=-1)
        chosen = share.argmax(dim=-1)
        out = x.new_zeros(len(x), 2)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                out = out.index_put((mine.nonzero()[:, 0],), expert(x[mine]) * share[mine, i, None])
        return out


class Cancels(nn.Module):
    """Its features are small differences of large numbers: in float32 mostly rounding.

    A convolution adds up in another order in another batch, and in another one under vmap.
    """

    def __init__(self) -> None:
        super().__init__()
        large = torch.randn(5, 1, 300, dtype=torch.float64)
        self.register_buffer("large", large)
        self.register_buffer("nearly", large * (1 - 1e-5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [functional.conv1d(x[:, None], w)[:, :, 0] for w in (self.large, self.nearly)]
        return self.head(1e4 * (parts[0] - parts[1]))


class Single(nn.Module):
    """Computes in float32 whatever its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(300, 50), nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.body.weight.float(), self.body.bias.float()
        return self.head(functional.linear(x.float(), weight, bias).to(x.dtype))


class Attend(nn.Module):
    """Causal attention by the fused operation."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2)).mean(dim=1)


class Wrapped(nn.Module):
    """A linear layer, the odd part, a linear layer."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(4, 6), part, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.first(x)))


class Part(nn.Module):
    """The odd part as a module of its own, written by hand."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def centred(x: Tensor) -> Tensor:
    """The batch without its mean: each sample depends on all."""
    return x - x.mean(dim=0)
