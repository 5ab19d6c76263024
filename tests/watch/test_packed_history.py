"""Histories that hold what is old compressed; the oracle is the plain list of what was put in."""

import math
import random
import tracemalloc
import zlib
from dataclasses import replace

import pytest

from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import NOT_TAKEN, Observation, Reading, RunInfo


def _observation(step: int, *, brief: bool = False) -> Observation:
    """With numbers of its own, and names that it shares with the others, as in a run."""
    draw = random.Random(step)
    layers = [f"net.{k}" for k in range(8)]
    return Observation(
        step=step,
        anchor_step=0,
        probe_size=64,
        output_count=10,
        seconds=draw.random(),
        linearization_error=draw.random() * 10 ** draw.randint(-300, 300),
        layer_angle={name: draw.random() for name in layers},
        layer_displacement={name: draw.random() for name in layers},
        top_eigenvalues=tuple(draw.random() for _ in range(8)),
        left_out={"kernel": NOT_TAKEN} if brief else {},
    )


_LEAST_SHRINK = 0.5


def _packed() -> History:
    history = History(RunInfo())
    history.pack()
    return history


@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 129, 1000])
def test_a_packed_history_is_the_list_of_what_was_put_in(count):
    history, put_in = _packed(), [_observation(3 * step) for step in range(count)]
    for number, observation in enumerate(put_in, start=1):
        history.add(observation)
        assert (len(history), history[0], history[-1]) == (number, put_in[0], observation)
    assert list(history) == list(history.observations) == put_in
    assert [history[k] for k in range(-count, count, 97)] == [
        put_in[k] for k in range(-count, count, 97)
    ]
    with pytest.raises(IndexError):
        history[count]


def test_every_number_comes_back_with_its_bits_and_every_field_with_its_kind():
    odd = [math.nan, -0.0, 5e-324, math.inf, 0.1 + 0.2]
    history, put_in = _packed(), []
    for step in range(300):
        seen = Observation(
            step=step,
            anchor_step=0,
            probe_size=64,
            output_count=10,
            seconds=odd[step % 5],
            top_eigenvalues=tuple(odd),
            since_warmup=Reading(anchor_step=1, kernel_angle=-0.0, layer_angle={"a": None}),
            intervals={"linearization_error": (0.1, 1 / 3)},
            notes=("one",),
        )
        history.add(seen)
        put_in.append(seen)
    assert repr(list(history)) == repr(put_in)  # equality would not tell -0.0, nor find nan


def test_what_is_replaced_or_comes_late_is_in_its_place():
    history, by_step = _packed(), {}
    steps = [*range(0, 1000, 2), 0, 501, 4, 998, 1000, *range(1002, 1400, 2), 501]
    for order, step in enumerate(steps):
        seen = _observation(step, brief=order % 3 == 1)
        history.add(seen)
        by_step[step] = seen
    in_order = [by_step[step] for step in sorted(by_step)]
    assert list(history) == in_order
    whole = [seen for seen in in_order if not seen.is_brief]
    assert history.whole_steps == tuple(seen.step for seen in whole)
    assert history.last_whole == whole[-1]


def test_replacing_the_newest_as_every_observation_does_unpacks_nothing(monkeypatch):
    history, put_in, unpacked = _packed(), [], []
    decompress = zlib.decompress
    monkeypatch.setattr(zlib, "decompress", lambda block: unpacked.append(1) or decompress(block))
    for step in range(500):
        history.add(_observation(step, brief=step % 2 == 1))
        put_in.append(replace(_observation(step, brief=step % 2 == 1), overhead_seconds=1.0))
        history.add(put_in[-1])
        assert (history[-1], history[0]) == (put_in[-1], put_in[0])
        assert history.last_whole == put_in[step - step % 2]
    assert unpacked == []
    assert list(history) == put_in
    assert len(unpacked) > 4, "and then it does"
    history.add(_observation(499))  # whole now, which it was not
    assert list(history) == [*put_in[:-1], _observation(499)]
    assert history.whole_steps[-1] == history.last_whole.step == 499


def test_a_history_can_be_packed_late_and_unpacked_for_a_report():
    put_in = [_observation(step) for step in range(500)]
    history = History(RunInfo(created="now"), tuple(put_in), problems=("torn",))
    history.pack()
    history.add(_observation(500))
    copy = history.unpacked()
    assert list(history) == list(copy) == [*put_in, _observation(500)]
    assert (copy.run, copy.problems) == (history.run, history.problems)


def test_starting_over_forgets_all_and_goes_on_packing():
    history = _packed()
    for step in range(300):
        history.add(_observation(step))
    history.start_over(RunInfo(created="later"))
    assert (len(history), history.whole_steps, history.last_whole) == (0, (), None)
    assert _bytes_of(history, range(5000)) < _LEAST_SHRINK * _bytes_of(History(), range(5000))


def _bytes_of(history: History, steps: range) -> int:
    """What a history grows by."""
    tracemalloc.start()
    try:
        for step in steps:
            history.add(_observation(step))
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_it_takes_less_than_half_of_the_memory():
    packed, plain = _bytes_of(_packed(), range(5000)), _bytes_of(History(), range(5000))
    assert packed < _LEAST_SHRINK * plain
