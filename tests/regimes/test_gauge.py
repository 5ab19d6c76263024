"""Rung 4: ``w -> c w, a -> a / c`` changes the kernel and not the function of a ReLU network."""

import pytest
import torch

from ntkwatch import KernelTracker, ProbeBatch, judge

from regimes.recipes import TwoLayer, relu2, unit_inputs


@pytest.mark.parametrize(
    ("c", "distance", "change"), [(1.1, 0.0032, 0.12), (2, 0.045, 1.9), (10, 0.054, 68)]
)
def test_a_gauge_move_rescales_layers_and_is_never_called_feature_learning(c, distance, change):
    net, x = TwoLayer(16, 256, relu2), unit_inputs(32, 16)
    tracker = KernelTracker(ProbeBatch(x))
    tracker.observe(net, 0, loss=1.0)
    before = net(x)
    with torch.no_grad():
        net.w.weight *= c
        net.a.weight /= c
    torch.testing.assert_close(net(x), before, atol=1e-12, rtol=0)
    seen = tracker.observe(net, 1, loss=0.1)
    assert seen.layer_angle["w"] < 1e-7
    assert seen.layer_angle["a"] < 1e-7
    assert seen.kernel_distance == pytest.approx(distance, rel=0.3)
    assert seen.relative_kernel_change == pytest.approx(change, rel=0.3)
    verdict = judge(tracker.history)
    assert (verdict.strength, verdict.qualifier) == ("undetermined", "outputs did not move")
