"""Rung 12: one small encoder trained from scratch, fine-tuned, and fine-tuned by low-rank parts.

The task is to say of which kind the next character of a text is. The pretrained encoder has learned
to say which character it is; nothing is downloaded.
"""

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkwatch import KernelTracker, ProbeBatch

from regimes.text import BATCH, PROBE, WIDTH, CharGPT, characters, drawn, letters, read

__all__ = ["LowRank", "Way", "pretrained", "tuned"]

Way = Literal["scratch", "full", "head first", "low rank"]
Batch = Callable[[int], tuple[Tensor, Tensor]]
KINDS, RANK = 4, 4


class Tagger(nn.Module):
    """An encoder's last position and a linear head that starts at nothing."""

    def __init__(self, body: CharGPT) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(WIDTH, KINDS)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body.hidden(tokens)[:, -1])


class LowRank(nn.Module):
    """A frozen linear layer and a correction ``B A`` that starts at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, RANK, bias=False)
        self.b = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


def pretrained() -> CharGPT:
    """Return an encoder that has read the text for a while."""
    torch.manual_seed(0)
    body = CharGPT(characters()[1])
    read(independent=False, model=body, watched=False)
    return body


def _kinds() -> Tensor:
    """By number of a character: vowel, consonant, space or other."""
    named = {**dict.fromkeys("bcdfghjklmnpqrstvwxyz", 1), **dict.fromkeys("aeiou", 0), " ": 2}
    return torch.tensor([named.get(letter.lower(), 3) for letter in letters()])


def tuned(way: Way, body: CharGPT | None = None, *, stop: float = 0.7) -> KernelTracker:
    """Train under AdamW to ``stop`` times the loss of equal chances; return who saw start and end.

    Head first: the start is where the head alone was trained for a hundred steps.
    """
    torch.manual_seed(1)
    text, vocabulary = characters()
    net = Tagger(CharGPT(vocabulary) if body is None else copy.deepcopy(body))
    if way == "low rank":
        net.body.requires_grad_(False)
        for block in net.body.blocks:
            block.qkv, block.up = LowRank(block.qkv), LowRank(block.up)
    generator, kinds = torch.Generator().manual_seed(1), _kinds()

    def batch(size: int) -> tuple[Tensor, Tensor]:
        tokens, following = drawn(text, size, generator, independent=False)
        return tokens, kinds[following[:, -1]]

    tracker = KernelTracker(ProbeBatch(*batch(PROBE)), warmup_steps=10_000)
    if way == "head first":
        _descend(net, list(net.head.parameters()), batch, stop=0.0, most=100)
    with torch.no_grad():
        tokens, wanted = batch(8 * BATCH)
        start = functional.cross_entropy(net(tokens), wanted).item()
    tracker.observe(net, 0, loss=start)
    trained = [p for p in net.parameters() if p.requires_grad]
    steps, loss = _descend(net, trained, batch, stop=stop, most=1000)
    assert loss <= stop * math.log(KINDS)
    tracker.observe(net, steps, loss=loss)
    return tracker


def _descend(
    net: Tagger, parameters: list[nn.Parameter], batch: Batch, *, stop: float, most: int
) -> tuple[int, float]:
    """Steps until a running mean of the loss is below its target, and that mean."""
    optimizer, recent = torch.optim.AdamW(parameters, lr=1e-3), math.log(KINDS)
    steps = 0
    while steps < most and recent > stop * math.log(KINDS):
        tokens, wanted = batch(BATCH)
        loss = functional.cross_entropy(net(tokens), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = 0.8 * recent + 0.2 * loss.item()
        steps += 1
    return steps, recent
