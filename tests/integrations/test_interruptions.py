"""A training that is cut short, by a person or by the system, leaves whole files behind.

Oracles: the files, read back, and a training cut short at the same place without the monitor.
"""

import json
import os
import signal

import pytest
import torch
from integrations.trainings import differing, lightning, loader, module, remains, seed_all, trainer
from torch import nn

from ntkwatch import NTKMonitor, read_history

pl = lightning()


class Interruptible(nn.Module):
    """Somebody presses a key, or the system asks to end, while it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
        self.happens = None

    def forward(self, x):
        if self.happens is not None and not self.training:
            torch.rand(1)
            self.happens()
        return self.net(x)


def _key():
    raise KeyboardInterrupt


def _terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class At(pl.Callback):
    """Lets it happen at one step: in training itself, or while the monitor looks."""

    def __init__(self, happens, step, *, looking) -> None:
        self.happens, self.step, self.looking = happens, step, looking

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            if self.looking:
                pl_module.net.happens = self.happens
            else:
                self.happens()
        else:
            pl_module.net.happens = None


def _cut_short(root, callbacks):
    seed_all()
    model = module(pl, Interruptible())
    run = trainer(pl, root, callbacks, max_epochs=2)
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit):
            run.fit(model, loader())
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    return remains(model, run)


@pytest.mark.parametrize("happens", [_key, _terminate])
@pytest.mark.parametrize("looking", [False, True], ids=["in training", "while looking"])
def test_it_ends_cleanly_with_whole_files_and_leaves_the_model_as_it_was(
    tmp_path, happens, looking
):
    watch = NTKMonitor(every_n_train_steps=1, probe_size=40)
    watched = _cut_short(tmp_path / "watched", [At(happens, 5, looking=looking), watch])
    # A key ends whatever runs at once; the system's request is obeyed at the end of the batch.
    last = 5 if happens is _terminate else 4
    history = read_history(tmp_path / "watched" / "ntk")
    assert [o.step for o in history] == list(range(last + 1))
    assert history.problems == ()
    assert history.gaps == []
    folder = tmp_path / "watched" / "ntk"
    assert json.loads((folder / "verdict.json").read_text())["step"] == last
    assert (folder / "report.html").read_text().rstrip().endswith("</html>")
    assert [path.name for path in folder.rglob(".*")] == [], "a temporary file is left"
    alone = _cut_short(tmp_path / "alone", [At(happens, 5, looking=False)])
    assert differing(watched, alone) == []
