"""Mistakes that look like results, each provoked: what the other rungs do not catch by themselves.

The whole list, with the test that catches each, is in ``docs/ladder.md``.
"""

import math

import pytest
import torch
from torch import nn

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk, judge
from ntkwatch.kernel.alignment import target_alignment, target_matrix
from ntkwatch.kernel.drift import kernel_distance, kernel_distance_offdiag
from ntkwatch.kernel.spectrum import effective_rank, eigenvalues
from ntkwatch.watch.verdict.bands import Strength

from regimes.deep import deep_drifts
from regimes.recipes import TwoLayer, f64, unit_inputs
from regimes.stacked import geometric_mean

SIZES = (8, 32, 128, 512)


@pytest.fixture
def rich_pair():
    """Kernels at start and end on 512 inputs of many dimensions, of which one direction grew."""
    x, g = unit_inputs(SIZES[-1], 100), torch.randn(SIZES[-1], 1, **f64)
    then = x @ x.T + torch.eye(SIZES[-1], **f64)
    return then, then + 0.1 * g @ g.T, g.sign()


def _on_subsets(size: int, measure) -> float:
    """Mean over twenty subsets of one size."""
    generator = torch.Generator().manual_seed(1)
    picks = [torch.randperm(SIZES[-1], generator=generator)[:size] for _ in range(20)]
    return sum(float(measure(pick)) for pick in picks) / len(picks)


def test_the_distance_without_diagonals_is_the_same_on_few_points_and_the_plain_one_is_not(
    rich_pair,
):
    then, now, _ = rich_pair

    def at(measure, size):
        return _on_subsets(size, lambda i: measure(now[i][:, i], then[i][:, i]))

    plain = [at(kernel_distance, size) for size in SIZES]
    off = [at(kernel_distance_offdiag, size) for size in SIZES]
    assert plain[0] < 0.6 * plain[-1]
    assert plain == sorted(plain)
    assert all(value == pytest.approx(off[-1], rel=0.2) for value in off)


def test_alignment_and_effective_rank_are_biased_on_few_points(rich_pair):
    """So both are shown with the number of points, and compared on one probe only."""
    now, _, wanted = rich_pair

    def alignment(i):
        matrix = target_matrix(wanted[i], device=now.device)
        return target_alignment(now[i][:, i], matrix, permutations=2).value

    aligned = [_on_subsets(size, alignment) for size in SIZES[:-1]]
    ranks = [_on_subsets(n, lambda i: effective_rank(eigenvalues(now[i][:, i]))) for n in SIZES]
    assert aligned == sorted(aligned, reverse=True)
    assert aligned[0] > 1.3 * aligned[-1]
    assert ranks == sorted(ranks)
    assert ranks[0] < 0.5 * ranks[-1]


class Opposite(nn.Module):
    """Two classes whose logits are ``g`` and ``-g`` beside a part that never moves."""

    def __init__(self):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(6, 16, **f64), nn.Tanh(), nn.Linear(16, 1, **f64))
        self.common = nn.Linear(6, 1, **f64)

    def forward(self, x):
        g, common = self.g(x), self.common(x)
        return torch.cat([common + g, common - g], dim=1)


def test_what_turns_between_classes_is_seen_and_the_sum_of_logits_does_not_see_it():
    net, x = Opposite(), torch.randn(32, 6, **f64)
    trackers = {
        outputs: KernelTracker(ProbeBatch(x), outputs=outputs) for outputs in ("auto", "sum")
    }
    for tracker in trackers.values():
        tracker.observe(net, 0)
    with torch.no_grad():
        for parameter in net.g.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    angles = {name: tracker.observe(net, 1).kernel_angle for name, tracker in trackers.items()}
    assert angles["auto"] > 0.1
    assert angles["sum"] < 1e-7


def _under_adam(alpha: float, rate: float, steps: int):
    """The lazy or rich network of recipe R on all 32 inputs, trained by Adam."""
    torch.manual_seed(0)
    x = unit_inputs(32, 16)
    y = torch.randint(2, (32, 1)).double() * 2 - 1
    net = TwoLayer(16, 64, torch.tanh, alpha)
    tracker = KernelTracker(ProbeBatch(x))
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for step in range(steps + 1):
        loss = 0.5 * (net(x) - y).square().sum()
        if step in (0, steps):
            tracker.observe(net, step, loss=loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tracker.history[-1], judge(tracker.history)


def test_rates_divided_by_the_square_of_the_scale_leave_adam_unfinished_and_without_a_label():
    """Its steps do not know the size of gradients: divided by the scale alone it gets there."""
    alpha, rate = 30.0, 0.01
    done, verdict = _under_adam(alpha, rate / alpha, 150)
    assert done.loss_ratio < 0.2
    assert verdict.strength in (Strength.LAZY, Strength.STATIC)
    seen, verdict = _under_adam(alpha, rate / alpha**2, 10)
    assert seen.loss_ratio > 0.9
    assert seen.linearization_error < 0.05, "it looks lazy"
    assert verdict.strength == "undetermined"
    assert verdict.qualifier == "too early"


def test_growing_logits_alone_are_no_feature_learning():
    """Cross-entropy goes on for ever: here the scale of a frozen layer grows with the logits."""
    x = torch.randn(40, 6, **f64)

    class Scaled(nn.Module):
        """A frozen direction times a scale that trains, as of a weight-normalised layer."""

        def __init__(self):
            super().__init__()
            self.direction = nn.Linear(6, 3, bias=False, **f64)
            self.scale = nn.Parameter(torch.ones(3, 1, **f64))

        def forward(self, x):
            return (self.scale * (x @ self.direction.weight.T).T).T

    net = Scaled()
    y = net.direction(x).argmax(dim=1)
    net.direction.requires_grad_(False)
    tracker = KernelTracker(ProbeBatch(x, y))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for step in range(201):
        loss = nn.functional.cross_entropy(net(x), y)
        if step in (0, 200):
            tracker.observe(net, step, loss=loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(net.scale.detach().mean()) > 3
    assert judge(tracker.history).strength == "static", "it is linear in what trains"


def test_a_frozen_batchnorm_is_still_frozen_after_it_was_watched():
    """Modes are put back one by one: ``model.train()`` for all of them would thaw it."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).train()
    net[1].eval()
    tracker = KernelTracker(ProbeBatch(torch.randn(32, 6)))
    tracker.observe(net, 0)
    tracker.observe(net, 1)
    empirical_ntk(net, torch.randn(4, 6))
    assert [module.training for module in net] == [True, False, True, True]


def test_displacement_orders_depths_the_wrong_way_round():
    """Deeper networks move their weights less and their kernels more, relative to their size."""
    flat, deep = (deep_drifts("tanh", depth, 128, standard=False, seeds=3) for depth in (1, 4))
    change = [geometric_mean([run.change for run in runs]) for runs in (flat, deep)]
    moved = [geometric_mean([run.relative_displacement for run in runs]) for runs in (flat, deep)]
    assert change[1] > 2 * change[0]
    assert moved[1] < 0.5 * moved[0]
    assert math.isfinite(moved[1])
