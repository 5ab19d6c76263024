"""A plain Lightning training that knows nothing of ntkwatch, and what it leaves behind."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


class Net(pl.LightningModule):
    def __init__(self, width: int = 16, rate: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["rate"])


class Data(pl.LightningDataModule):
    def setup(self, stage: str) -> None:
        x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        self.rows = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=16)


def inner(width: int = 12) -> nn.Module:
    """The network that ``Net`` wraps, for those who have no LightningModule any more."""
    return Net(width=width).net


class Live(pl.Callback):
    """Copies of the live weights at every step: what the checkpoints ought to hold."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, model: pl.LightningModule, *_: object):
        self.states[trainer.global_step] = {k: v.clone() for k, v in model.state_dict().items()}


def train(folder: Path, *callbacks: pl.Callback, epochs: int = 6, every: int = 9) -> Net:
    """Train for 6 steps an epoch, keeping a checkpoint of step 0 and of every 9th step."""
    pl.seed_everything(1, verbose=False)
    model = Net(width=12)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keep = ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[keep, *callbacks],
        default_root_dir=folder.parent,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=epochs,
    )
    trainer.fit(model, datamodule=Data())
    torch.save(start, folder / "step=0.pt")  # Lightning warns of a folder that is not empty
    return model
