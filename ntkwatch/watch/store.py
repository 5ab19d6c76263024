"""The files of a run: history, probe, anchors, kernels and verdict, readable at any moment.

A file is written under a temporary name and then renamed, or appended in whole lines, so that a
killed run leaves nothing half-written.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ntkwatch.errors import HistoryError
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.shards import is_shard
from ntkwatch.watch.anchors.anchor_files import (
    AnchorFolder,
    read_anchor,
    save_tensors,
    write_anchor,
    write_atomically,
)
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.record.angles import ANGLES_FILE, KernelAngles
from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.record.history import HISTORY_FILE, History, append_record
from ntkwatch.watch.record.records import Gap, Observation, RunInfo

__all__ = ["RunFiles", "Shards", "read_probe", "write_atomically"]

_PROBE = "probe.safetensors"
_ANCHORS = {"start": "reference.safetensors", "warmup": "reference-warmup.safetensors"}
_PAGES = ("verdict.json", "report.html")
_NAMES = (HISTORY_FILE, ANGLES_FILE, _PROBE, *_ANCHORS.values(), *_PAGES)
_PARTS = ("kernels", "anchors", "shards")


class Shards(Protocol):
    """How processes that hold shards of a model keep their parts of its anchors."""

    def are_in(self, folder: Path, kind: str) -> bool:
        """Return whether this process has a part of an anchor there."""

    def write(self, folder: Path, anchor: Anchor, kind: str) -> None:
        """Let every process write its part of an anchor."""

    def read(self, folder: Path, kind: str) -> Anchor:
        """Return this process's part of an anchor that all processes can read."""


class RunFiles:
    """What a watched run leaves in its folder.

    Args:
        folder: Made when the first file is written.
        shards: Where processes hold shards of the model, how they keep anchors; else None.
    """

    def __init__(self, folder: Path, shards: Shards | None = None) -> None:
        self.folder, self.shards = folder, shards

    @property
    def history(self) -> Path:
        """Path of the history."""
        return self.folder / HISTORY_FILE

    @property
    def reference(self) -> Path:
        """Path of the anchor at the reference."""
        return self.folder / _ANCHORS["start"]

    @property
    def can_go_on(self) -> bool:
        """Whether there is all that an interrupted run needs to go on from here."""
        needed = (HISTORY_FILE, _PROBE)
        return self._has("start") and all((self.folder / name).is_file() for name in needed)

    def _has(self, kind: str) -> bool:
        if self.shards is not None:
            return self.shards.are_in(self.folder, kind)
        return (self.folder / _ANCHORS[kind]).is_file()

    def append(self, record: RunInfo | Observation | Gap | Cost) -> None:
        """Append one line to the history."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append_record(self.history, record)

    def rewrite(self, history: History) -> None:
        """Write the history anew, with only what it holds now."""

        def write(path: Path) -> None:
            records: list[RunInfo | Observation | Gap] = [history.run]
            for record in [*records, *history.observations, *history.gaps]:
                append_record(path, record)

        write_atomically(self.history, write)
        if history.angles is not None:
            self.write_angles(history.angles)

    def write_probe(self, probe: ProbeBatch) -> None:
        """Write the probe batch."""
        tensors = _named_leaves("inputs", probe.inputs)
        if probe.targets is not None:
            tensors["targets"] = probe.targets
        about = {"origin": probe.origin, "structure": json.dumps(_structure(probe.inputs))}
        if probe.whole_training_set:
            about["whole_training_set"] = "yes"
        write_atomically(self.folder / _PROBE, lambda path: save_tensors(tensors, path, about))

    def read_probe(self) -> ProbeBatch:
        """Return the probe batch that was written."""
        return read_probe(self.folder / _PROBE)

    def write_anchor(self, anchor: Anchor, kind: str = "start") -> None:
        """Write an anchor, "start" or "warmup"; of shards, with the processes that hold the others.

        Args:
            anchor: What to write; shards that nobody keeps are left out.
            kind: Which it is.
        """
        if self.shards is not None:
            self.shards.write(self.folder, anchor, kind)
        elif not any(is_shard(tensor) for tensor in anchor.params.values()):
            write_anchor(self.folder / _ANCHORS[kind], anchor)

    def read_anchor(self, kind: str = "start", *, device: torch.device) -> Anchor | None:
        """Return an anchor that was written, on a device, or None if there is none."""
        if self.shards is not None:
            return self.shards.read(self.folder, kind) if self._has(kind) else None
        return read_anchor(self.folder / _ANCHORS[kind], device=device)

    @property
    def anchors(self) -> AnchorFolder:
        """Where anchors after the warm-up are kept."""
        return AnchorFolder(self.folder / "anchors")

    def write_angles(self, angles: KernelAngles) -> None:
        """Write the angles between kernels anew."""
        text = json.dumps(angles.to_plain(), allow_nan=False, separators=(",", ":")) + "\n"
        self.write_text(ANGLES_FILE, text)

    def write_kernel(self, step: int, kernel: Tensor) -> None:
        """Write the trace kernel of one step."""
        path = self._kernel_path(step)
        about = {"step": str(step)}
        write_atomically(path, lambda part: save_tensors({"kernel": kernel}, part, about))

    def read_kernel(self, step: int, *, device: torch.device) -> Tensor | None:
        """Return the trace kernel of one step, on a device, or None if it was not written."""
        path = self._kernel_path(step)
        return load_file(path, device=str(device))["kernel"] if path.is_file() else None

    def _kernel_path(self, step: int) -> Path:
        return self.folder / "kernels" / f"step={step:08d}.safetensors"

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a small JSON file, such as the verdict."""
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, such as the report."""
        write_atomically(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written under a temporary name."""
        # Of our own files only: others may keep theirs in the same folder.
        for name in _NAMES:
            (self.folder / f".{name}.tmp").unlink(missing_ok=True)
        for part in _PARTS:
            for path in (self.folder / part).glob(".*.safetensors.tmp"):
                path.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Keep a copy of the history, beside earlier ones, before some of it is taken back."""
        number, free = 1, self.folder / "history.before-resume.jsonl"
        while free.exists():
            number += 1
            free = free.with_name(f"history.before-resume-{number}.jsonl")
        _copy(self.history, free)

    def copy_from(self, other: "RunFiles", *, until: int) -> None:
        """Take over history, probe, anchors and kernels of an earlier part of this run.

        Args:
            other: Files of the earlier part.
            until: Last step whose kernel or anchor is wanted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (HISTORY_FILE, ANGLES_FILE, _PROBE, *_ANCHORS.values()):
            if (other.folder / name).is_file():
                _copy(other.folder / name, self.folder / name)
        for part in ("kernels", "anchors"):
            for file in sorted((other.folder / part).glob("step=*.safetensors")):
                if int(file.stem.partition("=")[2]) <= until:
                    _copy(file, self.folder / part / file.name)


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda part: shutil.copyfile(source, part))


def read_probe(path: Path) -> ProbeBatch:
    """Return a probe batch from its file.

    Args:
        path: The ``probe.safetensors`` of a run.

    Returns:
        The probe.

    Raises:
        HistoryError: If there is no such file.
    """
    if not path.is_file():
        raise HistoryError(
            f"{path} does not exist, so the probe of that run cannot be used again. Give the "
            "probe.safetensors that NTKMonitor wrote beside its history."
        )
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    inputs = _rebuilt(json.loads(about["structure"]), tensors)
    whole = about.get("whole_training_set") == "yes"
    return ProbeBatch(
        inputs, tensors.get("targets"), origin=about["origin"], whole_training_set=whole
    )


def _structure(inputs: Inputs, name: str = "inputs") -> Any:
    """The shape of nested inputs as JSON, with the file's key in place of each tensor."""
    if isinstance(inputs, Tensor):
        return {"tensor": name}
    if isinstance(inputs, Mapping):
        return {"mapping": {k: _structure(v, f"{name}.{k}") for k, v in inputs.items()}}
    if isinstance(inputs, tuple | list):
        return {"tuple": [_structure(v, f"{name}.{i}") for i, v in enumerate(inputs)]}
    plain = isinstance(inputs, bool | int | float | str | type(None))
    return {"value": inputs if plain else None}


def _rebuilt(structure: Any, tensors: Mapping[str, Tensor]) -> Inputs:
    ((kind, value),) = structure.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "mapping":
        return {name: _rebuilt(part, tensors) for name, part in value.items()}
    if kind == "tuple":
        return tuple(_rebuilt(part, tensors) for part in value)
    return value


def _named_leaves(name: str, inputs: Inputs) -> dict[str, Tensor]:
    if isinstance(inputs, Tensor):
        return {name: inputs}
    parts: list[tuple[Any, Any]] = []
    if isinstance(inputs, Mapping):
        parts = list(inputs.items())
    elif isinstance(inputs, tuple | list):
        parts = list(enumerate(inputs))
    found: dict[str, Tensor] = {}
    for key, part in parts:
        found |= _named_leaves(f"{name}.{key}", part)
    return found
