"""Alignment with targets against numpy, closed forms and the null it claims to have."""

from inspect import unwrap  # past --typecheck, which would refuse before us

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.alignment import (
    Alignment,
    layer_alignments,
    rkhs_norm,
    rkhs_norm_ratio,
    target_alignment,
    target_matrix,
)

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

CPU = torch.device("cpu")
f64 = {"dtype": torch.float64}


def _labels(n: int, classes: int = 3) -> torch.Tensor:
    return torch.arange(n) % classes


def _psd(n: int) -> torch.Tensor:
    rows = torch.randn(n, n, **f64)
    return rows @ rows.T


def test_class_labels_become_centred_one_hot_columns_whatever_the_labels_are_called():
    expected = np.eye(3)[[2, 0, 1, 2]] - np.array([0.25, 0.25, 0.5])
    for labels in ([2, 0, 1, 2], [70, -3, 9, 70]):
        matrix = target_matrix(torch.tensor(labels), device=CPU)
        np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-15)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2, 3)])
def test_values_are_centred_per_column(shape):
    values = torch.randn(shape)
    flat = values.double().numpy().reshape(5, -1)
    np.testing.assert_allclose(
        target_matrix(values, device=CPU).numpy(), flat - flat.mean(axis=0), atol=1e-15
    )


def test_equal_targets_are_refused():
    """The mean of seven times 0.1 is not 0.1: what is left is rounding."""
    for same in (torch.zeros(7, dtype=torch.long), torch.full((7,), 0.1, **f64)):
        with pytest.raises(InputError, match="all 7 targets of the probe are equal"):
            target_matrix(same, device=CPU)


def test_targets_with_several_labels_per_sample_are_refused():
    with pytest.raises(InputError, match=r"whole numbers of shape \(4, 2\)"):
        unwrap(target_matrix)(torch.zeros(4, 2, dtype=torch.long), device=CPU)


def test_targets_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="1 of the 3 targets hold NaN"):
        target_matrix(torch.tensor([1.0, torch.nan, 2.0]), device=CPU)


def test_alignment_is_the_cosine_of_the_centred_kernel_with_the_targets():
    K, Y = _psd(7), target_matrix(_labels(7), device=CPU)
    H = np.eye(7) - 1 / 7
    A, B = H @ K.numpy() @ H, Y.numpy() @ Y.numpy().T
    expected = np.sum(A * B) / np.linalg.norm(A) / np.linalg.norm(B)
    assert target_alignment(K, Y).value.item() == pytest.approx(expected, rel=1e-12)


def test_a_kernel_made_of_the_targets_is_aligned_by_one():
    Y = target_matrix(_labels(9), device=CPU)
    assert target_alignment(Y @ Y.T, Y).value.item() == pytest.approx(1, abs=1e-14)


@law
@given(factor=st.floats(1e-6, 1e6), shift=st.floats(-100, 100))
def test_alignment_sees_neither_scale_nor_a_constant(factor, shift):
    torch.manual_seed(0)
    K, Y = _psd(6), target_matrix(_labels(6), device=CPU)
    moved = target_alignment(factor * (K + shift), Y).value
    torch.testing.assert_close(moved, target_alignment(K, Y).value, rtol=1e-9, atol=1e-12)


def test_the_null_is_that_of_shuffled_targets():
    """Its mean has a closed form: trace(HKH) / (N - 1) times trace(YY') over both norms."""
    K, Y = _psd(12), target_matrix(_labels(12), device=CPU)
    H = np.eye(12) - 1 / 12
    A, B = H @ K.numpy() @ H, Y.numpy() @ Y.numpy().T
    mean = np.trace(A) * np.trace(B) / 11 / np.linalg.norm(A) / np.linalg.norm(B)
    found = target_alignment(K, Y, permutations=4000)
    assert found.null_mean.item() == pytest.approx(mean, abs=4 * found.null_sd.item() / 4000**0.5)
    slow = [np.sum(A * B[p][:, p]) for p in map(np.random.RandomState(0).permutation, [12] * 4000)]
    sd = np.std(slow) / np.linalg.norm(A) / np.linalg.norm(B)
    assert found.null_sd.item() == pytest.approx(sd, rel=0.1)


def test_labels_that_say_nothing_score_like_their_shuffles():
    """Under the null the z-score is a standard one: over 40 kernels its size is about 1."""
    Y = target_matrix(_labels(30), device=CPU)
    scores = []
    for _ in range(40):
        value, mean, sd = target_alignment(_psd(30), Y)
        scores.append((value - mean) / sd)
    scores = torch.stack(scores)
    assert abs(scores.mean()) < 0.6
    assert 0.6 < scores.std() < 1.5


def test_two_looks_at_one_kernel_meet_the_same_null():
    K, Y = _psd(8), target_matrix(_labels(8), device=CPU)
    assert target_alignment(K, Y) == target_alignment(K.clone(), Y)


def test_a_constant_kernel_has_nothing_to_align():
    """Only an output bias is watched: the kernel is C everywhere, and centred it is rounding."""
    Y = target_matrix(_labels(7), device=CPU)
    with pytest.raises(InputError, match="all 49 entries of the kernel are equal up to rounding"):
        target_alignment(torch.full((7, 7), 0.3, **f64), Y)


def test_targets_of_another_probe_are_refused():
    with pytest.raises(InputError, match=r"the kernel is \(5, 5\) and there are 7 targets"):
        unwrap(target_alignment)(_psd(5), target_matrix(_labels(7), device=CPU))


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_the_rkhs_norm_under_the_identity_is_the_size_of_the_targets(ridge):
    """tr(I) tr(Y' Y / (1 + ridge)) / N^2 = |Y|^2 / (N (1 + ridge))."""
    Y = target_matrix(_labels(6), device=CPU)
    expected = float(np.sum(Y.numpy() ** 2)) / 6 / (1 + ridge)
    found = rkhs_norm(torch.eye(6, **f64), Y, ridge=ridge)
    assert found.item() == pytest.approx(expected, rel=1e-13)


def test_the_rkhs_norm_falls_when_the_kernel_turns_toward_the_targets():
    """For K = I + yy', (K)^-1 y = y / (1 + |y|^2), so R = (1 + |y|^2/N) |y|^2/(1 + |y|^2) / N."""
    y = target_matrix(torch.randn(8, **f64), device=CPU)
    size = float(np.sum(y.numpy() ** 2))
    found = rkhs_norm(torch.eye(8, **f64) + y @ y.T, y, ridge=0.0)
    assert found.item() == pytest.approx((1 + size / 8) * size / (1 + size) / 8, rel=1e-12)
    assert found < rkhs_norm(torch.eye(8, **f64), y, ridge=0.0)


@law
@given(factor=st.floats(1e-6, 1e6))
def test_the_rkhs_norm_does_not_see_scale(factor):
    torch.manual_seed(0)
    K, Y = _psd(6), target_matrix(_labels(6), device=CPU)
    torch.testing.assert_close(rkhs_norm(factor * K, Y, ridge=1e-3), rkhs_norm(K, Y, ridge=1e-3))


def test_the_rkhs_norm_under_a_zero_kernel_is_refused():
    with pytest.raises(KernelMismatchError, match="exactly zero, so no target has a norm"):
        rkhs_norm(torch.zeros(6, 6), target_matrix(_labels(6), device=CPU), ridge=1e-3)


def test_the_z_score_counts_standard_deviations_of_the_null():
    value, mean, sd = (torch.tensor(x, **f64) for x in (0.5, 0.2, 0.1))
    assert Alignment(value, mean, sd).z.item() == pytest.approx(3)
    assert Alignment(value, mean, 0 * sd).z.isnan()


def test_two_probe_points_have_a_null_without_spread_and_so_no_score():
    """Two labels shuffled are the same two labels up to sign: every shuffle aligns alike."""
    Y = target_matrix(torch.tensor([0, 1]), device=CPU)
    assert target_alignment(torch.eye(2, **f64), Y).z.isnan()


def test_each_layer_is_aligned_as_if_it_were_the_kernel_with_one_null_for_all():
    Y = target_matrix(_labels(9), device=CPU)
    layers = {"a": _psd(9), "b": _psd(9).float()}
    found = layer_alignments(layers, Y, permutations=50)
    assert found == {k: target_alignment(v, Y, permutations=50) for k, v in layers.items()}


def test_layers_without_geometry_have_no_alignment_and_do_not_stop_the_others():
    Y = target_matrix(_labels(7), device=CPU)
    layers = {
        "bias": torch.full((7, 7), 0.3, **f64),
        "zero": torch.zeros(7, 7, **f64),
        "w": _psd(7),
    }
    found = layer_alignments(layers, Y)
    assert [alignment.value.isnan().item() for alignment in found.values()] == [True, True, False]
    assert found["zero"].z.isnan()


def test_the_rkhs_norm_ratio_is_that_of_the_norms_at_each_ridge():
    Y, now, then = target_matrix(_labels(8), device=CPU), _psd(8), _psd(8)
    found = rkhs_norm_ratio(now, then, Y, ridges=(1e-6, 0.1))
    for ratio, ridge in zip(found.tolist(), (1e-6, 0.1), strict=True):
        norms = []
        for K in (now.numpy(), then.numpy()):
            ridged = K + ridge * np.trace(K) / 8 * np.eye(8)
            norms.append(np.trace(K) * np.trace(Y.numpy().T @ np.linalg.inv(ridged) @ Y.numpy()))
        assert ratio == pytest.approx(norms[0] / norms[1], rel=1e-8)


@law
@given(factor=st.floats(1e-6, 1e6))
def test_a_kernel_that_turns_to_the_targets_reads_below_one_whatever_its_scale(factor):
    Y = target_matrix(_labels(6), device=CPU)
    then = torch.eye(6, **f64)
    now = then + Y @ Y.T
    found = rkhs_norm_ratio(factor * now, then, Y)
    torch.testing.assert_close(found, rkhs_norm_ratio(now, then, Y))
    assert found.shape == (2,)
    assert (found < 0.9).all()
    torch.testing.assert_close(
        found, rkhs_norm_ratio(torch.eye(6, **f64) + Y @ Y.T, torch.eye(6, **f64), Y)
    )
