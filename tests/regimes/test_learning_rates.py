"""Rung 8: below the stable learning rate training is lazy; above it the kernel moves until it fits.

Recipe R at width 1024 with rates that stay at ``c / lambda_max`` of the start; then full-batch
descent on real digits, whose sharpness climbs to the edge of stability and stays there.
"""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ntkwatch import NTKMonitor, empirical_ntk
from ntkwatch.kernel.stability import edge_of_stability, max_stable_lr, sharpness

from regimes.digits import sharpness_on_the_way
from regimes.recipes import TwoLayer
from regimes.stacked import drawn, geometric_mean, learning_rates, measured

RATES = (0.5, 1.9, 2.1, 2.5, 3.0, 3.8, 5.0)
REFERENCE = {
    "tanh": {0.5: (0.0062, 0.0029), 2.5: (0.31, 0.18), 3.0: (0.51, 0.43), 3.8: (0.62, 1.7)},
    "ReLU": {0.5: (0.0075, 0.0052), 2.5: (0.40, 0.16), 3.0: (0.72, 0.35), 3.8: (0.90, 0.97)},
}


@pytest.fixture(scope="module", params=REFERENCE)
def sweep(request):
    """Name of the activation, and by c the networks that converged, measured."""
    trained = learning_rates(request.param, RATES)
    runs = {
        c: [measured(end, i) for i in range(8) if end.finished[i]] for c, end in trained.items()
    }
    return request.param, runs


def _mean(runs, key):
    return geometric_mean([getattr(run, key) for run in runs])


@pytest.mark.slow
def test_whatever_converged_ended_below_the_stable_rate(sweep):
    _, runs = sweep
    for run in (run for c in RATES for run in runs[c]):
        bound = max_stable_lr(torch.tensor(run.top[1]).double())
        assert run.rate < float(bound)
        assert float(edge_of_stability(run.rate, torch.tensor(run.top[1]))) < 1


@pytest.mark.slow
def test_the_stable_rate_is_that_of_two_over_the_largest_eigenvalue(sweep):
    problem = drawn(sweep[0], width=1024, seeds=1)
    net = TwoLayer(16, 1024, torch.tanh)
    net.start_at(problem.w[0], problem.a[0])
    kernel = empirical_ntk(net, problem.x[0])
    by_hand = 2 / torch.linalg.eigvalsh(kernel.matrix[..., 0, 0])[-1]
    rate = max_stable_lr(sharpness(kernel.matrix, loss="half-square-sum"))
    assert float(rate) == pytest.approx(float(by_hand), rel=1e-12)


@pytest.mark.slow
def test_below_two_training_is_lazy_and_the_loss_never_rises(sweep):
    _, runs = sweep
    for c in (0.5, 1.9):
        assert len(runs[c]) == 8
        assert all(run.label == "lazy" for run in runs[c])
        assert all(run.peak <= 1.05 for run in runs[c])
    ratio = _mean(runs[1.9], "change") / _mean(runs[0.5], "change")
    assert 1 / 1.5 < ratio < 1.5


@pytest.mark.slow
def test_above_two_the_loss_rises_first_and_the_kernel_moves(sweep):
    activation, runs = sweep
    for c in (2.5, 3.0, 3.8):
        assert len(runs[c]) == 8
        assert all(run.change > 0.2 for run in runs[c])
        assert all(run.peak > (2 if activation == "tanh" else 4) for run in runs[c])
    rich = {"transitional", "feature-learning"}
    assert sum(run.label in rich for run in runs[3.0]) > 4


@pytest.mark.slow
def test_sizes_are_those_of_the_reference(sweep):
    activation, runs = sweep
    for c, (change, error) in REFERENCE[activation].items():
        assert _mean(runs[c], "change") == pytest.approx(change, rel=0.35)
        assert _mean(runs[c], "error") == pytest.approx(error, rel=0.35)


@pytest.mark.slow
def test_smooth_networks_diverge_far_above(sweep):
    activation, runs = sweep
    assert len(runs[5.0]) == 0 if activation == "tanh" else len(runs[5.0]) < 8


class _Diverging(pl.LightningModule):
    """A two-layer tanh network of recipe R under full-batch descent at a given rate."""

    def __init__(self, rate: float):
        super().__init__()
        self.net, self.rate = TwoLayer(16, 1024, torch.tanh), rate

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return 0.5 * functional.mse_loss(self.net(x).flatten(), y, reduction="sum")

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.rate)


def test_a_run_that_diverges_is_undetermined_and_the_callback_survives(tmp_path):
    problem = drawn("tanh", width=1024, seeds=1)
    x, y, fresh = problem.x[0], problem.y[0], problem.fresh[0]
    module = _Diverging(0.0)
    module.net.start_at(problem.w[0], problem.a[0])
    top = torch.linalg.eigvalsh(empirical_ntk(module.net, x).trace)[-1]
    module.rate = float(5 / top)
    monitor = NTKMonitor(probe=fresh, every_n_train_steps=50, save_kernels=False)
    trainer = pl.Trainer(
        max_epochs=400,
        accelerator="cpu",
        callbacks=[monitor],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=8))
    assert trainer.global_step == 400
    assert any("Lower the learning rate" in str(one.message) for one in said)
    assert monitor.verdict.strength == "undetermined"
    assert monitor.verdict.qualifier == "diverged"


@pytest.mark.slow
def test_descent_on_digits_sharpens_up_to_the_edge_of_stability():
    """``eta lambda_max`` times the curvature of the loss stops climbing at 2."""
    rich = sharpness_on_the_way(0.3)
    assert rich[0] == pytest.approx(0.6)
    assert max(rich) < 2 * 1.15
    assert all(value == pytest.approx(2, rel=0.15) for value in rich[len(rich) // 2 :])


@pytest.mark.slow
def test_a_lazy_network_keeps_the_sharpness_of_its_start():
    lazy = sharpness_on_the_way(30.0)
    assert all(value == pytest.approx(lazy[0], rel=0.02) for value in lazy)
    assert not math.isnan(lazy[-1])
