"""Weight decay and anchors under Lightning; oracles: products by hand, a run never stopped."""

import json
from types import SimpleNamespace

import pytest
import torch
from integrations.test_resuming import Resumable
from integrations.trainings import (
    data,
    differing,
    lightning,
    module,
    remains,
    seed_all,
    trainer,
    without_trust,
)
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset

from ntkwatch import NTKMonitor, judge, read_history
from ntkwatch.integrations.trainer_facts import number_of

RATE, DECAY, STOP = 0.01, 0.5, 45

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


def _decaying(pl, *, momentum=None):
    """A module whose learning rate is halved at every 20th step, which is not that of the next."""
    model = module(pl)

    def configure_optimizers():
        if momentum is None:
            optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
        else:
            settings = {"momentum": momentum, "weight_decay": DECAY}
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE, **settings)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    model.configure_optimizers = configure_optimizers
    return model


def _fit(pl, root, watch, *, until=60, checkpoint=None, momentum=None, **settings):
    seed_all()
    model = _decaying(pl, momentum=momentum)
    keep = pl.callbacks.ModelCheckpoint(root / "checkpoints", every_n_train_steps=STOP)
    watches = [] if watch is None else [watch]
    run = trainer(
        pl, root, [*watches, keep], enable_checkpointing=True, max_epochs=None, max_steps=until,
        **settings,
    )  # fmt: skip
    batches = Resumable(data(), batch_size=8)
    run.fit(model, batches, ckpt_path=checkpoint, **without_trust(run))
    return remains(model, run)


def _monitor(**settings) -> NTKMonitor:
    return NTKMonitor(**{"every_n_train_steps": 5, "on_error": "raise", **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root, watch = tmp_path_factory.mktemp("whole"), _monitor()
    return root, watch, _fit(lightning(), root, watch)


def test_decay_is_the_product_over_all_steps_at_their_own_rates(whole):
    _, watch, _ = whole
    last = watch.history[-1]
    expected = 1.0
    for step in range(60):
        expected *= 1 - RATE * 0.5 ** (step // 20) * DECAY
    assert last.step == 60
    assert last.decayed_norm_ratio == pytest.approx(expected, rel=1e-6)
    assert last.since_warmup.decayed_norm_ratio == pytest.approx(expected / 0.995**20, rel=1e-6)
    assert last.linearization_error_decayed not in (None, last.linearization_error)


def test_steps_count_also_where_a_probe_is_gathered_from_several_batches(tmp_path):
    """The reference is then taken late, at weights that were kept from before the first update."""
    watch = _monitor(probe_size=20)
    model = _decaying(lightning())
    run = trainer(lightning(), tmp_path, [watch], max_epochs=None, max_steps=10)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([data()[i] for i in range(48)])

    run.fit(model, DataLoader(Stream(), batch_size=8))
    assert watch.history[0].probe_size == 20
    ratio = watch.history[-1].decayed_norm_ratio
    assert ratio == pytest.approx((1 - RATE * DECAY) ** 10, rel=1e-6)


def test_a_resumed_run_counts_decay_and_keeps_its_anchors(whole, tmp_path):
    _, watch, ended = whole
    _fit(lightning(), tmp_path / "stopped", _monitor(), until=STOP)
    (checkpoint,) = (tmp_path / "stopped" / "checkpoints").glob("*.ckpt")
    resumed = _monitor()
    left = _fit(lightning(), tmp_path / "resumed", resumed, checkpoint=checkpoint)
    expected, found = watch.history[-1], resumed.history[-1]
    assert list(expected.since) == ["40"]
    assert found.since == expected.since
    assert found.since_layer_angle == expected.since_layer_angle
    assert found.linearization_error_decayed == expected.linearization_error_decayed
    assert found.since_warmup == expected.since_warmup
    assert resumed.history.angles.below == watch.history.angles.below
    assert differing(ended["state"], left["state"]) == []
    assert judge(resumed.history).timeline.errors == judge(watch.history).timeline.errors


def test_momentum_goes_on_counting_after_a_resume(tmp_path):
    watches = [_monitor(every_n_train_steps=30) for _ in range(3)]
    for name, watch, until in zip(("a", "b", "c"), watches, (60, STOP, 60), strict=True):
        checkpoint = None
        if name == "c":
            (checkpoint,) = (tmp_path / "b" / "checkpoints").glob("*.ckpt")
        _fit(lightning(), tmp_path / name, watch, until=until, checkpoint=checkpoint, momentum=0.9)
    whole, _, resumed = (watch.history[-1] for watch in watches)
    assert resumed.decayed_norm_ratio == whole.decayed_norm_ratio < 0.9


def test_what_a_checkpoint_holds_is_plain(whole):
    root, _, _ = whole
    (path,) = (root / "checkpoints").glob("*.ckpt")
    state = torch.load(path, weights_only=True)["callbacks"]["NTKMonitor{'name': 'ntk'}"]
    ((left, momentum, moving),) = state["decay"]["groups"].values()
    assert left == pytest.approx(0.995**20 * 0.9975**20 * 0.99875**5)
    assert (momentum, moving) == (0.0, False)
    json.dumps(state)


def test_the_run_s_folder_holds_anchors_and_angles(whole):
    root, watch, _ = whole
    folder = root / "ntk"
    (anchor,) = (folder / "anchors").iterdir()
    assert anchor.name == "step=00000040.safetensors"
    assert "param:net.0.weight" in load_file(anchor)
    again = read_history(folder)
    assert again.angles == watch.history.angles
    assert again.angles.steps == tuple(range(0, 61, 5))
    assert judge(again) == watch.verdict
    page = (folder / "report.html").read_text()
    assert 'id="figure-kernel-angles"' in page
    assert "When features formed" in page
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["timeline"]["sentence"] == watch.verdict.timeline.sentence


def test_watching_decay_leaves_the_training_as_it_is(whole, tmp_path):
    *_, ended = whole
    assert differing(ended, _fit(lightning(), tmp_path, None)) == []


def test_optimizers_are_told_apart_by_their_place():
    one, two = object(), object()
    run = SimpleNamespace(optimizers=[one, two])
    assert [number_of(o, run) for o in (one, two, object())] == [0, 1, 0]
    assert number_of(SimpleNamespace(optimizer=two), run) == 1


def test_history_lines_of_an_earlier_version_still_read(whole, tmp_path):
    root, watch, _ = whole
    new = ("since", "since_layer_angle", "linearization_error_decayed", "decayed_norm_ratio")
    lines = []
    for line in (root / "ntk" / "history.jsonl").read_text().splitlines():
        plain = json.loads(line)
        for part in (plain, plain.get("since_warmup", {})):
            for key in (*new, "output_change_decayed"):
                part.pop(key, None)
        lines.append(json.dumps(plain))
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    old = read_history(tmp_path)
    assert old.problems == ()
    assert old.angles is None
    expected = [o.linearization_error for o in watch.history]
    assert [o.linearization_error for o in old] == expected
    assert set(judge(old).timeline.errors) == {"0", "20"}
