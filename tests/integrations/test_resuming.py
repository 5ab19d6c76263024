"""Stopping and going on; oracle: the same training that was never stopped.

Timings differ between any two runs; everything else must not.
"""

import json
from dataclasses import replace

import pytest
import torch
from integrations.trainings import (
    NAMESPACES,
    Resumable,
    data,
    differing,
    lightning,
    loader,
    mlp,
    module,
    remains,
    seed_all,
    trainer,
    without_trust,
)
from safetensors.torch import load_file
from torch import nn
from versions import needs

from ntkwatch import NTKMonitor, read_history
from ntkwatch.watch.record.records import TIMINGS

STOP = 7

# Lightning's own words on where checkpoints lie.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


def _numbers(history):
    return [replace(o, **dict.fromkeys(TIMINGS, 0.0)) for o in history]


def _monitor(**settings) -> NTKMonitor:
    return NTKMonitor(**{"every_n_train_steps": 5, "on_error": "raise", **settings})


def _fit(
    pl,
    root,
    watch,
    *,
    checkpoint=None,
    model=None,
    every=STOP,
    batches=None,
    further=(),
    **settings,
):
    """Train for three epochs of six steps, unless the settings say otherwise."""
    seed_all()
    model = module(pl, mlp(nn.BatchNorm1d(8))) if model is None else model
    batches = Resumable(data(), batch_size=8) if batches is None else batches
    keep = pl.callbacks.ModelCheckpoint(
        root / "checkpoints", every_n_train_steps=every, save_top_k=-1, save_last=True
    )
    run = trainer(
        pl,
        root,
        [*([] if watch is None else [watch]), *further, keep],
        enable_checkpointing=True,
        **{"max_epochs": 3, **settings},
    )
    run.fit(model, batches, ckpt_path=checkpoint, **without_trust(run))
    return remains(model, run)


@pytest.fixture(scope="module", params=NAMESPACES)
def stopped(request, tmp_path_factory):
    """A run that was never stopped, and one stopped after seven steps."""
    pl = lightning(request.param)
    root = tmp_path_factory.mktemp("resume")
    whole = _monitor()
    ended = _fit(pl, root / "whole", whole)
    _fit(pl, root / "stopped", _monitor(), max_epochs=None, max_steps=STOP)
    return pl, root, whole, ended


def _last(folder):
    (found,) = (folder / "checkpoints").glob("*step=7.ckpt")
    return found


def test_a_resumed_run_sees_what_one_that_never_stopped_sees(stopped, tmp_path):
    pl, root, whole, ended = stopped
    watch = _monitor()
    remains = _fit(pl, tmp_path, watch, checkpoint=_last(root / "stopped"))
    expected = {o.step: o for o in _numbers(whole.history)}
    seen = {o.step: o for o in _numbers(watch.history)}
    assert set(expected) == {0, 5, 10, 15, 18}
    assert seen == expected, "what was seen because training ended at step 7 is taken back"
    assert differing(ended["state"], remains["state"]) == []


def test_a_resumed_run_has_the_whole_story_in_its_own_folder(stopped, tmp_path):
    pl, root, _, _ = stopped
    watch = _monitor()
    _fit(pl, tmp_path, watch, checkpoint=_last(root / "stopped"))
    again = read_history(tmp_path / "ntk")
    assert again.observations == watch.history.observations
    assert again.run.reference == "before the first update"
    assert again.run.reference_is_start
    kernels = {path.name for path in (tmp_path / "ntk" / "kernels").iterdir()}
    assert {f"step={s:08d}.safetensors" for s in (0, 5, 10)} <= kernels
    before = read_history(root / "stopped" / "ntk")
    assert [o.step for o in before] == [0, 5, 7], "the interrupted run's own file stays"


def test_a_run_resumed_where_it_was_takes_back_what_will_happen_again(tmp_path):
    """Killed at step 18 and resumed from a checkpoint of step 7: lines after that are set aside."""
    pl = lightning()
    _fit(pl, tmp_path, _monitor())
    watch = _monitor()
    _fit(pl, tmp_path, watch, checkpoint=_last(tmp_path), max_epochs=None, max_steps=12)
    assert [o.step for o in read_history(tmp_path / "ntk")] == [0, 5, 10, 12]
    kept = tmp_path / "ntk" / "history.before-resume.jsonl"
    assert [o.step for o in read_history(kept)] == [0, 5, 10, 15, 18]
    assert not (tmp_path / "ntk-2").exists()


def test_a_run_resumed_after_its_warmup_reads_from_the_same_anchor(tmp_path):
    pl = lightning()
    whole, watch = _monitor(), _monitor()
    _fit(pl, tmp_path / "whole", whole, max_epochs=5)
    (checkpoint,) = (tmp_path / "whole" / "checkpoints").glob("*step=21.ckpt")
    _fit(pl, tmp_path / "resumed", watch, checkpoint=checkpoint, max_epochs=5)
    assert _numbers(watch.history) == _numbers(whole.history)
    assert watch.history[-1].since_warmup.anchor_step == 20


def test_our_part_of_a_checkpoint_loads_without_trust(stopped):
    _, root, _, _ = stopped
    checkpoint = torch.load(_last(root / "stopped"), weights_only=True)
    (key,) = [key for key in checkpoint["callbacks"] if key.startswith("NTKMonitor")]
    state = checkpoint["callbacks"][key]
    assert key == "NTKMonitor{'name': 'ntk'}"
    assert state["folder"] == str((root / "stopped" / "ntk").resolve())
    assert len(state["losses"]) == STOP
    assert state["loss_start"] == pytest.approx(1.1, abs=0.5)


def test_a_checkpoint_before_the_first_observation_after_the_reference_keeps_the_first_loss(
    tmp_path,
):
    """Otherwise progress would be counted from the loss at the resume."""
    pl = lightning()
    whole = _monitor(every_n_train_steps=100)
    _fit(pl, tmp_path / "whole", whole)
    first = _monitor(every_n_train_steps=100)

    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == STOP + 1:
                raise RuntimeError("killed")

    keep = pl.callbacks.ModelCheckpoint(tmp_path / "first", every_n_train_steps=STOP)
    seed_all()
    run = trainer(pl, tmp_path / "first", [first, keep, Stops()], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="killed"):
        run.fit(module(pl, mlp(nn.BatchNorm1d(8))), loader(n=80))
    checkpoint = torch.load(keep.best_model_path, weights_only=True)
    state = checkpoint["callbacks"]["NTKMonitor{'name': 'ntk'}"]
    assert state["loss_start"] == pytest.approx(whole.history[0].loss, rel=1e-6)


def _without_state(pl, root):
    _fit(pl, root / "unwatched", None, max_epochs=None, max_steps=STOP)
    return _last(root / "unwatched")


def test_resuming_a_run_that_was_not_watched_says_so_and_gives_no_verdict(tmp_path):
    pl = lightning()
    checkpoint = _without_state(pl, tmp_path)
    watch = _monitor()
    with pytest.warns(UserWarning, match=r"goes on from step 7.*its checkpoint holds none"):
        _fit(pl, tmp_path, watch, checkpoint=checkpoint)
    assert [o.step for o in watch.history] == [7, 10, 15, 18]
    assert watch.verdict.label == "undetermined (reference is not the start)"
    assert watch.history.run.reference == "step 7, where this fit began"


@pytest.mark.parametrize("lost", ["history.jsonl", "probe.safetensors", "reference.safetensors"])
def test_resuming_without_the_files_says_so_and_starts_over(tmp_path, lost):
    pl = lightning()
    _fit(pl, tmp_path / "first", _monitor(), max_epochs=None, max_steps=STOP)
    (tmp_path / "first" / "ntk" / lost).unlink()
    watch = _monitor()
    with pytest.warns(UserWarning, match=r"its files \(.*first/ntk\) are gone"):
        _fit(pl, tmp_path / "second", watch, checkpoint=_last(tmp_path / "first"))
    assert [o.step for o in watch.history] == [7, 10, 15, 18]
    assert watch.verdict.strength == "undetermined"


def test_a_checkpoint_of_a_watched_run_serves_an_unwatched_one(stopped, tmp_path):
    pl, root, _, ended = stopped
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        remains = _fit(pl, tmp_path, None, checkpoint=_last(root / "stopped"))
    assert differing(ended["state"], remains["state"]) == []


@pytest.mark.parametrize("tag", ["linearization_error", "relative_displacement", "strength"])
def test_a_resumed_run_has_tags_to_monitor_before_it_observes_anything(tmp_path, tag):
    pl = lightning()
    first = NTKMonitor(every_n_train_steps=4, probe_size=32)
    _fit(pl, tmp_path, first, max_epochs=None, max_steps=STOP)
    stop = pl.callbacks.EarlyStopping(
        f"ntk/{tag}", mode="max", patience=99, check_on_train_epoch_end=True
    )
    again = NTKMonitor(every_n_train_steps=100, probe_size=32, on_error="raise")
    _fit(pl, tmp_path, again, further=[stop], checkpoint=_last(tmp_path), max_epochs=3)
    assert [o.step for o in again.history] == [0, 4, 18]
    if tag != "strength":  # at the ends of two epochs the last one known is of the first part
        assert float(stop.best_score) == pytest.approx(getattr(again.history[1], tag))


@needs("pytorch_lightning", "2.6")  # 2.5 then leaves out as many batches as the finder took
def test_a_learning_rate_finder_before_training_is_no_resume(tmp_path):
    """It saves and restores a checkpoint at step 0, with our state in it."""
    pl = lightning()
    model = module(pl)
    model.lr = 0.1
    watch = _monitor()
    find = pl.callbacks.LearningRateFinder(num_training_steps=4, update_attr=True)
    trainer(pl, tmp_path, [find, watch]).fit(model, loader())
    assert [o.step for o in watch.history] == [0, 5, 6]
    assert watch.history.run.reference_is_start


class _Similarities(nn.Module):
    """A contrastive head: every sample is compared with every other one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = nn.functional.normalize(self.body(x).tanh(), dim=1)
        return 5 * z @ z.T


@pytest.mark.parametrize(
    ("net", "settings", "columns"),
    [(_Similarities, {}, 64), (mlp, {"engine": "sketch"}, 64), (mlp, {}, None)],
    ids=["coupled", "sketch asked for", "whole kernels"],
)
def test_a_sketched_run_goes_on_where_it_stopped(net, settings, columns, tmp_path):
    pl, watches = lightning(), []
    for name, until in (("whole", 18), ("stopped", STOP), ("resumed", 18)):
        checkpoint = _last(tmp_path / "stopped") if name == "resumed" else None
        watches.append(_monitor(probe_size=12, **settings))
        how = {"model": module(pl, net()), "max_epochs": None, "max_steps": until}
        _fit(pl, tmp_path / name, watches[-1], checkpoint=checkpoint, **how)
    whole, _, resumed = (watch.history for watch in watches)
    expected = {o.step: o for o in _numbers(whole)}
    found = {o.step: o for o in _numbers(resumed)}
    assert found == expected
    assert {o.sketch_columns for o in whole if o.step} == {columns}
    assert all(o.kernel_angle > 0 for o in whole if o.step)
    assert read_history(tmp_path / "resumed" / "ntk").observations == resumed.observations
    page = (tmp_path / "resumed" / "ntk" / "report.html").read_text()
    assert ("estimates from a sketch of 64 random columns" in page) is (columns is not None)


_SHUFFLED = {"every": STOP, "batches": lambda: Resumable(data(), batch_size=8, shuffle=True)}
_AT_EPOCH_END = {"every": 12, "batches": loader}


@pytest.mark.parametrize(
    "settings",
    [
        {"metrics": "full"},
        {"metrics": "full", "outputs": "random:2", "batchnorm": "reference"},
        {"resample_probe": True, "probe": "train", "probe_size": 12},
    ],
    ids=["full", "directions", "fresh probes"],
)
@pytest.mark.parametrize("stop", [_SHUFFLED, _AT_EPOCH_END], ids=["mid-epoch", "epoch end"])
def test_a_run_stopped_and_resumed_in_place_has_the_files_of_one_that_never_stopped(
    settings, stop, tmp_path
):
    """Past the warm-up (step 20), from ``last``; every line but for its timings, every kernel."""
    pl = lightning()
    how = {"max_epochs": None, "every": stop["every"]}

    def fit(place, watch, until, checkpoint=None):
        batches = stop["batches"]()
        _fit(pl, place, watch, checkpoint=checkpoint, batches=batches, max_steps=until, **how)

    whole, first, second = (_monitor(every_n_train_steps=4, **settings) for _ in range(3))
    fit(tmp_path / "whole", whole, 30)
    fit(tmp_path / "stopped", first, stop["every"])
    fit(tmp_path / "stopped", second, 30, "last")
    assert [o.step for o in whole.history] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert _numbers(second.history) == _numbers(whole.history)
    assert whole.history[-1].since_warmup.anchor_step == 20
    lines = [
        [
            json.loads(line)
            for line in (tmp_path / place / "ntk/history.jsonl").read_text().splitlines()
        ]
        for place in ("whole", "stopped")
    ]
    for line in lines[0] + lines[1]:
        for key in (*TIMINGS, "created", "elapsed", "share"):
            line.pop(key, None)
    assert lines[0] == lines[1], "appended once each, in order"
    for file in (tmp_path / "whole" / "ntk").rglob("*.safetensors"):
        again = tmp_path / "stopped" / file.relative_to(tmp_path / "whole")
        assert differing(load_file(file), load_file(again)) == [], file.name


def test_the_cost_of_a_run_goes_on_where_it_stopped(stopped, tmp_path):
    pl, root, _, _ = stopped
    watch = _monitor()
    checkpoint = torch.load(_last(root / "stopped"), weights_only=True)
    state = checkpoint["callbacks"]["NTKMonitor{'name': 'ntk'}"]
    _fit(pl, tmp_path, watch, checkpoint=_last(root / "stopped"))
    cost = watch.history.cost
    assert cost.seconds > state["overhead_seconds"] > 0
    assert cost.elapsed > state["elapsed_seconds"] > state["overhead_seconds"]
    assert cost.share == pytest.approx(cost.seconds / cost.elapsed)
    assert read_history(tmp_path / "ntk").cost == cost
    assert json.loads((tmp_path / "ntk" / "verdict.json").read_text())["cost"]["seconds"] > 0


@pytest.mark.parametrize("name", ["probe.safetensors", "reference.safetensors"])
def test_a_damaged_file_is_a_history_that_is_lost_and_nothing_of_it_is_changed(tmp_path, name):
    pl = lightning()
    _fit(pl, tmp_path, _monitor(), max_epochs=None, max_steps=STOP)
    (tmp_path / "ntk" / name).write_bytes(b"not a tensor")
    before = (tmp_path / "ntk" / "history.jsonl").read_bytes()
    watch = _monitor(on_error="warn")
    with pytest.warns(UserWarning, match="drift is counted from the resumed weights"):
        _fit(pl, tmp_path, watch, checkpoint=_last(tmp_path))
    assert [seen.step for seen in watch.history] == [7, 10, 15, 18]
    assert (tmp_path / "ntk" / "history.jsonl").read_bytes() == before
    assert [seen.step for seen in read_history(tmp_path / "ntk-2")] == [7, 10, 15, 18]


def test_a_run_resumed_where_nothing_can_be_written_is_watched_and_written_later(tmp_path):
    """A folder in the way of the history's temporary file, as real as a full disk."""
    pl = lightning()
    _fit(pl, tmp_path, _monitor(), max_epochs=None, max_steps=STOP)
    in_the_way = tmp_path / "ntk" / ".history.jsonl.tmp"
    in_the_way.mkdir()
    watch = _monitor(on_error="warn")

    class MakesRoom(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 12:
                in_the_way.rmdir()

    with pytest.warns(UserWarning, match="an earlier part of this run saw"):
        _fit(pl, tmp_path, watch, checkpoint=_last(tmp_path), further=[MakesRoom()])
    steps = [0, 5, 10, 15, 18]
    assert [seen.step for seen in watch.history] == steps
    assert [seen.step for seen in read_history(tmp_path / "ntk")] == steps


def test_nothing_is_taken_back_before_a_copy_is_kept(tmp_path):
    """The folder in the way is that of the copy, so nothing else is short of room."""
    pl = lightning()
    _fit(pl, tmp_path, _monitor())
    in_the_way = tmp_path / "ntk" / ".history.before-resume.jsonl.tmp"
    in_the_way.mkdir()
    kept = []

    class MakesRoom(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 12:
                kept.append([seen.step for seen in read_history(tmp_path / "ntk")])
                in_the_way.rmdir()

    watch = _monitor(on_error="warn")
    settings = {"checkpoint": _last(tmp_path), "max_epochs": None, "max_steps": 16}
    with pytest.warns(UserWarning, match="an earlier part of this run saw"):
        _fit(pl, tmp_path, watch, further=[MakesRoom()], **settings)
    assert kept == [[0, 5, 10, 15, 18]]
    assert [seen.step for seen in read_history(tmp_path / "ntk")] == [0, 5, 10, 15, 16]
    aside = tmp_path / "ntk" / "history.before-resume.jsonl"
    assert [seen.step for seen in read_history(aside)] == [0, 5, 10, 15, 18]


def test_a_history_set_aside_twice_is_kept_twice(tmp_path):
    pl = lightning()
    _fit(pl, tmp_path, _monitor())
    for _ in range(2):
        _fit(pl, tmp_path, _monitor(), checkpoint=_last(tmp_path), max_epochs=None, max_steps=12)
    names = ("history.before-resume.jsonl", "history.before-resume-2.jsonl")
    kept = [[seen.step for seen in read_history(tmp_path / "ntk" / name)] for name in names]
    assert kept == [[0, 5, 10, 15, 18], [0, 5, 10, 12]]


def test_what_others_left_half_written_beside_is_not_ours_to_sweep(tmp_path):
    pl = lightning()
    _fit(pl, tmp_path, _monitor(dirpath=tmp_path), max_epochs=None, max_steps=STOP)
    others = tmp_path / "other" / ".results.csv.tmp"
    others.parent.mkdir()
    others.write_text("half")
    _fit(
        pl,
        tmp_path,
        _monitor(dirpath=tmp_path),
        checkpoint=_last(tmp_path),
        max_epochs=None,
        max_steps=9,
    )
    assert others.read_text() == "half"


def test_what_a_kill_left_half_written_is_swept_up(tmp_path):
    pl = lightning()
    _fit(pl, tmp_path, _monitor(), max_epochs=None, max_steps=STOP)
    torn = tmp_path / "ntk" / "kernels" / ".step=00000099.safetensors.tmp"
    torn.write_bytes(b"half")
    _fit(pl, tmp_path, _monitor(), checkpoint=_last(tmp_path), max_epochs=None, max_steps=9)
    assert not torn.exists()
