"""BatchNorm under the callback: frozen ones, wherever they are frozen, and runs of buffers only.

Oracles: the same training with the norm frozen in sight of everybody, a network whose frozen norm
is written out as the affine map it is, and trainings in which no weight moves.
"""

import copy

import pytest
import torch
from integrations.trainings import CLASSES, NAMESPACES, lightning, loader, seed_all, trainer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ntkwatch import NTKMonitor, read_history
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.verdict.bands import Strength

pl = lightning()
SLOW = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("reference", "batch")]


class Affine(nn.Module):
    """What a BatchNorm in evaluation mode is: a map with constants."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(norm.weight.clone()), nn.Parameter(norm.bias.clone())
        self.mean, self.sd = norm.running_mean.clone(), (norm.running_var + norm.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sd * self.weight + self.bias


def _net() -> nn.Sequential:
    """A norm to be frozen, with statistics of another task, and one that trains."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, CLASSES),
    )
    with torch.no_grad():
        for _ in range(40):
            net(1 + 2 * torch.randn(32, 5))
    return net


def _module(pl, net: nn.Module, *, freeze: str | None = None, rate=0.1, shrink: float = 1.0):
    """Freezes the first norm at a place of choice; the loss may shrink by itself."""

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.taken = net, 0

        def _freeze(self, here: str) -> None:
            if freeze == here:
                self.net[1].eval()

        def on_train_start(self) -> None:
            self._freeze("on_train_start")

        def on_train_batch_start(self, batch, batch_idx) -> None:
            self._freeze("on_train_batch_start")

        def on_train_epoch_start(self) -> None:
            self._freeze("on_train_epoch_start")

        def training_step(self, batch, batch_idx) -> Tensor:
            self._freeze("training_step")
            x, y = batch
            self.taken += 1
            return functional.cross_entropy(self.net(x), y) * shrink**self.taken

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=rate)

    return Lit()


def _watch(root, model, pl=pl, **settings) -> NTKMonitor:
    seed_all()
    watch = NTKMonitor(
        probe="train", probe_size=32, every_n_train_steps=6, on_error="raise", **settings
    )
    trainer(pl, root, [watch], max_epochs=3).fit(model, loader())
    return watch


def _numbers(watch: NTKMonitor) -> list[tuple]:
    keys = ("relative_kernel_change", "layer_angle_median", "linearization_error", "trace")
    found = [tuple(getattr(o, key) for key in keys) for o in watch.history]
    assert found[0][2] is None, "the reference has no error"
    return [(*found[0][:2], found[0][3]), *found[1:]]


@pytest.mark.parametrize("batchnorm", ["probe", "running", *SLOW])
def test_a_frozen_norm_reads_as_the_constant_map_that_it_is(tmp_path, batchnorm):
    net = _net()
    written = copy.deepcopy(net)
    written[1] = Affine(net[1])
    frozen = _watch(
        tmp_path / "a", _module(pl, net, freeze="on_train_epoch_start"), batchnorm=batchnorm
    )
    plain = _watch(tmp_path / "b", _module(pl, written), batchnorm=batchnorm)
    assert frozen.history.run.spec["batchnorms"] == ["net.4"]
    assert frozen.history[-1].batchnorm == batchnorm
    for one, other in zip(_numbers(frozen), _numbers(plain), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-6)


@pytest.mark.parametrize("place", ["on_train_start", "on_train_batch_start", "training_step"])
def test_it_does_not_matter_where_a_norm_is_frozen(tmp_path, place):
    """Some places come after the reference is taken, which is then taken again."""
    expected = _watch(tmp_path / "a", _module(pl, _net(), freeze="on_train_epoch_start"))
    watch = _watch(tmp_path / "b", _module(pl, _net(), freeze=place))
    assert watch.history.run.spec == expected.history.run.spec
    assert [o.step for o in watch.history] == [0, 6, 12, 18]
    for one, other in zip(_numbers(watch), _numbers(expected), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9)
    assert watch.verdict.strength == expected.verdict.strength


def test_the_files_tell_of_the_reference_that_was_taken_again(tmp_path):
    watch = _watch(tmp_path, _module(pl, _net(), freeze="training_step"))
    written = read_history(tmp_path / "ntk")
    assert written.problems == ()
    assert written.run.spec == watch.history.run.spec
    assert written.observations == watch.history.observations
    assert len((tmp_path / "ntk" / "history.jsonl").read_text().splitlines()) == 1 + 4 + 1
    files, other = RunFiles(tmp_path / "ntk"), tmp_path / "other"
    anchor = files.read_anchor(device=torch.device("cpu"))
    again = _watch(other, _module(pl, _net(), freeze="on_train_epoch_start"))
    expected = RunFiles(other / "ntk").read_anchor(device=torch.device("cpu"))
    torch.testing.assert_close(anchor.kernel, expected.kernel)
    torch.testing.assert_close(anchor.outputs, expected.outputs)
    kernel = load_file(tmp_path / "ntk" / "kernels" / "step=00000000.safetensors")["kernel"]
    torch.testing.assert_close(kernel, expected.kernel)
    assert again.history[0].trace == pytest.approx(watch.history[0].trace, rel=1e-6)


# Runs that move nothing but buffers. --------------------------------------------------------------


@pytest.mark.parametrize(
    ("batchnorm", "namespace"),
    [("probe", NAMESPACES[0]), *(("running", namespace) for namespace in NAMESPACES)],
)
def test_a_run_that_moves_only_running_averages_learns_no_features(tmp_path, batchnorm, namespace):
    """No learning rate, and a loss that falls all the same, so that no guard speaks for it."""
    pl = lightning(namespace)
    net = _net()
    for norm in (net[1], net[4]):
        norm.reset_running_stats()
    watch = _watch(tmp_path, _module(pl, net, rate=0.0, shrink=0.8), pl, batchnorm=batchnorm)
    last, verdict = watch.history[-1], watch.verdict
    assert last.loss_ratio < 0.5
    assert last.displacement == 0
    assert verdict.strength is Strength.UNDETERMINED
    assert verdict.qualifier == "outputs did not move"
    assert all(layer.band == "static" for layer in verdict.layers.values())
    page = (tmp_path / "ntk" / "report.html").read_text()
    if batchnorm == "probe":
        assert last.relative_kernel_change == 0
        assert last.buffer_share is None
        assert "put back" not in page
    else:
        assert last.relative_kernel_change > 0.3
        assert last.buffer_share == pytest.approx(1, abs=1e-6)
        assert "moving buffers changed the kernel by" in verdict.reason
        assert "net.1.running_mean, net.1.running_var" in page
        assert read_history(tmp_path / "ntk")[-1] == last


def test_a_run_beside_moving_averages_is_judged_by_its_weights(tmp_path):
    """The averages start at (0, 1): most of what moves this kernel is not the weights."""
    net = _net()
    for norm in (net[1], net[4]):
        norm.reset_running_stats()
    watch = _watch(tmp_path, _module(pl, net, rate=0.01, shrink=0.9), batchnorm="running")
    last = watch.history[-1]
    assert last.buffer_share > 0.5
    assert last.parameters_only.layer_angle_median < last.layer_angle_median
    read = watch.verdict.readings["since start"]
    assert read.layer_angle_median == last.parameters_only.layer_angle_median
    assert watch.verdict.strength in (Strength.STATIC, Strength.LAZY)
