"""How the watching of a run begins: with a new tracker, or where an interrupted run stopped."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import HistoryError
from ntkwatch.integrations.run.resumption import EarlierPart, take_up
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.decay import DecayClock
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker

__all__ = ["Beginning", "earlier_part"]

_WARMUP_SHARE = 0.01  # of all steps, if that is more than the tracker's own warm-up


@dataclass(slots=True, kw_only=True)
class Beginning:
    """What is known of a run before its first batch.

    Attributes:
        step: Optimizer steps taken so far.
        total_steps: Steps the run will take, if known.
        settings: Arguments of ``KernelTracker``.
        draw: Given a seed, returns a fresh probe for an observation; None for the same probe at
            every one.
        decay: Counts what weight decay does, from the first step on.
        new: Makes a tracker: ``KernelTracker``, or one that has the help of other processes.
    """

    step: int = 0
    total_steps: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    draw: Callable[[int], ProbeBatch | None] | None = None
    decay: DecayClock = field(default_factory=DecayClock)
    new: Callable[..., KernelTracker] = KernelTracker

    def tracker(self, probe: ProbeBatch, files: RunFiles) -> KernelTracker:
        """Return a tracker that has seen nothing yet and keeps its anchors in a run's folder."""
        first = self.step
        words = "before the first update" if first == 0 else f"step {first}, where this fit began"
        tracker = self.new(
            probe,
            reference=words,
            reference_is_start=first == 0,
            fresh_probe=None if self.draw is None else self._fresh_probe,
            **self.settings,
        )
        share = int(_WARMUP_SHARE * (self.total_steps or 0))
        tracker.warmup_steps = max(tracker.warmup_steps, share)
        tracker.keep_anchors_on(files.anchors)
        tracker.decay = self.decay
        return tracker

    def tracker_of(
        self,
        earlier: EarlierPart,
        *,
        weights: Mapping[int, Mapping[str, Tensor]] | None = None,
        decay: Mapping[str, Any] | None = None,
    ) -> KernelTracker:
        """Return a tracker that goes on where an interrupted run stopped.

        Args:
            earlier: What that had seen.
            weights: Its tracker's ``last_weights``, or None where they are not known.
            decay: What weight decay had done by then, or None where that is not known.

        Returns:
            The tracker.
        """
        tracker = self.tracker(earlier.probe, earlier.files)
        tracker.resume(
            earlier.history,
            earlier.start,
            earlier.warmup,
            last_kernel=earlier.last_kernel,
            weights=weights,
            kernel_at=lambda step: earlier.files.read_kernel(step, device=torch.device("cpu")),
            decay=decay,
        )
        return tracker

    def let_go(self) -> None:
        """Draw no more: what draws holds on to the training's data."""
        self.draw = None

    def _fresh_probe(self, step: int) -> ProbeBatch:
        """A probe of its own for every step, the same whenever that step is observed again."""
        probe = None if self.draw is None else self.draw(step)
        assert probe is not None
        return probe


def earlier_part(
    interrupted: Mapping[str, Any], files: RunFiles, *, step: int, device: torch.device
) -> EarlierPart | None:
    """Return what an interrupted run had seen; where that is lost, say so and return None.

    Args:
        interrupted: State that the interrupted run left in its checkpoint.
        files: Of the resumed run.
        step: Optimizer steps at the checkpoint; at 0 there is nothing to go on from.
        device: Of the model.

    Returns:
        The earlier part, or None.
    """
    if step == 0:
        return None
    try:
        return take_up(interrupted.get("folder", ""), files, step=step, device=device)
    except HistoryError as lost:
        warnings.warn(
            f"training goes on from step {step} and what ntkwatch saw of it before is lost "
            f"({str(lost).rstrip('.')}): drift is counted from the resumed weights, and there will "
            "be no verdict. Resume from a checkpoint of a watched run whose folder is still there.",
            stacklevel=3,
        )
        return None
