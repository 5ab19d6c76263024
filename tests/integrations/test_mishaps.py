"""What happens when the monitor fails; oracle: the training, which must end as if nothing had been.

Failures here are real ones: forwards that raise, disks that are full, loggers that are gone.
"""

import csv
import gc
import warnings
import weakref

import pytest
import torch
from integrations.trainings import differing, lightning, loader, module, remains, seed_all, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ntkwatch import KernelTracker, NTKMonitor, read_history
from ntkwatch.errors import InputError, NtkwatchError, OutputError

pl = lightning()


class Moody(nn.Module):
    """Works in training, and raises in evaluation while ``broken`` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.broken = False
        self.error = RuntimeError("not today")

    def forward(self, x):
        if self.broken and not self.training:
            raise self.error
        return self.head(x)


class Breaks(pl.Callback):
    """Breaks the network between two steps."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def on_train_batch_start(self, trainer, pl_module, *_):
        pl_module.net.broken = self.first <= trainer.global_step + 1 <= self.last


class Keeps(pl.Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        parts = [p.detach().flatten() for p in pl_module.net.parameters()]
        self.weights[trainer.global_step] = torch.cat(parts).clone()


def _ended(root, callbacks, *, error=None, **settings):
    seed_all()
    torch.manual_seed(0)
    model = module(pl, Moody())
    model.net.error = error or model.net.error
    ended = trainer(pl, root, callbacks, **{"max_epochs": 2, **settings})
    ended.fit(model, loader())
    return remains(model, ended)


def _and_said(run):
    """What a run returns, and what it was warned of by us."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        returned = run()
    return returned, [str(w.message) for w in caught if "ntkwatch" in str(w.message)]


def _monitor(**settings) -> NTKMonitor:
    return NTKMonitor(**{"every_n_train_steps": 1, **settings})


def test_a_failing_observation_costs_one_warning_and_leaves_a_gap(tmp_path):
    watch = _monitor()
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", [Breaks(3, 4), watch]))
    assert len(said) == 1
    assert said[0].startswith("ntkwatch could not observe step 3: ")
    assert "not today" in said[0]
    assert said[0].endswith("Training goes on.")
    assert [o.step for o in watch.history] == [0, 1, 2, *range(5, 13)]
    assert [gap.step for gap in watch.history.gaps] == [3, 4]
    assert [gap.step for gap in read_history(tmp_path / "watched").gaps] == [3, 4]
    assert differing(watched, _ended(tmp_path / "alone", [Breaks(3, 4)])) == []


def test_after_three_failures_in_a_row_it_stands_down(tmp_path):
    watch = _monitor()
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", [Breaks(3, 99), watch]))
    assert len(said) == 2
    assert said[1].endswith("This run is not watched any further.")
    assert [o.step for o in watch.history] == [0, 1, 2]
    assert [gap.step for gap in watch.history.gaps] == [3, 4, 5]
    assert watch.verdict.label == "undetermined (last observation failed)"
    assert (tmp_path / "watched" / "ntk" / "report.html").is_file()
    assert differing(watched, _ended(tmp_path / "alone", [])) == []


def test_failures_that_are_not_in_a_row_do_not_add_up(tmp_path):
    class OnAndOff(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.net.broken = trainer.global_step % 2 == 1

    watch = _monitor()
    with pytest.warns(UserWarning, match="could not observe"):
        _ended(tmp_path, [OnAndOff(), watch])
    assert [o.step for o in watch.history] == [0, 1, 3, 5, 7, 9, 11]
    assert [gap.step for gap in watch.history.gaps] == [2, 4, 6, 8, 10, 12]


def test_a_failing_last_observation_still_leaves_verdict_and_report(tmp_path):
    watch = _monitor(every_n_train_steps=5)
    with pytest.warns(UserWarning, match="could not observe step 12"):
        _ended(tmp_path, [Breaks(11, 99), watch])
    assert watch.verdict.label == "undetermined (last observation failed)"
    assert (tmp_path / "ntk" / "verdict.json").is_file()


def test_a_reference_that_fails_holds_on_to_nothing(tmp_path):
    """An error knows all that was computed until it was raised, which may fill the memory."""
    alive = []

    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            if self.training:
                return self.head(x)
            computed = self.head(x) * 2
            alive.append(weakref.ref(computed))
            raise MemoryError("not today")

    class Counts(pl.Callback):
        left = ()

        def on_train_batch_end(self, *_):
            gc.collect()
            self.left = (*self.left, sum(one() is not None for one in alive))

    counts = Counts()
    with pytest.warns(UserWarning, match="not today"):
        trainer(pl, tmp_path, [_monitor(), counts], max_epochs=2).fit(module(pl, Fails()), loader())
    assert len(alive) > 3
    assert set(counts.left) == {0}


@pytest.mark.parametrize("error", [RuntimeError("not today"), MemoryError("not today")])
def test_a_reference_that_fails_once_is_taken_at_the_next_step(tmp_path, error):
    watch, kept = _monitor(), Keeps()
    callbacks = [Breaks(0, 1), watch]
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", callbacks, error=error))
    (words,) = [words for words in said if "could not observe" in words]
    assert words.startswith("ntkwatch could not observe step 0: ")
    assert "not today" in words
    assert words.endswith(
        "The reference is step 1: drift is counted from there, without a verdict."
    )
    for history in (watch.history, read_history(tmp_path / "watched")):
        assert [o.step for o in history] == list(range(1, 13))
        assert [gap.step for gap in history.gaps] == [0]
        assert history.run.reference == "step 1, since step 0 could not be observed"
        assert not history.run.reference_is_start
    alone = _ended(tmp_path / "alone", [kept])
    assert watch.history[0].loss == pytest.approx(alone["curve"][1])
    moved = float((kept.weights[4] - kept.weights[1]).norm())
    assert watch.history[3].displacement == pytest.approx(moved, rel=1e-5)
    assert watch.verdict.label == "undetermined (reference is not the start)"
    assert differing(watched, alone) == []


def test_a_reference_that_fails_three_times_is_given_up_with_one_warning(tmp_path):
    watch = _monitor()
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", [Breaks(0, 99), watch]))
    (words,) = said
    assert words.startswith("ntkwatch could not observe step 9: ")
    assert words.endswith("This run is not watched any further.")
    assert watch._run.stood_down
    assert len(watch.history) == 0
    assert not (tmp_path / "watched" / "ntk").exists()
    assert differing(watched, _ended(tmp_path / "alone", [])) == []


def test_a_reference_is_tried_a_third_time_a_little_later(tmp_path):
    watch = _monitor()
    with pytest.warns(UserWarning, match=r"could not observe step 0.*The reference is step 9"):
        _ended(tmp_path, [Breaks(0, 9), watch])
    assert [gap.step for gap in watch.history.gaps] == [0, 1]
    assert [o.step for o in watch.history] == [9, 10, 11, 12]


def test_a_training_that_ends_before_the_reference_says_so(tmp_path):
    watch = _monitor()
    _, said = _and_said(lambda: _ended(tmp_path, [Breaks(0, 99), watch], max_epochs=1))
    (words,) = said
    assert words.endswith("Training ended before the reference could be tried again.")


def test_what_is_refused_is_refused_at_once(tmp_path, monkeypatch):
    """No later step would be better: samples of integers have no derivative, say."""
    tried = []

    def refuses(self, model, step, **rest):
        tried.append(step)
        raise OutputError("no derivative.")

    monkeypatch.setattr(KernelTracker, "observe", refuses)
    _, said = _and_said(lambda: _ended(tmp_path, [_monitor()]))
    assert said == [
        "ntkwatch could not observe step 0: no derivative. This run is not watched any further."
    ]
    assert tried == [0]


def test_a_gathered_probe_whose_reference_fails_serves_at_the_next_step(tmp_path):
    """Its rows came in three steps; the weights from before are gone with the failure."""

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(loader())

    watch = _monitor(probe_size=20)
    model, batches = module(pl, Moody()), DataLoader(Stream(), batch_size=None)
    with pytest.warns(UserWarning, match=r"could not observe step 2.*The reference is step 3"):
        trainer(pl, tmp_path, [Breaks(0, 3), watch]).fit(model, batches)
    assert [gap.step for gap in watch.history.gaps] == [2]
    assert [o.step for o in watch.history] == [3, 4, 5, 6]


def test_failures_are_raised_where_that_is_asked_for(tmp_path):
    with pytest.raises(NtkwatchError, match="not today"):
        _ended(tmp_path, [Breaks(3, 3), _monitor(on_error="raise")])
    assert [o.step for o in read_history(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("where", ["probe", "reference"])
def test_a_run_that_cannot_be_begun_costs_one_warning(tmp_path, where):
    """A forward that cannot be guessed, and a probe that is not there."""
    settings = {"reference": {"probe": torch.rand(40, 7)}, "probe": {"probe": "gone.safetensors"}}
    watch = _monitor(**settings[where])
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", [watch]))
    assert len(said) == 1
    assert said[0].endswith("This run is not watched any further.")
    assert len(watch.history) == 0
    assert watch.verdict is None
    assert not (tmp_path / "watched" / "ntk").exists()
    assert differing(watched, _ended(tmp_path / "alone", [])) == []


class Fails(pl.loggers.logger.Logger):
    """A logger that breaks at its second row of ours."""

    name, version = "fails", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    @property
    def experiment(self):
        return None

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows += "ntk/kernel_angle" in metrics
        if self.rows == 2 and "ntk/kernel_angle" in metrics:
            raise ConnectionError("no server")


def test_a_logger_that_fails_costs_neither_the_observation_nor_the_other_loggers(tmp_path):
    watch = _monitor()
    loggers = [Fails(), pl.loggers.CSVLogger(tmp_path)]
    _, said = _and_said(lambda: _ended(tmp_path, [watch], logger=loggers, max_epochs=1))
    assert len(said) == 1
    assert "what it saw at step 1: ConnectionError: no server." in said[0]
    assert [o.step for o in watch.history] == list(range(7))
    assert watch.history.gaps == []
    (table,) = tmp_path.glob("**/metrics.csv")
    with table.open(newline="") as file:
        assert sum(bool(row["ntk/kernel_angle"]) for row in csv.DictReader(file)) == 7
    assert loggers[0].rows == 7
    assert len(read_history(next(tmp_path.glob("**/ntk")))) == 7


def test_a_folder_that_cannot_be_written_to_costs_one_warning(tmp_path):
    """A file stands where the folder should be: every write fails, and nothing else."""
    (tmp_path / "taken").write_text("")
    watch = _monitor(dirpath=tmp_path / "taken" / "ntk")
    watched, said = _and_said(lambda: _ended(tmp_path / "watched", [watch]))
    assert len(said) == 1
    assert "could not hand over" in said[0]
    assert len(watch.history) == 13
    assert watch.verdict.strength in ("static", "lazy", "undetermined")
    assert differing(watched, _ended(tmp_path / "alone", [])) == []


def test_a_users_own_function_may_fail_without_losing_the_observation(tmp_path):
    def fails(verdict):
        raise ValueError(f"I do not like {verdict.strength}")

    watch = _monitor(on_verdict=fails, probe_size=40)
    _, said = _and_said(lambda: _ended(tmp_path, [watch]))
    assert len(said) == 1
    assert "ValueError: I do not like static" in said[0]
    assert len(watch.history) == 13
    assert watch.history.gaps == []


def test_a_users_function_is_called_when_the_strength_changes(tmp_path):
    told = []
    watch = _monitor(on_verdict=told.append, probe_size=40)
    _ended(tmp_path, [watch])
    strengths = [verdict.strength for verdict in told]
    assert strengths == ["static"], "a linear model is static as soon as the loss has fallen"
    assert told[0].step < watch.verdict.step


def test_a_strategy_that_shards_parameters_is_refused_politely(tmp_path):
    """Its class is known by name, since every strategy exists once in each namespace."""

    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        pass

    watch = _monitor()
    trainer(pl, tmp_path, [watch]).fit(module(pl), loader())
    assert len(watch.history) == 7
    run = trainer(pl, tmp_path, [watch], strategy=FSDPStrategy("cpu"))
    with pytest.warns(UserWarning, match="FSDPStrategy keeps .*: ntkwatch report CKPTS"):
        run.fit(module(pl), loader())
    assert len(watch.history) == 0
    strict = trainer(pl, tmp_path, [_monitor(on_error="raise")], strategy=FSDPStrategy("cpu"))
    with pytest.raises(InputError, match="keeps parameters in parts"):
        strict.fit(module(pl), loader())


def test_deepspeeds_third_stage_is_refused_and_its_second_is_not():
    from types import SimpleNamespace

    from ntkwatch.integrations.trainer_facts import refused_strategy

    class DeepSpeedStrategy:
        def __init__(self, stage):
            self.zero_stage_3 = stage == 3

    third = SimpleNamespace(strategy=DeepSpeedStrategy(3))
    assert refused_strategy(third) == "DeepSpeedStrategy"
    assert refused_strategy(SimpleNamespace(strategy=DeepSpeedStrategy(2))) is None
