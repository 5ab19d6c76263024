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


def take_up(folder: str, files: RunFiles, *, step: int, device: torch.device) -> EarlierPart:
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
        The earlier part.

    Raises:
        HistoryError: If its files are gone or cannot be read, with the reason in few words.
    """
    if not folder:
        raise HistoryError("its checkpoint holds none")
    earlier = RunFiles(Path(folder), files.shards)
    if not earlier.can_go_on:
        raise HistoryError(f"its files ({folder}) are gone")
    try:
        then = read_history(earlier.history)
    except HistoryError as error:
        raise HistoryError(f"its files ({folder}) are gone") from error
    # Before anything is changed: processes that hold shards may not agree.
    start = earlier.read_anchor(device=device)
    warmup = earlier.read_anchor("warmup", device=device)
    assert start is not None
    if files.folder.resolve() == earlier.folder.resolve():
        files = earlier
        files.sweep()
    else:
        files = RunFiles(free_folder(files.folder), files.shards)
        files.copy_from(earlier, until=step)
    kept = tuple(seen for seen in then if seen.step <= step and not seen.at_end)
    gaps = tuple(gap for gap in then.gaps if gap.step <= step)
    if len(kept) < len(then) and files is earlier:
        files.set_aside()
    angles = None if then.angles is None else then.angles.only({o.step for o in kept})
    history = History(then.run, kept, gaps, angles=angles)
    files.rewrite(history)
    whole = history.last_whole
    if warmup is not None and warmup.step not in {seen.step for seen in kept}:
        warmup = None
    if files.shards is not None and files is not earlier:
        _keep_shards(files, start, warmup)
    return EarlierPart(
        files=files,
        history=history,
        probe=files.read_probe(),
        start=start,
        warmup=warmup,
        last_kernel=None if whole is None else files.read_kernel(whole.step, device=device),
    )


def _keep_shards(files: RunFiles, start: Anchor, warmup: Anchor | None) -> None:
    """Write what no process can copy for the others: each has its own disk, perhaps."""
    files.write_anchor(start)
    if warmup is not None:
        files.write_anchor(warmup, "warmup")


def free_folder(folder: Path) -> Path:
    """Return the folder, or the next free name beside it: an existing run is not overwritten."""
    number, free = 1, folder
    while (free / HISTORY_FILE).exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
