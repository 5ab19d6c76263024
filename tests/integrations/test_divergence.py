"""A training that diverges is something observed; oracle: the weights, which the test itself ruins.

The same goes for the run's own folder, read back as any reader would.
"""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from integrations.trainings import differing, lightning, loader, module, remains, seed_all, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ntkwatch import NTKMonitor, read_history
from ntkwatch.__main__ import main
from ntkwatch.watch.verdict.verdict import judge

pl = lightning()


class Ruins(pl.Callback):
    """Sets the weights to a value after one step, and puts them back after another."""

    def __init__(self, value: float, at: int, until: int = 99) -> None:
        self.value, self.at, self.until = value, at, until

    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            if trainer.global_step == self.at:
                self.kept = [p.clone() for p in pl_module.parameters()]
                pl_module.net.weight.fill_(self.value)
            elif trainer.global_step == self.until:
                for parameter, kept in zip(pl_module.parameters(), self.kept, strict=True):
                    parameter.copy_(kept)


def _ended(root, callbacks, **settings):
    seed_all()
    torch.manual_seed(0)
    model = module(pl, nn.Linear(5, 3))
    ended = trainer(pl, root, callbacks, **settings)
    ended.fit(model, loader())
    return remains(model, ended)


def _watch(**settings):
    return NTKMonitor(**{"every_n_train_steps": 1, "probe_size": 40, **settings})


def _is_said(message):
    return pytest.warns(UserWarning, match=message)


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38], ids=["nan", "inf", "outputs inf"])
def test_a_divergence_is_observed_and_is_no_failure_of_ours(tmp_path, value, on_error):
    watch = _watch(on_error=on_error)
    with _is_said(r"the model diverged by step 2: .* Training goes on") as said:
        watched = _ended(tmp_path / "watched", [Ruins(value, at=2), watch])
    assert len([w for w in said if "ntkwatch" in str(w.message)]) == 1
    assert [o.step for o in watch.history] == [0, 1]
    assert [(gap.step, gap.kind) for gap in watch.history.gaps] == [(2, "diverged")]
    assert read_history(tmp_path / "watched" / "ntk").gaps == watch.history.gaps
    alone = _ended(tmp_path / "alone", [Ruins(value, at=2)])
    assert differing(_without_nan(watched), _without_nan(alone)) == []


def _without_nan(left):
    """NaN is unlike itself; its place is what counts."""
    if isinstance(left, torch.Tensor):
        return torch.nan_to_num(left.double(), nan=12345.0)
    if isinstance(left, dict):
        return {key: _without_nan(value) for key, value in left.items()}
    if isinstance(left, list | tuple):
        return [_without_nan(value) for value in left]
    return "nan" if isinstance(left, float) and math.isnan(left) else left


def test_the_verdict_says_so_and_what_to_do(tmp_path):
    watch = _watch()
    with _is_said("diverged"):
        _ended(tmp_path, [Ruins(math.nan, at=3), watch])
    verdict = watch.verdict
    assert verdict.label == "undetermined (diverged)"
    assert "The model diverged by step 3: 1 of 2 parameters hold NaN" in verdict.reason
    assert "learning rate" in verdict.next_step
    assert verdict.step == 2
    written = json.loads((tmp_path / "ntk" / "verdict.json").read_text())
    assert (written["strength"], written["qualifier"]) == ("undetermined", "diverged")


@pytest.mark.parametrize("form", ["text", "markdown", "html", "json"])
def test_every_report_tells_of_it(tmp_path, form):
    with _is_said("diverged"):
        _ended(tmp_path, [Ruins(math.nan, at=3), _watch()])
    page = tmp_path / "page"
    assert main(["report", str(tmp_path), "--format", form, "-o", str(page)]) == 0
    words = " ".join(page.read_text().split())
    assert "diverged" in words
    assert "Lower the learning rate" in words
    if form == "json":
        (gap,) = json.loads(words)["gaps"]
        assert (gap["step"], gap["kind"]) == (3, "diverged")
    else:
        assert "the model diverged: 1 of 2 parameters hold NaN or infinity" in words


def test_whoever_waits_for_the_strength_is_told_at_once(tmp_path):
    told = []
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    watch = _watch(on_verdict=lambda verdict: told.append((verdict.label, len(watch.history))))
    with _is_said("diverged"):
        _ended(tmp_path, [Ruins(math.nan, at=11), watch], logger=logger, max_epochs=2)
    assert [label for label, _ in told] == ["static", "undetermined (diverged)"]
    assert told[-1][1] == 11, "at the step itself, not at the end"
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0})
    events.Reload()
    texts = events.Tensors("ntk/verdict/text_summary")
    assert texts[-1].tensor_proto.string_val[0].startswith(b"## undetermined (diverged)")
    assert texts[-1].step == 10


def test_every_curve_ends_in_no_number_where_training_diverged(tmp_path):
    """All but the share of time; the last numbers before would stand there for ever."""
    board, table = pl.loggers.TensorBoardLogger(tmp_path), pl.loggers.CSVLogger(tmp_path)
    seen = {}

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            ours = {t: float(v) for t, v in trainer.callback_metrics.items() if "ntk" in t}
            seen[trainer.global_step] = ours

    ruins = Ruins(math.nan, at=11, until=13)  # but momentum, which is ruined, too, does so again
    with _is_said("diverged"):
        _ended(tmp_path, [ruins, _watch(), Looks()], logger=[board, table], max_epochs=3)
    tags = sorted(tag for tag, value in seen[11].items() if math.isnan(value))
    assert tags == sorted(set(seen[10]) - {"ntk/overhead_share"})
    assert "ntk/strength" in tags
    assert seen[12].keys() == seen[11].keys(), "until there is a number again"
    assert not any(math.isnan(value) for value in seen[13].values())
    events = EventAccumulator(board.log_dir)
    events.Reload()
    with (Path(table.log_dir) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for tag in tags:
        points = [(e.step, math.isnan(e.value)) for e in events.Scalars(tag)]
        assert [step for step, is_gone in points if is_gone] == [10, 13]
        assert points[-2] == (12, False)
        assert [row["step"] for row in rows if row[tag] == "nan"] == ["10", "13"]


def test_what_monitors_a_tag_is_told_of_a_divergence_before_any_second_observation(tmp_path):
    """The reference has no linearization error, and NaN is not the best that was ever seen."""
    stop = pl.callbacks.EarlyStopping("ntk/linearization_error", mode="min", patience=99)
    watch = NTKMonitor(every_n_train_steps=100, probe_size=32)
    with _is_said("diverged"):
        run = trainer(pl, tmp_path, [Ruins(math.nan, at=3), watch, stop], max_epochs=4)
        run.fit(module(pl, nn.Linear(5, 3)), loader())
    assert math.isnan(run.callback_metrics["ntk/linearization_error"])


def test_what_monitors_our_tags_is_told_of_a_divergence(tmp_path):
    tag = "ntk/relative_displacement"
    stop = pl.callbacks.EarlyStopping(tag, mode="max", patience=9)
    best = pl.callbacks.ModelCheckpoint(tmp_path / "best", monitor=tag, mode="max")
    spoil = Ruins(math.nan, at=9)
    with _is_said("diverged"):
        seed_all()
        run = trainer(
            pl, tmp_path, [spoil, _watch(), stop, best], max_epochs=4, enable_checkpointing=True
        )
        run.fit(module(pl, nn.Linear(5, 3)), loader())
    assert run.global_step == 12, "at the end of the epoch in which it diverged"
    assert stop.stopped_epoch == run.current_epoch - 1
    assert Path(best.best_model_path).name == "epoch=0-step=6.ckpt"


def test_a_training_that_recovers_is_judged_again_and_a_second_fall_is_told_again(tmp_path):
    watch = _watch()
    falls = [Ruins(math.nan, at=2, until=4), Ruins(math.nan, at=5)]
    with _is_said("by step 2"), _is_said("by step 5"):
        _ended(tmp_path, [*falls, watch])
    assert [o.step for o in watch.history] == [0, 1, 4]
    assert [gap.step for gap in watch.history.gaps] == [2, 5]
    recovered = read_history(tmp_path)
    recovered.gaps.pop()
    assert judge(recovered).qualifier != "diverged"


def test_a_loss_that_is_not_a_number_is_noted_where_the_weights_still_are(tmp_path):
    class Lost(type(module(pl))):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * math.nan

        def configure_gradient_clipping(self, *args, **kwargs):
            self.zero_grad()  # as a scaler does that skips such a step

    watch = _watch(on_error="raise")
    torch.manual_seed(0)
    model = Lost()
    model.net = nn.Linear(5, 3)
    trainer(pl, tmp_path, [watch]).fit(model, loader())
    assert watch.history.gaps == []
    assert all("training loss" in " ".join(o.notes) for o in watch.history.observations[1:])
    assert [o.loss for o in watch.history] == [None] * 7


def test_a_run_that_starts_from_what_is_no_number_is_not_watched(tmp_path):
    watch = _watch()
    model = module(pl, nn.Linear(5, 3))
    torch.nn.init.constant_(model.net.bias, math.nan)
    with _is_said("This run is not watched any further"):
        trainer(pl, tmp_path, [watch]).fit(model, loader())
    assert len(watch.history) == 0


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_fresh_probe_that_holds_no_numbers_is_no_divergence(tmp_path, on_error):
    """Its outputs are not finite, and the weights are."""

    class Holes(torch.utils.data.Dataset):
        bad = False

        def __len__(self):
            return 48

        def __getitem__(self, index):
            x = torch.full((5,), math.nan if self.bad else float(index % 3))
            return x, index % 3

    class Spoils(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rows.bad = trainer.global_step == 3

    rows, model = Holes(), module(pl, nn.Linear(5, 3))
    model.val_dataloader = lambda: torch.utils.data.DataLoader(rows, batch_size=8)
    model.validation_step = lambda batch, batch_idx: None
    watch = _watch(resample_probe=True, on_error=on_error)
    run = trainer(pl, tmp_path, [Spoils(), watch])
    if on_error == "raise":
        with pytest.raises(Exception, match="on the probe are NaN"):
            run.fit(model, loader())
        return
    with _is_said("could not observe step 3"):
        run.fit(model, loader())
    assert [(gap.step, gap.kind) for gap in watch.history.gaps] == [(3, "failed")]
