"""The weighted bootstrap against true subsamples, loops and moments."""

import math

import numpy as np
import pytest
import torch

from ntkwatch.kernel.bootstrap import (
    angle_samples,
    bootstrap_weights,
    central_interval,
    half_samples,
    relative_change_samples,
    residual_ratio_samples,
    sub_kernels,
)
from ntkwatch.kernel.drift import kernel_angle, kernel_distance, relative_kernel_change

f64 = {"dtype": torch.float64}


def _population(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two kernels of n points with large diagonals, as kernels of networks have."""
    x = torch.randn(n, 12, **f64)
    y = torch.cat([x[:, :6], 2 * x[:, 6:].tanh()], dim=1)
    return x @ x.T + 10 * torch.eye(n, **f64), (y @ y.T + 14 * torch.eye(n, **f64))


def test_weights_are_counts_that_add_up_to_n():
    weights = bootstrap_weights(7, 50)
    assert torch.equal(weights.sum(dim=1), torch.full((50,), 7, **f64))
    assert torch.equal(weights, weights.round())
    assert bool((weights >= 0).all())


def test_weights_have_the_moments_of_a_multinomial():
    """E[w_i] = 1, E[w_i w_j] = 1 - 1/N off the diagonal and 2 - 1/N on it."""
    weights = bootstrap_weights(8, 40_000)
    moments = weights.T @ weights / len(weights)
    expected = np.full((8, 8), 1 - 1 / 8) + np.eye(8)
    np.testing.assert_allclose(moments.numpy(), expected, atol=0.04)
    np.testing.assert_allclose(weights.mean(dim=0).numpy(), np.ones(8), atol=0.03)


def test_each_class_keeps_its_size_in_every_replicate():
    strata = torch.tensor([5, 5, 5, -1, -1, 5])
    weights = bootstrap_weights(6, 100, strata=strata)
    assert torch.equal(weights[:, strata == 5].sum(dim=1), torch.full((100,), 4, **f64))
    assert torch.equal(weights[:, strata == -1].sum(dim=1), torch.full((100,), 2, **f64))


def test_weights_follow_their_seed_and_nothing_else():
    first = bootstrap_weights(9, 5, seed=1)
    torch.rand(3)
    assert torch.equal(bootstrap_weights(9, 5, seed=1), first)
    assert not torch.equal(bootstrap_weights(9, 5, seed=2), first)


def test_drawing_every_sample_once_gives_the_plain_numbers():
    R, K = _population(10)
    once = torch.ones(1, 10, **f64)
    torch.testing.assert_close(angle_samples(K, R, once)[0], kernel_angle(K, R))
    torch.testing.assert_close(relative_change_samples(K, R, once)[0], relative_kernel_change(K, R))


def test_samples_left_out_are_as_if_they_had_never_been():
    R, K = _population(10)
    some = torch.tensor([0, 3, 4, 8])
    weights = torch.zeros(1, 10, **f64)
    weights[0, some] = 1
    k, r = K[some][:, some], R[some][:, some]
    torch.testing.assert_close(angle_samples(K, R, weights)[0], kernel_angle(k, r))
    torch.testing.assert_close(
        relative_change_samples(K, R, weights)[0], relative_kernel_change(k, r)
    )


def test_a_repeated_sample_counts_once_on_the_diagonal_and_by_products_off_it():
    R, K = _population(4)
    w = np.array([2.0, 0.0, 1.0, 1.0])
    W = np.outer(w, w)
    np.fill_diagonal(W, w)
    k, r = K.numpy(), R.numpy()
    cosine = np.sum(W * k * r) / np.sqrt(np.sum(W * k * k) * np.sum(W * r * r))
    change = np.sqrt(np.sum(W * (k - r) ** 2) / np.sum(W * r * r))
    weights = torch.tensor(w)[None]
    assert angle_samples(K, R, weights)[0].item() == pytest.approx(math.acos(cosine), rel=1e-10)
    assert relative_change_samples(K, R, weights)[0].item() == pytest.approx(change, rel=1e-12)


def test_the_weighted_bootstrap_is_centred_on_true_samples_and_the_naive_one_is_not():
    """Plain resampling puts copies beside themselves, which doubles the share of the diagonal."""
    R, K = _population(2000)
    size = 48
    draws = [torch.randperm(2000)[:size] for _ in range(300)]
    truth = torch.stack([kernel_distance(K[d][:, d], R[d][:, d]) for d in draws])
    weighted, naive = [], []
    for d in draws[:30]:
        k, r = K[d][:, d], R[d][:, d]
        angles = angle_samples(k, r, bootstrap_weights(size, 40))
        weighted.append((1 - angles.cos()).mean())
        for again in torch.randint(size, (10, size)):
            naive.append(kernel_distance(k[again][:, again], r[again][:, again]))
    error = abs(torch.stack(weighted).mean() - truth.mean()) / truth.mean()
    naive_error = abs(torch.stack(naive).mean() - truth.mean()) / truth.mean()
    assert error < 0.05
    assert naive_error > 3 * error


def test_a_replicate_without_anything_left_is_not_a_number():
    K = torch.diag(torch.tensor([1.0, 0.0], **f64))
    weights = torch.tensor([[0.0, 2.0], [1.0, 1.0]], **f64)
    assert angle_samples(K, K, weights).isnan().tolist() == [True, False]


def test_the_residual_ratio_is_that_of_the_drawn_samples():
    residual, change = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
    weights = torch.tensor([[1.0, 1.0], [0.0, 2.0]], **f64)
    found = residual_ratio_samples(residual, change, weights)
    np.testing.assert_allclose(found.numpy(), [math.sqrt(5 / 4), math.sqrt(2)], rtol=1e-6)


def test_the_central_interval_leaves_equal_shares_out_and_ignores_what_is_not_finite():
    samples = torch.cat([torch.arange(101, **f64), torch.tensor([torch.nan, torch.inf], **f64)])
    assert central_interval(samples, 0.9).tolist() == pytest.approx([5, 95])
    assert central_interval(samples[101:]).isnan().all()


def test_halves_hold_half_of_the_samples_once_and_each_sample_as_often_as_any_other():
    halves = half_samples(9, 4000)
    assert halves.shape == (4000, 4)
    assert bool((halves.diff(dim=1) > 0).all())
    counts = torch.bincount(halves.flatten(), minlength=9) / 4000
    np.testing.assert_allclose(counts.numpy(), np.full(9, 4 / 9), atol=0.03)
    assert torch.equal(half_samples(9, 3), half_samples(9, 3))
    assert not torch.equal(half_samples(9, 3), half_samples(9, 3, seed=1))


def test_each_class_gives_half_of_itself():
    strata = torch.tensor([5, -1, 5, 5, -1, 5, 5])
    chosen = strata[half_samples(7, 50, strata=strata)]
    assert torch.equal((chosen == 5).sum(dim=1), torch.full((50,), 2))
    assert torch.equal((chosen == -1).sum(dim=1), torch.full((50,), 1))


def test_the_kernel_of_a_subset_has_its_rows_and_columns():
    K = torch.randn(5, 5, **f64)
    subsets = torch.tensor([[0, 3], [2, 4]])
    for found, chosen in zip(sub_kernels(K, subsets), subsets, strict=True):
        assert torch.equal(found, K[chosen][:, chosen])


def test_halves_of_one_probe_spread_as_much_as_whole_probes_do():
    """The largest eigenvalue over N: truth from 400 probes of a population of 4000."""
    R, _ = _population(4000)
    size = 64

    def top(kernels: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(kernels)[:, -1] / kernels.shape[1]

    probes = half_samples(4000, 400)[:, :: 2000 // size][:, :size]
    truth = top(sub_kernels(R, probes)).std()
    spreads = []
    for probe in probes[:30]:
        kernel = R[probe][:, probe]
        spreads.append(top(sub_kernels(kernel, half_samples(size, 60))).std())
    assert torch.stack(spreads).mean() / truth == pytest.approx(1, abs=0.3)
