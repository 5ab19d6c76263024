"""Observations come at the steps that they are due at, however Lightning counts; oracle: counting.

The monitor must neither skip a step nor see one twice, and must not stir where nothing is trained.
"""

import sys

import pytest
import torch
from integrations.trainings import data, lightning, loader, mlp, module, trainer
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from ntkwatch import NTKMonitor, Verdict, read_history
from ntkwatch.integrations.dashboard.tensorboard import SCALARS

pl = lightning()


def _steps(tmp_path, *, every=1, model=None, batches=None, watch=None, **settings):
    """The steps that a run of twelve batches in two epochs is observed at."""
    watch = watch or NTKMonitor(every_n_train_steps=every, probe_size=32, on_error="raise")
    run = trainer(pl, tmp_path, [watch], **{"max_epochs": 2, **settings})
    run.fit(module(pl) if model is None else model, loader() if batches is None else batches)
    assert [o.step for o in read_history(tmp_path)] == [o.step for o in watch.history]
    return [o.step for o in watch.history]


@pytest.mark.parametrize(
    ("settings", "every", "expected"),
    [
        ({}, 5, [0, 5, 10, 12]),
        ({"max_steps": 7}, 3, [0, 3, 6, 7]),
        ({"max_steps": 6}, 3, [0, 3, 6]),
        ({"max_epochs": -1, "max_steps": 14}, 6, [0, 6, 12, 14]),
        ({"limit_train_batches": 2}, 1, [0, 1, 2, 3, 4]),
        ({"limit_train_batches": 0.5}, 2, [0, 2, 4, 6]),
        ({"overfit_batches": 2}, 1, [0, 1, 2, 3, 4]),
        ({"accumulate_grad_batches": 4}, 1, [0, 1, 2, 3, 4]),
        ({"accumulate_grad_batches": 4}, 3, [0, 3, 4]),
        ({"accumulate_grad_batches": 4, "max_steps": 3}, 2, [0, 2, 3]),
        ({"accumulate_grad_batches": 100}, 1, [0, 1, 2]),
        ({"reload_dataloaders_every_n_epochs": 1}, 4, [0, 4, 8, 12]),
        ({"min_epochs": 3, "max_epochs": 3}, 9, [0, 9, 18]),
    ],
    ids=str,
)
def test_every_count_of_lightnings(tmp_path, settings, every, expected):
    assert _steps(tmp_path, every=every, **settings) == expected


@pytest.mark.parametrize(
    ("every", "expected"), [(3, [0, 4, 6, 10, 12]), (5, [0, 6, 10, 12]), (7, [0, 8, 12])]
)
def test_several_optimizers_move_the_count_by_more_than_one(tmp_path, every, expected):
    """A step that is due and passed over is made up for at the next batch."""

    class Manual(type(module(pl))):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(functional.cross_entropy(self.net(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 2)]

    model = Manual()
    model.net, model.automatic_optimization = mlp(), False
    assert _steps(tmp_path, every=every, model=model, max_epochs=1) == expected


def test_a_stream_of_unknown_length_is_observed_on_the_default_schedule(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from data()

    watch = NTKMonitor(max_overhead=1.0, probe_size=8, on_error="raise")
    found = _steps(tmp_path, watch=watch, batches=DataLoader(Stream(), batch_size=8))
    assert found == [0, 1, 2, 3, 4, 5, 7, 9, 12], "each gap at most a quarter of the steps so far"


def test_nothing_is_seen_where_nothing_is_trained(tmp_path):
    watch = NTKMonitor(every_n_train_steps=1, on_error="raise")
    trainer(pl, tmp_path, [watch], limit_train_batches=0).fit(module(pl), loader())
    assert len(watch.history) == 0
    assert list(tmp_path.iterdir()) == []


def test_sanity_checks_and_validation_are_not_observed(tmp_path):
    """Both run the model, with the hooks of every callback around it."""
    looked = []

    class Looks(pl.Callback):
        def on_sanity_check_end(self, trainer, *_):
            looked.append(("sanity", len(watch.history)))

        def on_validation_end(self, trainer, *_):
            looked.append((trainer.sanity_checking, len(watch.history)))

    model = module(pl)
    model.validation_step = lambda batch, batch_idx: None
    model.val_dataloader = lambda: loader(n=40)
    watch = NTKMonitor(every_n_train_steps=2, probe_size=32, on_error="raise")
    run = trainer(
        pl, tmp_path, [watch, Looks()], num_sanity_val_steps=2, val_check_interval=3, max_epochs=1
    )
    run.fit(model, loader())
    assert looked == [(True, 0), ("sanity", 0), (False, 2), (False, 4)]
    assert [o.step for o in watch.history] == [0, 2, 4, 6]


def test_one_monitor_serves_fits_that_end_in_every_way(tmp_path):
    """A run that fails, one that is watched in vain, and then one as if nothing had been."""

    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                raise RuntimeError("enough")

    watch = NTKMonitor(every_n_train_steps=1, probe_size=32)
    with pytest.raises(RuntimeError, match="enough"):
        trainer(pl, tmp_path / "a", [watch, Stops()]).fit(module(pl), loader())
    assert [o.step for o in watch.history] == [0, 1, 2, 3]
    broken = module(pl, torch.nn.LSTM(5, 3))  # its outputs are a tuple, and its loss fails
    broken.training_step = lambda batch, batch_idx: broken.net(batch[0])[0].sum()
    trainer(pl, tmp_path / "b", [watch]).fit(broken, loader())
    trainer(pl, tmp_path / "c", [watch]).fit(module(pl), loader())
    assert [o.step for o in watch.history] == list(range(7))
    assert not watch._run.stood_down
    assert [o.step for o in read_history(tmp_path / "a")] == [0, 1, 2, 3]
    assert [o.step for o in read_history(tmp_path / "c")] == list(range(7))


def test_two_monitors_keep_to_their_own_schedules_and_tags(tmp_path):
    every, some = (
        NTKMonitor(every_n_train_steps=n, name=name, probe_size=32, on_error="raise")
        for n, name in ((1, "often"), (5, "seldom"))
    )
    run = trainer(pl, tmp_path, [every, some])
    run.fit(module(pl), loader())
    assert [o.step for o in every.history] == list(range(7))
    assert [o.step for o in some.history] == [0, 5, 6]
    assert every.history[-1].kernel_angle == some.history[-1].kernel_angle
    tags = {tag.split("/")[0] for tag in run.callback_metrics if "/" in tag}
    assert tags == {"often", "seldom"}


@pytest.mark.parametrize(
    ("every", "at_ends"), [(1, [6, 12, 18]), (5, [5, 10, 15]), (100, [0, 0, 0])]
)
def test_a_tag_can_be_watched_between_observations_too(tmp_path, every, at_ends):
    """EarlyStopping and ModelCheckpoint read it at the end of every epoch, observed or not."""

    class Reads(pl.Callback):
        def on_train_epoch_end(self, trainer, *_):
            read.append(float(trainer.callback_metrics[tag]))

    read, tag = [], "ntk/relative_displacement"
    watch = NTKMonitor(every_n_train_steps=every, probe_size=32, on_error="raise")
    stop = pl.callbacks.EarlyStopping(tag, mode="max", patience=99, check_on_train_epoch_end=True)
    keep = pl.callbacks.ModelCheckpoint(
        tmp_path / "kept", monitor=tag, mode="max", save_on_train_epoch_end=True
    )
    callbacks = [watch, stop, keep, Reads()]
    run = trainer(pl, tmp_path, callbacks, max_epochs=3, enable_checkpointing=True)
    run.fit(module(pl), loader())
    seen = {o.step: o.relative_displacement for o in watch.history}
    assert read == pytest.approx([seen[step] for step in at_ends])
    assert float(keep.best_model_score) == float(stop.best_score) == pytest.approx(max(read))


@pytest.mark.parametrize(
    "tag", [*(tag for tag in SCALARS if tag != "edge_of_stability"), "strength"]
)
def test_every_tag_can_be_monitored_from_the_reference_on(tmp_path, tag):
    """At the end of the first epoch nothing but the reference was observed."""
    watch = NTKMonitor(every_n_train_steps=10, probe_size=32, metrics="full", on_error="raise")
    monitored = f"ntk/{tag}"
    stop = pl.callbacks.EarlyStopping(
        monitored, mode="max", patience=99, check_on_train_epoch_end=True
    )
    keep = pl.callbacks.ModelCheckpoint(
        tmp_path / "kept", monitor=monitored, mode="max", save_on_train_epoch_end=True
    )
    run = trainer(pl, tmp_path, [watch, stop, keep], max_epochs=3, enable_checkpointing=True)
    run.fit(module(pl), loader())
    assert [o.step for o in watch.history] == [0, 10, 18]
    assert keep.best_model_score is not None


CALLED: list[Verdict] = []


def take(verdict: Verdict) -> None:
    CALLED.append(verdict)


@pytest.mark.parametrize("given", ["callable", "dotted path", "path with a colon"])
def test_on_verdict_may_be_a_function_or_its_path(tmp_path, monkeypatch, given):
    monkeypatch.setitem(sys.modules, "told_of_verdicts", sys.modules[__name__])
    CALLED.clear()
    names = {"dotted path": "told_of_verdicts.take", "path with a colon": "told_of_verdicts:take"}
    watch = NTKMonitor(
        every_n_train_steps=1,
        probe_size=40,
        on_verdict=names.get(given, take),
        on_error="raise",
    )
    model = module(pl, torch.nn.Linear(5, 3))
    trainer(pl, tmp_path, [watch], max_epochs=2).fit(model, loader())
    assert [verdict.strength for verdict in CALLED] == ["static"]
