"""One process's part of an anchor as a file: its shards, to be put in their places again.

Each process writes and reads its own; that all of them fit together is another file's business.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ntkwatch.errors import HistoryError
from ntkwatch.jacobian.shards import is_shard, local_part, with_local
from ntkwatch.watch.anchors.anchor_files import read_anchor, write_anchor
from ntkwatch.watch.anchors.anchors import Anchor

__all__ = ["Part", "path_of_part", "read_part", "write_part"]

_FOLDER = "shards"


class Part(NamedTuple):
    """Which of all processes' parts a file is.

    Attributes:
        rank: Number of the process.
        size: How many processes there are.
    """

    rank: int
    size: int


def path_of_part(folder: Path, kind: str, part: Part) -> Path:
    """Return where a process keeps its part of an anchor.

    Args:
        folder: Of the run.
        kind: "start" or "warmup".
        part: Whose.

    Returns:
        The path.
    """
    return folder / _FOLDER / f"{kind}-{part.rank:05d}-of-{part.size:05d}.safetensors"


def write_part(folder: Path, kind: str, anchor: Anchor, part: Part, *, mark: str) -> None:
    """Write a process's part of an anchor.

    Args:
        folder: Of the run.
        kind: "start" or "warmup".
        anchor: Its parameters may be shards.
        part: Whose.
        mark: The same in all parts of one anchor, and in no other.
    """
    layout = {name: _layout(tensor) for name, tensor in anchor.params.items()}
    about = json.dumps({"mark": mark, "layout": layout})
    local = replace(anchor, params={n: local_part(t) for n, t in anchor.params.items()})
    write_anchor(path_of_part(folder, kind, part), local, about={"shards": about})


def read_part(
    folder: Path, kind: str, parameters: Mapping[str, Tensor], part: Part
) -> tuple[Anchor, str]:
    """Return a process's part of an anchor, as shards of the present model.

    Args:
        folder: Of the run.
        kind: "start" or "warmup".
        parameters: The model's, by clean name: they tell the layout and the device.
        part: Whose.

    Returns:
        The anchor, and the mark of all its parts.

    Raises:
        HistoryError: If there is no such part, or it is not one of a model of this layout.
    """
    path = path_of_part(folder, kind, part)
    device = next(iter(parameters.values())).device
    local, why = None, "it does not exist"
    about: dict[str, Any] = {}
    try:
        local = read_anchor(path, device=device)
        about = {} if local is None else json.loads(_about(path))
    except (OSError, SafetensorError, KeyError) as error:
        why = str(error)
    if local is None or not about:
        raise HistoryError(
            f"{path} cannot be read ({why}), and without this process's shards of the reference "
            "nothing can be compared with it. Resume in as many processes as before, each with "
            "the run's folder at hand."
        )
    odd = _unlike(about["layout"], {name: _layout(p) for name, p in parameters.items()})
    if odd:
        raise HistoryError(
            f"{path} holds other shards than this process has now ({', '.join(odd[:3])}), so "
            "weights cannot be compared. Resume with the model sharded as it was."
        )
    params = {name: with_local(parameters[name], own) for name, own in local.params.items()}
    return replace(local, params=params), str(about["mark"])


def _about(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return str(file.metadata()["shards"])


def _unlike(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of parameters that are on one side only, or cut in another way."""
    return [name for name in {**then, **now} if then.get(name) != now.get(name)]


def _layout(tensor: Any) -> dict[str, Any]:
    """Shapes and cuts of a tensor, as JSON has them."""
    found: dict[str, Any] = {"shape": list(tensor.shape), "own": list(local_part(tensor).shape)}
    if is_shard(tensor):
        found["cuts"] = [str(placement) for placement in tensor.placements]
        found["mesh"] = list(tensor.device_mesh.shape)
    return found
