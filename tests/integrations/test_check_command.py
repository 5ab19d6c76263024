"""``ntkwatch check`` on named models and data; oracle: how they were made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from integrations import plain_training

import ntkwatch
from ntkwatch.__main__ import main

DATA = ["--data", "integrations.test_check_command:batch"]
NET = "integrations.plain_training:Net"


def batch():
    data = plain_training.Data()
    data.setup("fit")
    return data.rows[:48]


def loader():
    data = plain_training.Data()
    data.setup("fit")
    return iter(data.train_dataloader())


def rows():
    data = plain_training.Data()
    data.setup("fit")
    return data.rows


@pytest.mark.parametrize("name", ["batch", "loader", "rows"])
def test_a_probe_is_taken_from_a_batch_a_loader_and_a_dataset(capsys, name):
    arguments = ["--data", f"integrations.test_check_command:{name}", "--probe-size", "32"]
    assert main(["check", NET, *arguments, "--set", "width=5", "--json"]) == 0
    output = capsys.readouterr()
    page = json.loads(output.out)
    assert output.err == ""
    assert page["ntkwatch_checkup"] == 1
    assert page["probe"]["size"] == 32
    assert page["elements"]["net.0.weight"] == 5 * 6
    assert [cost["probe_size"] for cost in page["costs"]] == [16, 32]
    assert page["forecast"]["samples"] == 32
    assert page["no_forecast"] is None


def test_text_says_that_a_plain_module_can_be_watched(capsys, tmp_path):
    assert main(["check", NET, *DATA, "-o", str(tmp_path / "page.txt")]) == 0
    assert capsys.readouterr().out == ""
    text = (tmp_path / "page.txt").read_text()
    assert "It can be watched." in text
    assert "for training on these 48 samples" in text
    assert "of the net" in text


def test_options_reach_the_kernel(capsys):
    chosen = ["--engine", "loop", "--outputs", "sum", "--params", "net.2.*", "--probe-size", "16"]
    assert main(["check", NET, *DATA, *chosen, "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["spec"]["outputs"] == "sum"
    assert page["routes"] == {"net.2.weight": "loop", "net.2.bias": "loop"}
    assert page["settings"]["params"] == ["net.2.*"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "Missing argument 'MODEL'"),
        ([NET], 2, "give --data"),
        ([NET, *DATA, "--params", "none.*"], 1, "selects no trainable parameter"),
        ([NET, *DATA, "--memory-budget", "much"], 1, "is not a size"),
        ([NET, "--probe", "nowhere.safetensors"], 1, "does not exist"),
        (["torch.nn:Linear", *DATA], 1, "torch.nn:Linear() fails (TypeError"),
        ([NET, *DATA, "--probe-size", "1"], 2, "x>=2"),
    ],
)
def test_exit_codes(capsys, arguments, code, says):
    assert main(["check", *arguments]) == code
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message


def test_modules_in_the_current_folder_are_found_by_the_console_script_too(tmp_path):
    """It does not look there by itself: Python's -P stands for that here."""
    (tmp_path / "here.py").write_text(
        "import torch\nnet = torch.nn.Linear(3, 2)\nbatch = torch.randn(16, 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ntkwatch", "check", "here:net", "--data", "here:batch"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(ntkwatch.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "It can be watched." in done.stdout
    assert "None: the data has no targets" in done.stdout
