"""The kernels that ``peers.py`` asks of every library: four models, the same weights for all.

Nothing here knows a library. The models are those of ``models.py``; each has a small twin, for a
smoke test.
"""

from __future__ import annotations

import torch
from models import Gpt2, Problem, ResNet18, ViT, mlp
from torch import Tensor, nn

__all__ = ["PROBLEMS", "Directions", "problem", "title"]

PROBLEMS = ("mlp", "resnet", "vit", "gpt")
_DIRECTIONS = 8


class Directions(nn.Module):
    """A model whose outputs are too many, seen along fixed random unit directions of them."""

    def __init__(self, model: nn.Module, outputs: int) -> None:
        super().__init__()
        self.model = model
        rows = torch.randn(_DIRECTIONS, outputs)
        self.register_buffer("directions", rows / rows.norm(dim=1, keepdim=True))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).flatten(1) @ self.directions.T


def _mlp(quick: bool) -> tuple[str, Problem]:
    sizes, n = ((20, 16, 16, 4), 6) if quick else ((784, 1024, 1024, 1024, 10), 64)
    text = f"MLP {'-'.join(map(str, sizes))}, N = {n}"
    return text, Problem(model=mlp(sizes), inputs=torch.randn(n, sizes[0]))


def _resnet(quick: bool) -> tuple[str, Problem]:
    width, n = (2, 3) if quick else (16, 16)
    model, images = ResNet18(width), torch.randn(n, 3, 32, 32)
    with torch.no_grad():  # statistics as of a training that has begun
        for _ in range(20):
            model(images)
    text = f"ResNet-18, width {width}, 32x32, N = {n}, 10 outputs, BatchNorm in evaluation mode"
    return text, Problem(model=model.eval(), inputs=images)


def _vit(quick: bool) -> tuple[str, Problem]:
    width, depth, n = (12, 1, 3) if quick else (192, 6, 16)
    text = f"ViT, d = {width}, {depth} layers, 64 tokens, N = {n}, 10 outputs"
    return text, Problem(model=ViT(width, depth).eval(), inputs=torch.randn(n, 3, 32, 32))


def _gpt(quick: bool) -> tuple[str, Problem]:
    width, depth, heads, t, vocabulary, n = (
        (16, 1, 2, 8, 50, 3) if quick else (256, 4, 4, 64, 1024, 16)
    )
    gpt = Gpt2(width, depth, heads, vocabulary, tied=False).eval()
    text = (
        f"GPT, d = {width}, {depth} layers, T = {t}, vocabulary {vocabulary}, N = {n}, "
        f"{_DIRECTIONS} random directions of all logits"
    )
    tokens = torch.randint(vocabulary, (n, t))
    return text, Problem(model=Directions(gpt, t * vocabulary), inputs=tokens)


_MAKE = {"mlp": _mlp, "resnet": _resnet, "vit": _vit, "gpt": _gpt}


def problem(name: str, quick: bool = False) -> Problem:
    """Return a problem by its name, the same each time."""
    torch.manual_seed(0)
    return _MAKE[name](quick)[1]


def title(name: str, quick: bool = False) -> str:
    """Return what the problem is called in a table."""
    torch.manual_seed(0)
    return _MAKE[name](quick)[0]
