"""Checkpoints in several files: torch's own distributed form, and sharded safetensors.

Oracle: the same weights kept whole, read by torch or safetensors themselves.
"""

import contextlib
import json
import os
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from integrations.plain_training import Net
from safetensors.torch import save_file

from ntkwatch.__main__ import main
from ntkwatch.errors import CheckpointError
from ntkwatch.integrations.checkpoints.files import read_checkpoint
from ntkwatch.integrations.checkpoints.places import find_checkpoints
from ntkwatch.integrations.checkpoints.series import digest_of, in_order
from ntkwatch.watch.record.history import read_history

MODEL = ["--model", "integrations.plain_training:Net", "--set", "width=12"]
DATA = ["--data", "integrations.plain_training:Data", "--probe-size", "32"]


def _state(seed=0):
    torch.manual_seed(seed)
    return Net(width=12).state_dict()


def _save(folder, content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch speaks of process groups, which one file needs not
        dcp.save(content, checkpoint_id=folder)
    return folder


def _index(folder, state, *, files=2):
    """As ``save_pretrained(max_shard_size=...)`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    where = {
        name: f"model-{i % files + 1:05d}-of-{files:05d}.safetensors"
        for i, name in enumerate(names)
    }
    for file in set(where.values()):
        save_file({name: state[name] for name in names if where[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text("{}")
    return index


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_a_distributed_checkpoint_holds_what_was_saved(tmp_path, key):
    state = _state()
    momentum = {"state": {name: {"m": torch.ones_like(t)} for name, t in state.items()}}
    content = {"step": 40, "epoch": 2, "optim": momentum}
    content |= {key: state} if key else state
    found = read_checkpoint(_save(tmp_path / "x", content))
    assert (found.step, found.epoch) == (40, 2)
    assert sorted(found.tensors) == sorted(state)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state.items())


def test_parts_of_a_tensor_are_put_together(tmp_path):
    """Oracle: torch's own reader, which puts the parts of two ranks together."""
    state, folder = {"w": torch.arange(24.0).reshape(6, 4)}, tmp_path / "x"
    _save(folder, state)
    # What two ranks would have written: the same numbers in two parts.
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    tensor = metadata.state_dict_metadata["w"]
    (index, info) = next(iter(metadata.storage_data.items()))
    tensor.chunks, metadata.storage_data = [], {}
    for row in (0, 2):
        rows = state["w"][row : 2 if row == 0 else 6].clone()
        torch.save(rows, folder / f"__{row}_0.distcp")
        sizes, offset = rows.shape, torch.Size([row, 0])
        tensor.chunks.append(dcp.metadata.ChunkStorageMetadata(offset, sizes))
        place = type(info)(f"__{row}_0.distcp", 0, (folder / f"__{row}_0.distcp").stat().st_size)
        metadata.storage_data[type(index)("w", offset)] = place
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(oracle := {"w": torch.zeros(6, 4)}, checkpoint_id=folder)
    assert torch.equal(oracle["w"], state["w"])
    assert torch.equal(read_checkpoint(folder).tensors["w"], state["w"])


def test_a_folder_of_distributed_checkpoints_is_a_series(tmp_path, capsys):
    for step, seed in ((0, 0), (9, 1)):
        _save(tmp_path / f"step={step}", {"model": _state(seed)})
        torch.save(_state(seed), tmp_path / f"again-step={step}.pt")
    assert main(["report", str(tmp_path), *MODEL, *DATA]) == 0
    assert f"Measurements are in {tmp_path / 'ntk'}" in capsys.readouterr().err
    assert [o.step for o in read_history(tmp_path)] == [0, 9]


def test_lightning_s_sharded_folder_brings_its_step_and_hyper_parameters(tmp_path):
    folder = _save(tmp_path / "epoch=1-step=12.ckpt", {"state_dict": _state()})
    about = {"global_step": 12, "epoch": 1, "hyper_parameters": {"width": 12}}
    torch.save(about, folder / "meta.pt")
    (found,) = in_order(find_checkpoints([tmp_path])).entries
    assert (found.step, found.epoch) == (12, 1)
    assert read_checkpoint(found.path).hyper_parameters == {"width": 12}


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_metadata_that_wants_to_run_code_is_refused_and_runs_none(tmp_path):
    folder = _save(tmp_path / "x", {"model": _state()})
    (folder / ".metadata").write_bytes(pickle.dumps(_Bomb(tmp_path / "made")))
    with pytest.raises(CheckpointError, match=r"needs posix\.mkdir|needs nt\.mkdir"):
        read_checkpoint(folder, trust=True)
    with pytest.raises(CheckpointError, match="mkdir"):
        read_checkpoint(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["load", "nn", "Tensor", "_C", "os"])
def test_of_torch_only_dtypes_are_admitted(tmp_path, name):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / ".metadata").write_bytes(f"ctorch\n{name}\n.".encode())
    with pytest.raises(CheckpointError, match=rf"torch\.{name}"):
        read_checkpoint(folder)


def _edited(folder, edit):
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _lead_out(metadata):
    for info in metadata.storage_data.values():
        info.relative_path = "../other/__0_0.distcp"


def _claim(metadata):
    for what in metadata.state_dict_metadata.values():
        what.size = torch.Size([2**40, 4])


def _reach_over(metadata):
    for info in metadata.storage_data.values():
        info.length = 10**12


def _shift(metadata):
    for what in metadata.state_dict_metadata.values():
        what.chunks[0].sizes = torch.Size([1, 1])


def _halve(metadata):
    for what in metadata.state_dict_metadata.values():
        what.chunks = []


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_lead_out, "no file beside it"),
        (_claim, "are declared, and its files hold"),
        (_reach_over, "ends at"),
        (_shift, "not of shape"),
        (_halve, "hold 0 of its"),
    ],
)
def test_metadata_that_contradicts_its_files_is_an_error(tmp_path, edit, says):
    folder = _save(tmp_path / "x", {"model": _state()})
    _edited(folder, edit)
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(folder)


def test_mutated_metadata_and_shards_end_in_clear_errors(tmp_path):
    folder = _save(tmp_path / "x", {"model": _state(), "step": 3})
    for file in (folder / ".metadata", folder / "__0_0.distcp"):
        whole, generator = file.read_bytes(), torch.Generator().manual_seed(0)
        for place in torch.randint(0, len(whole), (60,), generator=generator).tolist():
            broken = bytearray(whole)
            broken[place] ^= 0x5A
            for content in (bytes(broken), whole[:place]):
                file.write_bytes(content)
                with contextlib.suppress(CheckpointError):
                    read_checkpoint(folder)
        file.write_bytes(whole)
    assert read_checkpoint(folder).step == 3


def test_sharded_safetensors_are_read_as_one(tmp_path):
    for step, seed in ((500, 1), (40, 0)):
        _index(tmp_path / f"checkpoint-{step}", _state(seed))
        torch.save({}, tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    series = in_order(find_checkpoints([tmp_path]))
    assert [entry.step for entry in series.entries] == [40, 500]
    assert series.skipped == ()
    found = read_checkpoint(series.entries[0].path)
    assert all(torch.equal(found.tensors[name], t) for name, t in _state(0).items())


def test_one_folder_of_the_trainer_is_one_checkpoint(tmp_path):
    """Beside the weights lie optimizer.pt, scheduler.pt and rng_state.pth, which are none."""
    folder = tmp_path / "checkpoint-40"
    folder.mkdir()
    save_file(_state(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    for name in ("optimizer.pt", "rng_state.pth"):
        torch.save({"a": torch.zeros(2)}, folder / name)
    assert find_checkpoints([folder]) == [folder / "model.safetensors"]


def test_a_change_in_any_shard_is_another_checkpoint(tmp_path):
    index = _index(tmp_path, _state())
    before = digest_of(index)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert digest_of(index) != before


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"w": "../secret.safetensors"}, "no file beside it"),
        ({"w": "/etc/passwd"}, "no file beside it"),
        ({"w": "model.pt"}, "no safetensors file"),
        ({"w": "gone.safetensors"}, "cannot be read"),
        ({"w": 3}, "no file beside it"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_a_list_of_shards_that_leads_astray_is_an_error(tmp_path, weight_map, says):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(index)
    assert in_order_fails(index)


def in_order_fails(index):
    with pytest.raises(CheckpointError):
        in_order([index])
    return True


def test_shards_without_their_list_and_deepspeed_are_refused(tmp_path):
    (tmp_path / "x.ckpt").mkdir()
    (tmp_path / "x.ckpt" / "__0_0.distcp").write_text("")
    with pytest.raises(CheckpointError, match=r"\.metadata, is missing"):
        find_checkpoints([tmp_path])
    (tmp_path / "x.ckpt" / "__0_0.distcp").rename(tmp_path / "x.ckpt" / "zero_pp_rank_0.pt")
    with pytest.raises(CheckpointError, match="zero_to_fp32"):
        find_checkpoints([tmp_path])
