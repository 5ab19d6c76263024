"""Largest eigenvalues from products against ``eigvalsh`` of the whole matrix, and known spectra."""

import pytest
import torch

from ntkwatch.errors import InputError, NonFiniteError
from ntkwatch.kernel.lanczos import _outside, lanczos

N = 150


def _kernel(spectrum, seed=0):
    n, generator = len(spectrum), torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.as_tensor(spectrum, dtype=torch.float64)) @ basis.T


def _times(kernel):
    return lambda v: kernel @ v


SPECTRA = {
    "fast decay": torch.arange(1, N + 1) ** -1.5,
    "slow decay": torch.arange(1, N + 1) ** -0.5,
    "one dominates": torch.tensor([1e4, *torch.linspace(2, 0, N - 1).tolist()]),
    "repeated": torch.tensor([3.0] * 5 + [2.0] * 10 + torch.linspace(1, 0, N - 15).tolist()),
    "nearly repeated": torch.tensor(
        [1 + 1e-7 * i for i in range(6)] + torch.linspace(0.8, 0, N - 6).tolist(),
        dtype=torch.float64,
    ),
    "all equal": torch.ones(N),
    "low rank": torch.tensor([3.0, 2.0, 2.0] + [0.0] * (N - 3)),
}


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("case", SPECTRA)
def test_values_are_those_of_the_whole_matrix(case, k):
    kernel = _kernel(SPECTRA[case])
    found = lanczos(_times(kernel), N, k, max_products=1000)
    expected = torch.linalg.eigvalsh(kernel).flip(0)[:k]
    assert found.converged
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=1e-12 * float(expected[0]))


@pytest.mark.parametrize("case", SPECTRA)
def test_residuals_and_vectors_are_what_they_claim(case):
    kernel = _kernel(SPECTRA[case])
    found = lanczos(_times(kernel), N, 4)
    v = found.vectors
    torch.testing.assert_close(v.T @ v, torch.eye(4, dtype=v.dtype), rtol=0, atol=1e-12)
    off = (kernel @ v - v * found.values).norm(dim=0)
    torch.testing.assert_close(found.residuals, off, rtol=1e-2, atol=1e-12 * float(found.values[0]))
    assert (found.residuals <= 1e-10 * found.values[0]).all()


def test_a_stop_before_convergence_says_so_and_its_residuals_still_bound_the_error():
    kernel = _kernel(SPECTRA["slow decay"])
    calls = []
    found = lanczos(lambda v: calls.append(0) or kernel @ v, N, 5, max_products=13)
    assert not found.converged
    assert found.products == len(calls) == 13
    gaps = (torch.linalg.eigvalsh(kernel)[:, None] - found.values).abs().min(dim=0).values
    assert (gaps <= found.residuals).all()
    assert found.residuals.max() > 1e-4


def test_many_restarts_lead_to_the_same_values():
    """One eigenvalue that takes more vectors than the basis may hold."""
    kernel = _kernel(torch.linspace(1, 0, N) ** 0.5)
    found = lanczos(_times(kernel), N, 1, tolerance=1e-9, max_products=2000)
    assert found.converged
    assert found.products > 60
    assert float(found.values[0]) == pytest.approx(1.0, rel=1e-9)


def test_a_kernel_of_zeros_has_zeros():
    found = lanczos(torch.zeros_like, 20, 4)
    assert found.converged
    assert found.products == 4
    assert not found.values.any()
    assert not found.residuals.any()


def test_a_small_kernel_has_no_more_eigenvalues_than_rows():
    kernel = _kernel([3.0, 2.0, 1.0])
    found = lanczos(_times(kernel), 3, 8)
    assert found.converged
    torch.testing.assert_close(found.values, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


def test_a_direction_that_is_hardly_new_is_made_orthogonal_all_the_same():
    basis = torch.linalg.qr(torch.randn(N, 20, dtype=torch.float64))[0]
    inside = basis @ torch.randn(20, 3, dtype=torch.float64)
    block = inside + 1e-6 * torch.randn(N, 3, dtype=torch.float64)
    found = torch.cat([basis, _outside(basis, block)], dim=1)
    assert found.shape == (N, 23)
    identity = torch.eye(23, dtype=torch.float64)
    torch.testing.assert_close(found.T @ found, identity, rtol=0, atol=1e-14)
    assert _outside(basis, inside).shape == (N, 0)


def test_products_in_float32_reach_the_tolerance_of_float32():
    kernel = _kernel(SPECTRA["repeated"]).float()
    found = lanczos(lambda v: kernel @ v.float(), N, 8, tolerance=1e-5)
    assert found.converged
    expected = torch.linalg.eigvalsh(kernel.double()).flip(0)[:8]
    torch.testing.assert_close(found.values, expected, rtol=2e-5, atol=0)


def test_products_too_rough_for_the_tolerance_end_unconverged():
    """Noise as large as a thousandth: no vector has a residual of 1e-10."""
    kernel = _kernel([2.0, 1.0, 0.5, 0.1])
    found = lanczos(lambda v: kernel @ v + 1e-3 * torch.randn_like(v), 4, 2, max_products=50)
    assert not found.converged
    assert found.products <= 50
    torch.testing.assert_close(
        found.values, torch.tensor([2.0, 1.0], dtype=torch.float64), rtol=0, atol=0.02
    )


def test_the_result_is_reproducible_and_takes_nothing_from_the_caller_s_stream():
    kernel, before = _kernel(SPECTRA["fast decay"]), torch.get_rng_state()
    first, second = (lanczos(_times(kernel), N, 3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.vectors, second.vectors)


def test_what_cannot_be_had_is_refused():
    with pytest.raises(InputError, match="k=0 eigenvalues of a kernel of size 5"):
        lanczos(torch.zeros_like, 5, 0)
    with pytest.raises(InputError, match="within 3 products"):
        lanczos(torch.zeros_like, 5, 4, max_products=3)
    with pytest.raises(NonFiniteError, match="kernel times a vector"):
        lanczos(lambda v: v * torch.nan, 5, 2)
