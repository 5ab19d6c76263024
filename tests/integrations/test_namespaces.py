"""Both Lightnings take the monitor however they are given it; oracle: the trainings themselves."""

import pickle
import sys

import numpy as np
import pytest
import torch
import yaml
from integrations.trainings import NAMESPACES, data, lightning, loader, module, trainer
from torch.utils.data import DataLoader

from ntkwatch import NTKMonitor, ProbeBatch
from ntkwatch.errors import InputError

both = pytest.mark.parametrize("namespace", NAMESPACES)
# Lightning 2.6 calls its command line library in a way that the library has since renamed.
lightnings_own_affair = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)


def _watched(pl, root, callbacks):
    run = trainer(pl, root, callbacks)
    run.fit(module(pl), loader())
    return run


@both
@pytest.mark.parametrize("given", ["list", "bare", "beside another"])
def test_the_monitor_is_taken_in_every_form(tmp_path, namespace, given):
    pl = lightning(namespace)
    watch = NTKMonitor(every_n_train_steps=3, on_error="raise")
    other = pl.callbacks.Timer()
    _watched(
        pl, tmp_path, {"list": [watch], "bare": watch, "beside another": [other, watch]}[given]
    )
    assert [o.step for o in watch.history] == [0, 3, 6]
    assert watch.verdict is not None


@both
def test_two_monitors_of_two_names_watch_side_by_side(tmp_path, namespace):
    pl = lightning(namespace)
    whole = NTKMonitor(every_n_train_steps=3, on_error="raise")
    head = NTKMonitor(every_n_train_steps=2, params="net.2.*", name="head", on_error="raise")
    run = _watched(pl, tmp_path, [whole, head])
    assert [o.step for o in head.history] == [0, 2, 4, 6]
    assert list(head.history[-1].layer_angle) == ["net.2"]
    assert len(whole.history[-1].layer_angle) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"ntk", "head"}
    assert {"ntk/kernel_angle", "head/kernel_angle"} <= set(run.callback_metrics)


@both
def test_two_monitors_of_one_name_are_refused_by_lightning(tmp_path, namespace):
    with pytest.raises(RuntimeError, match="state_key"):
        trainer(lightning(namespace), tmp_path, [NTKMonitor(), NTKMonitor()])


def test_a_monitor_can_be_sent_to_another_process():
    watch = pickle.loads(pickle.dumps(NTKMonitor(every_n_train_steps=7, outputs="random:4")))
    assert watch.every_n_train_steps == 7
    assert len(watch.history) == 0


YAML = {
    "class_path": "ntkwatch.NTKMonitor",
    "init_args": {
        "every_n_train_steps": 3,
        "probe": "watched_by_yaml:make_probe",
        "forward": "watched_by_yaml.call",
        "outputs": "random:2",
        "params": ["net.0.*", "net.2.*"],
        "batchnorm": "running",
        "memory_budget": "64MiB",
        "on_error": "raise",
    },
}
MODULE = """
import torch
from ntkwatch import ProbeBatch
def make_probe():
    return ProbeBatch(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))
def call(model, inputs):
    return 2 * model.net(inputs)
"""


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder with the module that a configuration names, and nothing on the command line."""
    (tmp_path / "watched_by_yaml.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train"])
    yield tmp_path
    sys.modules.pop("watched_by_yaml", None)


def _quiet() -> dict:
    return {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "max_epochs": 1,
        "log_every_n_steps": 1,
    }


def _configured(namespace, args):
    """Train as LightningCLI would from these arguments, and return the monitor that it built."""
    pl = lightning(namespace)
    made = module(pl)

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(data(), batch_size=8)

    cli = lightning(f"{namespace}.cli").LightningCLI(
        type(made), Data, run=False, args=args, save_config_callback=None, seed_everything_default=0
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    (watch,) = [c for c in cli.trainer.callbacks if isinstance(c, NTKMonitor)]
    return watch


@lightnings_own_affair
@both
def test_a_configuration_file_builds_the_monitor(in_folder, namespace):
    config = in_folder / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {**_quiet(), "callbacks": [YAML]}}))
    watch = _configured(namespace, ["--config", str(config)])
    assert [o.step for o in watch.history] == [0, 3, 6]
    spec = watch.history.run.spec
    assert spec["outputs"] == "random:2"
    assert sorted(spec["params"]) == sorted(
        ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    )
    assert watch.history[0].probe_size == 9


@lightnings_own_affair
@both
def test_flags_build_the_monitor(in_folder, namespace):
    flags = [f"--trainer.{key}={str(value).lower()}" for key, value in _quiet().items()]
    flags += [
        "--trainer.callbacks+=ntkwatch.NTKMonitor",
        "--trainer.callbacks.every_n_train_steps=2",
        "--trainer.callbacks.name=flagged",
        "--trainer.callbacks.probe=train",
    ]
    watch = _configured(namespace, flags)
    assert [o.step for o in watch.history] == [0, 2, 4, 6]
    assert (in_folder / "flagged" / "history.jsonl").is_file()


@pytest.mark.parametrize("path", ["watched_by_yaml.call", "watched_by_yaml:call"])
def test_functions_may_be_named_by_their_path(tmp_path, in_folder, path):
    """The named forward doubles the outputs, which makes four times the kernel."""
    pl = lightning()
    named, plain = (
        NTKMonitor(forward=forward, every_n_train_steps=9, on_error="raise")
        for forward in (path, None)
    )
    for watch in (named, plain):
        _watched(pl, tmp_path, [watch])
    assert named.history[0].trace == pytest.approx(4 * plain.history[0].trace)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"every_n_train_steps": 0}, "every_n_train_steps=0 is out of range"),
        ({"probe_size": 1}, "probe_size=1 is out of range"),
        ({"max_overhead": 0}, "max_overhead=0 is out of range"),
        ({"max_overhead": 1.5}, "above 0 and at most 1"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"probe": "validation"}, "probe='validation' is not known"),
        ({"forward": "no_such_module.call"}, "'no_such_module.call' cannot be imported"),
        ({"outputs": "ntkwatch.errors:nothing"}, "cannot be imported"),
        ({"on_verdict": "ntkwatch:nothing"}, "cannot be imported"),
        ({"on_verdict": "print it"}, "on_verdict='print it' cannot be called"),
        ({"every_n_train_steps": 1.5}, "every_n_train_steps=1.5 is no whole number"),
        ({"every_n_train_steps": True}, "is no whole number"),
        ({"probe_size": "a"}, "probe_size='a' is no whole number"),
        ({"max_overhead": "2%"}, "max_overhead='2%' is no number"),
        ({"name": ""}, "name='' names no folder"),
        ({"metrics": "all"}, "metrics='all'"),
        ({"outputs": "random:0"}, "outputs='random:0' is not known"),
        ({"batchnorm": "eval"}, "batchnorm='eval'"),
        ({"engine": "fast"}, "engine='fast'"),
        ({"memory_budget": "lots"}, "memory_budget='lots'"),
        ({"memory_budget": -1}, "memory_budget=-1"),
        ({"top_k": 0}, "top_k=0 asks for no eigenvalue"),
        ({"top_k": 2.5}, "top_k=2.5 asks"),
        ({"top_k": "8"}, "top_k='8' asks"),
        ({"params": 3}, "params=3 names no parameters"),
        ({"forward": 3}, "forward=3 cannot be called"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(setting, said):
    with pytest.raises(InputError, match=said):
        NTKMonitor(**setting)


def test_numbers_may_be_of_any_type():
    watch = NTKMonitor(
        every_n_train_steps=10.0,
        probe_size=torch.tensor(32),
        max_overhead=torch.tensor(0.5),
        top_k=np.int64(4),
    )
    assert (watch.every_n_train_steps, watch.probe_size) == (10, 32)
    assert type(watch.every_n_train_steps) is type(watch.probe_size) is int


@pytest.mark.parametrize(
    "kind", ["batch", "probe", "file", "path to a probe", "path to a function"]
)
def test_a_probe_may_be_given_in_every_form(tmp_path, in_folder, kind):
    from ntkwatch.watch.store import RunFiles

    x, y = data(20)[:]
    probe = ProbeBatch(x, y)
    RunFiles(tmp_path / "kept").write_probe(probe)
    (tmp_path / "watched_by_yaml.py").write_text(MODULE + "PROBE = make_probe()\n")
    given, size = {
        "batch": ([x, y], 20),
        "probe": (probe, 20),
        "file": (str(tmp_path / "kept" / "probe.safetensors"), 20),
        "path to a probe": ("watched_by_yaml.PROBE", 9),
        "path to a function": ("watched_by_yaml:make_probe", 9),
    }[kind]
    pl = lightning()
    watch = NTKMonitor(probe=given, every_n_train_steps=3, on_error="raise")
    _watched(pl, tmp_path, [watch])
    assert watch.history[0].probe_size == size
    assert torch.is_tensor(x)
