"""Drift from random columns against the same drift of whole kernels, entry by entry.

The exact values come from the loops of ``oracles``; kernels are built from known parts.
"""

import math
from inspect import unwrap

import pytest
import torch

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.sketched import (
    _student,
    drift_of_grams,
    drift_of_images,
    gaussian_columns,
)

from oracles import naive_angle, naive_relative_change, naive_scale

N = 24
SEEDS = range(20)


def _psd(power, seed):
    """Eigenvalues k^-power in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.arange(1, N + 1, dtype=torch.float64) ** -power
    return basis @ torch.diag(spectrum) @ basis.T


def _pairs():
    start = _psd(1.5, 0)
    return {
        "lazy": (start + 1e-7 * _psd(0.5, 1), start),
        "rich": (9 * _psd(1.0, 2) + 0.3 * start, start),
        "one new direction": (start + 0.5 * _psd(20, 3), start),
        "grown and turned a little": (2 * start + 1e-3 * _psd(0.2, 4), start),
        "flat": (_psd(0.1, 5), _psd(0.1, 5) + _psd(0.2, 6)),
    }


def _estimates(kernel, reference, columns, form, *, seed, level):
    v = gaussian_columns(N, range(columns), seed=seed)
    if form == "images":
        return drift_of_images(kernel @ v, reference @ v, level=level)
    return drift_of_grams(v.T @ kernel @ v, v.T @ reference @ v, level=level)


def _exact(kernel, reference):
    pair = kernel.numpy(), reference.numpy()
    return naive_relative_change(*pair), math.log(naive_scale(*pair)), naive_angle(*pair)


@pytest.mark.parametrize(("form", "columns"), [("images", 16), ("gram", 32)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_hold_the_exact_value_as_often_as_they_say(form, columns, level):
    """100 draws: within 2.6 standard deviations of a binomial count, on both sides where it can."""
    held = torch.zeros(3)
    for kernel, reference in _pairs().values():
        exact = _exact(kernel, reference)
        for seed in SEEDS:
            found = _estimates(kernel, reference, columns, form, seed=seed, level=level)
            held += torch.tensor(
                [float(e.low <= value <= e.high) for e, value in zip(found, exact, strict=True)]
            )
    slack = 2.6 * math.sqrt(100 * level * (1 - level))
    assert (held >= 100 * level - slack).all(), held
    assert (held <= 100 * level + slack).all(), held


@pytest.mark.parametrize("form", ["images", "gram"])
@pytest.mark.parametrize("case", _pairs())
def test_intervals_are_about_as_wide_as_estimates_scatter(form, case):
    kernel, reference = _pairs()[case]
    found = [_estimates(kernel, reference, 32, form, seed=seed, level=0.95) for seed in range(100)]
    for number in ("relative_change", "scale", "angle"):
        ends = [getattr(drift, number) for drift in found]
        values = torch.stack([end.value for end in ends])
        half = torch.stack([(end.high - end.low) / 2 for end in ends])
        assert 0.6 < half.median() / (1.96 * values.std()) < 2.5


@pytest.mark.parametrize("form", ["images", "gram"])
@pytest.mark.parametrize("case", _pairs())
def test_many_columns_come_close_to_the_exact_value(form, case):
    kernel, reference = _pairs()[case]
    found = _estimates(kernel, reference, 2000, form, seed=0, level=0.95)
    for estimate, value in zip(found, _exact(kernel, reference), strict=True):
        half = float((estimate.high - estimate.low) / 2)
        assert abs(float(estimate.value) - value) < 1.5 * half
        assert half < 0.15 * abs(value) + 0.01 * (case != "lazy")


def test_columns_that_span_the_space_evenly_give_the_exact_value():
    """For orthogonal V the images have the inner products of the kernels themselves."""
    kernel, reference = _pairs()["rich"]
    v = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
    found = drift_of_images(kernel @ v, reference @ v)
    values = [float(estimate.value) for estimate in found]
    assert values == pytest.approx(_exact(kernel, reference), rel=1e-12)


@pytest.mark.parametrize("form", ["images", "gram"])
def test_a_drift_of_1e_9_is_known_as_well_as_a_large_one(form):
    start, direction = _psd(1.5, 0), _psd(0.5, 1)
    tiny, small = (
        _estimates(start + size * direction, start, 16, form, seed=0, level=0.95)
        for size in (1e-9, 1e-4)
    )
    for number in ("relative_change", "scale", "angle"):
        a, b = getattr(tiny, number), getattr(small, number)
        for end in ("value", "low", "high"):
            assert float(getattr(a, end)) == pytest.approx(1e-5 * float(getattr(b, end)), rel=1e-3)


@pytest.mark.parametrize("form", ["images", "gram"])
def test_rescaling_is_seen_without_error(form):
    start = _psd(1.5, 0)
    for seed in SEEDS:
        found = _estimates(2.5 * start, start, 8, form, seed=seed, level=0.95)
        for end in found.relative_change:
            assert float(end) == pytest.approx(1.5, rel=1e-12)
        for end in found.scale:
            assert float(end) == pytest.approx(math.log(2.5), rel=1e-12)
        assert float(found.angle.value) < 1e-14


@pytest.mark.parametrize("form", ["images", "gram"])
def test_no_drift_is_zero_with_an_interval_of_zero(form):
    start = _psd(1.5, 0)
    found = _estimates(start, start, 8, form, seed=0, level=0.95)
    assert [float(end) for estimate in found for end in estimate] == [0.0] * 9


def test_kernels_that_look_orthogonal_have_a_right_angle_and_no_scale():
    now, then = torch.zeros(6, 4), torch.zeros(6, 4)
    now[0], then[1] = torch.randn(4), torch.randn(4)
    found = drift_of_images(now, then)
    assert [float(end) for end in found.angle] == pytest.approx([math.pi / 2, 0, math.pi / 2])
    # Kernels never point away from each other; a few columns may see them so.
    found = drift_of_images(now - 0.1 * then, then)
    assert [float(end) for end in found.angle] == pytest.approx([math.pi / 2, 0, math.pi / 2])
    assert torch.stack(found.scale).isnan().all()


def test_a_column_is_the_same_however_many_are_drawn():
    whole = gaussian_columns(37, range(9), seed=3)
    assert torch.equal(gaussian_columns(37, range(4, 6), seed=3), whole[:, 4:6])
    assert not torch.equal(gaussian_columns(37, range(9), seed=4), whole)
    assert whole.dtype == torch.float64
    assert whole.device.type == "cpu"


def test_columns_are_standard_normal_and_independent():
    v = gaussian_columns(4000, range(6), seed=0)
    assert float((v.T @ v / 4000 - torch.eye(6)).abs().max()) < 0.08
    assert float(v.mean(dim=0).abs().max()) < 0.05


def test_the_caller_s_random_stream_and_default_device_play_no_part():
    before = torch.get_rng_state()
    first = gaussian_columns(5, range(3), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        assert torch.equal(gaussian_columns(5, range(3), seed=0), first)


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),
    [(0.95, 3, 3.1824), (0.95, 7, 2.3646), (0.9, 15, 1.7531), (0.95, 31, 2.0395)],
)
def test_quantiles_are_those_of_student_s_tables(level, freedom, expected):
    assert _student(level, freedom) == pytest.approx(expected, rel=1e-2)


def test_what_cannot_be_told_is_refused():
    images = torch.randn(6, 4)
    with pytest.raises(KernelMismatchError, match="exactly zero on all 4 random columns"):
        drift_of_images(images, torch.zeros(6, 4))
    with pytest.raises(KernelMismatchError, match="cannot be compared"):
        unwrap(drift_of_images)(images, torch.randn(5, 4))  # --typecheck would refuse before us
    with pytest.raises(InputError, match="sketch of 3 columns has no usable error bar"):
        drift_of_images(images[:, :3], images[:, :3])
    with pytest.raises(InputError, match=r"level=1\.0 is not a share"):
        drift_of_images(images, images, level=1.0)
