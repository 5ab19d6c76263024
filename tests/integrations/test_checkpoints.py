"""Checkpoints of a training that nobody watched.

The oracle is a tracker that was shown the live weights of the same training.
"""

import json
import os
import shutil
from collections import OrderedDict

import pytest
import pytorch_lightning as pl
import torch
from integrations.plain_training import Data, Live, Net, inner, train
from safetensors.torch import save_file
from torch.nn import functional
from versions import needs

from ntkwatch import KernelTracker, NTKMonitor, ProbeBatch, judge, read_history
from ntkwatch.__main__ import main
from ntkwatch.errors import CheckpointError
from ntkwatch.integrations.checkpoints import watching as under_test
from ntkwatch.integrations.checkpoints.files import read_checkpoint
from ntkwatch.integrations.checkpoints.places import find_checkpoints
from ntkwatch.integrations.checkpoints.series import in_order
from ntkwatch.integrations.checkpoints.watching import CheckpointReading, watch_checkpoints
from ntkwatch.integrations.checkpoints.weights import load_weights
from ntkwatch.watch.record.plain import to_plain
from ntkwatch.watch.record.records import TIMINGS

MODEL = ["--model", "integrations.plain_training:Net"]
DATA = ["--data", "integrations.plain_training:Data", "--probe-size", "32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of checkpoints, and the live weights by step."""
    live, folder = Live(), tmp_path_factory.mktemp("plain") / "ckpts"
    train(folder, live)
    return folder, live.states


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "ckpts")


def _probe(n=32):
    data = Data()
    data.setup("fit")
    return ProbeBatch(*data.rows[:n])


def _watch(folder, probe=None, model=None, **reading):
    series = in_order(find_checkpoints([folder]))
    history, files = watch_checkpoints(
        model or Net(width=12),
        probe or _probe(),
        series,
        folder / "ntk",
        reading=CheckpointReading(about={}, **reading),
        tracker_settings={},
    )
    return history, files


def _numbers(history):
    live = dict.fromkeys((*TIMINGS, "at_end"))
    return [{**to_plain(observation), **live} for observation in history]


def test_checkpoints_give_the_numbers_that_the_live_training_would_have_given(trained, folder):
    _, live = trained
    history, _ = _watch(folder)
    assert [o.step for o in history] == [0, 9, 18, 27, 36]
    tracker, model = KernelTracker(_probe()), Net(width=12)
    model.load_state_dict(torch.load(folder / "step=0.pt"))
    tracker.observe(model, 0)
    for step in (9, 18, 27, 36):
        model.load_state_dict(live[step])
        tracker.observe(model, step, epoch=history[step // 9].epoch)
    assert _numbers(history) == _numbers(tracker.history)


def test_checkpoints_without_a_model_are_not_measured_and_the_run_beside_them_is_named(
    tmp_path, capsys
):
    run = tmp_path / "version_0"
    train(run / "checkpoints", epochs=3)
    assert main(["report", str(run / "checkpoints")]) == 1
    said = capsys.readouterr().err
    assert f"ntkwatch report {run / 'checkpoints'} --model pkg.mod:Class" in said
    assert "recorded beside" not in said
    (run / "ntk").mkdir()
    (run / "ntk" / "history.jsonl").touch()
    for place in (run / "checkpoints", next((run / "checkpoints").iterdir())):
        assert main(["report", str(place)]) == 1
        assert f"(what was recorded beside: ntkwatch report {run})" in capsys.readouterr().err


def test_every_form_of_report_is_written_for_a_plain_lightning_training(folder, capsys):
    assert main(["report", str(folder), *MODEL, *DATA, "--json"]) == 0
    output = capsys.readouterr()
    page = json.loads(output.out)
    assert [o["step"] for o in page["observations"]] == [0, 9, 18, 27, 36]
    assert page["run"]["reference_is_start"] is True
    assert page["run"]["reference"] == "the earliest checkpoint, step=0.pt (step 0)"
    assert "last.ckpt: another checkpoint of step 36 is used" in output.err
    for form, mark in (("text", "Verdict: "), ("markdown", "# ntkwatch"), ("html", "<!doctype")):
        assert main(["report", str(folder), "--format", form]) == 0  # as of any watched run
        assert mark in capsys.readouterr().out
    assert json.loads((folder / "ntk" / "verdict.json").read_text()) == json.loads(
        json.dumps({k: v for k, v in page["verdict"].items() if k != "label"})
    )


def test_a_second_report_measures_only_what_is_new_and_says_the_same(folder, monkeypatch):
    newest = folder / "epoch=5-step=36.ckpt"
    aside = folder.parent / newest.name
    shutil.move(newest, aside)
    (folder / "last.ckpt").unlink()
    assert len(_watch(folder)[0]) == 4
    shutil.move(aside, newest)
    measured = []
    observe = KernelTracker.observe

    def noted(self, model, step, **rest):
        measured.append(step)
        return observe(self, model, step, **rest)

    monkeypatch.setattr(KernelTracker, "observe", noted)
    again, files = _watch(folder)
    assert measured == [36]
    shutil.rmtree(files.folder)
    fresh, _ = _watch(folder)
    assert measured == [36, 0, 9, 18, 27, 36]
    assert _numbers(again) == _numbers(fresh)


def test_other_settings_or_another_first_file_start_anew(folder):
    _watch(folder)
    other, files = _watch(folder, _probe(40))
    assert [o.probe_size for o in other] == [40] * 5
    (folder / "step=0.pt").unlink()
    later, files = _watch(folder, _probe(40))
    assert [o.step for o in later] == [9, 18, 27, 36]
    assert files.folder == folder / "ntk"  # numbers that can be had again are not kept apart
    assert [o.step for o in read_history(files.history)] == [9, 18, 27, 36]
    assert judge(later).qualifier == "reference is not the start"
    assert judge(_watch(folder, _probe(40), first_is_start=True)[0]).qualifier != (
        "reference is not the start"
    )


def test_a_watched_run_in_that_place_is_not_touched(folder):
    (folder / "ntk").mkdir()
    (folder / "ntk" / "history.jsonl").write_text("precious\n")
    _, files = _watch(folder)
    assert files.folder == folder / "ntk-2"
    assert (folder / "ntk" / "history.jsonl").read_text() == "precious\n"


def test_an_interrupted_report_leaves_valid_files_and_goes_on(folder, monkeypatch):
    read, count = under_test.read_checkpoint, []

    def interrupted(path, **rest):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        return read(path, **rest)

    monkeypatch.setattr(under_test, "read_checkpoint", interrupted)
    assert main(["report", str(folder), *MODEL, *DATA]) == 130
    assert [o.step for o in read_history(folder / "ntk")] == [0, 9]
    count[:] = ["never again"] * 9
    assert main(["report", str(folder), *MODEL, *DATA]) == 0
    assert [o.step for o in read_history(folder / "ntk")] == [0, 9, 18, 27, 36]
    assert len(count) == 9 + 3  # the first two were kept


def test_a_broken_checkpoint_among_good_ones_is_a_gap(folder, capsys):
    path = folder / "epoch=2-step=18.ckpt"
    path.write_bytes(path.read_bytes()[:3000])
    assert main(["report", str(folder), *MODEL, *DATA]) == 0
    output = capsys.readouterr()
    assert f"Left out: {path} cannot be read as a checkpoint" in output.err
    assert "Steps without an observation (1)" in output.out
    history = read_history(folder)
    assert [o.step for o in history] == [0, 9, 27, 36]
    assert [gap.step for gap in history.gaps] == [18]


def test_a_diverged_checkpoint_is_a_gap(folder):
    last = folder / "epoch=5-step=36.ckpt"
    content = torch.load(last)
    content["state_dict"]["net.0.weight"].fill_(float("nan"))
    torch.save(content, last)
    (folder / "last.ckpt").unlink()
    history, _ = _watch(folder)
    assert [gap.step for gap in history.gaps] == [36]
    assert judge(history).qualifier == "diverged"


def test_a_callback_s_reference_and_probe_are_used_where_it_ran(tmp_path):
    folder = tmp_path / "ckpts"
    monitor = NTKMonitor(every_n_train_steps=9, dirpath=tmp_path / "ntk", probe="train")
    train(folder, monitor)
    (folder / "step=0.pt").unlink()  # as nobody keeps one
    probe = tmp_path / "ntk" / "probe.safetensors"
    assert main(["report", str(folder), *MODEL, "--probe", str(probe)]) == 0
    history = read_history(folder)
    assert [o.step for o in history] == [0, 9, 18, 27, 36]
    live = {o.step: o for o in monitor.history}
    for seen in history:
        assert seen.relative_kernel_change == live[seen.step].relative_kernel_change
        assert seen.linearization_error == live[seen.step].linearization_error
    assert history.run.reference_is_start


# Other forms. -------------------------------------------------------------------------------------


def test_state_dicts_safetensors_and_wrapped_names_are_read_alike(trained, tmp_path):
    """A bare network, one behind DDP or torch.compile, a LightningModule: one training."""
    _, live = trained
    bare = [{k.removeprefix("net."): v for k, v in live[s].items()} for s in (9, 18, 27, 36)]
    torch.save(bare[0], tmp_path / "step-9.pth")
    torch.save(
        {"model": {f"module.{k}": v for k, v in bare[1].items()}, "step": 18}, tmp_path / "b.pt"
    )
    save_file(
        {f"_orig_mod.{k}": v for k, v in bare[2].items()},
        tmp_path / "c.safetensors",
        {"step": "27"},
    )
    torch.save({"state_dict": live[36], "global_step": 36, "epoch": 6}, tmp_path / "d.ckpt")
    history, _ = _watch(tmp_path, model=inner())
    assert [o.step for o in history] == [9, 18, 27, 36]
    tracker, model = KernelTracker(_probe()), inner()
    for step, state in zip((9, 18, 27, 36), bare, strict=True):
        model.load_state_dict(state)
        seen = tracker.observe(model, step)
        assert history[step // 9 - 1].relative_kernel_change == seen.relative_kernel_change


def test_a_bare_network_s_weights_fit_the_module_that_wraps_it(trained, tmp_path):
    bare = {k.removeprefix("net."): v for k, v in trained[1][9].items()}
    torch.save(bare, tmp_path / "step-9.pt")
    assert len(_watch(tmp_path)[0]) == 1


def test_a_loss_is_taken_on_the_probe_where_asked(folder):
    history, _ = _watch(folder, loss=functional.cross_entropy)
    model = Net(width=12)
    model.load_state_dict(torch.load(folder / "epoch=5-step=36.ckpt")["state_dict"])
    probe = _probe()
    with torch.no_grad():
        expected = functional.cross_entropy(model(probe.inputs), probe.targets)
    assert history[-1].loss == float(expected)
    assert history[-1].loss_start == history[0].loss > history[-1].loss
    assert history.run.reference.endswith("losses are those on the probe")


@pytest.mark.parametrize(
    ("names", "clock", "steps"),
    [
        (["epoch-2.pt", "epoch-10.pt"], "epoch", [2, 10]),
        (["b.pt", "a.pt"], "time", [0, 1]),
        (["x-step5.pt", "noname.pt"], "time", [0, 1]),
    ],
)
def test_files_without_a_step_are_ordered_by_epoch_and_else_by_time(tmp_path, names, clock, steps):
    for place, name in enumerate(names):
        torch.save(Net(width=12).state_dict(), tmp_path / name)
        os.utime(tmp_path / name, (place, place))
    series = in_order(find_checkpoints([tmp_path]))
    assert (series.clock, [e.step for e in series.entries]) == (clock, steps)
    assert [e.path.name for e in series.entries] == names
    history, _ = _watch(tmp_path)
    assert history.run.reference_is_start is False  # step 0 of such a clock is no known start
    assert history[-1].since_warmup is None


# Refusals. ----------------------------------------------------------------------------------------


def test_weights_of_another_model_are_refused_by_name_and_by_shape(folder):
    with pytest.raises(CheckpointError, match=r"net\.0\.weight of shape \(12, 6\) .* \(16, 6\)"):
        _watch(folder, model=Net())
    with pytest.raises(CheckpointError, match=r"weight of shape \(12, 6\) and Linear .*\(3, 6\)"):
        _watch(folder, model=torch.nn.Linear(6, 3))
    with pytest.raises(CheckpointError, match=r"nothing for 2 of .* \(a.weight, .* names like net"):
        _watch(folder, model=torch.nn.Sequential(OrderedDict(a=torch.nn.Linear(6, 3))))
    more = torch.load(folder / "step=0.pt") | {"net.9.weight": torch.zeros(1)}
    torch.save(more, folder / "step=0.pt")
    with pytest.raises(CheckpointError, match=r"1 that the model does not know \(net.9.weight\)"):
        _watch(folder)


def test_two_networks_in_one_file_need_a_prefix(trained, tmp_path):
    bare = {k.removeprefix("net."): v for k, v in trained[1][9].items()}
    both = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in bare.items()}
    torch.save(both, tmp_path / "step=9.pt")
    with pytest.raises(CheckpointError, match=r"2 places \(student, teacher\).*--strip-prefix"):
        _watch(tmp_path, model=inner())
    assert len(_watch(tmp_path, model=inner(), prefix="teacher.")[0]) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --data"),
        ([*DATA, "--probe", "x.safetensors"], "not both"),
    ],
)
def test_checkpoints_without_data_are_wrong_usage(folder, capsys, arguments, says):
    assert main(["report", str(folder), *MODEL, *arguments]) == 2
    assert says in capsys.readouterr().err


def test_options_about_checkpoints_need_a_model(folder, capsys):
    assert main(["report", str(folder), "--device", "cpu"]) == 2
    assert "--device is about checkpoints, which need --model too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--model", "no.such:Net", *DATA],
            "'no.such:Net' cannot be imported (ModuleNotFoundError",
        ),
        (["--model", "json:loads", *DATA], "fails (TypeError: "),
        (
            ["--model", "json:JSONDecoder", *DATA],
            "gives a JSONDecoder, which is no torch.nn.Module",
        ),
        ([*MODEL, "--set", "width"], "names no argument and its value"),
        ([*MODEL, "--set", "width=9", *DATA], "has net.0.weight of shape (12, 6)"),
        ([*MODEL, "--data", "json:JSONDecoder"], "in which no data was found"),
        ([*MODEL, *DATA, "--device", "nowhere"], "cannot be put on --device nowhere"),
        ([*MODEL, *DATA, "--loss", "json:loads"], "the loss cannot be computed on the probe"),
    ],
)
def test_what_cannot_be_used_is_an_error_in_one_line(folder, capsys, arguments, says):
    if "--data" not in arguments:
        arguments = [*arguments, *DATA]
    code = main(["report", str(folder), *arguments])
    message = capsys.readouterr().err
    assert code == 1
    assert "Traceback" not in message
    assert says in message


@needs("pytorch_lightning", "2.6")
def test_lightning_s_averaged_weights_are_told_from_the_raw_ones(tmp_path):
    live = Live()
    train(tmp_path / "ckpts", pl.callbacks.EMAWeightAveraging(decay=0.5), live, epochs=3)
    path = tmp_path / "ckpts" / "epoch=1-step=9.ckpt"
    raw, averaged = (read_checkpoint(path, weights=which).tensors for which in ("raw", "averaged"))
    assert all(torch.equal(raw[name], tensor) for name, tensor in live.states[9].items())
    assert not torch.equal(raw["net.0.weight"], averaged["net.0.weight"])
    load_weights(Net(width=12), averaged, path)
