"""One observation, from the model to the files: measured, judged, handed over, and paid for.

When to observe is another file's business, and so is what happens when measuring fails.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ntkwatch.integrations.losses import Losses
from ntkwatch.integrations.mishaps import Mishaps
from ntkwatch.integrations.outlet import Outlet
from ntkwatch.watch.bands import Strength
from ntkwatch.watch.budget import Kind, OverheadBudget
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.training import Training
from ntkwatch.watch.verdict import Verdict, judge

__all__ = ["Observer"]


class Observer:
    """Observes with a tracker, and hands over what was seen.

    Args:
        outlet: Where numbers go.
        budget: Learns what an observation costs.
        mishaps: What happens when something cannot be handed over.
        on_verdict: Called with the verdict when its strength changes.

    Attributes:
        verdict: As of the last observation, or None.
        tried: Step of the last attempt to observe, or None.
        losses: Of the last batches.
        training: Tells how the model is trained at the moment, or None.
    """

    def __init__(
        self,
        outlet: Outlet,
        budget: OverheadBudget,
        mishaps: Mishaps,
        on_verdict: Callable[[Verdict], object] | None,
    ) -> None:
        self._outlet, self._budget = outlet, budget
        self._mishaps, self._on_verdict = mishaps, on_verdict
        self.verdict: Verdict | None = None
        self.tried: int | None = None
        self.losses = Losses()
        self.training: Callable[[], Training] | None = None

    def observe(
        self,
        tracker: KernelTracker,
        files: RunFiles,
        model: nn.Module,
        step: int,
        *,
        reference: bool = False,
        brief: bool = False,
        **rest: Any,
    ) -> None:
        """Observe, and let the budget know the price, also if that fails.

        Args:
            tracker: That observes.
            files: The run's folder.
            model: The model.
            step: Optimizer steps taken so far.
            reference: Whether the reference is taken, which costs more than what follows.
            brief: Whether to leave out the kernel, as the budget asked.
            rest: Epoch, x axis of the run's loggers, weights to measure in place of the model's,
                and whether training is over.
        """
        began = time.perf_counter()
        try:
            self._observe(tracker, files, model, step, brief=brief, **rest)
        finally:
            kind: Kind = "brief" if brief else "whole"
            self._budget.note_price(time.perf_counter() - began, None if reference else kind)

    def _observe(
        self,
        tracker: KernelTracker,
        files: RunFiles,
        model: nn.Module,
        step: int,
        *,
        brief: bool,
        last: bool = False,
        **place: Any,
    ) -> None:
        reference, warmup = tracker.reference, tracker.warmup
        is_first = reference is None
        self.tried = step
        self.tell_start_loss(tracker, files, self.losses.first)
        loss = tracker.loss_start if is_first else self.losses.mean
        training = None if self.training is None else self.training()
        how: dict[str, Any] = {"loss": loss, "training": training, "brief": brief, **place}
        seen = tracker.observe(model, step, **how)
        self._mishaps.observed()
        before = self.verdict
        # A brief observation has too little to judge by.
        verdict = before if before and seen.is_brief else judge(tracker.history)
        self.verdict = verdict
        with self._mishaps.unwritten(f"what it saw at step {step}"):
            if is_first:
                self._outlet.begin(tracker, files)
            if tracker.warmup is not None and tracker.warmup is not warmup:
                files.write_anchor(tracker.warmup, "warmup")
            share, spent = self._budget.share, self._budget.spent
            cost: dict[str, Any] = {"overhead_share": share, "overhead_seconds": spent}
            seen = replace(seen, **cost, at_end=last)
            tracker.history.add(seen)
            self._outlet.observed(tracker, seen, verdict, files, last=last)
            if not is_first and tracker.reference is not reference:
                self._outlet.begin_again(tracker, files)
        changed = verdict.strength != (before.strength if before else Strength.UNDETERMINED)
        if changed and self._on_verdict is not None:
            with self._mishaps.unwritten("the verdict"):
                self._on_verdict(verdict)

    def tell_start_loss(self, tracker: KernelTracker, files: RunFiles, loss: float | None) -> None:
        """The first batch's loss is that of the reference, but is known only after it was taken.

        Args:
            tracker: That is told, unless it knows.
            files: The run's folder.
            loss: The first batch's, or None while it is not known.
        """
        if tracker.loss_start is not None or loss is None:
            return
        tracker.note_start_loss(loss)
        if tracker.reference is not None:
            with self._mishaps.unwritten("the loss at the start"):
                files.rewrite(tracker.history)
