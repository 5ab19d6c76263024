"""When to look and what it may cost; oracle: laws that any schedule and any budget must keep."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkwatch.watch.budget import OverheadBudget
from ntkwatch.watch.schedule import Schedule

_jumps = st.lists(st.sampled_from([0, 1, 1, 1, 2]), min_size=1, max_size=300)


def _observed(schedule: Schedule, steps: list[int]) -> list[int]:
    seen = []
    for step in steps:
        if schedule.is_due(step):
            schedule.done(step)
            seen.append(step)
    return seen


def _walk(jumps: list[int]) -> list[int]:
    """Counts of optimizer steps after each batch: accumulation repeats one, two optimizers skip."""
    steps = [0]
    for jump in jumps:
        steps.append(steps[-1] + jump)
    return steps


@given(jumps=_jumps, n=st.integers(1, 50))
def test_every_n_steps_is_once_for_each_multiple_that_is_passed(jumps, n):
    steps = _walk(jumps)
    seen = _observed(Schedule(n), steps)
    assert len(set(seen)) == len(seen)
    multiples = {step // n for step in steps}
    assert [step // n for step in seen] == sorted(multiples)
    # Not a batch late: each is the first step at which its multiple was reached.
    assert all(step == min(s for s in steps if s // n == step // n) for step in seen)


def test_two_optimizers_count_by_twos_and_miss_nothing():
    assert _observed(Schedule(5), list(range(0, 40, 2))) == [0, 6, 10, 16, 20, 26, 30, 36]


def test_accumulation_repeats_a_count_and_repeats_no_observation():
    assert _observed(Schedule(1), [0, 0, 1, 1, 1, 2, 2, 3]) == [0, 1, 2, 3]


@given(jumps=_jumps)
def test_gaps_grow_and_stay_below_a_quarter_of_the_steps_so_far(jumps):
    steps = _walk(jumps)
    seen = _observed(Schedule(), steps)
    assert seen[0] == 0
    for before, after in pairwise(seen):
        assert after - before <= max(1, math.ceil(before / 4)) + 1  # a jump of two may pass it


def test_it_is_dense_at_first_and_sparse_later():
    seen = _observed(Schedule(), list(range(10_001)))
    assert seen[:5] == [0, 1, 2, 3, 4]
    assert len(seen) < 60
    late = [step for step in seen if step > 1000]
    assert all(b / a > 1.2 for a, b in pairwise(late))


def test_a_run_of_known_length_is_never_left_alone_for_more_than_a_25th_of_it():
    schedule = Schedule()
    schedule.expect(1000)
    seen = _observed(schedule, list(range(1001)))
    assert max(b - a for a, b in pairwise(seen)) == 40


@pytest.mark.parametrize("total", [None, 0])
def test_a_run_of_unknown_length_has_no_longest_gap(total):
    schedule = Schedule()
    schedule.expect(total)
    seen = _observed(schedule, list(range(2001)))
    assert seen[-1] - seen[-2] > 100


def test_a_schedule_goes_on_where_another_one_stopped():
    whole = _observed(Schedule(7), list(range(100)))
    second = Schedule(7)
    second.done(49)
    assert _observed(second, list(range(50, 100))) == [step for step in whole if step > 49]


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _spent(prices: list[float], *, share: float, steps: int, reference: float) -> tuple[float, ...]:
    """Train one second a step, observe whenever that is affordable, and the last step anyway."""
    clock = _Clock()
    budget = OverheadBudget(share, clock=clock)
    budget.start()
    clock.now += reference
    budget.spend(reference, reference=True)
    turn = iter(prices * steps)
    for _ in range(steps):
        clock.now += 1.0
        if budget.affords_another():
            price = next(turn)
            clock.now += price
            budget.spend(price)
    return budget.spent, budget.elapsed, budget.share


@given(
    price=st.floats(0.01, 5),
    share=st.floats(0.005, 0.5),
    reference=st.floats(0, 3),
)
def test_watching_stays_within_its_share_and_keeps_the_price_of_the_last_step(
    price, share, reference
):
    """A first observation may exceed it, since nobody knows its price; a second one may not."""
    spent, elapsed, _ = _spent([price], share=share, steps=300, reference=reference)
    observations = round((spent - reference) / price)
    if observations > 1:
        assert spent + price <= share * (elapsed + price) * (1 + 1e-9)
    else:
        assert spent <= max(share * elapsed, reference) + price


def test_a_free_observation_is_always_affordable():
    spent, _, share = _spent([0.0], share=0.01, steps=10, reference=0.0)
    assert (spent, share) == (0.0, 0.0)


def test_the_share_is_of_all_time_since_the_start():
    clock = _Clock()
    budget = OverheadBudget(0.5, clock=clock)
    assert budget.share == 0
    clock.now = 5.0
    budget.start()
    clock.now = 9.0
    budget.spend(1.0)
    budget.start()  # a second start changes nothing
    assert budget.share == 0.25
    assert budget.share_with(1.0) == 0.5


def test_a_dear_reference_delays_what_comes_after_it():
    clock = _Clock()
    budget = OverheadBudget(0.1, clock=clock)
    budget.start()
    clock.now = 5.0
    budget.spend(5.0, reference=True)
    assert not budget.affords_another()
    clock.now = 50.0
    assert budget.affords_another()
