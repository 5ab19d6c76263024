"""Weight decay is counted in steps that are taken; oracle: a weight that sees no gradient.

A gradient scaler leaves a step out where gradients overflow. What decay alone leaves of the weights
is what is left of such a weight, whatever the optimizer, its learning rates and the scaler did.
"""

import pytest
import torch
from integrations import hugging_face
from integrations.trainings import (
    differing,
    lightning,
    loader,
    mlp,
    module,
    remains,
    seed_all,
    trainer,
)
from torch import nn

from ntkwatch import NTKMonitor, NTKTrainerCallback
from ntkwatch.integrations.run.taken_steps import TakenSteps

pl = lightning()

OVERFLOWS = (1, 4, 5, 9)  # steps taken so far when gradients overflow
DECAY = {"lr": 0.1, "weight_decay": 0.5}
OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, **DECAY),
    "fused AdamW": lambda params: torch.optim.AdamW(params, **DECAY, fused=True),
    "SGD": lambda params: torch.optim.SGD(params, **DECAY, momentum=0.9, nesterov=True),
    "fused SGD": lambda params: torch.optim.SGD(params, **DECAY, momentum=0.9, fused=True),
}


def _module(optimizer):
    """Beside its network it has a weight whose gradient is zero."""
    model = module(pl, mlp())

    class Lit(type(model)):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 0 * self.idle.sum()

        def on_after_backward(self):
            if self.trainer.global_step in OVERFLOWS and self.trainer.precision_plugin.scaler:
                for parameter in self.net.parameters():
                    parameter.grad.fill_(torch.inf)

        def configure_optimizers(self):
            chosen = optimizer(self.parameters())
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, 12)
            return [chosen], [{"scheduler": schedule, "interval": "step"}]

    model.__class__ = Lit
    model.idle = nn.Parameter(torch.ones(()))
    return model


def _scaled(root, callbacks, optimizer, scaler):
    precision = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)
    precision.scaler = scaler
    seed_all()
    model = _module(OPTIMIZERS[optimizer])
    run = trainer(pl, root, callbacks, plugins=[precision], max_epochs=2)
    run.fit(model, loader())
    return model, run


def _left(monitor):
    (left,) = monitor._run._beginning.decay.reading().values()
    return left


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_that_a_scaler_leaves_out_do_not_decay(tmp_path, optimizer):
    watch = NTKMonitor(every_n_train_steps=6, on_error="raise")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model, run = _scaled(tmp_path, [watch], optimizer, scaler)
    assert scaler.get_scale() == 4 / 2 ** len(OVERFLOWS), "so many steps were left out"
    assert 0 < model.idle.item() < 0.9
    assert _left(watch) == pytest.approx(model.idle.item(), rel=1e-5)
    assert watch.history[-1].linearization_error_decayed is not None
    assert len(run.optimizers[0]._optimizer_step_post_hooks) == 0, "as it was found"


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("optimizer", ["AdamW", "fused AdamW"])
def test_a_watched_training_under_a_scaler_ends_as_an_unwatched_one(tmp_path, optimizer):
    ends = []
    for callbacks in ([NTKMonitor(every_n_train_steps=1, on_error="raise")], []):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        left = remains(*_scaled(tmp_path, callbacks, optimizer, scaler))
        ends.append({**left, "scaler": scaler.state_dict()})
    assert differing(*ends) == []


def test_a_count_of_all_steps_would_be_another_one(tmp_path):
    """Without a scaler nothing overflows, and what is left is less."""
    watch = NTKMonitor(every_n_train_steps=6, on_error="raise")
    model, _ = _scaled(tmp_path, [watch], "AdamW", None)
    skipping, _ = _scaled(tmp_path, [], "AdamW", torch.amp.GradScaler("cpu"))
    assert _left(watch) == pytest.approx(model.idle.item(), rel=1e-5)
    assert model.idle.item() < 0.95 * skipping.idle.item()


class _Overflowing(hugging_face.Curve):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step in OVERFLOWS and self.accelerator.scaler is not None:
            for parameter in self.model.parameters():
                parameter.grad.fill_(torch.inf)
        return loss


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("scaler", [False, True], ids=["every step", "a scaler"])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_decay_is_counted_under_hugging_faces_trainer(tmp_path, optim, scaler):
    """No text is so long that the last positions of the embedding see a gradient."""
    watch = NTKTrainerCallback(every_n_steps=6, on_error="raise")
    model = hugging_face.bert()
    idle = model.bert.embeddings.position_embeddings.weight[-1]
    before = idle.detach().clone()
    settings = {"optim": optim, "weight_decay": 5.0, "learning_rate": 0.02, "warmup_steps": 3}
    run = hugging_face.trainer(model, tmp_path, [watch], max_grad_norm=0.0, **settings)
    run.__class__ = _Overflowing
    if scaler:
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run.train()
    if scaler:
        assert run.accelerator.scaler.get_scale() == 4 / 2 ** len(OVERFLOWS)
    left = (idle.detach() / before).tolist()
    assert max(left) < 0.9
    decayed, not_decayed = watch._run._beginning.decay.reading().values()
    assert left == pytest.approx([decayed] * len(left), rel=1e-5)
    assert not_decayed == 1, "biases and norms"
    assert watch.history[-1].linearization_error_decayed is not None
    inner = getattr(run.optimizer, "optimizer", run.optimizer)
    assert len(inner._optimizer_step_post_hooks) == 0


def test_an_optimizer_of_another_make_is_counted_before_it_steps():
    class Own:
        """Not one of torch's, which tells no one of its steps."""

    told, own = [], Own()
    steps = TakenSteps()
    for _ in range(2):
        steps.follow(own, told.append)
    steps.let_go()
    assert told == [own, own]


class _Wrapper:
    """As Accelerate makes them; this one can have no weak references."""

    __slots__ = ("optimizer",)

    def __init__(self, optimizer):
        self.optimizer = optimizer


class _Referable(_Wrapper):
    """The same, and it can."""


@pytest.mark.parametrize("wrapper", [_Wrapper, _Referable, lambda own: own])
def test_a_step_is_told_once_however_often_and_in_what_wrapper_it_was_followed(wrapper):
    weight = nn.Parameter(torch.ones(()))
    own, told = torch.optim.SGD([weight], lr=0.1), []
    steps, kept = TakenSteps(), wrapper(own)
    assert not steps.follows(kept)
    for _ in range(3):
        steps.follow(kept, told.append)
        steps.follow(wrapper(own), told.append)  # gone at once
        own.step()
    assert told == [own] * 3
    assert steps.follows(kept) is (wrapper is not _Wrapper)
    assert not steps.follows(torch.optim.SGD([weight], lr=0.1))
    steps.let_go()
    own.step()
    assert told == [own] * 3
    assert not steps.follows(kept)
