"""Taking up the files of an interrupted run where its checkpoint stands."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ntkwatch.errors import HistoryError
from ntkwatch.watch.anchors import Anchor
from ntkwatch.watch.history import HISTORY_FILE, History, read_history
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.store import RunFiles

__all__ = ["EarlierPart", "free_folder", "take_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierPart:
    """What an interrupted run had seen when its checkpoint was written.

    Attributes:
        files: Where it goes on: its own folder, or a copy in the resumed run's.
        history: Observations up to the checkpoint.
        probe: Its probe.
        start: Its reference.
        warmup: Its anchor at the end of the warm-up, if that was reached.
        last_kernel: Trace kernel of its last whole observation, if that was written.
    """

    files: RunFiles
    history: History
    probe: ProbeBatch
    start: Anchor
    warmup: Anchor | None
    last_kernel: Tensor | None


def take_up(folder: str, files: RunFiles, *, step: int, device: torch.device) -> EarlierPart | None:
    """Return the earlier part of an interrupted run, with its history cut at the checkpoint.

    What was seen after the checkpoint was written is about to happen again; and what was seen
    because training ended there, when none was due, would not be in the history of a run that went
    on. A history that loses lines this way is kept beside the shortened one.

    Args:
        folder: That the interrupted run wrote to.
        files: Of the resumed run; a copy is made there if that is another folder.
        step: Optimizer steps at the checkpoint.
        device: Of the model.

    Returns:
        The earlier part, or None where its files are gone or cannot be read.
    """
    earlier = RunFiles(Path(folder))
    if not folder or not earlier.can_go_on:
        return None
    try:
        then = read_history(earlier.history)
    except HistoryError:
        return None
    if files.folder.resolve() == earlier.folder.resolve():
        files = earlier
        files.sweep()
    else:
        files = RunFiles(free_folder(files.folder))
        files.copy_from(earlier, until=step)
    kept = tuple(seen for seen in then if seen.step <= step and not seen.at_end)
    gaps = tuple(gap for gap in then.gaps if gap.step <= step)
    if len(kept) < len(then) and files is earlier:
        files.set_aside()
    angles = None if then.angles is None else then.angles.only({o.step for o in kept})
    history = History(then.run, kept, gaps, angles=angles)
    files.rewrite(history)
    start = files.read_anchor(device=device)
    warmup = files.read_anchor("warmup", device=device)
    assert start is not None
    whole = history.last_whole
    in_time = warmup is not None and warmup.step in {seen.step for seen in kept}
    return EarlierPart(
        files=files,
        history=history,
        probe=files.read_probe(),
        start=start,
        warmup=warmup if in_time else None,
        last_kernel=None if whole is None else files.read_kernel(whole.step, device=device),
    )


def free_folder(folder: Path) -> Path:
    """Return the folder, or the next free name beside it: an existing run is not overwritten."""
    number, free = 1, folder
    while (free / HISTORY_FILE).exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
