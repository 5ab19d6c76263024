"""Matrix-free eigenvalues against ``eigvalsh`` of whole kernels from plain autograd."""

import pytest
import torch
from jacobian.batch_kernels import Contrastive, NormedNet, flat_kernel
from jacobian.models import MLP, ImageNet
from jacobian.snapshots import assert_same, state_of
from torch import nn

from ntkwatch.errors import InputError, SampleCouplingError
from ntkwatch.jacobian.matrix_free import top_eigenvalues

from oracles import dense_ntk


def _dense_values(kernel, k):
    return torch.linalg.eigvalsh(kernel).flip(0)[:k]


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("budget", ["1GiB", "1KiB"])
def test_values_are_those_of_the_whole_kernel(k, budget):
    model, x = ImageNet().eval(), torch.randn(12, 3, 8, 8)
    kernel = flat_kernel(model, x, train=False)
    found = top_eigenvalues(model, x, k, dtype=torch.float64, memory_budget=budget)
    torch.testing.assert_close(found.values, _dense_values(kernel, k), rtol=1e-8, atol=0)
    off = (kernel @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert found.converged
    assert (found.residuals <= 1e-10 * found.values[0]).all()
    assert (off <= 2e-10 * found.values[0]).all()


def test_other_outputs_give_eigenvalues_of_that_kernel():
    model, x = MLP(), torch.randn(9, 4, dtype=torch.float64)
    trace = dense_ntk(model, x).diagonal(dim1=2, dim2=3).sum(dim=-1)
    found = top_eigenvalues(model, x, 3, outputs="trace", dtype=torch.float64)
    torch.testing.assert_close(found.values, _dense_values(trace, 3), rtol=1e-8, atol=0)


def test_repeated_eigenvalues_are_found_as_often_as_they_occur():
    """A linear layer has the kernel (X X' + 1) for each of C outputs: C copies of each value."""
    model, x = nn.Linear(4, 3).double(), torch.randn(9, 4, dtype=torch.float64)
    found = top_eigenvalues(model, x, 7)
    single = _dense_values(x @ x.T + 1, 3)
    torch.testing.assert_close(found.values, single.repeat_interleave(3)[:7], rtol=1e-8, atol=0)


def test_a_kernel_of_low_rank_has_zeros_beyond_it():
    """Only the head's bias: the kernel is one block of ones per output, of rank 3."""
    model, x = MLP(), torch.randn(6, 4)
    found = top_eigenvalues(model, x, 5, params="2.bias", dtype=torch.float64)
    expected = torch.tensor([6.0, 6, 6, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=1e-12)
    assert found.converged


def test_a_kernel_of_zeros_has_zeros():
    model, x = MLP(), torch.randn(6, 4)
    with torch.no_grad():
        model[2].weight.zero_()
    found = top_eigenvalues(model, x, 3, params="0")
    assert found.converged
    assert not found.values.any()


def test_the_batch_kernel_is_that_of_training_mode():
    model, x = NormedNet().train(), torch.randn(8, 4)
    before = state_of(model)
    found = top_eigenvalues(model, x, 4, batchnorm="batch", dtype=torch.float64)
    assert_same(before, state_of(model))
    expected = _dense_values(flat_kernel(model, x), 4)
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=0)


def test_coupled_samples_are_refused_unless_the_batch_is_asked_for():
    model, x = nn.Sequential(Contrastive(), nn.BatchNorm1d(6)), torch.randn(6, 4)
    options = {"forward": lambda model, x: model(x), "dtype": torch.float64}
    with pytest.raises(SampleCouplingError, match="mixes samples"):
        top_eigenvalues(model, x, 3, **options)
    found = top_eigenvalues(model, x, 3, batchnorm="batch", **options)
    expected = _dense_values(flat_kernel(model, x), 3)
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=0)


def test_float32_converges_to_what_float32_can_tell():
    model, x = MLP(), torch.randn(12, 4)
    found = top_eigenvalues(model, x, 4)
    assert found.converged
    expected = _dense_values(flat_kernel(model, x), 4)
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=0)


def test_a_tolerance_that_can_never_be_met_is_refused():
    with pytest.raises(InputError, match="tolerance=0 can never be met"):
        top_eigenvalues(MLP(), torch.randn(6, 4), tolerance=0)
