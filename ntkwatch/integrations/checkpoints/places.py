"""Which checkpoints there are in folders and lists of files. None is opened."""

import re
from collections.abc import Sequence
from pathlib import Path

from ntkwatch.errors import CheckpointError
from ntkwatch.integrations.checkpoints.shards import DISTRIBUTED, SHARD_INDEX

__all__ = ["SUFFIXES", "find_checkpoints", "name_of"]

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
_OURS = ("probe.safetensors", "reference.safetensors", "reference-warmup.safetensors")
# What one folder of Hugging Face's Trainer has weights in; beside them lie optimizer and the like.
_HUGGING_FACE = ("model.safetensors", f"model{SHARD_INDEX}", "pytorch_model.bin")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def find_checkpoints(places: Sequence[Path]) -> list[Path]:
    """Return the checkpoints in folders and lists of files.

    Args:
        places: Files, and folders: checkpoints of several files, or folders that hold checkpoints,
            a ``checkpoints`` folder, or ``checkpoint-*`` folders.

    Returns:
        Files, lists of shards and folders of torch.distributed.checkpoint, by name, each once.

    Raises:
        CheckpointError: If a place does not exist, holds none, or is of a form that is not read.
    """
    found: dict[Path, Path] = {}
    for place in places:
        for path in [place] if place.is_file() else _in_folder(place):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def name_of(path: Path) -> str:
    """Return what to call a checkpoint: its own name, or its folder's where all are called alike.

    Args:
        path: Of a checkpoint.

    Returns:
        Such as "step=40.ckpt" or "checkpoint-40".
    """
    return path.parent.name if path.name in _HUGGING_FACE and path.parent.name else path.name


def _in_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} does not exist, so there is no checkpoint to read. Give checkpoint files, "
            "or the folder that holds them."
        )
    for inner in (folder, folder / "checkpoints"):
        if inner.is_dir() and (found := _whole(inner) or _held(inner)):
            return found
    if series := [
        found for inner in folder.glob("checkpoint-*") for found in _whole(inner, of_series=True)
    ]:
        return sorted(series)
    raise CheckpointError(
        f"{folder} holds no file that ends in {', '.join(SUFFIXES)} and no folder of a checkpoint, "
        "so there is nothing to report on. Give the folder that ModelCheckpoint wrote to, or the "
        "files themselves; for a run that NTKMonitor watched leave --model out."
    )


def _whole(folder: Path, *, of_series: bool = False) -> list[Path]:
    """A folder that is one checkpoint."""
    if (folder / DISTRIBUTED).is_file():
        return [folder]
    _refuse_foreign(folder)
    # Others, too, call a file model.safetensors; beside them lie no settings of a model.
    if of_series or (folder / "config.json").is_file():
        for name in _HUGGING_FACE:
            if (folder / name).is_file():
                return [folder / name]
    return []


def _held(folder: Path) -> list[Path]:
    """The checkpoints in a folder of them."""
    kept = []
    for path in sorted(folder.iterdir()):
        if path.name[0] == "." or path.name in _OURS or _SHARD.search(path.stem):
            continue
        if path.is_dir():
            if (path / DISTRIBUTED).is_file():
                kept.append(path)
            elif path.suffix in SUFFIXES:
                _refuse_foreign(path)
        elif path.suffix in SUFFIXES or path.name.endswith(SHARD_INDEX):
            kept.append(path)
    return kept


def _refuse_foreign(folder: Path) -> None:
    """DeepSpeed's form is read by its own tool first; shards without their list by nothing."""
    if any(folder.glob("**/zero_pp_rank_*")):
        cure = f"Please convert it: python {folder / 'zero_to_fp32.py'} {folder} whole.pt"
    elif any(folder.glob("*.distcp")):
        cure = f"Its list of tensors, {DISTRIBUTED}, is missing; copy the folder as a whole."
    else:
        return
    raise CheckpointError(
        f"{folder} is a checkpoint cut into shards, which is not read like this. {cure}"
    )
