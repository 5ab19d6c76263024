"""From the first fit to the last file; oracle: the files themselves, read by their own readers."""

import json
import re
import time
from types import SimpleNamespace

import pytest
import torch
from integrations.trainings import data, lightning, loader, mlp, module, trainer
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from versions import needs

from ntkwatch import NTKMonitor, ProbeBatch, Verdict, empirical_ntk, read_history
from ntkwatch.integrations.trainer_facts import total_steps
from ntkwatch.watch.record.cost import Cost

pl = lightning()


def _monitor(**settings) -> NTKMonitor:
    return NTKMonitor(**{"every_n_train_steps": 2, "on_error": "raise", **settings})


def test_a_run_leaves_the_files_that_users_look_for(tmp_path):
    watch = _monitor()
    trainer(pl, tmp_path, [watch]).fit(module(pl), loader())
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    kernels = {f"ntk/kernels/step={step:08d}.safetensors" for step in (0, 2, 4, 6)}
    assert names == kernels | {
        "ntk/angles.json",
        "ntk/history.jsonl",
        "ntk/probe.safetensors",
        "ntk/reference.safetensors",
        "ntk/report.html",
        "ntk/verdict.json",
    }


def test_the_kernel_files_hold_the_kernels_of_their_steps(tmp_path):
    watch, model = _monitor(), module(pl)
    trainer(pl, tmp_path, [watch]).fit(model, loader())
    tensors = load_file(tmp_path / "ntk" / "probe.safetensors")
    expected = empirical_ntk(model.net, tensors["inputs"]).trace
    kept = load_file(tmp_path / "ntk" / "kernels" / "step=00000006.safetensors")["kernel"]
    torch.testing.assert_close(kept, expected, rtol=1e-6, atol=1e-6)


def test_kernels_are_not_kept_where_that_is_not_wanted(tmp_path):
    trainer(pl, tmp_path, [_monitor(save_kernels=False)]).fit(module(pl), loader())
    assert not (tmp_path / "ntk" / "kernels").exists()


def test_the_verdict_file_has_the_field_names_of_a_verdict(tmp_path):
    watch = _monitor()
    trainer(pl, tmp_path, [watch]).fit(module(pl), loader())
    plain = json.loads((tmp_path / "ntk" / "verdict.json").read_text())
    assert set(plain) == {*Verdict.__dataclass_fields__, "cost"}
    assert set(plain["cost"]) == set(Cost.__dataclass_fields__) - {"promised"}
    assert plain["strength"] == watch.verdict.strength
    assert plain["step"] == 6


def test_the_report_names_the_verdict(tmp_path):
    watch = _monitor()
    trainer(pl, tmp_path, [watch]).fit(module(pl), loader())
    page = (tmp_path / "ntk" / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert watch.verdict.next_step.split(".")[0] in page


def test_the_end_of_the_warmup_is_kept_in_a_file_of_its_own(tmp_path):
    watch = _monitor()
    trainer(pl, tmp_path, [watch], max_epochs=5).fit(module(pl), loader())
    kept = load_file(tmp_path / "ntk" / "reference-warmup.safetensors")
    assert "param:net.0.weight" in kept
    assert watch.history[-1].since_warmup.anchor_step == 20


def test_a_second_run_never_overwrites_the_first(tmp_path):
    for _ in range(3):
        trainer(pl, tmp_path, [_monitor()]).fit(module(pl), loader())
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["ntk", "ntk-2", "ntk-3"]
    assert all(len(read_history(tmp_path / name)) == 4 for name in folders)


def test_one_monitor_serves_several_fits_one_after_the_other(tmp_path):
    watch = _monitor()
    trainer(pl, tmp_path / "a", [watch]).fit(module(pl), loader())
    first = watch.history.observations
    trainer(pl, tmp_path / "b", [watch]).fit(module(pl), loader(n=32))
    assert [o.step for o in watch.history] == [0, 2, 4]
    assert read_history(tmp_path / "a").observations == first


def test_a_trainer_that_goes_on_fitting_says_that_its_start_is_not_the_start(tmp_path):
    watch, model = _monitor(), module(pl)
    run = trainer(pl, tmp_path, [watch])
    run.fit(model, loader())
    run.fit_loop.max_epochs = 2
    with pytest.warns(UserWarning, match="goes on from step 6"):
        run.fit(model, loader())
    assert [o.step for o in watch.history] == [6, 8, 10, 12]
    assert watch.verdict.qualifier == "reference is not the start"
    assert len(read_history(tmp_path / "ntk")) == 4


class Evaluates(type(module(pl))):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


def _evaluates() -> Evaluates:
    model = Evaluates()
    model.net = mlp()
    return model


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_is_not_watched(tmp_path, verb):
    watch = _monitor()
    run = trainer(pl, tmp_path, [watch], logger=False)
    getattr(run, verb)(_evaluates(), loader())
    assert len(watch.history) == 0
    assert list(tmp_path.iterdir()) == []


def test_evaluation_after_training_changes_nothing_of_what_was_seen(tmp_path, caplog):
    caplog.set_level("INFO")
    watch, model = _monitor(), _evaluates()
    run = trainer(pl, tmp_path, [watch])
    run.fit(model, loader(), loader(n=40))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    seen, verdict = watch.history.observations, watch.verdict
    run.validate(model, loader(), verbose=False)
    model.test_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.test(model, loader(), verbose=False)
    assert (watch.history.observations, watch.verdict) == (seen, verdict)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert caplog.text.count("ntkwatch: ") == 1


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_training_that_is_cut_short_leaves_its_report(tmp_path, kind, caplog):
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                raise kind("enough")

    watch = _monitor()
    run = trainer(pl, tmp_path, [watch, Stops()])
    with caplog.at_level("INFO"), pytest.raises((RuntimeError, SystemExit)):
        run.fit(module(pl), loader())
    assert [o.step for o in read_history(tmp_path / "ntk")] == [0, 2, 4]
    assert (tmp_path / "ntk" / "report.html").is_file()
    assert json.loads((tmp_path / "ntk" / "verdict.json").read_text())["step"] == 4
    assert len(re.findall(r"ntkwatch: ", caplog.text)) == 1


@needs("pytorch_lightning", "2.6")
def test_a_run_of_averaged_weights_does_not_observe_the_average(tmp_path):
    """At the end of training the module may hold another network than the one that was trained."""
    watch = _monitor(every_n_train_steps=4)
    average = pl.callbacks.WeightAveraging()
    run = trainer(pl, tmp_path, [average, watch])
    run.fit(module(pl), loader())
    assert [o.step for o in watch.history] == [0, 4]
    assert watch.verdict.step == 4


def test_a_number_of_steps_that_lightning_does_not_tell_is_unknown():
    class Refuses:
        @property
        def estimated_stepping_batches(self):
            raise RuntimeError("it depends")

    assert total_steps(Refuses()) is None
    told = {-1: None, float("inf"): None, 12: 12}
    found = {n: total_steps(SimpleNamespace(estimated_stepping_batches=n)) for n in told}
    assert found == told


def test_an_accumulation_that_changes_by_epoch_is_watched(tmp_path):
    changes = pl.callbacks.GradientAccumulationScheduler(scheduling={0: 1, 1: 3})
    watch = _monitor()
    trainer(pl, tmp_path, [changes, watch], max_epochs=2).fit(module(pl), loader())
    assert [o.step for o in watch.history] == [0, 2, 4, 6, 8]


def test_the_default_schedule_sees_the_start_and_the_end_and_keeps_to_its_share(tmp_path):
    watch = NTKMonitor(max_overhead=0.5, on_error="raise")
    trainer(pl, tmp_path, [watch], max_epochs=4).fit(module(pl), loader())
    steps = [o.step for o in watch.history]
    assert (steps[0], steps[-1]) == (0, 24)
    assert len(steps) <= 25


def test_a_share_of_one_observes_every_step_of_a_short_run(tmp_path):
    """Its length is known, and a 25th of twelve steps is no gap at all."""
    watch = NTKMonitor(max_overhead=1.0, on_error="raise")
    trainer(pl, tmp_path, [watch], max_epochs=2).fit(module(pl), loader())
    assert [o.step for o in watch.history] == list(range(13))


class Slow(nn.Module):
    """Takes its time whenever it is looked at, and none in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        if not self.training:
            time.sleep(0.03)
        return self.head(x)


def test_dear_observations_are_left_out_but_for_the_first_and_the_last(tmp_path):
    watch = NTKMonitor(on_error="raise")
    trainer(pl, tmp_path, [watch], max_epochs=2).fit(module(pl, Slow()), loader())
    assert [o.step for o in watch.history] == [0, 12]


def test_the_overhead_that_is_logged_counts_the_observation_that_is_being_made(tmp_path):
    class Notes(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            shares.append(float(trainer.callback_metrics["ntk/overhead_share"]))

    shares = []
    run = trainer(pl, tmp_path, [_monitor(every_n_train_steps=99), Notes()])
    run.fit(module(pl, Slow()), loader())
    assert shares[0] > 0.8, "until then nothing but the reference took time"


def test_a_manual_training_that_gives_no_loss_is_watched(tmp_path):
    class Manual(type(module(pl))):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(functional.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    watch, model = _monitor(), Manual()
    model.net, model.automatic_optimization = mlp(), False
    trainer(pl, tmp_path, [watch]).fit(model, loader())
    again = read_history(tmp_path / "ntk")
    assert [(o.step, o.loss) for o in again] == [(0, None), (2, None), (4, None), (6, None)]
    assert again.run.reference == "before the first update"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"batchnorm": "running"}, lambda h: h.run.spec["batchnorm"] == "running"),
        ({}, lambda h: h.run.spec["batchnorm"] == "probe"),
        ({"engine": "loop"}, lambda h: h.run.spec["engine"] == "loop"),
        ({"outputs": "sum"}, lambda h: h.run.spec["outputs"] == "sum"),
        ({"top_k": 2}, lambda h: len(h[-1].top_eigenvalues) == 2),
        ({"metrics": "minimal"}, lambda h: h[-1].intervals == {}),
        ({"probe_size": 10}, lambda h: h[-1].probe_size == 10),
        ({"params": "net.0"}, lambda h: h.run.spec["params"] == ["net.0.weight", "net.0.bias"]),
    ],
)
def test_settings_reach_what_they_set(tmp_path, settings, found):
    watch = _monitor(**settings)
    model = module(pl, mlp(nn.BatchNorm1d(8)))
    trainer(pl, tmp_path, [watch]).fit(model, loader())
    assert found(watch.history)


def test_the_folder_can_be_chosen(tmp_path):
    watch = _monitor(dirpath=str(tmp_path / "here"))
    trainer(pl, tmp_path, [watch]).fit(module(pl), DataLoader(data(), batch_size=8))
    assert len(read_history(tmp_path / "here")) == 4


def test_a_probe_object_is_written_beside_the_history(tmp_path):
    x, y = data(40)[:]
    probe = ProbeBatch(x, y, origin="mine")
    trainer(pl, tmp_path, [_monitor(probe=probe)]).fit(module(pl), loader())
    assert read_history(tmp_path / "ntk").run.probe["fingerprint"] == probe.fingerprint()
