"""No memory, no disk, no data; oracle: the same training without the monitor, and the files.

Errors are those of torch and of the system themselves where they can be provoked.
"""

import errno
import logging
import warnings

import numpy as np
import pytest
import torch
from integrations.trainings import (
    data,
    differing,
    lightning,
    loader,
    module,
    remains,
    seed_all,
    trainer,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ntkwatch import NTKMonitor, read_history
from ntkwatch.errors import WeightsChangedError
from ntkwatch.watch import store
from ntkwatch.watch.readings import look

pl = lightning()


class Trouble:
    """What befalls the next looks at a model; no list or dict, which would be put back."""

    def __init__(self, kind=None) -> None:
        self.kind, self.looks = kind, 0

    def strike(self, net) -> None:
        if self.looks > 0:
            self.looks -= 1
            self.kind(net)


class Net(nn.Module):
    """A frozen layer below a trained one; trouble comes in evaluation mode only."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.head = nn.Linear(5, 5).requires_grad_(False), nn.Linear(5, 3)
        self.trouble = trouble

    def forward(self, x):
        if not self.training:
            self.trouble.strike(self)
        return self.head(torch.tanh(self.base(x)))


class Comes(pl.Callback):
    """Trouble comes to so many looks at certain steps."""

    def __init__(self, trouble: Trouble, looks: int, *steps: int) -> None:
        self.trouble, self.looks, self.steps = trouble, looks, steps

    def on_train_batch_end(self, trainer, *_):
        self.trouble.looks = self.looks if trainer.global_step in self.steps else 0


def _ended(root, callbacks, trouble=None, **settings):
    seed_all()
    model = module(pl, Net(trouble or Trouble()))
    ended = trainer(pl, root, callbacks, **settings)
    ended.fit(model, loader())
    return remains(model, ended)


def _and_said(run):
    """What a run returns, and what it was warned of by us."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        returned = run()
    return returned, [str(w.message) for w in caught if "ntkwatch" in str(w.message)]


def _watch(**settings):
    return NTKMonitor(**{"every_n_train_steps": 1, "probe_size": 40, **settings})


# Memory. ------------------------------------------------------------------------------------------


def _torch_runs_out(_net):
    torch.empty(2**62, dtype=torch.uint8)


def _python_runs_out(_net):
    raise MemoryError


def _accelerator_runs_out(_net):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("runs_out", "looks", "on_error"),
    [
        (_torch_runs_out, 1, "warn"),
        (_python_runs_out, 2, "raise"),
        (_accelerator_runs_out, 1, "raise"),
    ],
)
def test_where_memory_runs_out_it_is_tried_again_in_smaller_pieces(
    tmp_path, runs_out, looks, on_error
):
    trouble, watch = Trouble(runs_out), _watch(memory_budget="1GiB", on_error=on_error)
    callbacks = [Comes(trouble, looks, 2, 4), watch]
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", callbacks, trouble))
    assert len(said) == 1, "said once, though it happened at two steps"
    assert said[0].startswith("ntkwatch ran out of memory at step 2 (")
    assert f"within {2**30 // 4} bytes" in said[0]
    assert "probe_size=" in said[0]
    assert watch.history.gaps == []
    noted = {o.step: [n for n in o.notes if "memory" in n] for o in watch.history}
    assert noted[1] == []
    assert noted[3] == [
        f"memory ran out, so the memory budget was lowered to {2**30 // 4**looks} bytes"
    ]
    assert read_history(tmp_path / "watched").observations == watch.history.observations
    calm = _watch(memory_budget="1GiB")
    alone = _ended(tmp_path / "calm", [calm])
    assert [o.trace for o in watch.history] == [o.trace for o in calm.history]
    assert differing(watched, alone) == []


def test_the_smaller_pieces_are_smaller(tmp_path, monkeypatch):
    """Oracle: what each look was allowed, as it was called."""
    allowed, measure = [], look.measure

    def noted(model, inputs, settings, **rest):
        allowed.append(settings.budget)
        return measure(model, inputs, settings, **rest)

    monkeypatch.setattr(look, "measure", noted)
    trouble, watch = Trouble(_python_runs_out), _watch(memory_budget="1MiB", on_error="raise")
    with pytest.warns(UserWarning, match="within 1048576 bytes"):
        _ended(tmp_path, [Comes(trouble, 1, 5), watch], trouble)
    assert allowed == [2**20] * 8, "below a MiB nothing is saved"
    allowed.clear()
    trouble, watch = Trouble(_python_runs_out), _watch(memory_budget="64MiB", on_error="raise")
    with pytest.warns(UserWarning, match="ran out of memory"):
        _ended(tmp_path, [Comes(trouble, 2, 4, 6), watch], trouble)
    expected = [64] * 4 + [64, 16, 4] + [4] + [4, 1, 1]
    assert allowed == [budget * 2**20 for budget in expected]


@pytest.mark.parametrize("runs_out", [_torch_runs_out, _python_runs_out])
def test_where_memory_stays_short_there_is_a_gap_and_then_an_end(tmp_path, runs_out):
    trouble, watch = Trouble(runs_out), _watch()
    callbacks = [Comes(trouble, 99, 2, 4, 5, 6), watch]
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", callbacks, trouble))
    assert [o.step for o in watch.history] == [0, 1, 3]
    assert [(gap.step, gap.kind) for gap in watch.history.gaps] == [
        (step, "failed") for step in (2, 4, 5, 6)
    ]
    assert [words.split(":")[0].split("(")[0].strip() for words in said] == [
        "ntkwatch ran out of memory at step 2",
        "ntkwatch could not observe step 2",
        "ntkwatch could not observe step 4",
        "ntkwatch could not observe step 6",
    ]
    assert said[-1].endswith("This run is not watched any further.")
    assert all("smaller memory_budget=" in words for words in said)
    assert differing(watched, _ended(tmp_path / "alone", [])) == []


def test_memory_that_stays_short_is_raised_where_that_is_asked_for(tmp_path):
    trouble = Trouble(_torch_runs_out)
    with (
        pytest.warns(UserWarning, match="ran out of memory"),
        pytest.raises(RuntimeError, match="allocate memory"),
    ):
        _ended(tmp_path, [Comes(trouble, 3, 3), _watch(on_error="raise")], trouble)
    assert [o.step for o in read_history(tmp_path)] == [0, 1, 2]


# Disk. --------------------------------------------------------------------------------------------


class SwapsTheHistory(pl.Callback):
    """The history's file is a device that is always full, for some steps."""

    def __init__(self, folder, first, last):
        self.file, self.first, self.last = folder / "history.jsonl", first, last

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.first:
            self.file.rename(self.file.with_suffix(".kept"))
            self.file.symlink_to("/dev/full")
        elif trainer.global_step == self.last:
            self.file.unlink()
            self.file.with_suffix(".kept").rename(self.file)


def test_what_a_full_disk_swallowed_is_written_when_there_is_room_again(tmp_path):
    folder = tmp_path / "watched" / "ntk"
    watch = _watch()
    callbacks = [SwapsTheHistory(folder, 3, 4), watch]
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", callbacks))
    assert len(said) == 1
    assert "could not hand over what it saw at step 3: OSError: [Errno 28]" in said[0]
    assert "Make room on that disk" in said[0]
    assert [o.step for o in read_history(folder)] == list(range(7))
    assert read_history(folder).observations == watch.history.observations
    assert read_history(folder).problems == ()
    assert differing(watched, _ended(tmp_path / "alone", [])) == []


@pytest.mark.parametrize(
    ("code", "cure"),
    [(errno.ENOSPC, "Make room on that disk"), (errno.EROFS, "can be written to as dirpath=")],
)
@pytest.mark.parametrize("until", [3, 99])
def test_a_disk_that_takes_nothing_costs_one_warning(tmp_path, monkeypatch, code, cure, until):
    """From the reference on, and for good or only for a while."""

    class Closes(pl.Callback):
        def on_train_start(self, trainer, *_):
            def refuses(*args, **kwargs):
                raise OSError(code, "no")

            for name in ("append_record", "write_atomically"):
                monkeypatch.setattr(store, name, refuses)

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == until:
                monkeypatch.undo()

    watch, told = _watch(on_verdict=lambda verdict: told.append(verdict)), []
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", [Closes(), watch], max_epochs=3))
    monkeypatch.undo()
    assert len(said) == 1
    assert cure in said[0]
    assert said[0].endswith("Training and observing go on; this is said once.")
    assert [o.step for o in watch.history] == list(range(19))
    assert watch.history.gaps == []
    folder = tmp_path / "watched" / "ntk"
    if until == 99:
        assert list(folder.rglob("*.*")) == []
    else:
        again = read_history(folder)
        assert again.observations == watch.history.observations
        assert again.run.reference == "before the first update"
        assert (folder / "probe.safetensors").is_file()
        assert (folder / "reference.safetensors").is_file()
        assert (folder / "report.html").is_file()
    assert differing(watched, _ended(tmp_path / "alone", [], max_epochs=3)) == []


def test_each_of_several_troubles_is_said_once(tmp_path):
    """A logger that is down must not hide that the disk is full as well."""

    class Down(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            if "ntk/kernel_angle" in metrics:
                raise ConnectionError("no server")

    def complains(verdict):
        raise ValueError("I do not like it")

    (tmp_path / "taken").write_text("")
    watch = _watch(on_verdict=complains, dirpath=tmp_path / "taken" / "ntk")
    settings = {"logger": Down(tmp_path), "max_epochs": 3}
    _, said = _and_said(lambda: _ended(tmp_path / "watched", [watch], **settings))
    causes = [words.split(": ")[1] for words in said]
    assert sorted(causes) == ["ConnectionError", "NotADirectoryError", "ValueError"]
    assert "Look at the logger Down." in "".join(said)
    assert "Look at the function given as on_verdict=." in "".join(said)
    assert len(watch.history) == 19


# Data. --------------------------------------------------------------------------------------------


class Rows(Dataset):
    """A dataset that cannot be read from for a while."""

    def __init__(self) -> None:
        self.rows, self.broken = data(), False

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if self.broken:
            torch.rand(1), np.random.rand()
            raise OSError("the share is not mounted")
        return self.rows[index]


def _fit_with_validation(root, rows, callbacks):
    seed_all()
    model = module(pl, Net(Trouble()))
    model.val_dataloader = lambda: DataLoader(rows, batch_size=8)
    model.validation_step = lambda batch, batch_idx: None
    ended = trainer(pl, root, callbacks, limit_val_batches=1, num_sanity_val_steps=0)
    ended.fit(model, loader())
    return remains(model, ended)


class Unmounts(pl.Callback):
    def __init__(self, rows, *steps):
        self.rows, self.steps = rows, steps

    def on_train_start(self, trainer, *_):
        self.rows.broken = 0 in self.steps

    def on_train_batch_end(self, trainer, *_):
        self.rows.broken = trainer.global_step in self.steps


def test_a_dataset_that_no_probe_can_be_drawn_from_costs_one_warning(tmp_path):
    rows, watch = Rows(), _watch()
    callbacks = [Unmounts(rows, 0), watch]
    watched, said = _and_said(lambda: _fit_with_validation(tmp_path / "a", rows, callbacks))
    assert len(said) == 1
    assert "OSError: the share is not mounted" in said[0]
    assert said[0].endswith("This run is not watched any further.")
    assert differing(watched, _fit_with_validation(tmp_path / "b", Rows(), [])) == []


def test_a_dataset_that_fails_now_and_then_leaves_gaps_and_then_ends_it(tmp_path):
    rows, watch = Rows(), _watch(resample_probe=True)
    callbacks = [Unmounts(rows, 2, 4, 5), watch]
    watched, said = _and_said(lambda: _fit_with_validation(tmp_path / "a", rows, callbacks))
    assert [o.step for o in watch.history] == [0, 1, 3, 6]
    assert [gap.step for gap in watch.history.gaps] == [2, 4, 5]
    assert len(said) == 2, "once for each row of failures"
    assert 'NTKMonitor(on_error="raise") shows where' in said[0]
    assert differing(watched, _fit_with_validation(tmp_path / "b", Rows(), [])) == []


def test_a_dataset_that_fails_is_raised_where_that_is_asked_for(tmp_path):
    rows = Rows()
    with pytest.raises(OSError, match="not mounted"):
        _fit_with_validation(tmp_path, rows, [Unmounts(rows, 0), _watch(on_error="raise")])


# Weights that a look changes. ---------------------------------------------------------------------


def _writes_to_head(net):
    net.head.weight.data.numpy()[0] += 1


def _writes_to_base(net):
    net.base.weight.data.numpy()[0] += 1


def test_a_look_that_changes_weights_ends_the_watching_loudly(tmp_path, caplog):
    trouble, watch = Trouble(_writes_to_head), _watch()
    callbacks = [Comes(trouble, 1, 3, 4, 5), watch]
    with caplog.at_level(logging.ERROR, logger="ntkwatch"):
        _, said = _and_said(lambda: _ended(tmp_path, callbacks, trouble))
    assert len(said) == 1
    assert "changed 1 of the tensors that it is trained with (net.head.weight)" in said[0]
    assert "There is no copy of net.head.weight" in said[0]
    assert said[0].endswith("This run is not watched any further.")
    (record,) = [r for r in caplog.records if r.name == "ntkwatch" and r.levelname == "ERROR"]
    assert "observing step 3 changed the training" in record.getMessage()
    assert [o.step for o in watch.history] == [0, 1, 2]
    (gap,) = read_history(tmp_path).gaps
    assert (gap.step, "net.head.weight" in gap.reason) == (3, True)


def test_the_first_look_is_checked_as_well(tmp_path):
    trouble, watch = Trouble(_writes_to_base), _watch()
    trouble.looks = 1
    _, said = _and_said(lambda: _ended(tmp_path, [watch], trouble))
    assert len(said) == 1
    assert "could not observe step 0" in said[0]
    assert "start it again from a checkpoint" in said[0]
    assert len(watch.history) == 0


def test_a_change_that_a_copy_is_kept_of_is_undone(tmp_path):
    """Frozen weights are those that the reference kept."""
    trouble, watch = Trouble(_writes_to_base), _watch()
    callbacks = [Comes(trouble, 1, 3), watch]
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", callbacks, trouble))
    assert len(said) == 1
    assert "net.base.weight" in said[0]
    assert "so the training is as it would have been" in said[0]
    assert [o.step for o in watch.history] == [0, 1, 2]
    assert differing(watched, _ended(tmp_path / "alone", [])) == []


def test_changed_weights_are_raised_where_that_is_asked_for(tmp_path):
    trouble = Trouble(_writes_to_head)
    with pytest.raises(WeightsChangedError, match=r"net\.head\.weight"):
        _ended(tmp_path, [Comes(trouble, 1, 3), _watch(on_error="raise")], trouble)
