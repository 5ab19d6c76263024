"""A guarded tensor is not written to, whichever way a program writes; reading it is free.

The oracle is the tensor's own bytes before and after.
"""

import signal
from functools import partial

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from ntkwatch.errors import ProcessError
from ntkwatch.jacobian.write_guard import WriteGuard, WritesToParameter


def _set_item(p):
    p[0] = 5.0


WRITES = {
    "add_": lambda p: p.add_(1.0),
    "augmented assignment": lambda p: p.__iadd__(1.0),
    "mul_ by keyword": lambda p: torch.Tensor.mul_(p, other=2.0),
    "copy_": lambda p: p.copy_(torch.ones_like(p)),
    "zero_": lambda p: p.zero_(),
    "fill_": lambda p: p.fill_(3.0),
    "normal_": lambda p: p.normal_(),
    "clamp_": lambda p: p.clamp_(max=0.0),
    "an item": _set_item,
    "a masked item": lambda p: p.masked_fill_(p == p, 7.0),
    "an indexed item": lambda p: p.index_add_(0, torch.tensor([0]), torch.ones(1, 3)),
    "scatter_": lambda p: p.scatter_(0, torch.zeros(1, 3, dtype=torch.long), 1.0),
    "a view": lambda p: p.view(-1).add_(1.0),
    "a slice": lambda p: p[1:].mul_(2.0),
    "a transpose": lambda p: p.t().add_(1.0),
    "a detached alias": lambda p: p.detach().add_(1.0),
    "an alias by data": lambda p: p.data.add_(1.0),
    "a slice of data": lambda p: p.data[0].zero_(),
    "as_strided": lambda p: p.as_strided((2,), (1,), 0).zero_(),
    "another dtype of the same bytes": lambda p: p.view(torch.int32).zero_(),
    "out= of a sum": lambda p: torch.add(torch.ones(2, 3), 1.0, out=p),
    "out= of a product": lambda p: torch.mm(torch.ones(2, 2), torch.ones(2, 3), out=p),
    "out= of one of two results": lambda p: torch.max(
        torch.ones(2, 2, 3), 0, out=(p, torch.empty(2, 3, dtype=torch.long))
    ),
    "foreach": lambda p: torch._foreach_add_([torch.zeros(2), p], 1.0),
    "foreach copy": lambda p: torch._foreach_copy_([p], [torch.zeros(2, 3)]),
    "relu in place": lambda p: torch.nn.functional.relu(p, inplace=True),
    "a normalisation in place": lambda p: torch.nn.functional.normalize(p, out=p),
    "running statistics": lambda p: torch.nn.functional.batch_norm(
        torch.randn(4, 3), p[0], p[1], training=True
    ),
    "renormalised rows of a table": lambda p: torch.nn.functional.embedding(
        torch.tensor([0, 1]), p, max_norm=1e-3
    ),
    "a resize": lambda p: p.resize_(4, 4),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_stopped_before_it_happens(name, device):
    # Functions above make their other operands on the default device.
    with torch.device(device), torch.no_grad():
        guarded = torch.randn(2, 3)
        before, version = guarded.clone(), guarded._version
        with pytest.raises(WritesToParameter), WriteGuard([guarded]):
            WRITES[name](guarded)
    assert torch.equal(guarded, before)
    assert guarded._version == version
    twin = before.clone()
    with torch.device(device), torch.no_grad():
        WRITES[name](twin)  # so that it does write
    assert twin.shape != before.shape or not torch.equal(twin, before)


READS = {
    "arithmetic": lambda p: (p + 1.0) * p,
    "a product": lambda p: p @ p.t(),
    "a copy that is written to": lambda p: p.clone().add_(1.0),
    "a view": lambda p: p.view(-1)[1:].t(),
    "an operand of a write": lambda p: torch.zeros(2, 3).add_(p),
    "an operand of out=": lambda p: torch.add(p, 1.0, out=torch.empty(2, 3)),
    "an operand of foreach": lambda p: torch._foreach_add_([torch.zeros(2, 3)], [p]),
    "a dtype": lambda p: p.double().add_(1.0),
    "a number": lambda p: float(p.sum()),
    "running statistics of a batch norm in evaluation mode": lambda p: (
        torch.nn.functional.batch_norm(torch.randn(4, 3), p[0], p[1].exp())
    ),
    "a comparison": lambda p: torch.equal(p, p),
}


@pytest.mark.parametrize("name", READS)
def test_reading_is_free(name, device):
    with torch.device(device), torch.no_grad():
        guarded = torch.randn(2, 3)
        before = guarded.clone()
        with WriteGuard([guarded]):
            READS[name](guarded)
    assert torch.equal(guarded, before)


def test_other_tensors_may_be_written_to():
    guarded, other = torch.zeros(3), torch.zeros(3)
    with WriteGuard([guarded]):
        other.add_(1.0)
    assert other.tolist() == [1.0, 1.0, 1.0]


def test_a_view_that_was_made_before_is_guarded_too():
    guarded = torch.zeros(4)
    half = guarded[:2]
    with pytest.raises(WritesToParameter), WriteGuard([guarded]):
        half.add_(1.0)
    assert not guarded.any()


def test_afterwards_everything_may_be_written_to():
    guarded = torch.zeros(3)
    with pytest.raises(WritesToParameter), WriteGuard([guarded]):
        guarded.add_(1.0)
    guarded.add_(1.0)
    assert guarded.tolist() == [1.0, 1.0, 1.0]


def test_a_program_that_catches_every_exception_does_not_write_either():
    """Writing in ``try`` is how some code looks whether it may."""
    guarded = torch.zeros(3)

    def program():
        try:
            guarded.add_(1.0)
        except Exception:
            return

    with pytest.raises(WritesToParameter), WriteGuard([guarded]):
        program()
    assert not guarded.any()


# What waits for other processes. ------------------------------------------------------------------


@pytest.fixture
def two_processes():
    """A group of two in which nobody waits: torch's own stand-in."""
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    distributed.destroy_process_group()


def _exchange(*_):
    distributed.all_reduce(torch.ones(3))


class _Handler:
    def method(self, number, frame):
        _exchange()

    def __call__(self, number, frame):
        _exchange()


HANDLERS = {
    "function": _exchange,
    "method": _Handler().method,
    "object": _Handler(),
    "partial": partial(_exchange, "an argument of its own"),
    "partial of a partial method": partial(partial(_Handler.method, _Handler())),
}


@pytest.mark.parametrize("kind", HANDLERS)
def test_only_a_signal_s_handler_exchanges_with_other_processes(two_processes, kind):
    with pytest.raises(ProcessError, match="would wait for ever"), WriteGuard([]):
        _exchange()
    before = signal.signal(signal.SIGUSR1, HANDLERS[kind])
    try:
        with WriteGuard([]):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
