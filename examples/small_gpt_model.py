"""The model, the text and the two ways to scale it of small_gpt.py."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

LENGTH, VOCABULARY = 64, 64  # characters of a piece of text; symbols
SPACE = 2  # the symbol of the most frequent character
BASE_WIDTH = 32  # where both ways to scale are one and the same
_HEAD = 16  # width of an attention head, the same at every width


class Block(nn.Module):
    """Attention to what came before, then two layers by themselves; both added to the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 3 * width)
        self.gathered = nn.Linear(width, width)
        self.hidden, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        samples, length, width = x.shape
        heads = self.mixed(self.norm1(x)).view(samples, length, 3, -1, _HEAD).permute(2, 0, 3, 1, 4)
        gathered = functional.scaled_dot_product_attention(*heads, attn_mask=seen)
        x = x + self.gathered(gathered.transpose(1, 2).reshape(samples, length, width))
        return x + self.out(functional.gelu(self.hidden(self.norm2(x))))


class GPT(nn.Module):
    """A language model of characters, whose embedding is its read-out, too."""

    def __init__(self, width: int, *, scale: float, depth: int) -> None:
        super().__init__()
        self.scale = scale
        self.token, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        """Return logits (N, LENGTH, VOCABULARY), zero where no character is to be predicted."""
        length = tokens.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        seen = (past & counted[:, None, :])[:, None]
        x = self.token(tokens) + self.place.weight[:length]
        for block in self.blocks:
            x = block(x, seen)
        logits = self.scale * (self.norm(x) @ self.token.weight.T)
        return logits * counted[..., None]


# Two ways to scale: what depends on the width, and how. -------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What a width is multiplied by: ``w`` is width / BASE_WIDTH.

    Adam moves each weight by about its rate, whatever the gradient. A hidden matrix then moves its
    outputs by width x rate, an embedding or a bias by its rate; what is left is how much of that
    the read-out, a sum over the width, lets through to the logits.

    muP (Yang and Hu 2020, arXiv:2011.14522) reads out with 1 / w: features must move by as much at
    every width to move the logits. The neural tangent scaling reads out with 1 / sqrt(w), so that
    features need to move ever less as the width grows; rates are divided by as much.
    """

    output: float
    matrices: float
    others: float


SCALINGS = ("neural tangent", "muP")


def scaling(name: str, width: int) -> Scaling:
    w = width / BASE_WIDTH
    if name == "muP":
        return Scaling(output=1 / w, matrices=1 / w, others=1.0)
    return Scaling(output=w**-0.5, matrices=w**-1.5, others=w**-0.5)


def scaled(name: str, width: int, *, rate: float, output: float = 1.0, depth: int = 2):
    """Return a model whose logits are multiplied by ``output``, and its optimizer."""
    by = scaling(name, width)
    model = GPT(width, scale=output * by.output / math.sqrt(BASE_WIDTH), depth=depth)
    matrices = [p for part in model.blocks for p in part.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    groups = [
        {"params": matrices, "lr": rate * by.matrices},
        {"params": others, "lr": rate * by.others},
    ]
    # Gradients shrink with the width, and must stay far above eps.
    return model, torch.optim.Adam(groups, eps=1e-12)


# The text. ----------------------------------------------------------------------------------------


def pieces(texts: list[str]) -> Tensor:
    """Return the texts cut into pieces of LENGTH + 1 symbols, padded with 0.

    Symbols are the most frequent characters; 1 stands for all others.
    """
    count = Counter("".join(texts))
    number = {c: i for i, (c, _) in enumerate(count.most_common(VOCABULARY - SPACE), start=SPACE)}
    rows = []
    for text in texts:
        codes = [number.get(c, 1) for c in text]
        for start in range(0, len(codes) - 1, LENGTH):
            piece = codes[start : start + LENGTH + 1]
            rows.append(piece + [0] * (LENGTH + 1 - len(piece)))
    return torch.tensor(rows)


def batch_of(rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return what the model takes, and the characters that it is to predict."""
    tokens, targets = rows[:, :-1], rows[:, 1:]
    return {"tokens": tokens, "counted": targets != 0}, targets


def loss_of(logits: Tensor, counted: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits[counted], targets[counted])
