"""What a Lightning run tells of its training; oracles: the optimizer itself, and torch's loop."""

import pytest
import torch
from integrations.trainings import CLASSES, data, lightning, loader, mlp, module, trainer
from torch import nn
from torch.nn import functional

from ntkwatch import NTKMonitor, ProbeBatch
from ntkwatch.errors import InputError

pl = lightning()
ONE = {"every_n_train_steps": 2, "on_error": "raise", "metrics": "full"}


def _watched(tmp_path, model, batches=None, *, probe=None, fit=None, **settings):
    watch = NTKMonitor(**{**ONE, **settings}, probe=data() if probe is None else probe)
    trainer(pl, tmp_path, [watch], **(fit or {})).fit(
        model, loader() if batches is None else batches
    )
    return watch.history


def _probe(**settings) -> ProbeBatch:
    x, y = data()[:]
    return ProbeBatch(x, y, **settings)


def test_optimizer_rate_loss_and_batch_size_are_read_off_the_run(tmp_path):
    last = _watched(
        tmp_path,
        module(pl),
        probe=_probe(),
        loss_function="torch.nn.functional.cross_entropy",
        fit={"accumulate_grad_batches": 3},
    )[-1]
    assert last.training == {
        "optimizer": "SGD",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "dampening": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
        "loss_function": "cross-entropy-mean",
        "batch_size": 24,
        "clipped": False,
    }
    assert last.edge_of_stability == pytest.approx(0.1 / last.max_stable_lr)


@pytest.mark.parametrize(
    ("held", "known"),
    [
        ([nn.CrossEntropyLoss()], "cross-entropy-mean"),
        ([nn.L1Loss()], None),
        ([nn.CrossEntropyLoss(), nn.MSELoss()], None),
        ([], None),
    ],
)
def test_a_loss_is_taken_from_the_module_where_it_holds_one(tmp_path, held, known):
    model = module(pl)
    model.criteria = nn.ModuleList(held)
    last = _watched(tmp_path, model, probe=_probe())[-1]
    assert last.training.get("loss_function") == known
    assert ("max_stable_lr" in last.left_out) == (known is None)


def test_adam_has_no_stable_rate_and_no_shortest_move(tmp_path):
    model = module(pl, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    settings = {"loss_function": functional.cross_entropy}
    last = _watched(tmp_path, model, probe=_probe(whole_training_set=True), **settings)[-1]
    assert "Adam" in last.left_out["max_stable_lr"]
    assert "Adam" in last.left_out["displacement_ratio"]
    assert last.training["optimizer"] == "Adam"


def test_clipping_is_known(tmp_path):
    last = _watched(tmp_path, module(pl), probe=_probe(), fit={"gradient_clip_val": 1.0})[-1]
    assert last.training["clipped"] is True


def test_a_linear_model_on_all_of_its_data_decays_as_predicted(tmp_path):
    class Regression(type(module(pl))):
        def __init__(self):
            super().__init__()
            self.net, self.loss = nn.Linear(5, CLASSES), nn.MSELoss()

        def training_step(self, batch, batch_idx):
            return self.loss(self.net(batch[0]), functional.one_hot(batch[1], CLASSES).float())

    torch.manual_seed(0)
    x, y = data(12)[:]
    wanted = functional.one_hot(y, CLASSES).float()
    history = _watched(
        tmp_path,
        Regression(),
        loader(12, batch_size=100),
        probe=ProbeBatch(x, wanted, whole_training_set=True),
        fit={"max_epochs": 6},
    )
    last = history[-1]
    assert (last.step, last.training["batch_size"]) == (6, 12)
    assert last.mode_prediction_error < 1e-4
    assert last.displacement_ratio == pytest.approx(1, abs=1e-3)


def test_a_run_that_goes_on_remembers_how_it_was_trained_and_where_its_kernel_was(tmp_path):
    """The way through a stop is the sum of its parts, since the last kernel was written."""
    settings = {"max_epochs": 1}
    first = NTKMonitor(**ONE, probe=_probe())
    run = trainer(pl, tmp_path, [first], **settings)
    run.fit(module(pl, mlp()), loader())
    run.save_checkpoint(tmp_path / "stop.ckpt")
    second = NTKMonitor(**ONE, probe=_probe())
    later = trainer(pl, tmp_path, [second], **{**settings, "max_epochs": 2})
    later.fit(module(pl, mlp()), loader(), ckpt_path=tmp_path / "stop.ckpt")
    lengths = [seen.path_length for seen in second.history]
    assert lengths == sorted(lengths)
    assert len(lengths) == 7
    parts = [seen.angular_velocity * 2 for seen in second.history.observations[1:]]
    assert lengths[-1] == pytest.approx(sum(parts))


def test_a_loss_function_of_an_unknown_name_is_refused_at_once():
    with pytest.raises(InputError, match="loss_function"):
        NTKMonitor(loss_function="mse")
