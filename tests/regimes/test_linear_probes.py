"""Rung 1: a model that is linear in what trains has a constant kernel, however it is trained.

The oracle is algebra: the kernel of ``W h(x) + b`` does not depend on W and b.
"""

import pytest
import torch
from torch import nn

from ntkwatch import KernelTracker, ProbeBatch, judge

f64 = {"dtype": torch.float64}
OPTIMIZERS = {
    "gradient descent": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW with decay": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
}


def _frozen_backbone() -> nn.Module:
    backbone = nn.Sequential(nn.Linear(6, 16, **f64), nn.Tanh()).requires_grad_(False)
    return nn.Sequential(backbone, nn.Linear(16, 3, **f64))


MODELS = {"linear": lambda: nn.Linear(6, 3, **f64), "linear head": _frozen_backbone}


@pytest.mark.parametrize("loss", ["square", "cross-entropy"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_a_linear_probe_reads_no_drift_and_is_static(model, optimizer, loss):
    net = MODELS[model]()
    x, y = torch.randn(40, 6, **f64), torch.randint(3, (40,))
    tracker = KernelTracker(ProbeBatch(x, y))
    chosen = OPTIMIZERS[optimizer]([p for p in net.parameters() if p.requires_grad])
    for step in range(31):
        wanted = nn.functional.one_hot(y, 3).double()
        value = (
            (net(x) - wanted).square().mean()
            if loss == "square"
            else nn.functional.cross_entropy(net(x), y)
        )
        if step % 15 == 0:
            tracker.observe(net, step, loss=value.item())
        chosen.zero_grad()
        value.backward()
        chosen.step()
    for seen in tracker.history:
        assert seen.relative_kernel_change <= 1e-12
        assert seen.kernel_distance <= 1e-12
        assert seen.kernel_angle <= 1e-12
        assert all(angle <= 1e-12 for angle in seen.layer_angle.values())
    assert tracker.history[-1].linearization_error <= 1e-12
    assert tracker.history[-1].relative_displacement > 0.01
    assert judge(tracker.history).strength == "static"


def test_batch_statistics_that_move_in_a_frozen_backbone_are_named_as_drift_of_buffers():
    """With running statistics their motion is drift; with the probe's own it is none."""
    angles = {}
    for batchnorm in ("running", "probe"):
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Linear(6, 16, **f64), nn.BatchNorm1d(16, **f64), nn.Tanh()
        ).requires_grad_(False)
        net = nn.Sequential(backbone, nn.Linear(16, 3, **f64))
        x, y = 3 * torch.randn(40, 6, **f64) + 1, torch.randint(3, (40,))
        tracker = KernelTracker(ProbeBatch(x, y), batchnorm=batchnorm)
        tracker.observe(net, 0)
        for _ in range(20):
            net(x)  # in train mode: only the running statistics move
        seen = tracker.observe(net, 20)
        angles[batchnorm] = seen.kernel_angle
        assert seen.batchnorm == batchnorm
        assert seen.relative_displacement == 0
    assert angles["running"] > 0.01
    assert angles["probe"] <= 1e-12
    assert judge(tracker.history).strength == "undetermined"
