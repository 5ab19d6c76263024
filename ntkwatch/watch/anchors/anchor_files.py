"""One anchor as one file, and a folder of them: whole after a kill at any moment."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ntkwatch.jacobian.sketch import KernelSketch
from ntkwatch.jacobian.spec import KernelSpec
from ntkwatch.watch.anchors.anchors import Anchor

__all__ = ["AnchorFolder", "read_anchor", "save_tensors", "write_anchor", "write_atomically"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it.

    Args:
        path: Where it is to be.
        write: Writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_anchor(path: Path, anchor: Anchor, *, about: Mapping[str, str] | None = None) -> None:
    """Write an anchor.

    Args:
        path: Where it is to be.
        anchor: What to write.
        about: Words to go with it.
    """
    tensors = {f"param:{name}": tensor for name, tensor in anchor.params.items()}
    tensors |= {f"buffer:{name}": tensor for name, tensor in anchor.buffers.items()}
    tensors |= {f"layer:{name}": tensor for name, tensor in anchor.layers.items()}
    sketch, about = anchor.sketch, {**(about or {}), "step": str(anchor.step)}
    if sketch is not None:
        found, about["sketch"] = _sketch_parts(sketch)
        tensors |= {f"sketch:{name}": tensor for name, tensor in found.items()}
    if anchor.clock is not None:
        about["clock"] = json.dumps(anchor.clock)
    tensors["outputs"] = anchor.outputs
    if anchor.kernel is not None:
        tensors["kernel"] = anchor.kernel
    if anchor.full is not None:
        tensors["full"] = anchor.full
    # safetensors orders by size; sums over parameters are to be the same to the last bit.
    about["order"] = json.dumps(list(tensors))
    write_atomically(path, lambda part: save_tensors(tensors, part, about))


def read_anchor(path: Path, *, device: torch.device) -> Anchor | None:
    """Return an anchor that was written, or None if there is none.

    Args:
        path: Of its file.
        device: Where its tensors are wanted.

    Returns:
        The anchor.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path, device=str(device))
    kinds = ("param", "buffer", "layer", "sketch", "")
    groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    for key in json.loads(about["order"]):
        group, _, name = key.partition(":") if ":" in key else ("", "", key)
        groups[group][name] = tensors[key]
    drawn, clock = about.get("sketch"), about.get("clock")
    return Anchor(
        step=int(about["step"]),
        params=groups["param"],
        buffers=groups["buffer"],
        layers=groups["layer"],
        outputs=groups[""]["outputs"],
        kernel=groups[""].get("kernel"),
        full=groups[""].get("full"),
        sketch=None if drawn is None else _rebuilt_sketch(groups["sketch"], drawn),
        clock=None if clock is None else json.loads(clock),
    )


class AnchorFolder:
    """A shelf on disk: one file per anchor, and nothing in memory.

    Args:
        folder: Made when the first anchor is written.
    """

    nbytes = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def steps(self) -> list[int]:
        """Steps of the anchors that have a file."""
        found = self.folder.glob("step=*.safetensors")
        return sorted(int(file.stem.partition("=")[2]) for file in found)

    def put(self, anchor: Anchor) -> None:
        """Write an anchor."""
        write_anchor(self._path(anchor.step), anchor)

    def get(self, step: int, device: torch.device) -> Anchor | None:
        """Read the anchor of a step; None where its file is gone.

        Args:
            step: Of the anchor.
            device: Where it is wanted.

        Returns:
            The anchor.

        Raises:
            OSError: If the file is not whole.
        """
        try:
            return read_anchor(self._path(step), device=device)
        except SafetensorError as error:
            raise OSError(f"{self._path(step)} is not whole: {error}") from error

    def drop(self, step: int) -> None:
        """Delete the anchor of a step."""
        self._path(step).unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step={step:08d}.safetensors"


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str]) -> None:
    """Write tensors with metadata, in a form that safetensors takes.

    Args:
        tensors: By name.
        path: Of the file.
        about: Metadata.

    Raises:
        OSError: If it cannot be written.
    """
    # safetensors refuses tensors that share memory or are not contiguous.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(own, path, metadata=about)
    except SafetensorError as error:  # which is no OSError, for a full disk either
        raise OSError(f"{path.name} cannot be written: {error}") from error


def _sketch_parts(sketch: KernelSketch) -> tuple[dict[str, Tensor], str]:
    """A sketch as tensors by name, and the rest of it as JSON."""
    tensors = {"gram": sketch.gram} | ({} if sketch.images is None else {"images": sketch.images})
    tensors |= {f"layer:{layer}": part for layer, part in sketch.layers.items()}
    keys = ("form", "size", "seed", "coupled", "method")
    drawn = {key: getattr(sketch, key) for key in keys}
    return tensors, json.dumps({**drawn, "spec": sketch.spec.to_plain()})


def _rebuilt_sketch(tensors: Mapping[str, Tensor], about: str) -> KernelSketch:
    drawn = json.loads(about)
    spec: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in drawn.pop("spec").items()
    }
    layers = {key.removeprefix("layer:"): tensors[key] for key in tensors if ":" in key}
    return KernelSketch(
        images=tensors.get("images"),
        gram=tensors["gram"],
        layers=layers,
        spec=KernelSpec(**spec),
        **drawn,
    )
