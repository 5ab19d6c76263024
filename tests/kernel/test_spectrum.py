"""Spectra against kernels built from known eigenvalues."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import KernelMismatchError, NonFiniteError
from ntkwatch.kernel.spectrum import effective_rank, eigenvalues

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
