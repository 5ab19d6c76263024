"""What is in a checkpoint, without running code from it.

Knows Lightning's form, plain state dicts, safetensors and both sharded forms; knows no model.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor

from ntkwatch.errors import CheckpointError
from ntkwatch.integrations.checkpoints.shards import (
    DISTRIBUTED,
    SHARD_INDEX,
    read_distributed,
    read_indexed,
)
from ntkwatch.jacobian.forward import first_line

__all__ = ["Checkpoint", "Weights", "number_in_name", "read_checkpoint"]

Weights = Literal["raw", "averaged"]

_SAFE = ".safetensors"

# Where the weights are in what people save; the first that holds tensors counts.
_STATES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_STEPS = ("global_step", "step", "iteration", "iter")
_RAW_BESIDE_AVERAGE = "current_model_state"  # where Lightning's WeightAveraging puts them


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What one file holds.

    Attributes:
        path: The file.
        step: Optimizer steps taken, or None where neither the file nor its name says.
        epoch: Epochs completed, or None.
        tensors: Weights and buffers by the names that the file gives them.
        hyper_parameters: What the model's class was built with, as Lightning keeps it.
        data_hyper_parameters: The same of the data module.
    """

    path: Path
    step: int | None
    epoch: int | None
    tensors: dict[str, Tensor]
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    data_hyper_parameters: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path, *, trust: bool = False, weights: Weights = "raw") -> Checkpoint:
    """Return what a checkpoint holds; tensors are read from disk when they are used.

    Args:
        path: A file.
        trust: Whether code in the file may run.
        weights: "raw", or "averaged" where the file also holds a running average of them.

    Returns:
        Weights, step and hyper-parameters.

    Raises:
        CheckpointError: If the file cannot be read, wants to run code, or holds no weights.
    """
    if not path.is_file() and not (path / DISTRIBUTED).is_file():
        raise CheckpointError(
            f"{path} does not exist, so there is no checkpoint to read. Give checkpoint files, or "
            "the folder that holds them."
        )
    content = _read(path, trust=trust)
    tensors = _weights_in(content, path, weights)
    step = next((count for key in _STEPS if (count := _count(content.get(key))) is not None), None)
    epoch = _count(content.get("epoch"))
    return Checkpoint(
        path=path,
        step=number_in_name(path, "step") if step is None else step,
        epoch=number_in_name(path, "epoch") if epoch is None else epoch,
        tensors=tensors,
        hyper_parameters=_plain_names(content.get("hyper_parameters")),
        data_hyper_parameters=_plain_names(content.get("datamodule_hyper_parameters")),
    )


def number_in_name(path: Path, word: Literal["step", "epoch"]) -> int | None:
    """Return the step or epoch that a file's name states, or None.

    Args:
        path: Such as ``epoch=0-step=40.ckpt`` or ``checkpoint-40/model.safetensors``; what stands
            last in it counts.
        word: Which of the two.

    Returns:
        The number.
    """
    patterns = [rf"(?:^|[^a-z]){word}s?[=_-]?(\d+)"]
    if word == "step":
        patterns.append(r"checkpoint-(\d+)(?:/[^/]*)?$")
    for pattern in patterns:
        if found := re.findall(pattern, f"{path.parent.name}/{path.name}".lower()):
            return int(found[-1])
    return None


# Reading. -----------------------------------------------------------------------------------------


def _read(path: Path, *, trust: bool) -> Mapping[str, Any]:
    if path.suffix == _SAFE:
        return _read_safe(path)
    if not path.is_dir() and not path.name.endswith(SHARD_INDEX):
        return _read_torch(path, trust=trust)
    try:
        if path.is_dir():
            found = read_distributed(path, states=_STATES, counts=(*_STEPS, "epoch"))
            return cast(Mapping[str, Any], found)
        return read_indexed(path)
    except Exception as error:  # a broken file can fail in any way
        if isinstance(error, pickle.UnpicklingError) and (wanted := _named(error)):
            raise CheckpointError(
                f"{path} needs {', '.join(wanted)} to be loaded, which is no part of a sharded "
                "checkpoint and may run any code, so it is left closed. Was it written by "
                "torch.distributed.checkpoint?"
            ) from error
        raise _unreadable(path, error) from error


def _named(error: Exception) -> list[str]:
    return re.findall(r"GLOBAL (\S+)", str(error))


def _read_safe(path: Path) -> Mapping[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a broken file can fail in any way
        raise _unreadable(path, error) from error
    counts = {key: int(about[key]) for key in (*_STEPS, "epoch") if about.get(key, "").isdigit()}
    return {**counts, "state_dict": tensors}


def _read_torch(path: Path, *, trust: bool) -> Mapping[str, Any]:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        _refuse_packed(path)
    try:
        # A mapped file costs memory only for what is looked at; torch's older form cannot be.
        content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped)
    except Exception as error:  # a broken file can fail in any way
        if not trust and isinstance(error, pickle.UnpicklingError):
            raise _refused(path, error) from error
        raise _unreadable(path, error) from error
    if isinstance(content, torch.nn.Module):  # only where it was trusted
        content = {"state_dict": dict(content.state_dict())}
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} and no dictionary of weights, so it is no "
            "checkpoint. Save it with torch.save(model.state_dict(), path)."
        )
    return content


def _refuse_packed(path: Path) -> None:
    """A few kilobytes can unpack to more than any memory holds; torch itself never packs."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
    except Exception as error:  # a broken file can fail in any way
        raise _unreadable(path, error) from error
    if packed:
        raise CheckpointError(
            f"{path} is a compressed archive ({packed[0].filename}), which torch does not write, "
            "and what it unpacks to may be of any size. Load it where you trust it, and save its "
            "weights again with torch.save."
        )


def _refused(path: Path, error: Exception) -> CheckpointError:
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # torch's older form cannot be asked, and a broken file neither
        wanted = _named(error)
    if not wanted:
        return _unreadable(path, error)
    listed = ", ".join(wanted[:3]) + (", ..." if len(wanted) > 3 else "")
    return CheckpointError(
        f"{path} needs {listed} to be loaded, and loading these may run any code that the file "
        "brings along. If you trust whoever made it, add --trust-checkpoint; else save the weights "
        "alone (ModelCheckpoint(save_weights_only=True), torch.save(model.state_dict(), path) or "
        "safetensors)."
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    cause = f"{type(error).__name__}: {first_line(error).partition('. ')[0]}"
    return CheckpointError(
        f"{path} cannot be read as a checkpoint ({cause}), so its weights are unknown. Is it "
        "complete, and was it written by torch.save or safetensors?"
    )


# What is in it. -----------------------------------------------------------------------------------


def _weights_in(content: Mapping[str, Any], path: Path, weights: Weights) -> dict[str, Tensor]:
    raw = content.get(_RAW_BESIDE_AVERAGE)
    if isinstance(raw, Mapping) and weights == "raw":
        return _tensors(raw)
    if weights == "averaged" and not isinstance(raw, Mapping):
        raise CheckpointError(
            f"{path} holds no averaged weights beside the raw ones, so --weights averaged has "
            "nothing to read. Leave it out; Lightning's WeightAveraging writes both."
        )
    for key in _STATES:
        if isinstance(content.get(key), Mapping) and (tensors := _tensors(content[key])):
            return tensors
    tensors = _tensors(content)
    if not tensors:
        listed = ", ".join(str(key) for key in list(content)[:6]) or "none"
        raise CheckpointError(
            f"{path} holds no weights (its keys: {listed}), so there is nothing to measure. Save "
            "them as torch.save(model.state_dict(), path) or under the key 'state_dict'."
        )
    return tensors


def _tensors(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and isinstance(name, str)
    }


def _count(value: Any) -> int | None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if whole else None


def _plain_names(values: Any) -> dict[str, Any]:
    """Hyper-parameters by name, without Lightning's own, which begin with an underscore."""
    items = values.items() if isinstance(values, Mapping) else ()
    return {name: v for name, v in items if isinstance(name, str) and name[:1] != "_"}
