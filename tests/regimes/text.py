"""Rungs 12 and 14: a small transformer over characters of a real text, and over chance.

The text is this project's licence. The control has the same inputs and targets that are drawn from
the same frequencies, independently of everything: nothing is there to learn but those.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkwatch import KernelTracker, ProbeBatch
from ntkwatch.watch.record.history import History

__all__ = ["CharGPT", "characters", "drawn", "last_logits", "letters", "read"]

CONTEXT, WIDTH, HEADS, LAYERS, BATCH, PROBE = 24, 48, 3, 2, 48, 48
_TEXT = Path(__file__).parents[2] / "LICENSE"


class _Block(nn.Module):
    """Causal attention and an MLP, normalised before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(start_dim=2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class CharGPT(nn.Module):
    """Logits of the next character at every position, (N, T, V); the embedding is also the head."""

    def __init__(self, vocabulary: int, *, width: int = WIDTH, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02)

    def hidden(self, tokens: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(tokens) + self.place))

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(self.hidden(tokens), self.embed.weight)


def letters() -> list[str]:
    """Return the characters of the licence in the order of their numbers."""
    return sorted(set(_TEXT.read_text().replace("\n", " ")))


def characters() -> tuple[Tensor, int]:
    """Return the licence as numbers of its characters, and how many there are."""
    text = " ".join(_TEXT.read_text().split())
    number = {letter: i for i, letter in enumerate(letters())}
    return torch.tensor([number[letter] for letter in text]), len(number)


def drawn(
    text: Tensor, count: int, generator: torch.Generator, *, independent: bool
) -> tuple[Tensor, Tensor]:
    """Return rows of text with the next character at each place, or with one by chance."""
    begin = torch.randint(len(text) - CONTEXT, (count, 1), generator=generator)
    rows = text[begin + torch.arange(CONTEXT + 1)]
    following = rows[:, 1:]
    if independent:
        following = text[torch.randint(len(text), following.shape, generator=generator)]
    return rows[:, :-1], following


def last_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of the last position alone."""
    return model(tokens)[:, -1]


def read(
    *,
    independent: bool,
    steps: int = 300,
    seed: int = 0,
    model: nn.Module | None = None,
    watched: bool = True,
) -> History:
    """Train under AdamW and return what a tracker saw at start, end of warm-up and end."""
    torch.manual_seed(seed)
    text, vocabulary = characters()
    generator = torch.Generator().manual_seed(seed)
    model = CharGPT(vocabulary) if model is None else model
    tokens, following = drawn(text, PROBE, generator, independent=independent)
    tracker = KernelTracker(ProbeBatch(tokens, following[:, -1]), forward=last_logits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    recent = math.log(vocabulary)
    for step in range(steps + 1):
        if watched and step in (0, 20, steps):
            tracker.observe(model, step, loss=recent)
        tokens, following = drawn(text, BATCH, generator, independent=independent)
        loss = functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = loss.item() if step == 0 else 0.9 * recent + 0.1 * loss.item()
    return tracker.history
