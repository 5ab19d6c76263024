"""Real Lightning trainings for the benchmarks of what watching costs: data made up, models real."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from models import Gpt2, ResNet18
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

__all__ = ["TRAININGS", "Training", "fit", "made"]

TRAININGS = {
    "resnet": "ResNet-18 w=16, images of 3x32x32, batches of 64",
    "cnn": "CNN of three convolutions, images of 3x32x32, batches of 64",
    "transformer": "causal transformer, width 64, 2 layers, texts of 32 tokens, batches of 32",
    "mlp": "perceptron 32-64-64-10, batches of 64",
}


class Training(pl.LightningModule):
    """A network under SGD or AdamW with its cross-entropy."""

    def __init__(self, net: nn.Module, *, rate: float, adam: bool) -> None:
        super().__init__()
        self.net, self.rate, self.adam = net, rate, adam

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        outputs = self(x)
        loss = functional.cross_entropy(outputs.flatten(0, -2), y.flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.adam:
            return torch.optim.AdamW(self.parameters(), lr=self.rate)
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


def made(kind: str) -> tuple[Training, DataLoader[Any]]:
    """Return a training with its data, the same ones each time."""
    torch.manual_seed(0)
    if kind == "resnet":
        return Training(ResNet18(), rate=0.02, adam=False), _loader(_images(), 64)
    if kind == "cnn":
        return Training(_cnn(), rate=0.02, adam=False), _loader(_images(), 64)
    if kind == "transformer":
        net = Gpt2(width=64, depth=2, heads=4, vocabulary=256)
        return Training(net, rate=1e-3, adam=True), _loader(_texts(), 32)
    x = torch.randn(4096, 32)
    y = (x @ torch.randn(32, 10)).argmax(dim=1)
    sizes = (nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Training(nn.Sequential(*sizes), rate=0.05, adam=False), _loader(TensorDataset(x, y), 64)


def fit(kind: str, folder: Path, steps: int, callbacks: Sequence[Any]) -> pl.Trainer:
    """Train for so many steps, with TensorBoard beside."""
    model, loader = made(kind)
    torch.manual_seed(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=TensorBoardLogger(folder),
        max_epochs=-1,
        max_steps=steps,
    )
    trainer.fit(model, loader)
    return trainer


def _cnn() -> nn.Sequential:
    sizes = ((3, 16, 1), (16, 32, 2), (32, 64, 2))
    layers = [
        part
        for before, after, stride in sizes
        for part in (nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10))


def _loader(data: Dataset[Any], batch_size: int) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True)


def _images() -> TensorDataset:
    """Ten smooth patterns, each shifted, dimmed and under noise."""
    y = torch.arange(2048) % 10
    patterns = functional.interpolate(torch.randn(10, 3, 5, 5), size=(32, 32), mode="bilinear")
    shifts = torch.randint(0, 8, (len(y), 2))
    images = torch.stack(
        [patterns[c].roll(tuple(s), dims=(1, 2)) for c, s in zip(y, shifts.tolist(), strict=True)]
    )
    dimmed = images * (0.5 + torch.rand(len(y), 1, 1, 1))
    return TensorDataset(dimmed + 0.7 * torch.randn_like(images), y)


def _texts() -> TensorDataset:
    """A walk over 256 tokens: each is followed by one of four."""
    follow = torch.randint(0, 256, (256, 4))
    tokens = torch.randint(0, 256, (2048, 1))
    for _ in range(32):
        choice = torch.randint(0, 4, (len(tokens),))
        tokens = torch.cat([tokens, follow[tokens[:, -1], choice][:, None]], dim=1)
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])
