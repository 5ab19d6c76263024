"""A forecast before training, against closed forms and plain autograd, and what it refuses.

A model that is linear in its parameters is its own linearization, wherever training takes it.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from watch.tiny import ConvNet, Deep, f64, inputs, labels

from ntkwatch import forecast
from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.watch.verdict.bands import Strength

from oracles import dense_jacobian, dense_ntk, naive_angle, naive_relative_change

N = 10


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(12, 3, **f64)


def test_a_model_linear_in_its_parameters_stays_its_own_linearization():
    said = forecast(_linear(), inputs(N, 12), labels(N))
    assert said.strength is Strength.STATIC
    for point in said.points:
        assert point.linearization_error < 1e-12
        assert point.relative_kernel_change < 1e-12
        assert point.kernel_angle < 1e-12


def test_the_place_is_that_of_descent_on_a_linear_model_at_the_same_loss():
    """Many small steps of torch's optimizer are the flow; labels are codes less their mean."""
    model, x, y = _linear(), inputs(N, 12), labels(N)
    said = forecast(model, x, y, loss_ratios=(0.1,)).points[0]
    code = nn.functional.one_hot(y, 3).double() - 1 / 3
    end = copy.deepcopy(model)
    descent = torch.optim.SGD(end.parameters(), lr=1e-3)

    def loss():
        return (end(x) - code).square().sum() / 2

    begun, steps = float(loss().detach()), 0
    while float(loss().detach()) > 0.1 * begun:
        descent.zero_grad()
        loss().backward()
        descent.step()
        steps += 1
    pairs = zip(end.parameters(), model.parameters(), strict=True)
    moved = sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5
    assert said.displacement == pytest.approx(moved, rel=0.01)
    assert said.time == pytest.approx(steps * 1e-3, rel=0.03)


def test_numbers_are_those_of_a_network_put_there_by_hand():
    torch.manual_seed(0)
    model, x, y = Deep(), inputs(N, 4), inputs(N, 3, seed=5)
    said = forecast(model, x, y, loss_ratios=(0.5,)).points[0]
    K = dense_ntk(model, x).permute(0, 2, 1, 3).reshape(N * 3, N * 3).numpy()
    with torch.no_grad():
        begun = model(x)
    residual = (begun - y).numpy().reshape(-1)
    values, vectors = np.linalg.eigh(K)
    values = np.where(values > 1e-13 * values[-1], values, 0)
    decay = np.exp(-values * said.time)
    shares = np.divide(1 - decay, values, out=np.zeros_like(values), where=values > 0)
    a = -vectors @ (shares * (vectors.T @ residual))
    there = copy.deepcopy(model)
    jacobian = dense_jacobian(model, x)
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            rows = jacobian[name].reshape(N * 3, -1)
            parameter += (rows.T @ torch.from_numpy(a)).reshape(parameter.shape)
        change = (there(x) - begun).numpy().reshape(-1)
    left = residual + change
    assert (left @ left) / (residual @ residual) == pytest.approx(0.5, rel=1e-3)
    assert said.network_loss_ratio == pytest.approx((left @ left) / (residual @ residual))
    error = np.linalg.norm(change - K @ a) / np.linalg.norm(change)
    assert said.linearization_error == pytest.approx(error, rel=1e-6)
    now, then = (torch.einsum("nmcc->nm", dense_ntk(m, x)).numpy() for m in (there, model))
    assert said.relative_kernel_change == pytest.approx(naive_relative_change(now, then), rel=1e-6)
    assert said.kernel_angle == pytest.approx(naive_angle(now, then), rel=1e-6)
    assert said.layer_angle_median > 0


def test_where_the_network_never_gets_to_a_loss_its_lowest_is_taken():
    """A polynomial network of small output scale; the oracle walks the same way in small steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12, **f64), nn.Tanh(), nn.Linear(12, 1, **f64))
    x = inputs(N, 5)
    y = 6 * inputs(N, 1, seed=5)
    far, near = forecast(model, x, y, loss_ratios=(0.9, 1e-3)).points[::-1]
    assert far.network_loss_ratio > 1e-3, "the test would see nothing"
    assert near.network_loss_ratio == pytest.approx(0.9, rel=1e-3)
    jacobian = dense_jacobian(model, x)
    J = torch.cat([jacobian[n].reshape(N, -1) for n, _ in model.named_parameters()], dim=1)
    with torch.no_grad():
        residual = (model(x) - y).flatten()

    def loss(time: float) -> float:
        values, vectors = torch.linalg.eigh(J @ J.T)
        gone = (1 - torch.exp(-values.clamp(min=0) * time)) / values
        step = -J.T @ vectors @ (gone * (vectors.T @ residual))
        there = copy.deepcopy(model)
        with torch.no_grad():
            flat = nn.utils.parameters_to_vector(there.parameters()) + step
            nn.utils.vector_to_parameters(flat, there.parameters())
            return float((there(x) - y).square().sum() / residual.square().sum())

    assert loss(far.time) == pytest.approx(far.network_loss_ratio, rel=1e-6)
    grid = np.geomspace(near.time / 10, 10 * far.time, 400)
    assert far.network_loss_ratio <= min(map(loss, grid)) * 1.001


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = ConvNet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forecast(model, inputs(6, 1, 4, 4), labels(6), loss_ratios=(0.5,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert model.norm.training
    assert all(p.grad is None for p in model.parameters())


def test_two_classes_of_one_output_are_signs():
    torch.manual_seed(0)
    model, x = nn.Linear(12, 1, **f64), inputs(N, 12)
    by_label = forecast(model, x, labels(N, 2), loss_ratios=(0.1,))
    by_value = forecast(model, x, 2.0 * labels(N, 2)[:, None].double() - 1, loss_ratios=(0.1,))
    assert by_label.points == by_value.points


def test_printing_gives_the_answer_and_a_table():
    said = str(forecast(_linear(), inputs(N, 12), labels(N)))
    assert said.startswith("forecast: static, for training on these 10 samples with 3 outputs")
    assert len(said.splitlines()) == 5


def test_a_loss_that_frozen_features_never_reach_is_left_out_with_the_reason():
    x = inputs(N, 12)
    twice = torch.cat([x, x])
    y = inputs(2 * N, 3, seed=6)  # other targets for the same inputs
    said = forecast(_linear(), twice, y, loss_ratios=(0.9, 0.01))
    assert [point.loss_ratio for point in said.points] == [0.9]
    assert "never gets there" in said.left_out["0.01"]
    with pytest.raises(InputError, match="reaches none of the losses"):
        forecast(_linear(), twice, y, loss_ratios=(0.01,))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss_ratios": (1.5,)}, InputError, "between 0 and 1"),
        ({"loss_ratios": ()}, InputError, "between 0 and 1"),
        ({"targets": labels(N - 1)}, InputError, "no class labels"),
        ({"targets": labels(N, 7)}, InputError, "labels"),
        ({"targets": inputs(N, 2)}, KernelMismatchError, "no residual"),
        ({"inputs": inputs(1400, 12), "targets": labels(1400)}, InputError, "4200 rows"),
    ],
)
def test_what_cannot_be_foretold_is_refused(change, error, message):
    given = {"inputs": inputs(N, 12), "targets": labels(N), **change}
    with pytest.raises(error, match=message):
        forecast(_linear(), given.pop("inputs"), given.pop("targets"), **given)
