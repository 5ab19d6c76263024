"""Reading checkpoint files that mean no good, or no longer mean anything.

The oracle is a file that code in a checkpoint would have written.
"""

import os
import pickle
import random
import resource
import time
import weakref
import zipfile
from collections import OrderedDict
from contextlib import suppress

import pytest
import torch
from integrations.plain_training import Net
from pytorch_lightning.utilities.parsing import AttributeDict
from safetensors.torch import save_file

from ntkwatch import read_history
from ntkwatch.__main__ import main
from ntkwatch.errors import CheckpointError
from ntkwatch.integrations.checkpoints import series as checkpoint_series
from ntkwatch.integrations.checkpoints.files import (
    number_in_name,
    read_checkpoint,
)
from ntkwatch.integrations.checkpoints.places import find_checkpoints
from ntkwatch.integrations.checkpoints.series import in_order
from ntkwatch.integrations.checkpoints.weights import load_weights


class Bomb:
    """Unpickling this runs a command."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def _state():
    return Net(width=12).state_dict()


@pytest.fixture
def good(tmp_path):
    torch.save({"state_dict": _state(), "global_step": 3, "epoch": 1}, tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


# Code. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "older", "plain"])
def test_a_file_that_wants_to_run_code_is_refused_and_runs_none(tmp_path, form):
    path, mark = tmp_path / "bomb.ckpt", tmp_path / "it-ran"
    content = {"state_dict": _state(), "note": Bomb(mark)}
    if form == "plain":
        path.write_bytes(pickle.dumps({"note": Bomb(mark)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not mark.exists()
    if form != "plain":
        with pytest.raises(CheckpointError, match=r"needs \w+\.system .*--trust-checkpoint"):
            read_checkpoint(path)
        read_checkpoint(path, trust=True)
        assert mark.exists()  # so the bomb is one


def test_the_command_line_asks_for_trust_and_names_what_is_blocked(tmp_path, capsys):
    path = tmp_path / "step=1.ckpt"
    torch.save({"state_dict": _state(), "hyper_parameters": {"who": AttributeDict(width=12)}}, path)
    how = ["--model", "integrations.plain_training:Net", "--set", "width=12"]
    how += ["--data", "integrations.plain_training:Data"]
    assert main(["report", str(path), *how]) == 1
    assert "AttributeDict" in (message := capsys.readouterr().err)
    assert "--trust-checkpoint" in message
    assert main(["report", str(path), *how, "--trust-checkpoint"]) == 0


# Size. --------------------------------------------------------------------------------------------


def test_an_archive_that_unpacks_to_gigabytes_is_refused_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps(b"\0" * 50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_checkpoint(path)


def test_a_tensor_that_claims_more_than_its_file_holds_is_refused(good, tmp_path):
    """The shape of a weight is made larger; the numbers stay as few as they are."""
    torch.save(OrderedDict(w=torch.zeros(7, 11)), tmp_path / "w.pt")
    data = (tmp_path / "w.pt").read_bytes()
    small = b"K\x07K\x0b\x86"  # the tuple (7, 11)
    assert data.count(small) == 1
    (tmp_path / "w.pt").write_bytes(data.replace(small, b"K\xffK\xff\x86"))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "w.pt")


# Damage. ------------------------------------------------------------------------------------------


def _survives(path, model):
    """Reading ends in weights or in one of our errors."""
    with suppress(CheckpointError):
        load_weights(model, read_checkpoint(path).tensors, path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_cut_at_any_kilobyte_is_an_error_that_says_so(good, tmp_path, suffix):
    if suffix == ".safetensors":
        save_file(_state(), tmp_path / "good.safetensors")
        good = tmp_path / "good.safetensors"
    data = good.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for size in range(0, len(data), 1024):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            read_checkpoint(path)


def _mutated(good, tmp_path, count):
    data, model = good.read_bytes(), Net(width=12)
    numbers = random.Random(0)
    path = tmp_path / f"mutated{good.suffix}"
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(numbers.choice([1, 4, 40])):
            changed[numbers.randrange(len(data))] = numbers.randrange(256)
        path.write_bytes(changed)
        _survives(path, model)


def test_mutated_files_end_in_clear_errors(good, tmp_path):
    _mutated(good, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_hundreds_of_mutated_files_end_in_clear_errors_within_seconds(good, tmp_path, suffix):
    if suffix == ".safetensors":
        save_file(_state(), tmp_path / "good.safetensors")
        good = tmp_path / "good.safetensors"
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _mutated(good, tmp_path, 400)
    assert time.perf_counter() - began < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds a list and no dictionary"),
        ({"epoch": 3}, r"holds no weights \(its keys: epoch\)"),
        ({}, r"holds no weights \(its keys: none\)"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path, content, says):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(tmp_path / "x.pt")


# Which files, in which order. ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step", "epoch"),
    [
        ("a/epoch=0-step=40.ckpt", 40, 0),
        ("a/epoch=3-step=40-v1.ckpt", 40, 3),
        ("a/step_00040.pt", 40, None),
        ("a/model-epoch12.pth", None, 12),
        ("checkpoint-500/model.safetensors", 500, None),
        ("a/footstep9.pt", None, None),
        ("a/last.ckpt", None, None),
    ],
)
def test_a_name_may_tell_step_and_epoch(tmp_path, name, step, epoch):
    path = tmp_path / name
    assert (number_in_name(path, "step"), number_in_name(path, "epoch")) == (step, epoch)


def test_the_stored_step_counts_before_the_name(tmp_path):
    for place, name in enumerate(["step=7.ckpt", "step=5.ckpt"]):
        torch.save({"state_dict": _state(), "global_step": place}, tmp_path / name)
    series = in_order(find_checkpoints([tmp_path]))
    assert [(e.step, e.path.name) for e in series.entries] == [
        (0, "step=7.ckpt"),
        (1, "step=5.ckpt"),
    ]


def test_raw_weights_are_read_beside_an_average_unless_the_average_is_asked_for(tmp_path):
    raw, average = _state(), _state()
    content = {"state_dict": average, "current_model_state": raw, "global_step": 1}
    torch.save(content, tmp_path / "x.ckpt")
    key = "net.0.weight"
    assert torch.equal(read_checkpoint(tmp_path / "x.ckpt").tensors[key], raw[key])
    averaged = read_checkpoint(tmp_path / "x.ckpt", weights="averaged").tensors
    assert torch.equal(averaged[key], average[key])
    torch.save({"state_dict": raw}, tmp_path / "y.ckpt")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        read_checkpoint(tmp_path / "y.ckpt", weights="averaged")


def test_a_lightning_folder_is_entered_and_a_file_named_twice_is_read_once(good, tmp_path):
    inner = tmp_path / "version_0" / "checkpoints"
    inner.mkdir(parents=True)
    good.rename(inner / "good.ckpt")
    found = find_checkpoints([tmp_path / "version_0", inner / "good.ckpt"])
    assert found == [inner / "good.ckpt"]


def test_folders_without_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no file that ends in"):
        find_checkpoints([tmp_path])
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoints([tmp_path / "no"])


def test_of_two_files_of_one_step_the_one_named_for_it_is_used(tmp_path):
    for name in ("step=36.ckpt", "last.ckpt", "last-v1.ckpt"):
        torch.save({"state_dict": _state(), "global_step": 36}, tmp_path / name)
    series = in_order(find_checkpoints([tmp_path]))
    assert [e.path.name for e in series.entries] == ["step=36.ckpt"]
    assert sorted(s.path.name for s in series.skipped) == ["last-v1.ckpt", "last.ckpt"]
    assert not any(s.is_broken for s in series.skipped)


def test_the_weights_of_one_file_at_a_time_are_in_memory(tmp_path, monkeypatch):
    for step in range(4):
        save_file(_state(), tmp_path / f"step={step}.safetensors")
    read, alive = checkpoint_series.read_checkpoint, []

    def noted(path, **rest):
        assert [1 for reference in alive if reference() is not None] == []
        found = read(path, **rest)
        alive.extend(weakref.ref(tensor) for tensor in found.tensors.values())
        return found

    monkeypatch.setattr(checkpoint_series, "read_checkpoint", noted)
    assert len(in_order(find_checkpoints([tmp_path])).entries) == 4
    assert len(alive) == 4 * 4


def test_a_hugging_face_series_is_read_by_its_folders_names(tmp_path, capsys):
    for step in (500, 40):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file(_state(), folder / "model.safetensors")
    how = ["--model", "integrations.plain_training:Net", "--set", "width=12"]
    how += ["--data", "integrations.plain_training:Data"]
    assert main(["report", str(tmp_path), *how]) == 0
    assert f"Measurements are in {tmp_path / 'ntk'}" in capsys.readouterr().err
    assert [o.step for o in read_history(tmp_path)] == [40, 500]
