"""The checkpoints of one training in the order in which they were written. Nothing is measured."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ntkwatch.errors import CheckpointError
from ntkwatch.integrations.checkpoints.files import (
    Checkpoint,
    Weights,
    number_in_name,
    read_checkpoint,
)
from ntkwatch.integrations.checkpoints.places import name_of
from ntkwatch.integrations.checkpoints.shards import files_of

__all__ = ["Entry", "Series", "Skipped", "digest_of", "in_order"]

Clock = Literal["step", "epoch", "time"]


class Entry(NamedTuple):
    """One checkpoint to be measured.

    Attributes:
        path: The file.
        step: Its place on the series' clock.
        epoch: Epochs completed, or None.
    """

    path: Path
    step: int
    epoch: int | None


class Skipped(NamedTuple):
    """A file that is left out.

    Attributes:
        path: The file.
        step: As its name says, or None.
        reason: Why.
        is_broken: Whether it should have been measured; a copy of another one should not.
    """

    path: Path
    step: int | None
    reason: str
    is_broken: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The checkpoints of one training.

    Attributes:
        entries: In order, one per step; at least one.
        skipped: Files left out, with reasons.
        clock: What ``step`` counts: optimizer steps, epochs, or files by the time of writing.
        hyper_parameters: Of the model, as the earliest checkpoint that has any keeps them.
        data_hyper_parameters: Of the data module.
    """

    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...] = ()
    clock: Clock
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    data_hyper_parameters: dict[str, Any] = field(default_factory=dict)


def in_order(paths: Sequence[Path], *, trust: bool = False, weights: Weights = "raw") -> Series:
    """Return checkpoints by the step that they hold, else by epoch, else by time of writing.

    Args:
        paths: Files.
        trust: Whether code in them may run.
        weights: Which weights are wanted.

    Returns:
        The series; files that cannot be read, and copies, are left out of it.

    Raises:
        CheckpointError: If no file can be read, with the reason of the first.
    """
    read: list[Checkpoint] = []
    skipped: list[Skipped] = []
    for path in paths:
        try:
            found = read_checkpoint(path, trust=trust, weights=weights)
            # Of however many files there are, the weights of one at a time are in memory.
            read.append(replace(found, tensors={}))
            del found
        except CheckpointError as error:
            skipped.append(Skipped(path, number_in_name(path, "step"), str(error), True))
    if not read:
        raise CheckpointError(
            f"none of the {len(skipped)} checkpoints can be read. {skipped[0].reason}"
            if len(skipped) > 1
            else skipped[0].reason
        )
    clock = _clock(read)
    entries: dict[int, Entry] = {}
    for place, found in enumerate(sorted(read, key=lambda c: _order(c, clock))):
        step = {"step": found.step, "epoch": found.epoch, "time": place}[clock]
        assert step is not None
        if step in entries:
            reason = f"another checkpoint of {clock} {step} is used: {name_of(entries[step].path)}"
            skipped.append(Skipped(found.path, step, reason, False))
        else:
            entries[step] = Entry(found.path, step, found.epoch)
    by_path = {found.path: found for found in read}
    used = [by_path[entry.path] for entry in entries.values()]
    return Series(
        entries=tuple(entries.values()),
        skipped=tuple(skipped),
        clock=clock,
        # A state dict, of step 0 say, keeps none.
        hyper_parameters=next((c.hyper_parameters for c in used if c.hyper_parameters), {}),
        data_hyper_parameters=next(
            (c.data_hyper_parameters for c in used if c.data_hyper_parameters), {}
        ),
    )


def digest_of(path: Path) -> str:
    """Return a digest of what a checkpoint's files hold."""
    digests = []
    for part in files_of(path):
        with part.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256(repr(digests).encode()).hexdigest()


def _clock(read: Sequence[Checkpoint]) -> Clock:
    """What all of them tell: a series of mixed clocks has no order."""
    if all(found.step is not None for found in read):
        return "step"
    return "epoch" if all(found.epoch is not None for found in read) else "time"


def _order(found: Checkpoint, clock: Clock) -> tuple[float, bool, str]:
    """Of two of one step, the one named for it rather than "last"."""
    when: float | None = found.path.stat().st_mtime
    if clock != "time":
        when = found.step if clock == "step" else found.epoch
    assert when is not None
    return when, found.path.stem.startswith("last"), found.path.name
