"""Checkpoints cut into several files: torch.distributed.checkpoint, and sharded safetensors.

torch reads the first kind's ``.metadata`` with plain pickle, which runs what the file says. Here it
is read by an unpickler that knows the format's own records alone, as data: none of torch's classes
is made, and no name leads anywhere else.
"""

import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["DISTRIBUTED", "SHARD_INDEX", "files_of", "read_distributed", "read_indexed"]

DISTRIBUTED = ".metadata"  # in every folder of torch.distributed.checkpoint
SHARD_INDEX = ".safetensors.index.json"  # ends the name of the list of Hugging Face's shards

_META = "meta.pt"  # where Lightning puts all that is not a tensor of model or optimizer
_MOST_BYTES = 256 * 2**20  # of a list of names; those of the largest models take a few MiB

_RECORDS = (
    "Metadata",
    "TensorStorageMetadata",
    "ChunkStorageMetadata",
    "BytesStorageMetadata",
    "MetadataIndex",
    "TensorProperties",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)


def files_of(path: Path) -> list[Path]:
    """Return the files of which a checkpoint consists, in a fixed order.

    Args:
        path: A file, a list of shards, or a folder.

    Returns:
        All files whose content is the checkpoint's.
    """
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if not path.name.endswith(SHARD_INDEX):
        return [path]
    return [path, *sorted(path.parent / name for name in set(_weight_map(path).values()))]


def read_indexed(path: Path) -> dict[str, Any]:
    """Return the weights that a list of safetensors files leads to.

    Args:
        path: ``model.safetensors.index.json``.

    Returns:
        Tensors by name under "state_dict".

    Raises:
        ValueError: If it is no such list, or leads out of its folder.
    """
    names: dict[str, list[str]] = {}
    for name, file in _weight_map(path).items():
        names.setdefault(file, []).append(name)
    tensors: dict[str, Tensor] = {}
    for file in sorted(names):
        with safe_open(path.parent / file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in names[file]}
    return {"state_dict": tensors}


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"a list of {path.stat().st_size} bytes")
    found = json.loads(path.read_text(encoding="utf-8"))
    listed = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ValueError("no weight_map")
    for file in listed.values():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file:
            raise ValueError(f"the list names {str(file)[:80]!r}, which is no file beside it")
        if not file.endswith(".safetensors"):
            raise ValueError(f"the list names {file[:80]!r}, which is no safetensors file")
    return listed


# torch.distributed.checkpoint. --------------------------------------------------------------------


def read_distributed(folder: Path, *, states: Collection[str], counts: Sequence[str]) -> Any:
    """Return what a folder of torch.distributed.checkpoint holds, without a process group.

    Args:
        folder: With ``.metadata``.
        states: Names under which weights are kept; the first that is there counts.
        counts: Names of whole numbers to read beside them.

    Returns:
        Tensors by name under "state_dict", and the numbers; of a folder that Lightning wrote, what
        it keeps beside them, too.

    Raises:
        ValueError: If the folder contradicts itself, or leads out of itself.
        pickle.UnpicklingError: If ``.metadata`` holds anything but the format's own records.
    """
    tensors, plain, places, paths = _metadata(folder)
    wanted = _weights(tensors, paths, states)
    _check_room(folder, [tensors[key] for key in wanted.values()])
    content: dict[str, Any] = {}
    if (folder / _META).is_file():
        meta = torch.load(folder / _META, map_location="cpu", weights_only=True)
        content |= meta if isinstance(meta, Mapping) else {}
    for key in counts:
        if key in plain:
            content[key] = _loaded(folder, places[key, None])
    read = {name: _whole(folder, key, tensors[key], places) for name, key in wanted.items()}
    return {**content, "state_dict": read}


def _weights(
    tensors: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]], states: Collection[str]
) -> dict[str, str]:
    """Keys of the model's weights by name: those of one state, else all on the top floor."""
    for state in states:
        own = {
            ".".join(map(str, path[1:])): key
            for key in tensors
            if len(path := paths.get(key, (key,))) > 1 and path[0] == state
        }
        if own:
            return own
    return {key: key for key in tensors if len(paths.get(key, (key,))) == 1}


class _Record:
    """A stand-in for a class of the format: keeps its fields, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Record":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {"state": state}

    def __getitem__(self, name: str) -> Any:
        return self.fields.get(name)


_METADATA = "torch.distributed.checkpoint.metadata"
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **{(_METADATA, name): _Record for name in _RECORDS},
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Record,
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"): _Record,
    ("pathlib", "PosixPath"): _Record,
    ("pathlib", "WindowsPath"): _Record,
    ("torch.serialization", "_get_layout"): str,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    """Admits the names above and torch's dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        if found := _KNOWN.get((module, name)):
            return found
        dtype = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not of this format")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("GLOBAL persistent id is not of this format")


_Place = tuple[str, int, int]  # file, offset, length
_Places = Mapping[tuple[str, tuple[int, ...] | None], _Place]


def _metadata(
    folder: Path,
) -> tuple[dict[str, Any], set[str], _Places, dict[str, tuple[Any, ...]]]:
    """Return tensors and other things by key, where their parts are, and their way down to them."""
    path = folder / DISTRIBUTED
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"a list of {path.stat().st_size} bytes")
    with path.open("rb") as file:
        found = _Unpickler(file).load()
    if not isinstance(found, _Record) or not isinstance(found["state_dict_metadata"], dict):
        raise ValueError(f"{DISTRIBUTED} lists no tensors")
    listed = found["state_dict_metadata"]
    tensors = {key: what for key, what in listed.items() if _is_tensor(what)}
    places = {}
    for index, info in (found["storage_data"] or {}).items():
        offset = index["offset"]
        key = index["fqn"], None if offset is None else _shape(offset)
        if info["transform_descriptors"]:
            raise ValueError(f"{key[0]} is stored by {info['transform_descriptors']!r}")
        places[key] = (_inside(info["relative_path"]), int(info["offset"]), int(info["length"]))
    ways = found["planner_data"]
    ways = ways if isinstance(ways, dict) else {}
    paths = {key: tuple(way) for key, way in ways.items()}
    return tensors, set(listed) - set(tensors), places, paths


def _is_tensor(what: Any) -> bool:
    return isinstance(what, _Record) and hasattr(what, "fields") and what["chunks"] is not None


def _inside(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or "\\" in name:
        raise ValueError(f"{DISTRIBUTED} names {str(name)[:80]!r}, which is no file beside it")
    return name


def _shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in sizes)
    if any(size < 0 for size in shape):
        raise ValueError(f"sizes {shape}")
    return shape


def _check_room(folder: Path, tensors: Sequence[Any]) -> None:
    """What is declared must be there: no memory is taken on the word of a list of names."""
    held = sum(path.stat().st_size for path in folder.glob("*.distcp"))
    declared = sum(math.prod(_shape(what["size"])) * _itemsize(what) for what in tensors)
    if declared > held:
        raise ValueError(f"{declared} bytes of tensors are declared, and its files hold {held}")


def _dtype(what: _Record) -> torch.dtype:
    """The first of the properties' fields, in either form in which they are written."""
    fields = what["properties"].fields
    dtype = fields["state"][0] if "state" in fields else fields["dtype"]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"a dtype {dtype!r}")
    return dtype


def _itemsize(what: _Record) -> int:
    return _dtype(what).itemsize


def _whole(folder: Path, key: str, what: _Record, places: _Places) -> Tensor:
    """Put the parts of one tensor together."""
    whole = torch.empty(_shape(what["size"]), dtype=_dtype(what))
    filled = 0
    for chunk in what["chunks"]:
        begin, sizes = _shape(chunk["offsets"]), _shape(chunk["sizes"])
        part = _loaded(folder, places[key, begin])
        if not isinstance(part, Tensor) or tuple(part.shape) != sizes:
            raise ValueError(f"a part of {key} is not of shape {sizes}")
        area = tuple(slice(b, b + s) for b, s in zip(begin, sizes, strict=True))
        target = whole[area]
        if target.shape != part.shape:
            raise ValueError(f"a part of {key} lies outside of it")
        target.copy_(part)
        filled += part.numel()
    if filled != whole.numel():
        raise ValueError(f"the parts of {key} hold {filled} of its {whole.numel()} numbers")
    return whole


def _loaded(folder: Path, place: _Place) -> Any:
    name, offset, length = place
    with (folder / name).open("rb") as file:
        content = _cut(file, offset, length)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError(f"{name} is packed, and unpacks to any size")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _cut(file: BinaryIO, offset: int, length: int) -> bytes:
    if offset < 0 or length < 0:
        raise ValueError(f"a part at {offset} of {length} bytes")
    file.seek(0, io.SEEK_END)
    if offset + length > file.tell():
        raise ValueError(f"a part ends at {offset + length} in a file of {file.tell()} bytes")
    file.seek(offset)
    return file.read(length)
