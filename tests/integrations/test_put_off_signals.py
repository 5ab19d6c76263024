"""A signal in the middle of a measurement; oracles: what its handler finds, and the exit.

Real signals, sent to this process from within a forward pass that is being measured.
"""

import signal

import pytest
import torch
from integrations.trainings import differing, lightning, loader, module, remains, seed_all, trainer
from torch import nn

from ntkwatch import NTKMonitor
from ntkwatch.integrations.run.held_signals import HeldSignals

pl = lightning()
SENT = []  # no attribute of the model: those are put back after a call that measures


class Sends(nn.Module):
    """Sends a signal to its own process while it is measured at step 3."""

    step = 0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        if not self.training and type(self).step == 3:
            SENT.append(1)
            signal.raise_signal(signal.SIGUSR1)
        return self.net(x)


class Keeps(pl.Callback):
    """The live weights after each step."""

    def __init__(self) -> None:
        self.weights = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        Sends.step = trainer.global_step
        self.weights[trainer.global_step] = pl_module.net.net[0].weight.detach().clone()


@pytest.fixture
def handled():
    """Set a handler for the signal, and put the one before back."""
    SENT.clear()
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)
    Sends.step = 0


def _fit(root, callbacks):
    seed_all()
    torch.manual_seed(0)
    model = module(pl, Sends())
    run = trainer(pl, root, callbacks)
    try:
        run.fit(model, loader())
    finally:
        Sends.step = 0
    return model, run


def test_a_handler_finds_the_weights_that_are_trained_and_is_called_once(tmp_path, handled):
    """Lightning's handler on SLURM saves a checkpoint, which a job that is queued again reads."""
    keeps, found, holder = Keeps(), [], []

    class Holds(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            holder.append(pl_module)

    handled(lambda *_: found.append(holder[0].state_dict()["net.net.0.weight"].clone()))
    watch = NTKMonitor(every_n_train_steps=1, on_error="raise", metrics="full")
    model, run = _fit(tmp_path / "watched", [Holds(), keeps, watch])
    assert len(SENT) > 1, "several were sent during one observation"
    assert len(found) == 1
    assert torch.equal(found[0], keeps.weights[3])
    assert [seen.step for seen in watch.history] == list(range(7))
    watched = remains(model, run)
    assert differing(watched, remains(*_fit(tmp_path / "alone", [Holds(), Keeps()]))) == []


def test_an_exception_of_a_handler_ends_the_training_and_not_the_watching(tmp_path, handled):
    class PreemptedError(Exception):
        pass

    def leave(*_):
        raise PreemptedError

    handled(leave)
    watch = NTKMonitor(every_n_train_steps=1)
    with pytest.raises(PreemptedError):
        _fit(tmp_path, [Keeps(), watch])
    assert [seen.step for seen in watch.history] == [0, 1, 2, 3]
    assert list(watch.history.gaps) == []
    assert signal.getsignal(signal.SIGUSR1) is leave


def test_handlers_are_the_same_afterwards_and_interrupts_are_never_put_off():
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    held = HeldSignals()
    held.hold()
    for number in (signal.SIGINT, signal.SIGTERM):
        assert signal.getsignal(number) == before[number]
    held.release()
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


def test_every_handler_is_called_also_where_one_raises(handled):
    called = []

    def leaves(number, frame):
        called.append(frame is not None)
        raise ValueError("one of two")

    before = signal.signal(signal.SIGUSR2, lambda *_: called.append("two"))
    handled(leaves)
    held = HeldSignals()
    held.hold()
    try:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        assert called == []
        with pytest.raises(ValueError, match="one of two"):
            held.release()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert called == [True, "two"]


def test_a_handler_that_was_set_meanwhile_stays(handled):
    handled(lambda *_: None)
    held, new = HeldSignals(), lambda *_: None
    held.hold()
    handled(new)
    held.release()
    assert signal.getsignal(signal.SIGUSR1) is new
