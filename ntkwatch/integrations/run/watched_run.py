"""One watched training run: when to look, what it may cost, and what happens when looking fails.

No training framework is known here: a callback tells it where training is and hands it the model.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.integrations.processes.crew import Crew
from ntkwatch.integrations.run.beginning import Beginning, earlier_part
from ntkwatch.integrations.run.claim import free_folder, let_go_of
from ntkwatch.integrations.run.closing import closing_words
from ntkwatch.integrations.run.gathering import Gathering
from ntkwatch.integrations.run.harmless import Harmless
from ntkwatch.integrations.run.late_reference import LateReference
from ntkwatch.integrations.run.mishaps import say
from ntkwatch.integrations.run.outlet import FOLDER, Outlet
from ntkwatch.integrations.run.resumption import EarlierPart
from ntkwatch.integrations.run.taken_steps import TakenSteps
from ntkwatch.watch.budget import Kind
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.schedule import Schedule
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.training import Training
from ntkwatch.watch.verdict.verdict import Verdict, judge

__all__ = ["WatchedRun"]

_NOTHING_TO_DRAW_FROM = (
    "resample_probe=True draws a fresh probe at every observation, and this run has no dataset "
    "whose items can be read one by one. Use resample_probe=False, which gathers one probe from "
    "the first batches, or a map-style dataset."
)

_SELDOM = 50  # of the steps so far, one in so many passes before processes meet again for nothing


class WatchedRun(Harmless):
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
        tell: Called with the line that says how the run ended.
        crew: The processes of the run; by default this one alone.
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
        tell: Callable[[str], object] = say,
        crew: Crew | None = None,
    ) -> None:
        super().__init__(
            RunFiles(folder),
            outlet,
            max_overhead=max_overhead,
            on_error=on_error,
            on_verdict=on_verdict,
        )
        self._schedule = schedule
        self._tracker_settings, self._probe_size = tracker_settings, probe_size
        self._keeps_files, self._tell, self._crew = keeps_files, tell, crew or Crew()
        self.signals.is_wanted = self._crew.is_alone
        self._not_before = -math.inf
        self._beginning = Beginning()
        self._gathering: Gathering | None = None
        self._finished = False
        self._steps = TakenSteps()

    @property
    def found(self) -> dict[str, float]:
        """By tag, what other callbacks find of this run."""
        return self._outlet.found

    @property
    def next_step(self) -> float:
        """The first step at which an observation may be made."""
        return max(self._schedule.next_step, self._not_before)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on from here: plain values only."""
        if self._tracker is None or not self.has_reference:
            return {}
        state: dict[str, Any] = {}
        with self._budget.counting(), self._mishaps.unwritten("its state", "the checkpoint"):
            state.update(self._state(self._tracker))
        return state

    def _state(self, tracker: KernelTracker) -> dict[str, Any]:
        losses, first = self._observer.losses, tracker.loss_start
        first = losses.first if first is None else first
        folder = str(self.files.folder.resolve())
        seconds = {"overhead_seconds": self._budget.spent, "elapsed_seconds": self._budget.elapsed}
        return {
            "folder": folder,
            "loss_start": first,
            "losses": losses.recent,
            "weights": tracker.last_weights,
            "decay": self._beginning.decay.state(),
            **seconds,
        }

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
        time_left: Callable[[], float | None] | None = None,
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
            may_stop_early: Whether something may end training before its time.
            time_left: Tells how many seconds are left on a clock that ends training.
            training: Tells how the model is trained at the moment, as far as that is known.

        Raises:
            InputError: If fresh probes are wanted and there is no dataset to draw them from.
        """
        interrupted = interrupted or {}
        self._observer.training = training
        self._beginning = Beginning(
            step=step,
            total_steps=total_steps,
            settings=self._tracker_settings,
            draw=draw if resample else None,
            new=self._crew.new_tracker,
        )
        self._schedule.expect(total_steps)
        if not may_stop_early:
            self._budget.expect(total_steps, first_step=step, time_left=time_left)
        device = next(model.parameters()).device
        self.files = RunFiles(self.files.folder, self._crew.shards_of(model))
        earlier = earlier_part(interrupted, self.files, step=step, device=device)
        if earlier is not None:
            self._go_on(earlier, step, interrupted)
        else:
            self.files = RunFiles(free_folder(self.files.folder), self.files.shards)
            probe = draw(0)
            if probe is None and resample:
                raise InputError(_NOTHING_TO_DRAW_FROM)
            if probe is not None:
                self._tracker = self._beginning.tracker(probe, self.files)

    def _go_on(self, earlier: EarlierPart, step: int, interrupted: dict[str, Any]) -> None:
        """Take up the history of the interrupted run."""
        self.files = earlier.files
        self._tracker = self._beginning.tracker_of(
            earlier, weights=interrupted.get("weights"), decay=interrupted.get("decay")
        )
        first = interrupted.get("loss_start")
        self._observer.tell_start_loss(self._tracker, self.files, first)
        before = [interrupted.get(f"{key}_seconds", 0.0) for key in ("overhead", "elapsed")]
        self._budget.go_on_from(*before)
        self._budget.learn(earlier.history)
        self._observer.losses.put_back(interrupted.get("losses", ()))
        self._schedule.done(earlier.history[-1].step if len(earlier.history) else step)
        if earlier.unwritten is not None:
            self._outlet.wait_for(earlier.bring)
            with self._mishaps.unwritten("what an earlier part of this run saw", FOLDER):
                raise earlier.unwritten
        self._outlet.recall(earlier.history)
        self._outlet.lay_out(self._mishaps.unwritten)

    def take_reference(self, model: nn.Module, batch: Any, *, step: int, **place: Any) -> None:
        """Take the reference before the first update; gather a probe first where none was drawn.

        Args:
            model: The model.
            batch: That training is about to use.
            step: Optimizer steps taken so far.
            place: Epoch and x axis of the run's loggers.
        """
        if self._tracker is not None:
            if self._late.is_due(step):
                self._observe_reference(model, step, **place)
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
        self._tracker = self._beginning.tracker(gathering.probe(), self.files)
        # Where rows came from several batches, the weights have moved on since the first.
        first, state = self._beginning.step, gathering.state
        self._observe_reference(model, first, **gathering.place, state=state)

    def _observe_reference(self, model: nn.Module, step: int, **rest: Any) -> None:
        """Take the reference, which may be late, and then write down the tries that failed."""
        assert self._tracker is not None
        if (words := self._late.words(step)) is not None:
            self._tracker.refer_to(words, is_start=False)
            self._observer.losses.let_go()
        self._observe(model, step, **rest, reference=True)
        self._mishaps.reference_is(step)
        late, self._late = self._late, LateReference()
        for gap in late.gaps:
            self._missed(gap)

    def note_loss(self, loss: Tensor | None, *, ours: bool = False) -> None:
        """Keep the training step's loss, a copy unless it is ours to keep."""
        self._observer.losses.note(loss, ours=ours)

    def follows(self, optimizer: Any) -> bool:
        """Return whether an optimizer's steps are told without another call of ``before_step``."""
        return self._steps.follows(optimizer)

    def before_step(self, optimizer: Any, number: int, step: Callable[[], int]) -> None:
        """Count what weight decay does in the optimizer step that is about to be taken, if it is.

        Args:
            optimizer: About to step.
            number: Which of several optimizers it is.
            step: Tells the optimizer steps taken so far.
        """

        def count(stepped: Any) -> None:
            if not self.stood_down:
                with self.harmless(step):
                    self._beginning.decay.note(stepped, number)

        self._steps.follow(optimizer, count)

    def is_due(self, step: int) -> bool:
        """Return whether it is worth asking for an observation, which most steps need not.

        Args:
            step: Optimizer steps taken so far.
        """
        if not self.has_reference or step < self.next_step:
            return False
        if self._promised is None or not self._crew.is_alone:
            return True  # where others wait, a refusal also says when to meet again
        return not self._budget.is_asked_in_vain

    def observe_if_due(self, model: nn.Module, *, step: int, **place: Any) -> None:
        """Observe if the schedule says so and the budget allows it."""
        if not self.has_reference or step < self.next_step:
            return
        kind: Kind | None = "whole" if self._promised is None else self._budget.choice(step)
        if kind is not None:
            self._observe(model, step, brief=kind == "brief", **place)
        elif not self._crew.is_alone:
            # Others are asked to meet again when a little more has come in, not at every step.
            self._not_before = step + max(1, (step - self._beginning.step) // _SELDOM)

    def observe_last(self, model: nn.Module, *, step: int, **place: Any) -> None:
        """Observe the end of training, unless that was done just now."""
        self.take_gathered_reference(model)
        if not self.has_reference:
            return
        seen = self.history[-1]
        if seen.is_brief or step not in (seen.step, self._observer.tried):
            self._observe(model, step, **place, last=True)

    def _observe(self, model: nn.Module, step: int, **rest: Any) -> None:
        assert self._tracker is not None
        self._schedule.done(step)
        self._observer.observe(self._tracker, self.files, model, step, **rest)

    def finish(self) -> None:
        """Write the verdict and the report, and say in one line what and where they are."""
        if self._finished or self._tracker is None or not self.has_reference:
            self._mishaps.reference_is(None)
            return
        self._finished = True
        self._observer.verdict = verdict = judge(self.history)
        self.history.cost = self._cost()
        self._outlet.finish(self._tracker, verdict, self.files, self._mishaps.unwritten)
        # Once more, with what the report itself took.
        self.history.cost = cost = self._cost()
        with self._mishaps.unwritten("the cost", FOLDER):
            self.files.append(cost)
        self._tell(closing_words(verdict, cost, self.files.folder if self._keeps_files else None))

    def _cost(self) -> Cost:
        count, whole = len(self.history), len(self.history.whole_steps)
        return self._budget.cost(promised=self._promised, observations=count, brief=count - whole)

    def let_go(self) -> None:
        """Free what was only needed while training."""
        self._observer.losses.let_go()
        self._gathering = self._observer.training = None
        self._beginning.let_go()
        self._steps.let_go()
        self._budget.expect(None)
        let_go_of(self.files.folder)
