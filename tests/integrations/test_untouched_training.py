"""A watched training ends as it would have ended; oracle: the same training without the monitor.

Compared to the last bit: weights, buffers, optimizer state, losses, modes and random streams.
"""

import random

import numpy as np
import pytest
import torch
from integrations.trainings import (
    data,
    differing,
    lightning,
    loader,
    mlp,
    module,
    remains,
    seed_all,
    streams,
    trainer,
)
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ntkwatch import NTKMonitor

pl = lightning()


class Touchy(Dataset):
    """Every item draws from every random stream, as augmentations do, and from its own."""

    def __init__(self) -> None:
        self.items = data()
        self.own = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        x, y = self.items[index]
        noise = random.random() + np.random.rand() + self.own.random()
        return x + 0.1 * torch.randn(5) + 0.1 * noise, y


def _plain():
    return module(pl), loader(), {"max_epochs": 2}


def _dropout_and_batchnorm():
    return module(pl, mlp(nn.BatchNorm1d(8), nn.Dropout())), loader(), {"max_epochs": 2}


def _accumulation():
    return module(pl), loader(), {"max_epochs": 2, "accumulate_grad_batches": 4}


def _shuffled_with_workers():
    return module(pl, mlp(nn.Dropout())), loader(shuffle=True, num_workers=2), {"max_epochs": 2}


def _random_items():
    return module(pl), DataLoader(Touchy(), batch_size=8, shuffle=True), {"max_epochs": 2}


def _adam_and_lists():
    adam = lambda parameters: torch.optim.AdamW(parameters, lr=0.01)  # noqa: E731
    return module(pl, optimizer=adam), loader(), {"gradient_clip_val": 0.5}


def _frozen_backbone():
    """Its BatchNorm stays in evaluation mode while the rest trains."""
    backbone = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh()).requires_grad_(False)

    class Backbone(nn.Sequential):
        def train(self, mode: bool = True):
            super().train(mode)
            self[0].eval()
            return self

    return module(pl, Backbone(backbone, nn.Dropout(), nn.Linear(8, 3))), loader(), {}


def _half_precision(kind):
    def make():
        return module(pl, mlp(nn.LayerNorm(8))), loader(), {"precision": kind}

    return make


def _validation():
    """Validation data are read, shuffled and with random items, between and after the epochs."""
    model = module(pl, mlp(nn.Dropout()))
    model.validation_step = lambda batch, batch_idx: model.log("seen", model.net(batch[0]).sum())
    model.val_dataloader = lambda: DataLoader(Touchy(), batch_size=8)
    settings = {"max_epochs": 2, "num_sanity_val_steps": 2, "val_check_interval": 0.5}
    return model, loader(shuffle=True), settings


def _two_optimizers():
    class Manual(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.first, self.second = mlp(nn.Dropout()), nn.Linear(3, 3)
            self.curve = []

        def forward(self, x):
            return self.second(self.first(x))

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = functional.cross_entropy(self(batch[0]), batch[1])
                self.manual_backward(loss)
                optimizer.step()
                self.curve.append(loss.item())

        def configure_optimizers(self):
            return [
                torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.first, self.second)
            ]

    torch.manual_seed(0)
    return Manual(), loader(), {"max_epochs": 2}


CASES = {
    "plain": (_plain, [0, 3, 6, 9, 12]),
    "dropout and batchnorm": (_dropout_and_batchnorm, [0, 3, 6, 9, 12]),
    "accumulation": (_accumulation, [0, 3, 4]),
    "shuffled, with workers": (_shuffled_with_workers, [0, 3, 6, 9, 12]),
    "random items": (_random_items, [0, 3, 6, 9, 12]),
    "adam, clipped": (_adam_and_lists, [0, 3, 6]),
    "frozen backbone": (_frozen_backbone, [0, 3, 6]),
    "bfloat16 autocast": (_half_precision("bf16-mixed"), [0, 3, 6]),
    "bfloat16 weights": (_half_precision("bf16-true"), [0, 3, 6]),
    "validation": (_validation, [0, 3, 6, 9, 12]),
    "two optimizers by hand": (_two_optimizers, [0, 4, 6, 10, 12, 16, 18, 22, 24]),
}


def _ended(case, root, callbacks):
    seed_all()
    model, batches, settings = case()
    ended = trainer(pl, root, callbacks, **settings)
    ended.fit(model, batches)
    return remains(model, ended)


@pytest.mark.parametrize("case", CASES)
def test_a_watched_training_ends_in_the_same_state_bit_for_bit(tmp_path, case):
    make, steps = CASES[case]
    watch = NTKMonitor(every_n_train_steps=3, probe_size=32, on_error="raise")
    watched = _ended(make, tmp_path / "watched", [watch])
    alone = _ended(make, tmp_path / "alone", [])
    assert [o.step for o in watch.history] == steps, "an observation is missing or came twice"
    assert differing(watched, alone) == []


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_the_comparison_would_show_one_number_drawn(draw):
    seed_all()
    before = streams()
    assert differing(before, streams()) == []
    draw()
    assert len(differing(before, streams())) > 0


def test_the_comparison_would_show_one_weight_off_in_its_last_place():
    before = mlp().state_dict()
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["0.bias"][0] *= 1 + 2**-23
    assert differing(before, after) == ["/0.bias"]
