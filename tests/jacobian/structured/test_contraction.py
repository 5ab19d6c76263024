"""Kernels of sums of outer products, in every order, against a dense einsum; and what they cost.

The oracles are the gradients written out, and torch's own counter of operations.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ntkwatch.jacobian.structured.contraction import Factors, contract_outer, contract_turned
from ntkwatch.jacobian.structured.orders import cheapest_order, multiplications

ORDERS = ["materialise", "ghost", "mixed"]
sizes = st.integers(1, 5)


class _Side:
    """Factors with their gradients written out, (N, R, d, e)."""

    def __init__(self, n, t, r, d, e, *, indexed=False, seed=0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        cot = torch.randn(n, t, r, e, generator=generator, dtype=torch.float64).to(device)
        if indexed:
            act = torch.randint(-1, d, (n, t), generator=generator).to(device)
            table = torch.cat([torch.eye(d), torch.zeros(1, d)]).double().to(device)
            dense = table[act]  # -1 is the last row: no entry
        else:
            act = torch.randn(n, t, d, generator=generator, dtype=torch.float64).to(device)
            dense = act
        self.gradients = torch.einsum("ntd,ntre->nrde", dense, cot)
        self.factors = Factors(act=lambda part: act[part.start : part.stop], cot=cot, depth=d)


def _gram(left, right, full):
    if full:
        return torch.einsum("nrde,msde->nrms", left.gradients, right.gradients)
    return torch.einsum("nrde,mrde->nm", left.gradients, right.gradients)


def _upper(kernel):
    """A symmetric kernel's part on and above the diagonal of samples."""
    n = len(kernel)
    keep = torch.ones(n, n, dtype=torch.float64, device=kernel.device).triu()
    return kernel * (keep[:, None, :, None] if kernel.ndim == 4 else keep)


def _possible(order, t, u, r, *, full, indexed):
    """What the planner asks for: ghost of full kernels at one position only, mixed if full."""
    if order == "materialise":
        return not indexed
    if order == "mixed":
        return full
    return not full or t == u == 1


budgets = st.sampled_from([1, 100, 1000, 10**9])


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, budgets)
def test_a_symmetric_kernel_is_the_gram_matrix_of_the_gradients(
    order, indexed, full, n, t, r, d, e, budget
):
    if order == "ghost" and full:
        t = 1
    if not _possible(order, t, t, r, full=full, indexed=indexed):
        return
    side = _Side(n, t, r, d, e, indexed=indexed)
    found = contract_outer(side.factors, None, order, full=full, budget=budget)
    torch.testing.assert_close(_upper(found), _upper(_gram(side, side, full)))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, sizes, sizes, budgets)
def test_a_cross_kernel_may_have_other_numbers_of_positions(
    order, indexed, full, n, m, t, u, r, d, e, budget
):
    if order == "ghost" and full:
        t = u = 1
    if not _possible(order, t, u, r, full=full, indexed=indexed):
        return
    left = _Side(n, t, r, d, e, indexed=indexed)
    right = _Side(m, u, r, d, e, indexed=indexed, seed=1)
    found = contract_outer(left.factors, right.factors, order, full=full, budget=budget)
    torch.testing.assert_close(found, _gram(left, right, full))


@pytest.mark.parametrize("order", ["materialise", "mixed"])
@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, sizes, budgets)
def test_two_blocks_of_directions_may_differ_in_number(order, n, t, r, s, d, e, budget):
    left, right = _Side(n, t, r, d, e), _Side(n, t, s, d, e, seed=1)
    found = contract_outer(left.factors, right.factors, order, full=True, budget=budget)
    torch.testing.assert_close(found, _gram(left, right, True))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("indexed", [(False, False), (True, False), (False, True)])
@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, sizes, sizes, budgets)
def test_gradients_and_transposed_ones_meet_as_a_tied_head_has_them(
    indexed, full, n, m, t, u, r, d, e, budget
):
    left = _Side(n, t, r, d, e, indexed=indexed[0])
    right = _Side(m, u, r, e, d, indexed=indexed[1], seed=1)
    found = contract_turned(left.factors, right.factors, full=full, budget=budget)
    turned = right.gradients.mT
    if full:
        expected = torch.einsum("nrde,msde->nrms", left.gradients, turned)
    else:
        expected = torch.einsum("nrde,mrde->nm", left.gradients, turned)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_every_device_gives_the_same_kernel(order, device):
    if device.type == "mps":
        pytest.skip("no float64 there")
    t, full = (1, True) if order == "ghost" else (3, True)
    side = _Side(6, t, 2, 4, 3, device=device)
    found = contract_outer(side.factors, None, order, full=full, budget=10**6)
    torch.testing.assert_close(_upper(found), _upper(_gram(side, side, full)))


# Costs.

# Full or not, N, R, T, d, e: large enough that blocks and small steps do not matter.
PROBLEMS = [
    ("materialise", True, 16, 4, 32, 24, 16),
    ("materialise", False, 16, 4, 32, 24, 16),
    ("ghost", True, 64, 8, 1, 48, 32),
    ("ghost", False, 16, 4, 8, 48, 32),
    ("mixed", True, 16, 4, 8, 48, 32),
]


@pytest.mark.parametrize(("order", "full", "n", "r", "t", "d", "e"), PROBLEMS)
def test_multiplications_are_those_that_torch_counts(order, full, n, r, t, d, e):
    """Torch counts two operations for each multiplication and does not use symmetry within blocks.

    Elementwise products are not counted by torch, so it may also count less.
    """
    side = _Side(n, t, r, d, e)
    with FlopCounterMode(display=False) as counter:
        contract_outer(side.factors, None, order, full=full, budget=2**20)
    counted = counter.get_total_flops() / 2
    claimed, _ = multiplications(order, n, r, t, d, e, full=full)
    assert 0.8 * claimed <= counted <= 2.2 * claimed


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.booleans(),
    st.booleans(),
)
def test_the_cheapest_order_costs_least_of_those_that_are_possible(n, r, t, d, e, full, indexed):
    """A number moved counts as eight multiplications, for any candidate alike."""
    best, count = cheapest_order(n, r, t, d, e, full=full, indexed=indexed)
    several = full and r > 1
    width = 1 if indexed else d
    costs = {
        order: multiplications(order, n, r, t, width, e, full=several)
        for order in ORDERS
        if _possible(order, t, t, r, full=several, indexed=indexed)
    }
    if several and t == 1:
        del costs["mixed"]  # ghost is the same with less to do
    weighed = {order: products + 8 * moved for order, (products, moved) in costs.items()}
    assert weighed[best] == min(weighed.values())
    assert count == costs[best][0]


def test_known_shapes_have_the_order_that_they_should():
    assert cheapest_order(64, 10, 1, 1024, 1024, full=True, indexed=False)[0] == "ghost"
    assert cheapest_order(64, 1, 1, 1024, 1024, full=False, indexed=False)[0] == "ghost"
    assert cheapest_order(16, 10, 1024, 27, 16, full=True, indexed=False)[0] == "materialise"
    assert cheapest_order(16, 10, 16, 768, 768, full=True, indexed=False)[0] == "mixed"
    assert cheapest_order(16, 10, 512, 50000, 64, full=True, indexed=True)[0] == "mixed"
