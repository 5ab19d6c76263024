"""Shapes of a kernel against loops over their definition."""

import pytest
import torch

from ntkwatch.errors import KernelMismatchError, NonFiniteError
from ntkwatch.kernel.gram import (
    as_matrix,
    centre,
    check_finite,
    check_rows,
    check_same_shape,
    flatten_kernel,
    inner,
    offdiag,
    trace_kernel,
    unflatten_kernel,
)

f64 = {"dtype": torch.float64}


def test_a_flat_kernel_has_output_a_of_sample_i_in_row_i_times_c_plus_a():
    kernel = torch.randn(3, 2, 4, 5, **f64)
    flat = flatten_kernel(kernel)
    assert flat.shape == (12, 10)
    for i, j, a, b in torch.cartesian_prod(*(torch.arange(n) for n in (3, 2, 4, 5))).tolist():
        assert flat[i * 4 + a, j * 5 + b] == kernel[i, j, a, b]


def test_unflattening_undoes_flattening():
    kernel = torch.randn(3, 2, 4, 5, **f64)
    assert torch.equal(unflatten_kernel(flatten_kernel(kernel), (4, 5)), kernel)


def test_the_trace_kernel_is_a_sum_over_outputs_and_not_a_mean():
    kernel = torch.randn(3, 2, 4, 4, **f64)
    expected = torch.tensor(
        [[sum(kernel[i, j, a, a] for a in range(4)) for j in range(2)] for i in range(3)]
    )
    torch.testing.assert_close(trace_kernel(kernel), expected)


def test_offdiag_zeroes_the_diagonal_of_a_copy():
    kernel = torch.ones(3, 3, **f64)
    assert torch.equal(offdiag(kernel), 1 - torch.eye(3, **f64))
    assert torch.equal(kernel, torch.ones(3, 3, **f64))


def test_centring_is_a_product_with_h_on_both_sides():
    kernel = torch.randn(5, 5, **f64)
    H = torch.eye(5, **f64) - 1 / 5
    torch.testing.assert_close(centre(kernel), H @ kernel @ H)


def test_the_inner_product_adds_float32_entries_in_float64():
    """1 + 2^-30 is not a float32, but a sum of two of them is held by float64."""
    a = torch.tensor([[1.0, 2.0**-30]])
    assert inner(a, torch.ones(1, 2)).item() == 1 + 2.0**-30


def test_kernels_of_two_shapes_are_refused_with_both_shapes():
    with pytest.raises(KernelMismatchError, match=r"is \(2, 2\) and its reference \(3, 3\)"):
        check_same_shape(torch.ones(2, 2), torch.ones(3, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_entries_that_are_not_finite_are_counted_in_the_refusal(bad):
    kernel = torch.ones(2, 2)
    check_finite(kernel)
    kernel[0, 1] = bad
    with pytest.raises(NonFiniteError, match="1 of the 4 entries of the anchor are NaN"):
        check_finite(kernel, "anchor")


def test_a_full_kernel_acts_on_all_outputs_and_a_trace_kernel_as_its_share_on_each():
    kernel, values = torch.randn(3, 2, 4, 4, **f64), torch.randn(2, 4, **f64)
    together = as_matrix(kernel, outputs=4) @ values.reshape(-1, 1)
    expected = torch.einsum("ijab,jb->ia", kernel, values)
    torch.testing.assert_close(together.reshape(3, 4), expected)
    shared = torch.randn(3, 2, **f64)
    alike = shared[:, :, None, None] * torch.eye(4, **f64)
    alone = as_matrix(trace_kernel(alike), outputs=4) @ values
    torch.testing.assert_close(alone, torch.einsum("ijab,jb->ia", alike, values))


@pytest.mark.parametrize(
    ("kernel", "values"), [((3, 3), (2, 4)), ((3, 3, 4, 4), (3, 2)), ((3, 3, 4, 4), (4, 3))]
)
def test_values_of_other_samples_or_outputs_are_refused(kernel, values):
    with pytest.raises(KernelMismatchError, match=r"targets .* do not belong together"):
        check_rows(torch.zeros(kernel), torch.zeros(values), "targets")


def test_values_that_fit_are_let_through():
    check_rows(torch.zeros(3, 3), torch.zeros(3, 7), "targets")
    check_rows(torch.zeros(3, 2, 4, 4), torch.zeros(3, 4), "targets")
