"""What a run under Hugging Face's Trainer leaves in its files, and how it goes on after a pause.

Oracles: the dense kernel of the trained model, the losses as the Trainer computed them,
TensorBoard's own reader, and the run that was not interrupted.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from integrations.hugging_face import Items, bert, ended, gpt2, texts, trainer
from integrations.trainings import differing, seed_all
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, TrainerCallback
from versions import at_least, needs

from ntkwatch import KernelTracker, NTKTrainerCallback, read_history
from ntkwatch.errors import InputError, MissingExtraError
from ntkwatch.integrations import huggingface
from ntkwatch.integrations.huggingface_facts import (
    check_whole,
    in_training_modes,
    may_stop_early,
    whole_model,
)
from ntkwatch.integrations.huggingface_probe import PassingBatches
from ntkwatch.watch.store import read_probe

from oracles import dense_ntk


class Texts(IterableDataset):
    """A stream, from which no probe can be drawn."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def _watch(**settings):
    chosen = {"every_n_steps": 5, "probe_size": 8, "metrics": "minimal", "on_error": "raise"}
    return NTKTrainerCallback(**{**chosen, **settings})


def _reporting():
    held_out = Items(texts(40, seed=5))
    return bert(), {"eval_dataset": held_out, "report_to": "tensorboard", "logging_steps": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A watched run that reports to TensorBoard."""
    root = tmp_path_factory.mktemp("run")
    watch = _watch(metrics="standard")
    torch.set_num_threads(1)
    done, _ = ended(_reporting, root, [watch])
    return SimpleNamespace(root=root, watch=watch, trainer=done)


def test_the_files_are_those_of_any_watched_run(run):
    folder = run.root / "ntk"
    kernels = [f"step={step:08d}.safetensors" for step in (0, 5, 10, 12)]
    assert sorted(path.name for path in (folder / "kernels").iterdir()) == kernels
    assert {"probe.safetensors", "reference.safetensors", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert [o.step for o in read_history(folder / "history.jsonl")] == [0, 5, 10, 12]
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["strength"] == run.watch.verdict.strength == "undetermined"  # 12 steps


def test_the_probe_is_of_the_evaluation_data_and_its_labels_are_the_targets(run):
    probe = read_probe(run.root / "ntk" / "probe.safetensors")
    held_out = texts(40, seed=5)
    assert set(probe.inputs) >= {"input_ids", "attention_mask"}
    assert "labels" not in probe.inputs
    found = [
        next(t["labels"] for t in held_out if torch.equal(t["input_ids"], row))
        for row in probe.inputs["input_ids"]
    ]
    assert torch.equal(probe.targets, torch.stack(found))


def test_the_kernel_is_that_of_the_logits(run):
    probe = read_probe(run.root / "ntk" / "probe.safetensors")
    logits = lambda model, x: model(**x).logits  # noqa: E731
    model = run.trainer.model.eval()
    expected = torch.einsum("nmcc->nm", dense_ntk(model, probe.inputs, logits))
    assert run.watch.history[-1].trace == pytest.approx(float(expected.trace()), rel=1e-4)


@needs("transformers", "5.3")  # an older Trainer tells its loss only when it logs
def test_losses_are_those_of_the_training(run):
    seen = {o.step: o for o in run.watch.history}
    curve = run.trainer.curve
    assert seen[12].loss_start == pytest.approx(curve[0], rel=1e-5)
    for step in (5, 10, 12):
        assert seen[step].loss == pytest.approx(sum(curve[:step]) / step, rel=1e-5)
    assert [seen[step].epoch for step in (0, 5, 10, 12)] == [0, 0, 1, 2]


def test_scalars_stand_beside_the_trainer_s_own(run):
    folders = [path.parent for path in run.root.rglob("events.out.tfevents.*")]
    assert len(folders) == 1, "a second file of events would be a second run"
    events = EventAccumulator(str(folders[0])).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [4, 8, 12]
    angles = events.Scalars("ntk/kernel_angle")
    assert [e.step for e in angles] == [0, 5, 10, 12]
    assert angles[-1].value == pytest.approx(run.watch.history[-1].kernel_angle)
    assert "ntk/kernel" in events.Tags()["images"]


@pytest.mark.slow
def test_under_autocast_the_kernel_has_the_precision_of_the_weights(tmp_path):
    watch = _watch()
    done, _ = ended(lambda: (bert(), {"bf16": True, "max_steps": 5}), tmp_path, [watch])
    probe = read_probe(tmp_path / "ntk" / "probe.safetensors")
    twin = bert()
    twin.load_state_dict(done.model.state_dict())
    expected = dense_ntk(twin.eval(), probe.inputs, lambda model, x: model(**x).logits)
    trace = float(torch.einsum("nncc->", expected))
    assert watch.history[-1].trace == pytest.approx(trace, rel=1e-4)
    assert "_original_forward" in vars(done.model), "accelerate was to wrap the forward"


# After a pause. -----------------------------------------------------------------------------------


def _to_be_saved():
    return bert(), {"save_strategy": "steps", "save_steps": 6}


@pytest.mark.parametrize("restored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_resumed_run_goes_on_where_it_stopped(tmp_path, restored):
    first = _watch()
    _, uninterrupted = ended(_to_be_saved, tmp_path, [first])
    seed_all()
    second = _watch()
    model, settings = _to_be_saved()
    again = trainer(
        model, tmp_path, [second], restore_callback_states_from_checkpoint=restored, **settings
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert [o.step for o in second.history] == [0, 5, 10, 12]
    for mine, its in zip(second.history, first.history, strict=True):
        assert (mine.kernel_angle, mine.linearization_error) == (
            its.kernel_angle,
            its.linearization_error,
        )
    if at_least("transformers", "5.3"):
        assert second.history[-1].loss == pytest.approx(first.history[-1].loss, rel=1e-5)
    assert differing(dict(model.state_dict()), uninterrupted["state"]) == []


def test_a_run_resumed_from_an_unwatched_one_says_so_and_is_saved_again(tmp_path):
    ended(_to_be_saved, tmp_path)
    watch = _watch()
    model, settings = _to_be_saved()
    again = trainer(model, tmp_path, [watch], **settings)
    with pytest.warns(UserWarning, match="drift is counted from the resumed weights"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert watch.history[0].step == 6
    kept = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert kept["stateful_callbacks"]["ntkwatch: ntk"]["folder"] == str(
        (tmp_path / "ntk").resolve()
    )


def test_a_checkpoint_of_a_run_that_follows_its_weights_can_be_written(tmp_path):
    """The Trainer keeps callbacks' states as JSON, which would fail on tensors."""
    watch = _watch(metrics="full", probe_size=4)
    ended(lambda: (bert(), {"save_strategy": "steps", "save_steps": 6, "max_steps": 6}), tmp_path,
          [watch])  # fmt: skip
    assert watch.history[-1].displacement_path is not None
    kept = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert "weights" not in kept["stateful_callbacks"]["ntkwatch: ntk"]


# How training may end. ----------------------------------------------------------------------------


class _Weights(TrainerCallback):
    """Keeps the weights of every step, and stops training if asked to."""

    def __init__(self, stop_after=None):
        self.seen, self.stop_after = [], stop_after

    def on_step_end(self, args, state, control, model, **parts):
        self.seen.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))

    def on_evaluate(self, args, state, control, **parts):
        control.should_training_stop = state.global_step == self.stop_after


def test_the_last_observation_is_of_the_last_weights_and_not_of_the_best(tmp_path):
    weights, watch = _Weights(), _watch()
    start = torch.cat([p.detach().flatten() for p in bert().parameters()])
    settings = {
        "eval_dataset": Items(texts(24, seed=5)),
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # so that the first, worse, counts as the best
    }
    done, _ = ended(lambda: (bert(), settings), tmp_path, [watch, weights])
    best = torch.cat([p.detach().flatten() for p in done.model.parameters()])
    assert not torch.equal(best, weights.seen[-1]), "the best weights were to be other ones"
    moved = float((weights.seen[-1] - start).norm() / start.norm())
    assert watch.history[-1].step == 12
    assert watch.history[-1].relative_displacement == pytest.approx(moved, rel=1e-5)


def test_early_stopping_is_known_to_end_a_run_before_its_time(tmp_path):
    assert not may_stop_early(trainer(bert(), tmp_path))
    assert may_stop_early(trainer(bert(), tmp_path, [EarlyStoppingCallback(2)]))
    assert not may_stop_early(None)


def test_a_training_that_is_stopped_is_observed_at_its_last_step(tmp_path):
    watch = _watch()
    settings = {
        "eval_dataset": Items(texts(24, seed=5)),
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    ended(lambda: (bert(), settings), tmp_path, [watch, _Weights(stop_after=8)])
    assert [o.step for o in watch.history] == [0, 5, 8]
    assert (tmp_path / "ntk" / "report.html").exists()


# What cannot be watched. --------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "gathered"])
def test_a_reference_that_fails_once_is_taken_at_the_next_step(tmp_path, drawn, monkeypatch):
    tries, before = [], KernelTracker.observe

    def failing(self, model, step, **rest):
        tries.append(step)
        if len(tries) == 1:
            raise RuntimeError("not today")
        return before(self, model, step, **rest)

    monkeypatch.setattr(KernelTracker, "observe", failing)
    watch = _watch(on_error="warn")
    settings = {} if drawn else {"data": Texts(texts()), "max_steps": 12}
    with pytest.warns(UserWarning, match=r"could not observe step 0: .*The reference is step 1:"):
        trainer(bert(), tmp_path, [watch], **settings).train()
    assert [o.step for o in watch.history] == [1, 5, 10, 12]
    assert [gap.step for gap in read_history(tmp_path).gaps] == [0]


class _Interrupts(TrainerCallback):
    """Ends the first training by an exception, which no event tells of."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.step = None
            raise KeyboardInterrupt


def test_a_training_after_one_that_was_interrupted_is_watched_too(tmp_path):
    watch = _watch()
    settings = {"data": Texts(texts()), "max_steps": 12}
    run = trainer(bert(), tmp_path, [_Interrupts(2), watch], **settings)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert [o.step for o in watch.history] == [0]
    run.train()
    assert [o.step for o in watch.history] == [0, 5, 10, 12]
    assert not run.model._forward_pre_hooks


def test_batches_are_looked_at_no_more_once_watching_has_ended(tmp_path):
    class Refuses(bert().__class__):
        def forward(self, input_ids=None, attention_mask=None, labels=None):
            if not self.training:
                raise ValueError("in training only")
            return super().forward(input_ids, attention_mask, labels=labels)

    torch.manual_seed(0)
    model = Refuses(bert().config)
    watch = _watch(on_error="warn", probe_size=1000)  # more than an epoch has
    settings = {"data": Texts(texts()), "max_steps": 24}
    hooks = []

    class Counts(TrainerCallback):
        def on_step_end(self, *_, **__):
            hooks.append(len(model._forward_pre_hooks))

    with pytest.warns(UserWarning, match="not watched any further"):
        trainer(model, tmp_path, [watch, Counts()], **settings).train()
    assert (max(hooks), hooks[-1]) == (1, 0)


def test_without_evaluation_data_to_draw_from_training_finishes_and_it_is_said(tmp_path):
    watch = _watch(probe="val", on_error="warn")
    with pytest.warns(UserWarning, match="this Trainer has no eval_dataset"):
        done, _ = ended(lambda: (bert(), {"max_steps": 2}), tmp_path, [watch])
    assert done.state.global_step == 2
    assert watch.verdict is None


def test_batches_of_a_compiled_model_are_not_looked_at():
    compiled = SimpleNamespace(args=SimpleNamespace(torch_compile=True))
    with pytest.raises(InputError, match="compiled"):
        PassingBatches(gpt2(), compiled)


@pytest.mark.parametrize("flag", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_parameters_are_refused(flag):
    sharded = SimpleNamespace(**{flag: True})
    with pytest.raises(InputError, match=r"this run is not watched\. Save full checkpoints"):
        check_whole(sharded, nn.Linear(2, 2), "raise", is_main=True)
    with pytest.warns(UserWarning, match="is not watched"):
        assert not check_whole(sharded, nn.Linear(2, 2), "warn", is_main=True)
    assert check_whole(SimpleNamespace(), nn.Linear(2, 2), "raise", is_main=True)


def test_a_model_is_taken_out_of_its_wrapper():
    model = nn.Linear(2, 2)
    assert whole_model(nn.DataParallel(nn.DataParallel(model))) is model


def test_training_modes_are_shown_for_the_reference_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    with in_training_modes(model):
        assert all(part.training for part in model.modules())
    assert not any(part.training for part in model.modules())


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(huggingface, "TrainerCallback", object)
    with pytest.raises(MissingExtraError, match=r"pip install 'ntkwatch\[transformers\]'"):
        NTKTrainerCallback()


@pytest.mark.slow
def test_without_transformers_every_public_name_is_there():
    code = "import sys; sys.modules['transformers'] = None; from ntkwatch import *"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"every_n_steps=0 .* at least 1"):
        NTKTrainerCallback(every_n_steps=0)
    with pytest.raises(InputError, match="probe='test' is not known"):
        NTKTrainerCallback(probe="test")
