"""Rung 14: what must not be read as feature learning, and a network of text, which must.

Independent targets, weight decay, moving buffers and changes of gauge all move a kernel; none of
them teaches it anything. (BatchNorm networks of several output scales: the ladder with buffers.)
"""

import math

import pytest
import torch
from torch import nn

from ntkwatch import KernelTracker, ProbeBatch, judge

from regimes.recipes import TwoLayer, f64, relu2, unit_inputs
from regimes.text import CharGPT, characters, drawn, last_logits, read


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_targets_by_chance_reorganise_a_transformer_and_teach_it_nothing(seed):
    history = read(independent=True, seed=seed)
    verdict = judge(history)
    assert history[-1].loss_ratio < 0.85, "it learns the frequencies"
    assert verdict.readings["since start"].strength != "lazy", "the test would see nothing"
    assert verdict.readings["since warm-up"].strength != "feature-learning"
    assert verdict.strength != "feature-learning"
    assert verdict.use.task_aligned != "yes"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_network_on_real_text_learns_features(seed):
    history = read(independent=False, seed=seed)
    verdict = judge(history)
    assert history[-1].loss_ratio < 0.5
    assert verdict.readings["since warm-up"].strength == "feature-learning"
    assert verdict.strength == "feature-learning"


def _two_layers(activation):
    return TwoLayer(16, 256, activation, centred=False), unit_inputs(32, 16), None


def _perceptron():
    layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)]
    return nn.Sequential(*layers).double(), unit_inputs(32, 16), None


def _transformer():
    text, vocabulary = characters()
    generator = torch.Generator().manual_seed(0)
    tokens, _ = drawn(text, 32, generator, independent=False)
    return CharGPT(vocabulary), tokens, last_logits


SHRUNK = {
    "ReLU": lambda: _two_layers(relu2),
    "tanh": lambda: _two_layers(torch.tanh),
    "MLP": _perceptron,
    "transformer": _transformer,
}


@pytest.mark.parametrize("network", SHRUNK)
def test_weight_decay_alone_is_no_feature_learning(network):
    """All weights shrink by 17 %, as in an ordinary run, without any gradient."""
    net, inputs, forward = SHRUNK[network]()
    tracker = KernelTracker(ProbeBatch(inputs), forward=forward)
    tracker.observe(net, 0, loss=1.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    steps = round(math.log(0.83) / math.log(0.99))
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    seen = tracker.observe(net, steps, loss=0.5)
    assert seen.relative_kernel_change > 0.1, "the test would see nothing"
    verdict = judge(tracker.history)
    assert verdict.strength != "feature-learning"
    assert all(one.strength != "feature-learning" for one in verdict.readings.values())


def test_moving_buffers_alone_are_no_feature_learning():
    net = nn.Sequential(
        nn.Linear(6, 16, **f64), nn.BatchNorm1d(16, **f64), nn.Tanh(), nn.Linear(16, 3, **f64)
    )
    x = 3 * torch.randn(40, 6, **f64) + 1
    for batchnorm in ("probe", "running", "reference"):
        tracker = KernelTracker(ProbeBatch(x, torch.randint(3, (40,))), batchnorm=batchnorm)
        tracker.observe(net, 0, loss=1.0)
        for _ in range(30):
            net(x)
        tracker.observe(net, 30, loss=0.5)
        assert judge(tracker.history).strength == "undetermined"
        net[1].reset_running_stats()


@pytest.mark.parametrize("c", [1.1, 2.0, 10.0])
def test_a_change_of_gauge_alone_is_no_feature_learning(c):
    net, x = TwoLayer(16, 256, relu2, centred=False), unit_inputs(32, 16)
    tracker = KernelTracker(ProbeBatch(x))
    tracker.observe(net, 0, loss=1.0)
    net.move_to(c * net.w.weight, net.a.weight / c)
    tracker.observe(net, 1, loss=0.5)
    assert judge(tracker.history).strength == "undetermined"
