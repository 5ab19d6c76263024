"""Decay of one mode against torch.optim.SGD itself, bounds on a loss against its gradient flow."""

import math
from inspect import unwrap  # past --typecheck, which would refuse before us

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError
from ntkwatch.kernel.descent import (
    PLAIN,
    SGD,
    decay_factors,
    gradient_flow_bound,
    square_loss_curvature,
    time_to_loss,
)

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}

SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.3},
    {"momentum": 0.9, "dampening": 0.9},
    {"momentum": 0.5, "dampening": 0.2},
    {"dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.1, "nesterov": True},
]


def _descended(curvatures: torch.Tensor, rate: float, steps: int, options: dict) -> torch.Tensor:
    """Each weight starts at 1 and descends on ``h w^2 / 2`` under torch's own optimizer."""
    w = torch.ones(len(curvatures), requires_grad=True, **f64)
    optimizer = torch.optim.SGD([w], lr=rate, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * curvatures * w.square()).sum().backward()
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 60])
def test_factors_are_those_of_torch(options, steps):
    curvatures = torch.tensor([0.0, 0.01, 0.5, 1.0, 1.3, 1.9], **f64)
    found = decay_factors(curvatures, steps=steps, sgd=SGD(**options))
    expected = _descended(curvatures, 1.0, steps, options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_torch_diverges_just_above_the_stable_rate_and_converges_just_below(options):
    """2 % to either side of ``eta h = stable_product``, with h = 4."""
    edge = SGD(**options).stable_product / 4
    h = torch.tensor([4.0], **f64)
    assert _descended(h, 0.98 * edge, 1500, options).abs() < 1e-3
    assert _descended(h, 1.02 * edge, 1500, options).abs() > 1e3


def test_the_stable_products_are_those_of_the_literature():
    assert PLAIN.stable_product == 2
    assert SGD(momentum=0.9).stable_product == pytest.approx(3.8)
    assert SGD(momentum=0.9, dampening=0.9).stable_product == pytest.approx(38)
    assert SGD(momentum=0.9, nesterov=True).stable_product == pytest.approx(3.8 / 2.8)


def test_settings_without_a_stable_rate_are_refused():
    for options in ({"momentum": 1.0}, {"momentum": -0.1}, {"momentum": 0.5, "dampening": 1.0}):
        with pytest.raises(InputError, match="have no stable learning rate"):
            SGD(**options)
    for options in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(InputError, match="not defined in torch either"):
            SGD(**options, nesterov=True)
    with pytest.raises(InputError, match="-1 steps of descent"):
        decay_factors(torch.ones(1), steps=-1)


@pytest.mark.parametrize(
    ("loss", "of"),
    [
        ("square-mean", torch.nn.MSELoss()),
        ("square-sum", torch.nn.MSELoss(reduction="sum")),
        ("half-square-sum", lambda f, y: 0.5 * (f - y).square().sum()),
    ],
)
def test_curvatures_are_the_second_derivatives_of_torch_losses(loss, of):
    f, y = torch.randn(4, 3, **f64), torch.randn(4, 3, **f64)
    hessian = torch.autograd.functional.hessian(lambda f: of(f, y), f).reshape(12, 12)
    h = square_loss_curvature(loss, samples=4, outputs=3)
    torch.testing.assert_close(hessian, h * torch.eye(12, **f64))


def test_a_loss_without_constant_curvature_is_refused():
    with pytest.raises(InputError, match="loss='cross-entropy-mean' has no constant curvature"):
        unwrap(square_loss_curvature)("cross-entropy-mean", samples=4, outputs=3)


def _flow(kernel: torch.Tensor, residual: torch.Tensor, h: float, time: float) -> float:
    """Loss ``h |r|^2 / 2`` of ``dr/dt = -h K r`` by a matrix exponential."""
    r = torch.linalg.matrix_exp(-h * time * kernel) @ residual
    return 0.5 * h * float(r @ r)


@law
@given(seed=st.integers(0, 1000), time=st.floats(0, 20), h=st.sampled_from([1.0, 2.0, 0.1]))
def test_gradient_flow_lies_between_the_bounds_of_both_ends_of_the_spectrum(seed, time, h):
    generator = torch.Generator().manual_seed(seed)
    rows, r = (
        torch.randn(4, 6, generator=generator, **f64),
        torch.randn(4, generator=generator, **f64),
    )
    kernel = rows @ rows.T / 6
    low, high = torch.linalg.eigvalsh(kernel)[[0, -1]]
    start = torch.tensor(_flow(kernel, r, h, 0.0), **f64)
    loss = _flow(kernel, r, h, time)
    t = torch.tensor(time, **f64)
    assert loss <= gradient_flow_bound(start, low, time=t, curvature=h) * (1 + 1e-9)
    # A matrix exponential keeps about 1e-16 of the start, squared in the loss.
    floor = 1e-28 * start
    assert loss + floor >= gradient_flow_bound(start, high, time=t, curvature=h) * (1 - 1e-6)


def test_the_bound_is_met_by_a_residual_on_one_mode():
    kernel = torch.diag(torch.tensor([3.0, 0.5], **f64))
    start = torch.tensor(_flow(kernel, torch.tensor([0.0, 2.0], **f64), 0.2, 0.0), **f64)
    loss = _flow(kernel, torch.tensor([0.0, 2.0], **f64), 0.2, 7.0)
    found = gradient_flow_bound(
        start, torch.tensor(0.5, **f64), time=torch.tensor(7.0, **f64), curvature=0.2
    )
    assert found.item() == pytest.approx(loss, rel=1e-12)


def test_the_time_to_a_loss_is_when_the_bound_gets_there():
    start, low = torch.tensor(5.0, **f64), torch.tensor(0.3, **f64)
    targets = torch.tensor([4.0, 0.5, 1e-8], **f64)
    times = time_to_loss(start, low, target=targets, curvature=0.5)
    back = gradient_flow_bound(start, low, time=times, curvature=0.5)
    torch.testing.assert_close(back, targets)


def test_no_time_is_needed_for_a_loss_reached_and_none_promised_without_an_eigenvalue():
    start, targets = torch.tensor(5.0, **f64), torch.tensor([6.0, 5.0, 1.0], **f64)
    for nothing in (0.0, -1e-9, math.nan):
        found = time_to_loss(start, torch.tensor(nothing, **f64), target=targets)
        assert found.tolist() == [0, 0, math.inf]
