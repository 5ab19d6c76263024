"""A watched training ends as it would have ended; oracle: the same training without the monitor.

Compared to the last bit: weights, buffers, gradients, optimizer state, losses, modes and random
streams. The monitor observes every step and measures all that it can.
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
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from versions import needs

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


def _stream():
    """Its items come once, drawn from the global streams as they come."""

    class Stream(IterableDataset):
        def __iter__(self):
            for x, y in data():
                yield x + 0.1 * torch.randn(5) + 0.1 * random.random(), y

    return module(pl, mlp(nn.Dropout())), DataLoader(Stream(), batch_size=8), {"max_epochs": 2}


def _checkpointed(reentrant):
    class Block(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    def make():
        torch.manual_seed(0)
        block = Block(nn.Linear(8, 8), nn.Tanh(), nn.Dropout())
        return module(pl, mlp(block)), loader(), {}

    return make


def _recurrent():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 6, num_layers=2, dropout=0.3, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.lstm(x.unflatten(0, (-1, 1)))[0][:, -1])

    torch.manual_seed(0)
    return module(pl, Net()), loader(24), {}


class Whimsical(nn.Module):
    """Draws from every stream whenever it runs, and keeps what it drew and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = mlp(nn.BatchNorm1d(8)), nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.own = np.random.default_rng(3)
        self.drawn, self.fails = [], False

    def forward(self, x):
        self.calls += 1
        self.drawn.append(random.random() + np.random.rand() + float(torch.rand(())))
        self.drawn[-1] += self.own.random()
        x = self.net(x)
        if self.fails and not self.training:
            raise RuntimeError("half way")
        scale = 1 + 0.1 * self.drawn[-1] if self.training else 1.0
        return self.last(x * scale)


class Mixup:
    """A collator with a generator of its own, as are many that augment."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(5)

    def __call__(self, items):
        x, y = default_collate(items)
        return x * (1 + 0.1 * float(self.own.random())), y


def _collator_that_draws():
    batches = DataLoader(data(), batch_size=8, collate_fn=Mixup())
    return module(pl), batches, {"max_epochs": 2}


def _augmented_on_the_way():
    """A hook of the module changes every batch, with a generator that it keeps, and counts."""
    model = module(pl)
    model.own, model.count = np.random.default_rng(6), 0

    def augment(batch, dataloader_idx):
        model.count += 1
        return [batch[0] + 0.1 * model.count * float(model.own.random()), batch[1]]

    model.on_after_batch_transfer = augment
    return model, loader(), {"max_epochs": 2}


def _whimsical():
    torch.manual_seed(0)
    return module(pl, Whimsical()), loader(), {}


def _averaged():
    return module(pl, mlp(nn.BatchNorm1d(8))), loader(), {"max_epochs": 2}


def _accelerated():
    """Two groups of parameters, a schedule of rates and clipping, as in many a recipe."""

    def groups(parameters):
        found = list(parameters)
        return torch.optim.Adam(
            [{"params": found[:2], "lr": 1e-3}, {"params": found[2:]}], lr=1e-2, amsgrad=True
        )

    settings = {"max_epochs": 2, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    return module(pl, optimizer=groups), loader(shuffle=True), settings


# What is trained, and the steps that are observed.
CASES = {
    "plain": (_plain, range(13)),
    "dropout and batchnorm": (_dropout_and_batchnorm, range(13)),
    "accumulation": (_accumulation, range(5)),
    "shuffled, with workers": (_shuffled_with_workers, range(13)),
    "random items": (_random_items, range(13)),
    "a stream": (_stream, [0, *range(4, 13)]),  # four batches make a probe
    "adam, clipped": (_adam_and_lists, range(7)),
    "adam in groups, clipped by value": (_accelerated, range(13)),
    "frozen backbone": (_frozen_backbone, range(7)),
    "bfloat16 autocast": (_half_precision("bf16-mixed"), range(7)),
    "bfloat16 weights": (_half_precision("bf16-true"), range(7)),
    "validation in mid-epoch": (_validation, range(13)),
    "two optimizers by hand": (_two_optimizers, range(0, 25, 2)),
    "activation checkpointing": (_checkpointed(False), range(7)),
    "reentrant checkpointing": (_checkpointed(True), range(7)),
    "lstm": (_recurrent, range(4)),
    "a collator that draws": (_collator_that_draws, range(13)),
    "augmented on the way": (_augmented_on_the_way, range(13)),
    "draws from every stream": (_whimsical, range(7)),
}


def _ended(case, root, callbacks):
    seed_all()
    model, batches, settings = case()
    ended = trainer(pl, root, callbacks, **settings)
    ended.fit(model, batches)
    return remains(model, ended)


def _watch(**settings):
    chosen = {"every_n_train_steps": 1, "probe_size": 32, "metrics": "full", "on_error": "raise"}
    return NTKMonitor(**{**chosen, **settings})


@pytest.mark.parametrize("case", CASES)
def test_a_watched_training_ends_in_the_same_state_bit_for_bit(tmp_path, case):
    make, steps = CASES[case]
    watch = _watch()
    watched = _ended(make, tmp_path / "watched", [watch])
    alone = _ended(make, tmp_path / "alone", [])
    assert [o.step for o in watch.history] == list(steps), "an observation is missing"
    assert differing(watched, alone) == []


@needs("pytorch_lightning", "2.6")
@pytest.mark.parametrize("where", ["before", "after"])
def test_averaged_weights_are_the_same_wherever_we_stand_in_the_list(tmp_path, where):
    """Lightning's average swaps weights in for validation and at the end of training."""

    def averages():
        decay = torch.optim.swa_utils.get_ema_avg_fn(0.7)
        return pl.callbacks.WeightAveraging(avg_fn=decay)

    def ended(root, watch):
        average = averages()
        callbacks = [average, *watch] if where == "before" else [*watch, average]
        left = _ended(_averaged, root, callbacks)
        return left, average._average_model

    watch = _watch()
    watched, kept = ended(tmp_path / "watched", [watch])
    alone, _ = ended(tmp_path / "alone", [])
    raw = _ended(_averaged, tmp_path / "raw", [])
    assert [o.step for o in watch.history] == list(range(13))
    assert differing(watched, alone) == []
    assert differing(alone["state"], raw["state"]) != [], "else nothing was averaged"
    assert kept is None or kept.n_averaged > 0


def test_a_forward_that_fails_half_way_during_observations_leaves_no_trace(tmp_path):
    class Breaks(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.net.fails = trainer.global_step in (2, 4)

    watch = _watch(on_error="warn")
    with pytest.warns(UserWarning, match="half way"):
        watched = _ended(_whimsical, tmp_path / "watched", [Breaks(), watch])
    alone = _ended(_whimsical, tmp_path / "alone", [Breaks()])
    assert [gap.step for gap in watch.history.gaps] == [3, 5]
    assert [o.step for o in watch.history] == [0, 1, 2, 4, 6]
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


class Meddles(pl.Callback):
    """Touches one thing in the middle of training, as a careless monitor would."""

    def __init__(self, how):
        self.how = how

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 3:
            self.how(pl_module, trainer)


CARELESS = {
    "a number drawn": lambda model, trainer: torch.rand(1),
    "a mode left changed": lambda model, trainer: model.net[2].eval(),
    "a buffer moved": lambda model, trainer: model.net[1].running_mean.add_(1e-7),
    "weights off in their last place": lambda model, trainer: model.net[0].weight.data.mul_(
        1 + 2**-23
    ),
    "a gradient left over": lambda model, trainer: model.net[0].weight.register_hook(
        lambda gradient: gradient + 1e-7
    ),
    "a pass in training mode": lambda model, trainer: model.net(torch.zeros(2, 5)),
    "a momentum written to": lambda model, trainer: next(
        iter(trainer.optimizers[0].state.values())
    )["momentum_buffer"].mul_(1 + 2**-20),
    "a batch taken from the loader": lambda model, trainer: next(iter(trainer.train_dataloader)),
}


@pytest.mark.parametrize("what", CARELESS)
def test_the_comparison_would_show_what_a_careless_monitor_does(tmp_path, what):
    def make():
        return module(pl, mlp(nn.BatchNorm1d(8), nn.Dropout())), loader(shuffle=True), {}

    touched = _ended(make, tmp_path / "touched", [Meddles(CARELESS[what])])
    assert differing(touched, _ended(make, tmp_path / "alone", [])) != []
