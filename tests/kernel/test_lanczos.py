"""Lanczos against dense eigenvalues and kernels with few distinct ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError, NonFiniteError
from ntkwatch.kernel.lanczos import largest_eigenvalues

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}


def _with_spectrum(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    n, generator = len(values), torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, **f64))[0]
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("k", [1, 4])
def test_the_largest_eigenvalues_of_a_decaying_spectrum_are_found_in_few_products(k):
    spectrum = 3 * torch.arange(1, 301, **f64) ** -1.5
    K = _with_spectrum(spectrum)
    count = 0

    def product(v: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return K @ v

    found = largest_eigenvalues(product, torch.randn(300, **f64), k=k, products=30)
    torch.testing.assert_close(found.values, spectrum[:k], rtol=1e-8, atol=0)
    assert count == 30
    assert (found.residuals < 1e-4).all()


@law
@given(seed=st.integers(0, 1000), n=st.integers(2, 12), products=st.integers(2, 12))
def test_an_eigenvalue_lies_within_the_residual_and_never_below_the_largest_found(
    seed, n, products
):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, n, generator=generator, **f64)
    K, start = rows @ rows.T, torch.randn(n, generator=generator, **f64)
    true = torch.linalg.eigvalsh(K)
    found = largest_eigenvalues(lambda v: K @ v, start, k=2, products=products)
    for value, residual in zip(*found, strict=True):
        assert (true - value).abs().min() <= residual + 1e-12 * true[-1]
    assert found.values[0] <= true[-1] * (1 + 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_products_as_rows_find_the_whole_spectrum_and_no_copies(dtype):
    """Eigenvalues over eight decades: without reorthogonalization the first ones come back."""
    spectrum = torch.logspace(0, -8 if dtype is torch.float64 else -3, 25, **f64)
    K = _with_spectrum(spectrum).to(dtype)
    found = largest_eigenvalues(lambda v: K @ v, torch.randn(25, dtype=dtype), k=25, products=60)
    exact = 1e-13 if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(found.values.double(), spectrum, rtol=0, atol=exact)


def test_equal_eigenvalues_count_once_and_end_the_search():
    K = _with_spectrum(torch.tensor([5.0, 5.0, 2.0, 2.0, 2.0, 0.0], **f64))
    found = largest_eigenvalues(lambda v: K @ v, torch.randn(6, **f64), k=6, products=6)
    torch.testing.assert_close(
        found.values, torch.tensor([5.0, 2.0, 0.0], **f64), atol=1e-12, rtol=0
    )
    assert (found.residuals < 1e-12).all()
    nothing = largest_eigenvalues(torch.zeros_like, torch.randn(4, **f64))
    assert nothing.values.tolist() == [0]


def test_starts_and_products_that_lead_nowhere_are_refused():
    one = torch.ones(3, **f64)
    for start, k in [(0 * one, 1), (one, 0), (one, 31), (one * torch.nan, 1)]:
        with pytest.raises(InputError, match=f"{k} eigenvalues cannot be had from 30 products"):
            largest_eigenvalues(lambda v: v, start, k=k)
    with pytest.raises(NonFiniteError, match="a product with the kernel holds NaN"):
        largest_eigenvalues(lambda v: v * torch.inf, one)
