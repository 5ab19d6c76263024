"""Sketched drift of real models against the drift of their whole kernels from plain autograd."""

import math

import pytest
import torch
from jacobian.batch_kernels import NormedNet, flat_kernel, moved
from jacobian.models import MLP
from torch import nn

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.jacobian.sketch import sketch_kernel
from ntkwatch.jacobian.sketched_drift import drift_within, sketched_drift
from ntkwatch.kernel.sketched import drift_of_grams, drift_of_images, gaussian_columns

from oracles import naive_angle, naive_relative_change, naive_scale

NUMBERS = ("relative_change", "scale", "angle")


class Scaled(nn.Module):
    """A network times a number that is no parameter."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


def _x(n=8):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64)


def _pairs():
    """Models now and at the start, by what happened in between."""
    torch.manual_seed(0)
    plain, normed = MLP().double(), NormedNet().double().train()
    return {
        "lazy": (moved(plain, 1e-6), plain),
        "rich": (moved(plain, 1.0), plain),
        "batch statistics": (moved(normed, 0.3), normed),
        "the head alone": (moved(plain, 0.5, ("2",)), plain),
        "rescaled": (Scaled(plain, 1.5), Scaled(plain, 1.0)),
    }


def _exact(now, then):
    pair = now.numpy(), then.numpy()
    values = naive_relative_change(*pair), math.log(naive_scale(*pair)), naive_angle(*pair)
    return dict(zip(NUMBERS, values, strict=True))


@pytest.mark.parametrize("form", ["one-sided", "two-sided"])
@pytest.mark.parametrize("case", _pairs())
def test_drift_is_that_of_the_whole_kernels_within_its_interval(case, form):
    now, start = _pairs()[case]
    exact = _exact(flat_kernel(now, _x()), flat_kernel(start, _x()))
    sketches = [sketch_kernel(m, _x(), columns=64, form=form) for m in (now, start)]
    found = sketched_drift(*sketches, level=0.999)
    for number, value in exact.items():
        estimate = getattr(found, number)
        rounding = 1e-9
        assert float(estimate.low) - rounding <= value <= float(estimate.high) + rounding
        if case != "rescaled":
            assert 0 < float(estimate.high - estimate.low) < 3 * abs(value) + 0.03
    assert found.columns == 64


@pytest.mark.parametrize("form", ["one-sided", "two-sided"])
def test_intervals_hold_the_exact_value_as_often_as_they_say(form):
    """20 seeds of each pair but the rescaled one, whose intervals are points: 80 draws.

    That a sketch is the whole kernel times its columns is tested on its own, so that products with
    the whole kernel stand for it here.
    """
    level, held, draws = 0.8, dict.fromkeys(NUMBERS, 0), 0
    for case, (now, start) in _pairs().items():
        if case == "rescaled":
            continue
        kernel, reference = flat_kernel(now, _x()), flat_kernel(start, _x())
        exact = _exact(kernel, reference)
        for seed in range(20):
            v = gaussian_columns(len(kernel), range(32), seed=seed)
            if form == "one-sided":
                found = drift_of_images(kernel @ v, reference @ v, level=level)
            else:
                found = drift_of_grams(v.T @ kernel @ v, v.T @ reference @ v, level=level)
            draws += 1
            for number, value in exact.items():
                estimate = getattr(found, number)
                held[number] += bool(estimate.low <= value <= estimate.high)
    slack = 2.6 * math.sqrt(draws * level * (1 - level))
    for number, count in held.items():
        assert abs(count - level * draws) <= slack, (number, count)


def test_pure_rescaling_is_told_without_error():
    now, start = _pairs()["rescaled"]
    found = sketched_drift(*(sketch_kernel(m, _x(), columns=4) for m in (now, start)))
    for end in found.relative_change:
        assert float(end) == pytest.approx(1.25, rel=1e-9)  # the kernel grew by 1.5^2
    for end in found.scale:
        assert float(end) == pytest.approx(2 * math.log(1.5), rel=1e-9)
    assert float(found.angle.high) < 1e-6


def test_layers_have_their_own_angles():
    now, start = _pairs()["the head alone"]
    sketches = [
        sketch_kernel(m, _x(), columns=200, form="two-sided", dtype=torch.float64)
        for m in (now, start)
    ]
    found = sketched_drift(*sketches, level=0.999)
    names = ["0.weight", "0.bias"]
    exact = _exact(flat_kernel(now, _x(), params=names), flat_kernel(start, _x(), params=names))[
        "angle"
    ]
    assert float(found.layer_angle["0"].low) < exact < float(found.layer_angle["0"].high)
    assert exact > 0.1
    assert float(found.layer_angle["2"].value) == 0  # its own part sees only what feeds it


def test_a_layer_without_a_part_of_the_kernel_has_no_angle():
    start = MLP().double()
    with torch.no_grad():
        start[2].weight.zero_()
    now = moved(start, 0.1)
    sketches = [sketch_kernel(m, _x(), columns=4, form="two-sided") for m in (now, start)]
    assert sketched_drift(*sketches).layer_angle["0"] is None


@pytest.mark.parametrize("form", ["one-sided", "two-sided"])
def test_columns_are_doubled_until_the_error_is_as_wanted(form):
    now, start = _pairs()["batch statistics"]
    exact = _exact(flat_kernel(now, _x()), flat_kernel(start, _x()))
    reference = sketch_kernel(start, _x(), columns=600, form=form)
    rough, fine = (
        drift_within(now, _x(), reference, number="angle", relative_error=error)
        for error in (0.5, 0.1)
    )
    assert rough[1].columns < fine[1].columns < 600
    assert fine[1].columns in (16, 32, 64, 128, 256, 512)
    for (sketch, drift), error in ((rough, 0.5), (fine, 0.1)):
        low, high = float(drift.angle.low), float(drift.angle.high)
        assert (high - low) / 2 <= error * float(drift.angle.value)
        assert drift.shortfall is None
        assert sketch.columns == drift.columns
    assert float(fine[1].angle.value) == pytest.approx(exact["angle"], rel=0.2)
    whole = sketch_kernel(now, _x(), columns=fine[1].columns, form=form)
    assert torch.allclose(whole.gram, fine[0].gram, rtol=1e-9, atol=1e-9)


def test_an_error_that_the_reference_cannot_give_is_said():
    now, start = _pairs()["batch statistics"]
    reference = sketch_kernel(start, _x(), columns=12)
    _, drift = drift_within(now, _x(), reference, relative_error=1e-3)
    assert drift.columns == 12
    assert "after all 12 columns that the reference has, and 0.1% was wanted" in drift.shortfall


def test_no_drift_needs_no_more_than_the_first_columns():
    start = MLP().double()
    reference = sketch_kernel(start, _x(), columns=64)
    _, drift = drift_within(start, _x(), reference, relative_error=0.01)
    assert drift.columns == 8
    assert float(drift.relative_change.high) == 0


def test_sketches_of_unlike_kernels_are_not_compared():
    model = NormedNet().double().train()
    reference = sketch_kernel(model, _x(), columns=4)
    for options, word in (
        ({"batchnorm": "running"}, "batchnorm"),
        ({"form": "two-sided"}, "form"),
        ({"seed": 5}, "seed"),
        ({"params": "0"}, "params"),
    ):
        with pytest.raises(KernelMismatchError, match=f"differ in {word}"):
            sketched_drift(sketch_kernel(model, _x(), columns=4, **options), reference)
    with pytest.raises(KernelMismatchError, match="differ in size"):
        sketched_drift(sketch_kernel(model, _x(9), columns=4), reference)


def test_an_error_that_no_sketch_reaches_is_refused():
    reference = sketch_kernel(MLP(), _x(), columns=4)
    with pytest.raises(InputError, match="relative_error=0 can never be reached"):
        drift_within(MLP(), _x(), reference, relative_error=0)
    with pytest.raises(InputError, match="number='trace' is not known"):
        drift_within(MLP(), _x(), reference, number="trace")
