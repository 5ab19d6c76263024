"""Eigenspaces against constructed ones and random ones; residual modes against torch's own SGD."""

import math
from inspect import unwrap  # past --typecheck, which would refuse before us

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import InputError, KernelMismatchError, NonFiniteError
from ntkwatch.kernel.descent import SGD
from ntkwatch.kernel.modes import (
    eigenmodes,
    mode_prediction_error,
    predicted_modes,
    relative_gap,
    residual_modes,
    subspace_overlap,
)

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}


def _basis(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, **f64))[0]


def test_modes_rebuild_the_kernel_and_come_largest_first():
    basis, values = _basis(5, 0), torch.tensor([0.5, 7.0, 3.0, 0.0, 1.0], **f64)
    kernel = basis @ torch.diag(values) @ basis.T
    modes = eigenmodes(kernel)
    torch.testing.assert_close(
        modes.values, values.sort(descending=True).values, atol=1e-14, rtol=0
    )
    torch.testing.assert_close(modes.vectors @ torch.diag(modes.values) @ modes.vectors.T, kernel)
    # Up to sign each is the column that was built in.
    order = values.argsort(descending=True)
    np.testing.assert_allclose((modes.vectors.T @ basis[:, order]).abs(), np.eye(5), atol=1e-13)


def test_modes_of_a_float32_kernel_are_found_in_float64_and_those_of_nan_refused():
    assert eigenmodes(torch.eye(3)).vectors.dtype == torch.float64
    with pytest.raises(NonFiniteError, match="entries of the kernel"):
        eigenmodes(torch.full((2, 2), torch.nan))


@law
@given(n=st.integers(2, 8), k=st.integers(1, 8), seed=st.integers(0, 1000))
def test_a_subspace_overlaps_itself_by_one_in_any_basis(n, k, seed):
    k = min(k, n)
    basis = _basis(n, seed)[:, :k]
    found = subspace_overlap(basis @ _basis(k, seed + 1), basis)
    assert found.value.item() == pytest.approx(1, abs=1e-13)
    assert found.value <= 1
    assert found.null.item() == pytest.approx(k / n)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2])
def test_a_subspace_turned_by_an_angle_overlaps_by_its_squared_cosine(angle):
    """One of two directions turned out of the plane: (1 + cos^2) / 2."""
    then = torch.eye(4, **f64)[:, :2]
    now = then.clone()
    now[:, 1] = torch.tensor([0, math.cos(angle), math.sin(angle), 0], **f64)
    found = subspace_overlap(now, then)
    assert found.value.item() == pytest.approx((1 + math.cos(angle) ** 2) / 2, rel=1e-13)


@pytest.mark.parametrize(("k", "l"), [(1, 1), (3, 3), (2, 5), (5, 2)])
def test_the_null_is_the_mean_overlap_of_random_subspaces(k, l):  # noqa: E741
    overlaps = [
        subspace_overlap(_basis(12, i)[:, :k], _basis(12, -i - 1)[:, :l]) for i in range(400)
    ]
    values = torch.stack([overlap.value for overlap in overlaps])
    error = values.std().item() / math.sqrt(len(values))
    assert overlaps[0].null.item() == pytest.approx(values.mean().item(), abs=4 * error)


def test_a_subspace_inside_a_larger_one_is_all_there():
    basis = _basis(6, 0)
    assert subspace_overlap(basis[:, :2], basis[:, :5]).value.item() == pytest.approx(1)


def test_subspaces_without_directions_or_of_two_probes_are_refused():
    for now, then in [(torch.eye(3)[:, :0], torch.eye(3)), (torch.eye(3), torch.eye(4))]:
        with pytest.raises(InputError, match="share no directions that could be compared"):
            unwrap(subspace_overlap)(now, then)


def test_the_relative_gap_is_that_below_the_kth_eigenvalue():
    spectrum = torch.tensor([8.0, 8.0, 2.0, 1.0], **f64)
    assert [relative_gap(spectrum, k).item() for k in (1, 2, 3)] == [0, 0.75, 0.5]
    for k in (0, 4):
        with pytest.raises(InputError, match=f"k={k} does not part 4 eigenvalues in two"):
            relative_gap(spectrum, k)


# A linear model is its own linearization: torch's SGD on it is an oracle that knows no kernel.


@pytest.mark.parametrize("loss", ["mean", "sum"])
@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.9},
        {"momentum": 0.5, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [0, 1, 2, 37])
def test_modes_of_a_linear_model_decay_as_torch_trains_it(loss, settings_, steps):
    torch.manual_seed(1)
    x, y = torch.randn(6, 9, **f64), torch.randn(6, 2, **f64)
    model = torch.nn.Linear(9, 2, bias=False, **f64)
    modes = eigenmodes(x @ x.T)  # the same for both outputs
    curvature = 2 / 12 if loss == "mean" else 2.0
    rate = 0.6 / float(curvature * modes.values[0])
    start = residual_modes(modes, model(x).detach() - y)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, **settings_)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y, reduction=loss).backward()
        optimizer.step()
    found = predicted_modes(
        modes, start, learning_rate=rate, steps=steps, curvature=curvature, sgd=SGD(**settings_)
    )
    trained = residual_modes(modes, model(x).detach() - y)
    torch.testing.assert_close(found, trained, rtol=1e-10, atol=1e-12)
    assert mode_prediction_error(trained, found) < 1e-9


def test_the_prediction_error_is_relative_to_what_should_be_left():
    predicted = torch.tensor([[3.0], [4.0]], **f64)
    found = mode_prediction_error(predicted + torch.tensor([[0.0], [0.5]], **f64), predicted)
    assert found.item() == pytest.approx(0.1)
    assert mode_prediction_error(predicted, torch.zeros(2, 1, **f64)).isnan()


def test_a_residual_of_other_samples_is_refused():
    with pytest.raises(KernelMismatchError, match="has 3 rows and the residual 4"):
        residual_modes(eigenmodes(torch.eye(3)), torch.zeros(4, 1))
