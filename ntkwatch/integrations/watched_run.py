"""One watched training run: when to look, what it may cost, and what happens when looking fails.

No training framework is known here: a callback tells it where training is and hands it the model.
"""

import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.integrations.gathering import Gathering
from ntkwatch.integrations.losses import Losses
from ntkwatch.integrations.mishaps import Mishaps, in_words, say
from ntkwatch.integrations.outlet import Outlet
from ntkwatch.integrations.resumption import free_folder, take_up
from ntkwatch.watch.bands import Strength
from ntkwatch.watch.budget import Kind, OverheadBudget
from ntkwatch.watch.history import History
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.records import Cost, Gap
from ntkwatch.watch.schedule import Schedule
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.training import Training
from ntkwatch.watch.verdict import Verdict, judge

__all__ = ["WatchedRun"]

_WARMUP_SHARE = 0.01  # of all steps, if that is more than the tracker's own warm-up

_NOTHING_TO_DRAW_FROM = (
    "resample_probe=True draws a fresh probe at every observation, and this run has no dataset "
    "whose items can be read one by one. Use resample_probe=False, which gathers one probe from "
    "the first batches, or a map-style dataset."
)


class WatchedRun:
    """Watches one training run from its first batch to its end.

    Args:
        folder: For the run's files.
        outlet: Where numbers go.
        schedule: When an observation is due.
        max_overhead: Largest share of wall time, or None to obey the schedule whatever it costs.
        tracker_settings: Arguments of ``KernelTracker``.
        probe_size: Rows to gather where no probe can be drawn.
        on_error: "warn" or "raise".
        on_verdict: Called with the verdict when its strength changes.
        keeps_files: Whether the folder stays after the run.

    Attributes:
        files: The run's folder.
        verdict: As of the last observation, or None.
    """

    def __init__(
        self,
        folder: Path,
        outlet: Outlet,
        *,
        schedule: Schedule,
        max_overhead: float | None,
        tracker_settings: dict[str, Any],
        probe_size: int,
        on_error: Literal["warn", "raise"],
        on_verdict: Callable[[Verdict], object] | None,
        keeps_files: bool = True,
    ) -> None:
        self.files = RunFiles(folder)
        self.verdict: Verdict | None = None
        self._outlet, self._schedule = outlet, schedule
        self._capped = max_overhead is not None
        self._max_overhead = max_overhead
        self._budget = OverheadBudget(1.0 if max_overhead is None else max_overhead)
        self._tracker_settings, self._probe_size = tracker_settings, probe_size
        self._mishaps, self._on_verdict = Mishaps(on_error), on_verdict
        self._keeps_files = keeps_files
        self._tracker: KernelTracker | None = None
        self._total_steps: int | None = None
        self._first_step = 0
        self._tried: int | None = None
        self._gathering: Gathering | None = None
        self._losses = Losses()
        self._training: Callable[[], Training] | None = None
        self._draw: Callable[[int], ProbeBatch | None] | None = None
        self._finished = False

    @property
    def history(self) -> History:
        """What was observed so far."""
        return History() if self._tracker is None else self._tracker.history

    @property
    def has_reference(self) -> bool:
        """Whether there is something to compare with."""
        return self._tracker is not None and self._tracker.reference is not None

    @property
    def stood_down(self) -> bool:
        """Whether failures have ended the watching."""
        return self._mishaps.stood_down

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on from here: plain values only."""
        if self._tracker is None or not self.has_reference:
            return {}
        first = self._tracker.loss_start
        first = self._losses.first if first is None else first
        folder = str(self.files.folder.resolve())
        cost = {"overhead_seconds": self._budget.spent, "elapsed_seconds": self._budget.elapsed}
        return {"folder": folder, "loss_start": first, "losses": self._losses.recent, **cost}

    # From the first batch to the last. ------------------------------------------------------------

    def begin(
        self,
        model: nn.Module,
        *,
        step: int,
        total_steps: int | None,
        interrupted: dict[str, Any] | None,
        draw: Callable[[int], ProbeBatch | None],
        resample: bool = False,
        may_stop_early: bool = False,
        training: Callable[[], Training] | None = None,
    ) -> None:
        """Go on with an interrupted run, or draw a probe for a new one.

        Args:
            model: The model.
            step: Optimizer steps taken so far.
            total_steps: Steps the run will take, if known.
            interrupted: State that the interrupted run left in its checkpoint, or None.
            draw: Given a seed, returns a probe, or None to gather one from the first batches.
            resample: Whether to draw a fresh probe for every observation.
            may_stop_early: Whether something may end training before that many steps.
            training: Tells how the model is trained at the moment, as far as that is known.

        Raises:
            InputError: If fresh probes are wanted and there is no dataset to draw them from.
        """
        self._total_steps, self._first_step = total_steps, step
        self._training, self._draw = training, draw if resample else None
        self._schedule.expect(total_steps)
        self._budget.expect(None if may_stop_early else total_steps, first_step=step)
        if step == 0 or not self._go_on(model, step, interrupted or {}):
            self.files = RunFiles(free_folder(self.files.folder))
            probe = draw(0)
            if probe is None and resample:
                self._draw = None
                raise InputError(_NOTHING_TO_DRAW_FROM)
            if probe is not None:
                self._tracker = self._new_tracker(probe)

    def take_reference(self, model: nn.Module, batch: Any, *, step: int, **place: Any) -> None:
        """Take the reference before the first update; gather a probe first where none was drawn.

        Args:
            model: The model.
            batch: That training is about to use.
            step: Optimizer steps taken so far.
            place: Epoch and x axis of the run's loggers.
        """
        if self._tracker is not None:
            self._timed(model, step, **place, reference=True)
            return
        if self._gathering is None:
            self._gathering = Gathering(self._probe_size, place)
        self._gathering.add(model, batch)
        if self._gathering.is_enough:
            self.take_gathered_reference(model)

    def take_gathered_reference(self, model: nn.Module) -> None:
        """Make do with the rows gathered so far, if a probe is being gathered."""
        if self._gathering is None:
            return
        gathering, self._gathering = self._gathering, None
        self._tracker = self._new_tracker(gathering.probe())
        # Where rows came from several batches, the weights have moved on since the first.
        first, state = self._first_step, gathering.state
        self._timed(model, first, **gathering.place, state=state, reference=True)

    def note_loss(self, loss: Tensor | None) -> None:
        """Keep the training step's loss."""
        self._losses.note(loss)

    def observe_if_due(self, model: nn.Module, *, step: int, **place: Any) -> None:
        """Observe if the schedule says so and the budget allows it."""
        if not self.has_reference or not self._schedule.is_due(step):
            return
        kind = self._budget.choice(step) if self._capped else "whole"
        if kind is not None:
            self._timed(model, step, brief=kind == "brief", **place)

    def observe_last(self, model: nn.Module, *, step: int, **place: Any) -> None:
        """Observe the end of training, unless that was done just now."""
        self.take_gathered_reference(model)
        seen = self.history[-1].step if len(self.history) else None
        done = step in (seen, self._tried) and not (seen == step and self.history[-1].is_brief)
        if self.has_reference and not done:
            self._timed(model, step, **place, last=True)

    def finish(self) -> None:
        """Write the verdict and the report, and say in one line what and where they are."""
        if self._finished or self._tracker is None or not self.has_reference:
            return
        self._finished = True
        self.verdict = verdict = judge(self.history)
        self.history.cost = self._cost()
        with self._mishaps.unwritten("the verdict and the report"):
            self._outlet.finish(self._tracker, verdict, self.files)
        # Once more, with what the report itself took.
        self.history.cost = cost = self._cost()
        with self._mishaps.unwritten("the cost"):
            self.files.append(cost)
        folder = self.files.folder
        where = f"See {folder / 'report.html'} or run: ntkwatch report {shlex.quote(str(folder))}"
        say(
            f"ntkwatch: {verdict.label} (step {verdict.step}, {len(self.history)} "
            f"observations, {cost.seconds:.1f} s or {cost.share:.1%} of the time). "
            f"{where if self._keeps_files else 'Nothing is kept of a trial run.'}"
        )

    def let_go(self) -> None:
        """Free what was only needed while training."""
        self._losses.let_go()
        self._gathering = self._training = self._draw = None

    # Failures. ------------------------------------------------------------------------------------

    @contextmanager
    def harmless(self, step: int) -> Iterator[None]:
        """Keep failures away from the training, as ``on_error`` says, and count the time.

        Args:
            step: Optimizer steps taken so far.

        Yields:
            Nothing.
        """
        self._budget.start()
        with self._budget.counting():
            try:
                yield
            except Exception as error:
                if self._mishaps.raises:
                    raise
                self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        self._mishaps.failed(step, error, has_reference=self.has_reference)
        if self.has_reference:
            gap = Gap(step=step, reason=in_words(error))
            self.history.gaps.append(gap)
            with self._mishaps.unwritten(f"the gap at step {step}"):
                self.files.append(gap)

    # Beginning. -----------------------------------------------------------------------------------

    def _new_tracker(self, probe: ProbeBatch) -> KernelTracker:
        first = self._first_step
        words = "before the first update" if first == 0 else f"step {first}, where this fit began"
        tracker = KernelTracker(
            probe,
            reference=words,
            reference_is_start=first == 0,
            fresh_probe=None if self._draw is None else self._fresh_probe,
            **self._tracker_settings,
        )
        share = int(_WARMUP_SHARE * (self._total_steps or 0))
        tracker.warmup_steps = max(tracker.warmup_steps, share)
        return tracker

    def _fresh_probe(self, step: int) -> ProbeBatch:
        """A probe of its own for every step, the same whenever that step is observed again."""
        probe = None if self._draw is None else self._draw(step)
        assert probe is not None
        return probe

    def _go_on(self, model: nn.Module, step: int, interrupted: dict[str, Any]) -> bool:
        """Take up the history of the interrupted run; False if it is gone."""
        folder = interrupted.get("folder", "")
        earlier = take_up(folder, self.files, step=step, device=next(model.parameters()).device)
        if earlier is None:
            lost = f"its files ({folder}) are gone" if folder else "its checkpoint holds none"
            warnings.warn(
                f"training goes on from step {step} and what ntkwatch saw of it before is lost "
                f"({lost}): drift is counted from the resumed weights, and there will be no "
                "verdict. Resume from a checkpoint of a watched run whose folder is still there.",
                stacklevel=2,
            )
            return False
        self.files = earlier.files
        self._tracker = self._new_tracker(earlier.probe)
        self._tracker.resume(
            earlier.history, earlier.start, earlier.warmup, last_kernel=earlier.last_kernel
        )
        before = [interrupted.get(f"{key}_seconds", 0.0) for key in ("overhead", "elapsed")]
        self._budget.go_on_from(*before)
        self._tell_start_loss(interrupted.get("loss_start"))
        self._losses.put_back(interrupted.get("losses", ()))
        self._schedule.done(earlier.history[-1].step if len(earlier.history) else step)
        with self._mishaps.unwritten("the chart layout"):
            self._outlet.lay_out()
        return True

    # Observing. -----------------------------------------------------------------------------------

    def _timed(
        self,
        model: nn.Module,
        step: int,
        *,
        reference: bool = False,
        brief: bool = False,
        **rest: Any,
    ) -> None:
        began = time.perf_counter()
        kind: Kind = "brief" if brief else "whole"
        try:
            self._observe(model, step, brief=brief, **rest)
        finally:
            took = time.perf_counter() - began
            self._budget.note_price(took, None if reference else kind)

    def _observe(
        self, model: nn.Module, step: int, *, brief: bool, last: bool = False, **place: Any
    ) -> None:
        assert self._tracker is not None
        tracker = self._tracker
        reference, warmup = tracker.reference, tracker.warmup
        is_first = reference is None
        self._tried = step
        self._schedule.done(step)
        self._tell_start_loss(self._losses.first)
        loss = tracker.loss_start if is_first else self._losses.mean
        training = None if self._training is None else self._training()
        how: dict[str, Any] = {"loss": loss, "training": training, "brief": brief}
        observation = tracker.observe(model, step, **how, **place)
        self._mishaps.observed()
        before = self.verdict
        if before is None or not observation.is_brief:  # which has too little to judge by
            self.verdict = judge(tracker.history)
        assert self.verdict is not None
        with self._mishaps.unwritten(f"what it saw at step {step}"):
            if is_first:
                self._outlet.begin(tracker, self.files)
            if tracker.warmup is not None and tracker.warmup is not warmup:
                self.files.write_anchor(tracker.warmup, "warmup")
            share, spent = self._budget.share, self._budget.spent
            observation = replace(observation, overhead_share=share, overhead_seconds=spent)
            tracker.history.add(observation)
            self._outlet.observed(tracker, observation, self.verdict, self.files, last=last)
            if not is_first and tracker.reference is not reference:
                self._outlet.begin_again(tracker, self.files)
        changed = self.verdict.strength != (before.strength if before else Strength.UNDETERMINED)
        if changed and self._on_verdict is not None:
            with self._mishaps.unwritten("the verdict"):
                self._on_verdict(self.verdict)

    def _cost(self) -> Cost:
        seen, brief = len(self.history), sum(o.is_brief for o in self.history)
        return self._budget.cost(promised=self._max_overhead, observations=seen, brief=brief)

    def _tell_start_loss(self, loss: float | None) -> None:
        """The first batch's loss is that of the reference, but is known only after it was taken."""
        tracker = self._tracker
        if tracker is None or tracker.loss_start is not None or loss is None:
            return
        tracker.note_start_loss(loss)
        if tracker.reference is not None:
            with self._mishaps.unwritten("the loss at the start"):
                self.files.rewrite(tracker.history)
