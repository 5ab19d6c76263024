"""Where the probe comes from and when the reference is taken; oracle: weights and rows kept aside.

Whatever the loaders are like, the reference is the network before its first update.
"""

from dataclasses import replace

import pytest
import torch
from integrations.trainings import data, lightning, loader, mlp, module, seed_all, trainer
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ntkwatch import NTKMonitor
from ntkwatch.errors import InputError
from ntkwatch.watch.record.records import TIMINGS
from ntkwatch.watch.store import read_probe

pl = lightning()


class Stream(IterableDataset):
    """The rows of a dataset, one after the other, with no length."""

    def __init__(self, rows) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def _fit(root, watch, batches, *, model=None, validation=None, **settings):
    run = trainer(pl, root, [watch], **settings)
    model = module(pl) if model is None else model
    run.fit(model, batches, validation)
    return run


def _monitor(**settings) -> NTKMonitor:
    return NTKMonitor(**{"every_n_train_steps": 2, "on_error": "raise", **settings})


def _kept(root) -> dict[str, torch.Tensor]:
    tensors = load_file(root / "ntk" / "reference.safetensors")
    return {name.partition(":")[2]: t for name, t in tensors.items() if name.startswith("param:")}


class KeepsWeights(pl.Callback):
    """Copies the weights when training starts, wherever it stands in the list."""

    def on_train_start(self, trainer, pl_module):
        self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_reference_is_the_network_before_its_first_update(tmp_path, place):
    watch, keeps = _monitor(), KeepsWeights()
    callbacks = [keeps, watch] if place == "before" else [watch, keeps]
    model = module(pl)
    trainer(pl, tmp_path, callbacks).fit(model, loader())
    kept = _kept(tmp_path)
    assert all(torch.equal(kept[name], weight) for name, weight in keeps.weights.items())
    assert not torch.equal(kept["net.0.weight"], model.net[0].weight)
    assert watch.history[0].step == watch.history[0].logged_step == 0


def test_the_probe_is_drawn_from_validation_data_where_there_is_some(tmp_path):
    class WithValidation(type(module(pl))):
        def validation_step(self, batch, batch_idx):
            pass

    watch, other = _monitor(probe_size=20), data(30, seed=99)
    model = WithValidation()
    model.net = mlp()
    _fit(tmp_path, watch, loader(), model=model, validation=DataLoader(other, batch_size=10))
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    assert (len(probe), probe.origin) == (20, "validation dataset")
    rows = [row.tolist() for row in other[:][0]]
    assert all(row.tolist() in rows for row in probe.inputs)


def test_the_probe_is_drawn_from_training_data_else(tmp_path):
    watch = _monitor()
    _fit(tmp_path, watch, loader())
    about = watch.history.run.probe
    assert (about["size"], about["origin"]) == (48, "training dataset")
    assert sum(about["classes"].values()) == 48


def test_validation_data_that_is_asked_for_and_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="'val' asks for validation data"):
        _fit(tmp_path, _monitor(probe="val"), loader())


def test_a_drawn_probe_passes_through_the_runs_own_transfer_hooks(tmp_path):
    """Inputs are bytes until the module makes numbers of them on the device."""

    class Casts(type(module(pl))):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y = batch
            return x.float() / 255, y

    x = torch.randint(0, 256, (40, 5), dtype=torch.uint8)
    items = list(zip(x, torch.arange(40) % 3, strict=True))
    watch, model = _monitor(), Casts()
    model.net = mlp()
    _fit(tmp_path, watch, DataLoader(items, batch_size=8), model=model)
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    assert probe.inputs.dtype == torch.float32
    assert 0.5 < probe.inputs.max() <= 1


def _numbers(history):
    """Without times, and without the way between observations, which hangs on where those lie."""
    way = dict.fromkeys(("angular_velocity", "path_length", "path_length_ratio"))
    return [replace(o, **dict.fromkeys(TIMINGS, 0.0), **way) for o in history]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_rows_gathered_from_a_stream_are_read_as_if_they_had_been_there_at_once(
    tmp_path, batch_size
):
    """The weights have moved on by then, and moving averages too: those before are what counts."""

    def run(root, watch, rows):
        seed_all()
        norm = nn.LayerNorm(8) if batch_size == 1 else nn.BatchNorm1d(8)  # one has no statistics
        model = module(pl, mlp(norm, nn.Dropout()))
        _fit(root, watch, DataLoader(rows, batch_size=batch_size), model=model)
        return root / "ntk"

    stream = _monitor(probe_size=16)
    first = run(tmp_path / "stream", stream, Stream(list(data())))
    whole = _monitor(probe=str(first / "probe.safetensors"))
    second = run(tmp_path / "whole", whole, data())
    one, two = (load_file(folder / "reference.safetensors") for folder in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in two)
    gathered = {o.step: o for o in _numbers(stream.history)}
    assert gathered[0] == _numbers(whole.history)[0]
    assert len(gathered) > 2
    for seen in _numbers(whole.history):
        if seen.step in gathered:
            assert gathered[seen.step] == seen
    assert "first" in stream.history.run.probe["origin"]


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
def test_a_stream_that_knows_its_length_is_no_dataset_to_read_from(tmp_path):
    class Counted(Stream):
        def __len__(self):
            return len(self.rows)

    watch = _monitor(probe_size=16)
    _fit(tmp_path, watch, DataLoader(Counted(list(data())), batch_size=8))
    assert watch.history.run.probe["origin"] == "rows of the first 2 training batches"


def test_a_short_epoch_ends_the_gathering(tmp_path):
    """Its rows would only come again."""
    watch = _monitor(probe_size=64)
    _fit(tmp_path, watch, DataLoader(Stream(list(data(12))), batch_size=4), max_epochs=3)
    assert watch.history[0].probe_size == 12
    assert [o.step for o in watch.history] == [0, 4, 6, 8, 9]


def test_texts_padded_batch_by_batch_make_a_probe_of_those_of_one_length(tmp_path):
    x, y = data(40)[:]
    batches = [(x[i : i + 4, : 5 - (i // 4) % 2], y[i : i + 4]) for i in range(0, 40, 4)]

    class Pads(type(module(pl))):
        def forward(self, x):
            return self.net(nn.functional.pad(x, (0, 5 - x.shape[1])))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    watch, model = _monitor(probe_size=10), Pads()
    model.net = mlp()
    _fit(tmp_path, watch, DataLoader(Stream(batches), batch_size=None), model=model)
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    assert probe.inputs.shape == (10, 5)
    assert watch.history[0].step == 0


def test_a_loader_of_ready_batches_is_gathered_from(tmp_path):
    x, y = data(40)[:]
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]
    watch = _monitor(probe_size=16)
    _fit(tmp_path, watch, DataLoader(batches, batch_size=None))
    assert watch.history[0].probe_size == 16
    assert "rows of the first 2 training batches" in watch.history.run.probe["origin"]


def test_a_training_step_that_writes_to_its_batch_does_not_write_to_the_probe(tmp_path):
    class Writes(type(module(pl))):
        def training_step(self, batch, batch_idx):
            batch[0].zero_()
            return super().training_step(batch, batch_idx)

    watch, model = _monitor(probe_size=16), Writes()
    model.net = mlp()
    _fit(tmp_path, watch, DataLoader(Stream(list(data())), batch_size=4), model=model)
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    rows = [row.tolist() for row in data()[:][0]]
    assert all(row.tolist() in rows for row in probe.inputs)


def test_what_is_given_as_probe_is_used_as_it_is(tmp_path):
    x, _ = data(9)[:]
    watch = _monitor(probe=x)
    _fit(tmp_path, watch, loader())
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    assert torch.equal(probe.inputs, x)
    assert probe.targets is None
    assert watch.history[-1].left_out["target_alignment"] == "the probe has no targets"


def test_a_fresh_probe_is_drawn_at_every_observation(tmp_path):
    watch = _monitor(probe_size=16, resample_probe=True)
    _fit(tmp_path, watch, loader(), model=module(pl))
    prints = [seen.probe_fingerprint for seen in watch.history]
    assert len(set(prints)) == len(prints) > 2
    assert watch.history.run.probe["resampled"] is True


def test_a_fresh_probe_takes_a_dataset_to_draw_it_from(tmp_path):
    with pytest.raises(InputError, match=r"resample_probe=True.*no dataset"):
        _fit(tmp_path, _monitor(resample_probe=True), Stream(list(data())), model=module(pl))
    with pytest.raises(InputError, match="names one that is given"):
        NTKMonitor(probe=data()[:], resample_probe=True)
