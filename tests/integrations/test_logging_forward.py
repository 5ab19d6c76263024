"""A forward pass that logs; oracle: what the same training logs when nobody watches."""

import pytest
import torch
from integrations.trainings import differing, lightning, loader, module, remains, seed_all, trainer
from torch.nn import functional

from ntkwatch import NTKMonitor

pl = lightning()


class Metrics(pl.loggers.logger.DummyLogger):
    """Keeps all that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        ours = [name for name in metrics if name.startswith("ntk/")]
        self.kept.append((step, {k: float(v) for k, v in metrics.items() if k not in ours}))


class Logs(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.part = module(pl)
        self.curve = []

    def forward(self, x):
        outputs = self.part.net(x)
        self.log("size", outputs.norm(), on_step=True, on_epoch=True)
        self.log_dict({"largest": outputs.max()})
        return outputs

    def training_step(self, batch, batch_idx):
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.curve.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Looks(pl.Callback):
    """What other callbacks see after each step: EarlyStopping would act on it."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        found = trainer.callback_metrics.items()
        self.seen.append({k: float(v) for k, v in found if not k.startswith("ntk/")})


def _fit(root, watch):
    seed_all()
    torch.manual_seed(0)
    logger, looks, model = Metrics(), Looks(), Logs()
    run = trainer(pl, root, [*watch, looks], logger=logger, max_epochs=2)
    run.fit(model, loader())
    return remains(model, run), [kept for kept in logger.kept if kept[1]], looks.seen


@pytest.mark.parametrize("settings", [{"every_n_train_steps": 1}, {"max_overhead": 0.5}])
def test_what_a_forward_pass_logs_is_what_training_logs(tmp_path, settings):
    watch = NTKMonitor(on_error="raise", **settings)
    watched, alone = _fit(tmp_path / "watched", [watch]), _fit(tmp_path / "alone", [])
    assert watched[1] == alone[1]
    assert watched[2] == alone[2]
    assert any("size_step" in metrics for _, metrics in alone[1]), "else nothing was compared"
    assert differing(watched[0], alone[0]) == []


def test_the_last_observation_is_made_where_lightning_lets_nobody_log(tmp_path):
    watch = NTKMonitor(every_n_train_steps=5)
    _fit(tmp_path, [watch])
    assert [seen.step for seen in watch.history] == [0, 5, 10, 12]
    assert list(watch.history.gaps) == []
