"""Taking up the files of an interrupted run where its checkpoint stands."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ntkwatch.errors import HistoryError
from ntkwatch.integrations.run.claim import free_folder
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.record.history import History, read_history
from ntkwatch.watch.store import RunFiles

__all__ = ["EarlierPart", "take_up"]


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
        unwritten: Why the files could not be brought to where the run goes on, or None.
        bring: Tries that again; nothing else may be written before it succeeds.
    """

    files: RunFiles
    history: History
    probe: ProbeBatch
    start: Anchor
    warmup: Anchor | None
    last_kernel: Tensor | None
    unwritten: OSError | None = None
    bring: Callable[[], None] = lambda: None


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
    # Everything is read before anything is changed: a file may be damaged, and processes that hold
    # shards may not agree.
    try:
        then = read_history(earlier.history)
        start = earlier.read_anchor(device=device)
        warmup = earlier.read_anchor("warmup", device=device)
        probe = earlier.read_probe()
        kept = tuple(seen for seen in then if seen.step <= step and not seen.at_end)
        gaps = tuple(gap for gap in then.gaps if gap.step <= step)
        angles = None if then.angles is None else then.angles.only({o.step for o in kept})
        history = History(then.run, kept, gaps, angles=angles)
        whole = history.last_whole
        kernel = None if whole is None else earlier.read_kernel(whole.step, device=device)
    except (HistoryError, OSError, SafetensorError, KeyError, ValueError) as error:
        raise HistoryError(f"its files ({folder}) cannot be read: {error}") from error
    assert start is not None
    if warmup is not None and warmup.step not in {seen.step for seen in kept}:
        warmup = None
    moves = files.folder.resolve() != earlier.folder.resolve()
    files = RunFiles(free_folder(files.folder), files.shards) if moves else earlier
    part = EarlierPart(
        files=files, history=history, probe=probe, start=start, warmup=warmup, last_kernel=kernel
    )
    bring = partial(_bring, earlier, part, step=step, is_shorter=len(kept) < len(then))
    try:
        bring()
    except OSError as error:  # no room: training and watching go on, and the files follow
        return replace(part, unwritten=error, bring=bring)
    return part


def _bring(earlier: RunFiles, part: EarlierPart, *, step: int, is_shorter: bool) -> None:
    """Bring the files to where the run goes on."""
    files = part.files
    if files is earlier:
        files.sweep()
        if is_shorter:
            files.set_aside()
    else:
        files.copy_from(earlier, until=step)
    files.rewrite(part.history)
    if files.shards is not None and files is not earlier:
        _keep_shards(files, part.start, part.warmup)


def _keep_shards(files: RunFiles, start: Anchor, warmup: Anchor | None) -> None:
    """Write what no process can copy for the others: each has its own disk, perhaps."""
    files.write_anchor(start)
    if warmup is not None:
        files.write_anchor(warmup, "warmup")
