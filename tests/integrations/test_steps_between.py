"""What the callback does at the many steps at which it does not observe; oracles: torch's own
dispatcher, and losses written down by the training itself.
"""

import pytest
import torch
from integrations.trainings import NAMESPACES, lightning, loader, mlp, module, trainer
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ntkwatch import NTKMonitor


class _Counted(TorchDispatchMode):
    """Counts operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.append(str(function))
        return function(*args, **(kwargs or {}))


class _CountingMonitor(NTKMonitor):
    """Keeps what each hook of each step asked of torch."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.asked = {}

    def _counted(self, hook, trainer, *rest):
        with _Counted() as counted:
            getattr(super(), hook)(trainer, *rest)
        self.asked[hook, trainer.global_step] = counted.operations

    def on_train_batch_start(self, *rest):
        self._counted("on_train_batch_start", *rest)

    def on_before_optimizer_step(self, *rest):
        self._counted("on_before_optimizer_step", *rest)

    def on_train_batch_end(self, *rest):
        self._counted("on_train_batch_end", *rest)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_step_without_an_observation_asks_nothing_of_the_device(tmp_path, namespace):
    pl = lightning(namespace)
    watch = _CountingMonitor(every_n_train_steps=4, dirpath=tmp_path / "ntk", on_error="raise")
    trainer(pl, tmp_path, (watch,), max_epochs=2).fit(module(pl, mlp()), loader())
    between = {place: asked for place, asked in watch.asked.items() if place[1] % 4}
    assert len(between) == 3 * 9
    assert not any(between.values()), "three hooks of nine steps, and no operation"
    observed = [asked for (hook, step), asked in watch.asked.items() if asked]
    assert len(observed) == 4, "the reference, and steps 4, 8 and 12"


def test_a_loss_that_training_writes_over_by_hand_is_kept_as_it_was(tmp_path):
    """Under manual optimization the loss is the training's own tensor, which it may use again."""
    pl = lightning()

    class ByHand(type(module(pl))):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.shown = torch.zeros(())
            self.losses = []

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.losses.append(loss.item())
            return self.shown.copy_(loss.detach())

    model = ByHand()
    watch = NTKMonitor(every_n_train_steps=6, dirpath=tmp_path / "ntk", on_error="raise")
    trainer(pl, tmp_path, (watch,)).fit(model, loader())
    assert len(model.losses) == 6
    assert watch.history[-1].loss == pytest.approx(sum(model.losses) / 6, rel=1e-6)
    assert watch.history[-1].loss != pytest.approx(model.losses[-1], rel=1e-3)
