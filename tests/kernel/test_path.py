"""Speed and detours of a kernel against rotations whose angles are known, and a metric's laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError
from ntkwatch.kernel.path import angle_matrix, angular_velocity, path_length_ratio, step_angles

from oracles import naive_angle

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)


def _turned(angle: float) -> torch.Tensor:
    """A kernel at this angle from ``diag(1, 0)``, in the plane of two diagonal kernels."""
    return torch.diag(torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64))


def _psd(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, n + 1, generator=generator, dtype=torch.float64)
    return rows @ rows.T


def test_step_angles_are_those_between_neighbours():
    kernels = [_psd(4, seed) for seed in range(4)]
    expected = [naive_angle(kernels[i + 1].numpy(), kernels[i].numpy()) for i in range(3)]
    assert step_angles(kernels).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("elapsed", [0.25, 1.0, 8.0])
def test_a_steady_rotation_has_one_velocity_however_often_it_is_looked_at(elapsed):
    found = angular_velocity(_turned(0.3 + 0.05 * elapsed), _turned(0.3), elapsed=elapsed)
    assert found.item() == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize("elapsed", [0.0, -1.0, math.nan])
def test_a_velocity_over_no_time_is_refused(elapsed):
    with pytest.raises(InputError, match="epochs lie between the two kernels"):
        angular_velocity(_turned(0.1), _turned(0.0), elapsed=elapsed)


def test_a_steady_rotation_is_as_long_as_its_ends_are_apart():
    kernels = [(1 + i) * _turned(0.1 * i) for i in range(10)]
    assert path_length_ratio(kernels).item() == pytest.approx(1, rel=1e-12)


def test_a_detour_counts_twice():
    """Out by 0.5, back by 0.4: a way of 0.9 for a distance of 0.1."""
    found = path_length_ratio([_turned(0.0), _turned(0.5), _turned(0.1)])
    assert found.item() == pytest.approx(9, rel=1e-12)


@law
@given(n=st.integers(2, 5), seed=st.integers(0, 10_000), stations=st.integers(2, 6))
def test_no_path_is_shorter_than_its_ends_are_apart(n, seed, stations):
    kernels = [_psd(n, seed + i) for i in range(stations)]
    assert path_length_ratio(kernels) >= 1 - 1e-12


def test_a_path_whose_ends_are_noise_apart_has_no_ratio():
    kernels = [_turned(0.0), _turned(0.5), _turned(0.1)]
    assert path_length_ratio(kernels, noise_floor=0.033).item() == pytest.approx(9, rel=1e-12)
    assert path_length_ratio(kernels, noise_floor=0.034).isnan()
    assert path_length_ratio([_turned(0.0), _turned(0.5), _turned(0.0)]).isnan()


def test_the_angle_matrix_holds_every_pair():
    kernels = [_psd(4, seed) for seed in range(4)]
    found = angle_matrix(kernels)
    for i in range(4):
        assert found[i, i] == 0
        for j in range(4):
            expected = naive_angle(kernels[i].numpy(), kernels[j].numpy())
            assert found[i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert torch.equal(found, found.mT)


@pytest.mark.parametrize("measure", [step_angles, path_length_ratio, angle_matrix])
def test_one_kernel_is_no_path(measure):
    with pytest.raises(InputError, match="there are 1 kernels"):
        measure([_psd(2, 0)])
