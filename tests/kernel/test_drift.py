"""Kernel drift against 50-digit loops, closed forms and its own laws."""

import math
from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.drift import (
    kernel_angle,
    kernel_distance,
    kernel_distance_centred,
    kernel_distance_offdiag,
    kernel_scale,
    offdiag_share,
    relative_kernel_change,
)

from oracles import naive_angle, naive_distance, naive_relative_change, naive_scale

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

ALL = (
    relative_kernel_change,
    kernel_scale,
    kernel_distance,
    kernel_angle,
    kernel_distance_offdiag,
)


def _psd(n: int, seed: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, rank or n + 1, generator=generator, dtype=torch.float64)
    return rows @ rows.T


def _orthogonal_perturbation(reference: torch.Tensor, size: float) -> torch.Tensor:
    """Symmetric, orthogonal to the reference, of the given relative Frobenius norm."""
    noise = _psd(len(reference), 99) - _psd(len(reference), 98)
    noise -= (noise * reference).sum() / (reference * reference).sum() * reference
    return size * noise / noise.norm() * reference.norm()


@law
@given(n=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_all_measures_agree_with_loops_in_50_digits(n, seed):
    K, R = _psd(n, seed), _psd(n, seed + 1)
    k, r = K.numpy(), R.numpy()
    exact = pytest.approx
    assert relative_kernel_change(K, R).item() == exact(naive_relative_change(k, r), rel=1e-12)
    assert kernel_scale(K, R).exp().item() == exact(naive_scale(k, r), rel=1e-12)
    assert kernel_distance(K, R).item() == exact(naive_distance(k, r), rel=1e-9, abs=1e-30)
    assert kernel_angle(K, R).item() == exact(naive_angle(k, r), rel=1e-9, abs=1e-15)


@law
@given(n=st.integers(2, 8), seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3))
def test_change_splits_into_scale_and_angle(n, seed, factor):
    """``change^2 = (s - 1)^2 + s^2 tan^2 phi``: along the reference, and across it."""
    K, R = factor * _psd(n, seed), _psd(n, seed + 1)
    s, phi = kernel_scale(K, R).exp(), kernel_angle(K, R)
    split = (s - 1) ** 2 + s**2 * phi.tan() ** 2
    torch.testing.assert_close(relative_kernel_change(K, R) ** 2, split, rtol=1e-10, atol=1e-10)


@law
@given(n=st.integers(2, 6), seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_rescaling_moves_change_and_scale_and_no_direction(n, seed, factor):
    K = _psd(n, seed)
    assert relative_kernel_change(factor * K, K).item() == pytest.approx(abs(factor - 1), abs=1e-12)
    assert kernel_scale(factor * K, K).item() == pytest.approx(math.log(factor), abs=1e-12)
    assert kernel_distance(factor * K, K) < 1e-30
    assert kernel_angle(factor * K, K) < 1e-15
    assert kernel_distance_offdiag(factor * K, K) < 1e-30


@law
@given(n=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_the_order_of_the_samples_does_not_matter(n, seed):
    K, R = _psd(n, seed), _psd(n, seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for measure in ALL:
        shuffled = measure(K[order][:, order], R[order][:, order])
        torch.testing.assert_close(shuffled, measure(K, R), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perturbation_of_1e_minus_6_has_distance_5e_minus_13(dtype):
    """``1 - cos`` in float32 reads 0 here, or 6e-8."""
    R = _psd(32, 0)
    K = R + _orthogonal_perturbation(R, 1e-6)
    if dtype is torch.float32:
        # What the perturbation is worth is the difference of the kernels as float32 holds them.
        R, K = R.float(), K.float()
        expected = naive_distance(K.double().numpy(), R.double().numpy())
        assert expected == pytest.approx(5e-13, rel=0.01)
    else:
        expected = 5e-13
    assert kernel_distance(K, R).item() == pytest.approx(expected, rel=0.01)
    assert kernel_angle(K, R).item() == pytest.approx(math.sqrt(2 * expected), rel=0.01)


def test_an_angle_of_1e_minus_9_keeps_its_digits():
    """Its cosine is 1 - 5e-19, which is 1 even in float64."""
    R = _psd(32, 0)
    K = R + _orthogonal_perturbation(R, 1e-9)
    assert kernel_angle(K, R).item() == pytest.approx(1e-9, rel=1e-4)


def test_an_unchanged_kernel_has_moved_by_exactly_zero():
    K = _psd(5, 3).float()
    for measure in ALL:
        assert measure(K, K.clone()) == 0


def test_kernels_without_a_common_entry_are_at_a_right_angle():
    K, R = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    assert kernel_angle(K, R).item() == pytest.approx(math.pi / 2, rel=1e-15)
    assert kernel_distance(K, R) == 1
    assert kernel_scale(K, R) == -math.inf
    assert relative_kernel_change(K, R).item() == pytest.approx(math.sqrt(2))


def test_the_offdiagonal_distance_does_not_see_diagonals():
    K, R = _psd(5, 0), _psd(5, 1)
    expected = kernel_distance(K - torch.diag(K.diagonal()), R - torch.diag(R.diagonal()))
    loud = torch.diag(torch.arange(5, dtype=torch.float64) * 100)
    torch.testing.assert_close(kernel_distance_offdiag(K + loud, R - loud), expected)


def test_the_centred_distance_is_that_of_kernels_between_two_centring_matrices():
    K, R = _psd(6, 0), _psd(6, 1)
    H = np.eye(6) - 1 / 6
    expected = naive_distance(H @ K.numpy() @ H, H @ R.numpy() @ H)
    assert kernel_distance_centred(K, R).item() == pytest.approx(expected, rel=1e-10)


@law
@given(n=st.integers(3, 8), seed=st.integers(0, 10_000), shift=st.floats(0, 100))
def test_the_centred_distance_sees_neither_scale_nor_the_mean_mode(n, seed, shift):
    K, R = _psd(n, seed), _psd(n, seed + 1)
    expected = kernel_distance_centred(K, R)
    torch.testing.assert_close(kernel_distance_centred(3 * K + shift, R), expected)
    # Features of one sample against all: rank one along the mean mode, on both sides of K.
    row = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(kernel_distance_centred(K + row + row.T, R), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_of_an_output_bias_alone_have_no_centred_distance(dtype):
    constant = torch.full((7, 7), 0.3, dtype=dtype)
    # As a sum over three outputs leaves it: equal up to the last place.
    constant[0, 1] *= 1 + torch.finfo(dtype).eps
    K = _psd(7, 0).to(dtype)
    with pytest.raises(KernelMismatchError, match="49 entries of the kernel are equal"):
        kernel_distance_centred(constant, K)
    with pytest.raises(KernelMismatchError, match="49 entries of the reference kernel are equal"):
        kernel_distance_centred(K, constant)


def test_the_offdiagonal_share_of_a_constant_kernel_is_known():
    """Of N^2 equal entries N lie on the diagonal: the share is sqrt(1 - 1/N)."""
    assert offdiag_share(torch.ones(4, 4)).item() == pytest.approx(math.sqrt(3 / 4))
    assert offdiag_share(torch.eye(4)) == 0


@pytest.mark.parametrize("measure", [m for m in ALL if m is not kernel_angle])
def test_kernels_of_two_sizes_are_refused(measure):
    with pytest.raises(KernelMismatchError, match="cannot be compared entry by entry"):
        unwrap(measure)(torch.eye(2), torch.eye(3))  # --typecheck would refuse before us


@pytest.mark.parametrize("measure", ALL)
def test_a_zero_reference_is_refused_by_name(measure):
    with pytest.raises(
        KernelMismatchError, match=r"reference kernel \(2 samples\) is exactly zero"
    ):
        measure(torch.ones(2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("measure", [kernel_distance, kernel_angle])
def test_a_zero_kernel_has_no_direction(measure):
    with pytest.raises(KernelMismatchError, match=r"the kernel .* so its direction is undefined"):
        measure(torch.zeros(2, 2), torch.ones(2, 2))


def test_a_zero_kernel_has_moved_by_the_whole_of_its_reference():
    assert relative_kernel_change(torch.zeros(2, 2), torch.ones(2, 2)) == 1


def test_the_offdiagonal_share_of_nothing_is_refused():
    with pytest.raises(KernelMismatchError, match="share of the off-diagonal is undefined"):
        offdiag_share(torch.zeros(2, 2))
