"""A compiled model trains on compiled while it is watched; oracle: a backend that counts.

It counts the graphs that are made (a second one is a recompilation) and how often they run.
"""

import pytest
import torch
from integrations.trainings import differing, lightning, loader, seed_all, trainer
from jacobian.models import Counter
from torch import nn
from torch.nn import functional

from ntkwatch import NTKMonitor

pl = lightning()


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _classes():
    """Classes of its own for each test: what torch.compile learns, it keeps by code object."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
            self.drop, self.last = nn.Dropout(), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))

    class Lit(pl.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net, self.curve = net, []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self(batch[0]), batch[1])

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.curve.append(outputs["loss"].item())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Net, Lit


def _whole(counter):
    Net, Lit = _classes()
    return torch.compile(Lit(Net()), backend=counter)


def _in_place(counter):
    Net, Lit = _classes()
    model = Lit(Net())
    model.compile(backend=counter)
    return model


def _inside(counter):
    Net, Lit = _classes()
    return Lit(torch.compile(Net(), backend=counter))


def _inside_in_place(counter):
    Net, Lit = _classes()
    model = Lit(Net())
    model.net.compile(backend=counter)
    return model


def _trained(make, root, callbacks):
    torch.compiler.reset()
    seed_all()
    counter = Counter()
    model = make(counter)
    seed_all()
    ended = trainer(pl, root, callbacks, max_epochs=2, limit_train_batches=4)
    ended.fit(model, loader())
    plain = getattr(model, "_orig_mod", model)
    left = {"curve": plain.curve, "state": dict(plain.state_dict())}
    left["optimizer"] = ended.optimizers[0].state_dict()
    return left, counter


@pytest.mark.parametrize("make", [_whole, _in_place, _inside, _inside_in_place])
def test_a_watched_training_stays_compiled_and_compiles_nothing_anew(tmp_path, make):
    watch = NTKMonitor(
        every_n_train_steps=1, probe_size=32, metrics="full", on_error="raise", max_overhead=1.0
    )
    watched, counted = _trained(make, tmp_path / "watched", [watch])
    alone, expected = _trained(make, tmp_path / "alone", [])
    assert [o.step for o in watch.history] == list(range(9))
    assert expected.runs >= 8, "else nothing was compiled and nothing is shown"
    assert (counted.runs, counted.graphs) == (expected.runs, expected.graphs)
    assert differing(watched, alone) == []


@pytest.mark.parametrize("make", [_whole, _inside])
def test_names_are_those_of_the_plain_model(tmp_path, make):
    watch = NTKMonitor(every_n_train_steps=4, probe_size=32, on_error="raise")
    _trained(make, tmp_path, [watch])
    layers = ["net.first", "net.norm", "net.last"]
    assert list(watch.history[-1].layer_angle) == layers
    assert list(watch.history[-1].layer_displacement) == layers
    assert watch.history.run.spec["params"][0] == "net.first.weight"
    assert "_orig_mod" not in (tmp_path / "ntk" / "history.jsonl").read_text()
