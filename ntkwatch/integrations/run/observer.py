"""One observation, from the model to the files: measured, judged, handed over, and paid for.

When to observe is another file's business, and so is what happens when measuring fails.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ntkwatch.integrations.run.held_signals import HeldSignals
from ntkwatch.integrations.run.losses import Losses
from ntkwatch.integrations.run.mishaps import Mishaps, in_words
from ntkwatch.integrations.run.outlet import FOLDER, Outlet
from ntkwatch.jacobian.memory import is_out_of_memory
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.budget import Kind, OverheadBudget
from ntkwatch.watch.record.records import Gap, Observation
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.training import Training
from ntkwatch.watch.verdict.bands import Strength
from ntkwatch.watch.verdict.verdict import Verdict, judge

__all__ = ["Observer"]

_TIMES_SMALLER = 2  # retries where memory runs out, each in a quarter of the memory


class Observer:
    """Observes with a tracker, and hands over what was seen.

    Args:
        outlet: Where numbers go.
        budget: Learns what an observation costs.
        mishaps: What happens when something cannot be handed over.
        signals: Held from the first look at the model on; whoever called lets them go.
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
        signals: HeldSignals,
        on_verdict: Callable[[Verdict], object] | None,
    ) -> None:
        self._outlet, self._budget = outlet, budget
        self._mishaps, self._signals, self._on_verdict = mishaps, signals, on_verdict
        self._begun: Anchor | None = None  # the reference that is in the files
        self.verdict: Verdict | None = None
        self.tried: int | None = None
        self._x = 0
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
        self._signals.hold()
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
        warmup, is_first = tracker.warmup, tracker.reference is None
        if self._begun is None:
            self._begun = tracker.reference  # of a run that is resumed
        self.tried, self._x = step, place.get("logged_step", step)
        self.tell_start_loss(tracker, files, self.losses.first)
        loss = tracker.loss_start if is_first else self.losses.mean
        training = None if self.training is None else self.training()
        how: dict[str, Any] = {"loss": loss, "training": training, "brief": brief, **place}
        seen = self._measured(tracker, model, step, **how)
        self._mishaps.observed()
        before = self.verdict
        if before is None or not seen.is_brief:  # which has too little to judge by
            self.verdict = judge(tracker.history)
        assert self.verdict is not None
        trying = self._mishaps.unwritten
        if is_first:
            self._outlet.begin(tracker, files, trying)
            self._begun = tracker.reference
        with trying("the end of the warm-up", FOLDER):
            if tracker.warmup is not None and tracker.warmup is not warmup:
                files.write_anchor(tracker.warmup, "warmup")
        share, spent = self._budget.share, self._budget.spent
        cost: dict[str, Any] = {"overhead_share": share, "overhead_seconds": spent}
        seen = replace(seen, **cost, at_end=last)
        tracker.history.add(seen)
        self._outlet.observed(tracker, seen, self.verdict, files, trying, last=last)
        with trying("the reference", FOLDER):
            if tracker.reference is not self._begun:
                self._begun = tracker.reference
                self._outlet.begin_again(tracker, files)
        self._tell_verdict(before)

    def _measured(
        self, tracker: KernelTracker, model: nn.Module, step: int, **rest: Any
    ) -> Observation:
        """What a tracker observes: where memory runs out, in smaller and smaller pieces."""
        for _ in range(_TIMES_SMALLER):
            try:
                return tracker.observe(model, step, **rest)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                words = in_words(error)
            # Only now: until here the error held on to all that was computed.
            gc.collect(1)  # what was just made
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self._mishaps.short_of_memory(step, words, tracker.lower_memory_budget())
        return tracker.observe(model, step, **rest)

    def missed(self, tracker: KernelTracker, files: RunFiles, gap: Gap) -> None:
        """Write down that observing failed, or that there was nothing left to observe.

        Args:
            tracker: That was to observe.
            files: The run's folder.
            gap: What is written down.
        """
        trying = self._mishaps.unwritten
        tracker.history.gaps.append(gap)
        with trying(f"the gap at step {gap.step}", FOLDER):
            self._outlet.append(gap, tracker, files)
        if gap.kind == "diverged":  # which says something about the training
            before, self.verdict = self.verdict, judge(tracker.history)
            self._outlet.diverged(self.verdict, self._x, trying)
            self._tell_verdict(before)

    def _tell_verdict(self, before: Verdict | None) -> None:
        assert self.verdict is not None
        changed = self.verdict.strength != (before.strength if before else Strength.UNDETERMINED)
        if changed and self._on_verdict is not None:
            with self._mishaps.unwritten("the verdict", "the function given as on_verdict="):
                self._on_verdict(self.verdict)

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
        # Where the file is behind it is written anew anyway, after what has to come before.
        if tracker.reference is not None and not self._outlet.is_behind:
            with self._mishaps.unwritten("the loss at the start", FOLDER):
                files.rewrite(tracker.history)
