"""Runs of LightningCLI: model and data found in their config.yaml; hostile ones make nothing.

Oracle: the real LightningCLI, which writes the folder, and the same report with flags.
"""

import warnings

import pytest
import yaml
from integrations.plain_training import Data, Net
from pytorch_lightning.cli import LightningCLI

from ntkwatch import read_history
from ntkwatch.__main__ import main
from ntkwatch.errors import InputError
from ntkwatch.integrations.cli_run import built_arguments, find_cli_run
from ntkwatch.watch.record.plain import to_plain
from ntkwatch.watch.record.records import TIMINGS

SIZE = ["--probe-size", "32"]


def _train(folder, *classes):
    keep = {
        "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 6, "save_top_k": -1},
    }
    trainer = {
        "accelerator": "cpu",
        "callbacks": [keep],
        "default_root_dir": str(folder),
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 2,
        "max_epochs": 2,
    }
    model, data = {"width": 8}, {}
    if not classes:
        model = {"class_path": "integrations.plain_training.Net", "init_args": model}
        data = {"class_path": "integrations.plain_training.Data"}
    path, parts = folder / "start.yaml", {"trainer": trainer, "model": model, "data": data}
    path.write_text(yaml.safe_dump({"seed_everything": 1, **parts}))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jsonargparse, about how Lightning calls it
        patch.setattr("sys.argv", ["train.py"])  # Lightning warns of arguments beside its own
        LightningCLI(*classes, args=["fit", f"--config={path}"])
    return folder / "lightning_logs" / "version_0"


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A run whose configuration names both classes."""
    return _train(tmp_path_factory.mktemp("named"))


def test_a_run_folder_needs_no_flag_and_says_what_flags_would(named, tmp_path, capsys):
    assert main(["report", str(named), *SIZE]) == 0
    said = capsys.readouterr().err
    assert "model integrations.plain_training.Net, data integrations.plain_training.Data" in said
    flags = ["--model", "integrations.plain_training:Net"]
    flags += ["--data", "integrations.plain_training:Data", "--dir", str(tmp_path / "ntk")]
    assert main(["report", str(named), *flags, *SIZE]) == 0
    seen, wanted = (
        [{k: v for k, v in to_plain(o).items() if k not in TIMINGS} for o in read_history(folder)]
        for folder in (named / "checkpoints", tmp_path)
    )
    assert seen == wanted
    assert [o["step"] for o in seen] == [6, 12]


def test_a_second_report_on_the_checkpoints_goes_over_what_is_new(named, capsys):
    checkpoints = named / "checkpoints"
    assert main(["report", str(checkpoints), *SIZE]) == 0
    kept = next(checkpoints.glob("*step=6.ckpt"))
    hidden = kept.rename(named / "hidden")
    try:
        assert main(["report", str(checkpoints), *SIZE]) == 0
        assert [o.step for o in read_history(checkpoints)] == [12]
    finally:
        hidden.rename(kept)
    capsys.readouterr()
    assert main(["report", str(checkpoints), *SIZE]) == 0
    assert [o.step for o in read_history(checkpoints)] == [6, 12]


def test_classes_that_only_the_script_knew_are_asked_for_in_one_go(tmp_path, capsys):
    folder = _train(tmp_path, Net, Data)
    assert main(["report", str(folder), *SIZE]) == 1
    said = capsys.readouterr().err
    assert "--model pkg.mod:Class and --data pkg.mod:Class" in said
    flags = ["--model", "integrations.plain_training:Net"]
    flags += ["--data", "integrations.plain_training:Data"]
    assert main(["report", str(folder), *flags, *SIZE]) == 0


def _config(folder, model, data=None):
    data = {"class_path": "integrations.plain_training.Data"} if data is None else data
    text = yaml.safe_dump({"trainer": {}, "model": model, "data": data})
    (folder / "config.yaml").write_text(text)
    run = find_cli_run(folder)
    assert run is not None
    return run


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "pathlib.Path", "builtins.eval"])
def test_nothing_but_modules_is_made_on_a_files_word(tmp_path, name):
    made = tmp_path / "made"
    words = {"class_path": name, "init_args": {"args": ["touch", str(made)]}}
    with pytest.raises(InputError, match=rf"names {name}, which is no Module"):
        built_arguments(_config(tmp_path, words).model)
    nested = {"class_path": "integrations.plain_training.Net", "init_args": {"width": words}}
    with pytest.raises(InputError, match=rf"names {name}, which is no Module"):
        built_arguments(_config(tmp_path, nested).model)
    with pytest.raises(InputError, match=rf"names {name}, which is no LightningDataModule"):
        built_arguments(_config(tmp_path, nested, words).data)
    assert not made.exists()


def test_a_module_among_the_arguments_is_built(tmp_path):
    inner = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}
    model = {"class_path": "integrations.plain_training.Net", "init_args": {"parts": [inner, 4]}}
    parts = built_arguments(_config(tmp_path, model).model)["parts"]
    assert (type(parts[0]).__name__, parts[0].out_features, parts[1]) == ("Linear", 3, 4)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.mkdir [made]", "a: [", "- 1", "x" * 2_000_000]
)
def test_a_configuration_that_is_none_runs_nothing(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    if text == "- 1":
        assert find_cli_run(tmp_path) is None
    else:
        with pytest.raises(InputError, match="--model and --data"):
            find_cli_run(tmp_path)
    assert not (tmp_path / "made").exists()


def test_the_configuration_of_another_tool_is_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {class_path: os.system}")
    assert find_cli_run(tmp_path) is None
