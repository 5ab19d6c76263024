"""``ntkwatch demo``: one small CNN on real digits, trained lazily and with feature learning.

Both trainings use the same architecture, data, initial weights and learning rate rule. What makes
one of them lazy is the scale of its output, centred at its initial output (Chizat, Oyallon and
Bach 2019, arXiv:1812.07956): ``F = alpha (f - f_0)``, learning rate divided by ``alpha^2``.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ntkwatch.errors import InputError, MissingExtraError
from ntkwatch.integrations.lightning import NTKMonitor
from ntkwatch.report.html import render_comparison_html
from ntkwatch.report.picture import save_comparison_png
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["run_demo"]

# What the two trainings differ in: the output scale alpha.
_RUNS = {"lazy": 300.0, "feature-learning": 1.0}
_LEARNING_RATE = 0.02  # half of what the sharpest of a few initial networks can bear
_EPOCHS = 20
_BATCH = 64
_TEST = 360  # of 1,797 digits
_ENOUGH = 0.9  # test accuracy below which the page says that a run fell short


class ScaledCNN(pl.LightningModule):
    """A small CNN whose output is centred at its start and multiplied by ``alpha``.

    Args:
        alpha: Output scale: large means lazy.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
        for layer in self.net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        for name, parameter in self.net.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.start = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``alpha (f(x) - f_0(x))`` for each of the ten digits."""
        return self.alpha * (self.net(x) - self.start(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return half the squared error against one-hot targets."""
        images, labels = batch
        wanted = functional.one_hot(labels, 10).float()
        loss = 0.5 * (self(images) - wanted).square().sum(dim=1).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the share of test digits that are recognised."""
        images, labels = batch
        self.log("test/accuracy", (self(images).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum, its rate divided by ``alpha^2``."""
        rate = _LEARNING_RATE / self.alpha**2
        return torch.optim.SGD(self.net.parameters(), lr=rate, momentum=0.9)


class _Progress(pl.Callback):
    """One line every few epochs: readable in a terminal and in a log."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % 4 == 0 or epoch == 1:
            seen = trainer.callback_metrics
            loss, accuracy = float(seen["train/loss"]), float(seen["test/accuracy"])
            click.echo(
                f"  {self.name:<17} epoch {epoch:2d}/{_EPOCHS}   training loss {loss:.3f}   "
                f"test accuracy {accuracy:.1%}"
            )


def run_demo(out: Path | None = None, *, seed: int = 0) -> dict[str, Verdict]:
    """Train both networks under the monitor, write dashboard and report, say where they are.

    Args:
        out: New folder for the results; default ``ntkwatch-demo`` with a free number.
        seed: Of the weights and the order of batches.

    Returns:
        The verdict of each run by name.

    Raises:
        InputError: If the folder is taken, or a run could not be observed.
    """
    train, test = _load_digits()
    folder = _new_folder(out)
    click.echo(f"Training one small CNN on scikit-learn's digits, twice, into {folder}/")
    runs: list[tuple[str, History, Verdict]] = []
    facts: dict[str, dict[str, str]] = {}
    for name, alpha in _RUNS.items():
        monitor, accuracy = _train(name, alpha, train, test, folder, seed)
        if monitor.verdict is None:
            raise InputError(f"the {name} run was not observed, so there is nothing to compare.")
        runs.append((name, monitor.history, monitor.verdict))
        facts[name] = {"test accuracy": _said(accuracy), "output scale": f"{alpha:g}"}
    page, picture = folder / "comparison.html", folder / "comparison.png"
    title = "One CNN on digits, lazy and feature-learning"
    page.write_text(render_comparison_html(runs, title=title, facts=facts), encoding="utf-8")
    save_comparison_png(runs, picture)
    _summarise(runs, facts, folder)
    return {name: verdict for name, _, verdict in runs}


def _train(
    name: str,
    alpha: float,
    train: TensorDataset,
    test: TensorDataset,
    folder: Path,
    seed: int,
) -> tuple[NTKMonitor, float]:
    # Every step of this short run may be observed: it is a demonstration of the monitor.
    monitor = NTKMonitor(max_overhead=1.0)
    with _quiet_lightning():
        pl.seed_everything(seed, verbose=False)
        model = ScaledCNN(alpha)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=_EPOCHS,
            callbacks=[monitor, _Progress(name)],
            logger=TensorBoardLogger(folder, name=name, version=""),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            model,
            DataLoader(train, batch_size=_BATCH, shuffle=True),
            DataLoader(test, batch_size=len(test)),
        )
    return monitor, float(trainer.callback_metrics["test/accuracy"])


def _load_digits() -> tuple[TensorDataset, TensorDataset]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the demo trains on scikit-learn's digits, and scikit-learn is not installed. Install "
            "it with: pip install 'ntkwatch[demo]'"
        ) from error
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:-_TEST], order[-_TEST:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def _new_folder(out: Path | None) -> Path:
    """A folder that is not there yet, or is empty: an existing run is never overwritten."""
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                f"{out} exists and is not empty, and a run is never overwritten. Give --out a new "
                "folder."
            )
        out.mkdir(parents=True, exist_ok=True)
        return out
    number = 1
    while (folder := Path("ntkwatch-demo" if number == 1 else f"ntkwatch-demo-{number}")).exists():
        number += 1
    folder.mkdir()
    return folder


def _said(accuracy: float) -> str:
    short = "" if accuracy >= _ENOUGH else f" (fell short of {_ENOUGH:.0%})"
    return f"{accuracy:.1%}{short}"


def _summarise(
    runs: list[tuple[str, History, Verdict]], facts: dict[str, dict[str, str]], folder: Path
) -> None:
    click.echo("\nMade to be           Verdict            Lin. error   Layer angle   Test accuracy")
    for name, history, verdict in runs:
        last = history[-1]
        error, angle = last.linearization_error, last.layer_angle_median
        click.echo(
            f"{name:<20} {verdict.label:<18} {_short(error):>10}   {_short(angle):>7} rad   "
            f"{facts[name]['test accuracy']:>13}"
        )
    click.echo(
        f"\nCompare them in a browser:   {folder / 'comparison.html'}\n"
        f"Read one in the terminal:    ntkwatch report {folder / 'lazy'}\n"
        f"Open the dashboard:          tensorboard --logdir {folder}   (set Smoothing to 0)"
    )


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's hints on hardware, workers and products are beside the point of a demo."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    loggers.append(logging.getLogger("lightning_utilities"))
    before: list[tuple[logging.Logger, Any]] = [(logger, logger.level) for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in before:
                logger.setLevel(level)
