"""Spectra against kernels built from known eigenvalues."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError, KernelMismatchError, NonFiniteError
from ntkwatch.kernel.spectrum import (
    condition_number,
    effective_rank,
    eigenvalues,
    min_eigenvalue,
    rank_holding,
    rounding_floor,
    tail_exponent,
)

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)


def _kernel_with(spectrum: torch.Tensor, seed: int = 0) -> torch.Tensor:
    n, generator = len(spectrum), torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(spectrum) @ basis.T


def test_eigenvalues_are_those_built_in_largest_first():
    spectrum = torch.tensor([7.0, 3.0, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(eigenvalues(_kernel_with(spectrum)), spectrum, rtol=0, atol=1e-14)


def test_eigenvalues_of_a_float32_kernel_are_found_in_float64():
    assert eigenvalues(torch.eye(3)).dtype == torch.float64


def test_rounding_that_breaks_symmetry_is_averaged_out():
    """The symmetric part of [[1, e], [-e, 1]] is the identity."""
    kernel = torch.tensor([[1.0, 1e-3], [-1e-3, 1.0]], dtype=torch.float64)
    assert torch.equal(eigenvalues(kernel), torch.ones(2, dtype=torch.float64))


def test_a_spectrum_of_nan_is_refused():
    with pytest.raises(NonFiniteError, match="entries of the kernel"):
        eigenvalues(torch.full((2, 2), torch.nan))


@pytest.mark.parametrize("n", [1, 5, 64])
def test_the_effective_rank_of_the_identity_is_n(n):
    assert effective_rank(eigenvalues(torch.eye(n))).item() == pytest.approx(n, rel=1e-12)


def test_the_effective_rank_of_one_direction_is_one():
    x = torch.randn(6, 1, dtype=torch.float64)
    assert effective_rank(eigenvalues(x @ x.T)).item() == pytest.approx(1, rel=1e-12)


def test_the_effective_rank_is_the_exponential_of_the_entropy():
    spectrum = torch.tensor([3.0, 1.0, -1e-17], dtype=torch.float64)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(spectrum).item() == pytest.approx(expected, rel=1e-14)


@law
@given(seed=st.integers(0, 1000), factor=st.floats(1e-6, 1e6))
def test_the_effective_rank_does_not_see_scale_and_lies_between_one_and_n(seed, factor):
    spectrum = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rank = effective_rank(spectrum)
    assert 1 <= rank <= 5 + 1e-12
    torch.testing.assert_close(effective_rank(factor * spectrum), rank)


def test_a_kernel_without_a_positive_eigenvalue_has_no_rank():
    with pytest.raises(KernelMismatchError, match="none of the 3 eigenvalues is positive"):
        effective_rank(torch.zeros(3))


f64 = {"dtype": torch.float64}


@pytest.mark.parametrize(("share", "rank"), [(0.05, 1), (0.6, 1), (0.61, 2), (0.9, 2), (1.0, 3)])
def test_the_rank_that_holds_a_share_of_the_trace_is_counted_from_the_top(share, rank):
    spectrum = torch.tensor([6.0, 3.0, 1.0, 0.0, -1e-17], **f64)
    assert rank_holding(spectrum, share=share) == rank


@law
@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1))
def test_the_rank_that_holds_a_share_is_the_smallest_that_does(seed, share):
    spectrum = torch.rand(9, generator=torch.Generator().manual_seed(seed), **f64)
    spectrum = spectrum.sort(descending=True).values
    k = int(rank_holding(spectrum, share=share))
    total = math.fsum(spectrum.tolist())
    assert 1 <= k <= 9
    assert math.fsum(spectrum[:k].tolist()) >= share * total * (1 - 1e-14)
    assert math.fsum(spectrum[: k - 1].tolist()) < share * total * (1 + 1e-14)


@pytest.mark.parametrize("share", [0.0, 1.1, math.nan])
def test_a_share_that_cannot_be_held_is_refused(share):
    with pytest.raises(InputError, match="of the trace cannot be held"):
        rank_holding(torch.ones(3), share=share)


def test_no_rank_holds_a_share_of_nothing():
    with pytest.raises(KernelMismatchError, match="no trace to share"):
        rank_holding(torch.zeros(3), share=0.5)


def test_the_rounding_floor_is_that_of_the_arithmetic_which_made_the_kernel():
    spectrum = torch.tensor([8.0, 1.0, 0.5, 0.25], **f64)
    assert rounding_floor(spectrum, precision=torch.float64) == 32 * 2.0**-52
    assert rounding_floor(spectrum, precision=torch.float32) == 32 * 2.0**-23
    assert rounding_floor(spectrum, precision=torch.bfloat16) == 32 * 2.0**-7


def test_the_smallest_eigenvalue_and_the_condition_number_are_those_built_in():
    spectrum = eigenvalues(_kernel_with(torch.tensor([9.0, 3.0, 1e-3], **f64)))
    smallest = min_eigenvalue(spectrum, precision=torch.float64)
    assert smallest.item() == pytest.approx(1e-3, rel=1e-11)
    condition = condition_number(spectrum, precision=torch.float64)
    assert condition.item() == pytest.approx(9000, rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_equal_probe_points_have_no_smallest_eigenvalue(dtype):
    """The truth is 0; what rounding leaves of it has either sign and means nothing."""
    for seed in range(20):
        x = torch.randn(12, 40, generator=torch.Generator().manual_seed(seed)).to(dtype)
        x[7] = x[3]
        # Products of parts, as engines add them up: the two rows are equal up to rounding only.
        kernel = sum(part @ part.T for part in x.split(7, dim=1))
        spectrum = eigenvalues(kernel)
        assert min_eigenvalue(spectrum, precision=dtype).isnan()
        assert condition_number(spectrum, precision=dtype).isnan()


def test_a_small_eigenvalue_above_the_floor_of_float64_is_under_that_of_float32():
    spectrum = torch.tensor([1.0, 1e-9], **f64)
    assert condition_number(spectrum, precision=torch.float64).item() == pytest.approx(1e9)
    assert condition_number(spectrum, precision=torch.float32).isnan()


@law
@given(seed=st.integers(0, 1000), factor=st.floats(1e-6, 1e6))
def test_the_condition_number_does_not_see_scale(seed, factor):
    spectrum = torch.rand(5, generator=torch.Generator().manual_seed(seed), **f64) + 0.1
    expected = condition_number(spectrum, precision=torch.float64)
    found = condition_number(factor * spectrum, precision=torch.float64)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_the_exponent_of_an_exact_power_law_is_found(exponent):
    spectrum = 7 * torch.arange(1, 401, **f64) ** -exponent
    spectrum[0] = 1e6  # the mean mode is no part of the law
    spectrum[50:] *= 0.1  # nor are the ranks that a finite probe bends down
    found = tail_exponent(spectrum, precision=torch.float64)
    assert found.item() == pytest.approx(exponent, abs=1e-12)


@pytest.mark.parametrize("exponent", [1.2, 1.5, 2.0])
def test_the_exponent_of_sampled_kernels_with_a_known_law_is_found_within_a_tenth(exponent):
    """N points with Gaussian features of variance ``k^-a``: the law of the population is known."""
    deviations = torch.arange(1, 3001, **f64) ** (-exponent / 2)
    found = []
    for seed in range(4):
        features = torch.randn(400, 3000, generator=torch.Generator().manual_seed(seed), **f64)
        spectrum = eigenvalues((features * deviations) @ (features * deviations).T)
        found.append(tail_exponent(spectrum, precision=torch.float64).item())
    assert sum(found) / 4 == pytest.approx(exponent, rel=0.1)


def test_less_than_a_decade_of_ranks_has_no_exponent():
    """Ranks 2 to N/8 span a decade from N = 160."""
    law_of_two = torch.arange(1, 161, **f64) ** -2.0
    assert tail_exponent(law_of_two, precision=torch.float64).item() == pytest.approx(2, rel=1e-12)
    assert tail_exponent(law_of_two[:159], precision=torch.float64).isnan()
    assert tail_exponent(law_of_two[:1], precision=torch.float64).isnan()


def test_a_tail_that_reaches_the_rounding_floor_has_no_exponent():
    spectrum = torch.exp(-2 * torch.arange(200, **f64))
    assert tail_exponent(spectrum, precision=torch.float64).isnan()
    steep = torch.arange(1, 201, **f64) ** -4.0
    assert tail_exponent(steep, precision=torch.float64).item() == pytest.approx(4, rel=1e-12)
    assert tail_exponent(steep, precision=torch.float32).isnan()
