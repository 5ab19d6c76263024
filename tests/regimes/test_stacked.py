"""The trainings by hand that the ladder rests on, against autograd and the package's kernels."""

import pytest
import torch

from ntkwatch import empirical_ntk

from regimes import deep
from regimes.recipes import TwoLayer, gradient_descent
from regimes.stacked import ACTIVATIONS, drawn, measured, slope, stacked, train


def _net(problem, index, activation):
    _, width, inputs = problem.w.shape
    alpha = float(problem.alpha[index])
    net = TwoLayer(inputs, width, ACTIVATIONS[activation][0], alpha, scale=problem.scale)
    net.start_at(problem.w[index], problem.a[index])
    return net


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_stack_ends_where_autograd_takes_each_of_its_networks(activation):
    """Of two output scales, so that networks leave the stack at different steps."""
    problem = stacked([drawn(activation, width=24, alpha=a, seeds=2) for a in (0.3, 3.0)])
    end = train(problem)
    assert len(set(end.steps.tolist())) > 1
    act_slope = ACTIVATIONS[activation][1]
    for i in range(4):
        net, x = _net(problem, i, activation), problem.x[i]

        def rate(model, x=x):
            return float(0.3 / torch.linalg.eigvalsh(model.kernel(x, act_slope))[-1])

        assert gradient_descent(net, x, problem.y[i], rate, stop=0.02) == end.steps[i]
        torch.testing.assert_close(net.w.weight.detach(), end.w[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(net.a.weight[0].detach(), end.a[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_packages_kernel_is_the_one_written_out(activation):
    problem = drawn(activation, width=24, alpha=0.7, seeds=1)
    net = _net(problem, 0, activation)
    by_hand = net.kernel(problem.x[0], ACTIVATIONS[activation][1])
    found = empirical_ntk(net, problem.x[0], outputs="trace").matrix
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("activation", deep.ACTIVATIONS)
def test_the_packages_kernel_of_a_deep_network_is_the_one_written_out(activation, standard):
    x, _, weights, scale = deep.drawn(3, 10, standard=standard, seeds=2)
    by_hand = deep.kernel_by_hand(weights, x, activation, scale)
    for i in range(2):
        net = deep.DeepNet([w[i] for w in weights], deep.ACTIVATIONS[activation][0], scale)
        found = empirical_ntk(net, x[i], outputs="trace").matrix
        torch.testing.assert_close(found, by_hand[i], rtol=1e-11, atol=1e-12)


def test_a_power_law_has_its_exponent():
    assert slope([1, 2, 4, 8], [3.0, 3 / 4, 3 / 16, 3 / 64]) == pytest.approx(-2)


# Verdicts must not hang on the arithmetic of the model that is watched.
SETTINGS = [("tanh", 0.01), ("tanh", 0.1), ("tanh", 3.0), ("ReLU", 0.03), ("linear", 1.0)]


@pytest.mark.parametrize(("activation", "alpha"), SETTINGS)
def test_verdicts_are_the_same_in_single_and_in_double_precision(activation, alpha):
    end = train(drawn(activation, width=256, alpha=alpha, seeds=2))
    for seed in range(2):
        double, single = (measured(end, seed, dtype=d) for d in (torch.float64, torch.float32))
        assert single.label == double.label
        assert single.error == pytest.approx(double.error, rel=1e-3)
        assert single.angle == pytest.approx(double.angle, rel=1e-3)
        assert single.change == pytest.approx(double.change, rel=1e-3)
        assert single.distance == pytest.approx(double.distance, rel=1e-2)
