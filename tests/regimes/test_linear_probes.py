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
    backbone = nn.Sequential(nn.Linear(6, 16), nn.Tanh()).requires_grad_(False)
    return nn.Sequential(backbone, nn.Linear(16, 3))


MODELS = {"linear": lambda: nn.Linear(6, 3), "linear head": _frozen_backbone}


def _trained(net, optimizer, loss, *, dtype=torch.float64, forward=None) -> KernelTracker:
    net = net.to(dtype)
    x, y = torch.randn(40, 6, dtype=dtype), torch.randint(3, (40,))
    tracker = KernelTracker(ProbeBatch(x, y), forward=forward)
    chosen = optimizer([p for p in net.parameters() if p.requires_grad])
    for step in range(91):
        wanted = nn.functional.one_hot(y, 3).to(dtype)
        value = (
            (net(x) - wanted).square().mean()
            if loss == "square"
            else nn.functional.cross_entropy(net(x), y)
        )
        if step % 45 == 0:
            tracker.observe(net, step, loss=value.item())
        chosen.zero_grad()
        value.backward()
        chosen.step()
    return tracker


@pytest.mark.parametrize(("dtype", "zero"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("loss", ["square", "cross-entropy"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_a_linear_probe_reads_no_drift_and_is_static(model, optimizer, loss, dtype, zero):
    tracker = _trained(MODELS[model](), OPTIMIZERS[optimizer], loss, dtype=dtype)
    for seen in tracker.history:
        assert seen.relative_kernel_change <= zero
        assert seen.kernel_distance <= zero
        assert seen.kernel_angle <= zero
        assert all(angle <= zero for angle in seen.layer_angle.values())
    assert tracker.history[-1].linearization_error <= zero
    assert tracker.history[-1].relative_displacement > 0.01
    assert judge(tracker.history).strength == "static"


WRONG_OUTPUTS = {
    "softmax": lambda net, x: net(x).softmax(dim=1),
    "log-probabilities": lambda net, x: net(x).log_softmax(dim=1),
    "losses": lambda net, x: net(x).logsumexp(dim=1, keepdim=True) - net(x)[:, :1],
}


@pytest.mark.parametrize("outputs", WRONG_OUTPUTS)
def test_a_kernel_of_anything_but_the_outputs_drifts_even_in_a_linear_model(outputs):
    """What the package watches by itself are logits; this is what it would see otherwise."""
    tracker = _trained(
        nn.Linear(6, 3),
        OPTIMIZERS["gradient descent"],
        "cross-entropy",
        forward=WRONG_OUTPUTS[outputs],
    )
    assert tracker.history[-1].kernel_angle > 1e-3
    assert tracker.history[-1].linearization_error > 1e-3


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
        if batchnorm == "running":
            named = seen.parameters_only.moving_buffers
            assert seen.parameters_only.kernel_angle <= 1e-12
            assert seen.buffer_share == pytest.approx(1)
        assert seen.batchnorm == batchnorm
        assert seen.relative_displacement == 0
    assert angles["running"] > 0.01
    assert angles["probe"] <= 1e-12
    assert set(named) == {"0.1.running_mean", "0.1.running_var"}
    assert judge(tracker.history).strength == "undetermined"
