"""One watched training run: when to look, what it may cost, and what happens when looking fails.

No training framework is known here: a callback tells it where training is and hands it the model.
"""

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ntkwatch.errors import NtkwatchError
from ntkwatch.integrations.outlet import Outlet
from ntkwatch.watch.budget import OverheadBudget
from ntkwatch.watch.history import HISTORY_FILE, History, read_history
from ntkwatch.watch.probe import ProbeBatch, gather_rows, split_batch
from ntkwatch.watch.records import Gap
from ntkwatch.watch.schedule import Schedule
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict import Verdict, judge

__all__ = ["WatchedRun"]

_log = logging.getLogger("ntkwatch")

_LOSS_WINDOW = 20  # batches that the training loss is averaged over
_FAILURES = 3  # in a row, after which the monitor stands down
_GATHERED_BATCHES = 16  # after which a smaller probe than asked for has to do
_WARMUP_SHARE = 0.01  # of all steps, if that is more than the tracker's own warm-up


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

    Attributes:
        files: The run's folder.
        verdict: As of the last observation, or None.
        stood_down: Whether failures have ended the watching.
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
    ) -> None:
        self.files = RunFiles(folder)
        self.verdict: Verdict | None = None
        self._outlet, self._schedule = outlet, schedule
        self._capped = max_overhead is not None
        self._budget = OverheadBudget(1.0 if max_overhead is None else max_overhead)
        self._tracker_settings, self._probe_size = tracker_settings, probe_size
        self._on_error, self._on_verdict = on_error, on_verdict
        self._tracker: KernelTracker | None = None
        self._total_steps: int | None = None
        self._first_step = 0
        self._gathered: list[ProbeBatch] = []
        self._kept_state: dict[str, Tensor] | None = None
        self._losses: deque[Tensor] = deque(maxlen=_LOSS_WINDOW)
        self._loss_start: Tensor | None = None
        self._failures = 0
        self.stood_down = False

    @property
    def history(self) -> History:
        """What was observed so far."""
        return History() if self._tracker is None else self._tracker.history

    @property
    def has_reference(self) -> bool:
        """Whether there is something to compare with."""
        return self._tracker is not None and self._tracker.reference is not None

    # From the first batch to the last. ------------------------------------------------------------

    def begin(
        self,
        model: nn.Module,
        *,
        step: int,
        total_steps: int | None,
        interrupted: dict[str, Any] | None,
        draw: Callable[[], ProbeBatch | None],
    ) -> None:
        """Go on with an interrupted run, or draw a probe for a new one.

        Args:
            model: The model.
            step: Optimizer steps taken so far.
            total_steps: Steps the run will take, if known.
            interrupted: State that the interrupted run left in its checkpoint, or None.
            draw: Returns a probe, or None to gather one from the first batches.
        """
        self._budget.start()
        self._total_steps, self._first_step = total_steps, step
        self._schedule.expect(total_steps)
        if interrupted is not None and self._go_on(model, step, interrupted):
            return
        self.files = RunFiles(_free_folder(self.files.folder))
        probe = draw()
        if probe is not None:
            self._tracker = self._new_tracker(probe)

    def take_reference(
        self, model: nn.Module, batch: Any, *, step: int, epoch: int, logged_step: int
    ) -> None:
        """Take the reference before the first update; gather a probe first where none was drawn."""
        began = time.perf_counter()
        if self._tracker is None:
            self._gather(model, batch)
        if self._tracker is not None:
            # Where rows came from several batches, the weights have moved on since the first.
            self._observe(
                model,
                self._first_step,
                epoch=epoch,
                logged_step=logged_step,
                state=self._kept_state,
            )
            self._kept_state = None
        self._budget.spend(time.perf_counter() - began, reference=True)

    def note_loss(self, loss: Any) -> None:
        """Keep the training step's loss as a tensor: reading it would wait for the device."""
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach().clone())
            if self._loss_start is None:
                self._loss_start = self._losses[0]

    def observe_if_due(self, model: nn.Module, *, step: int, epoch: int, logged_step: int) -> None:
        """Observe if the schedule says so and the budget allows it."""
        if not self.has_reference or not self._schedule.is_due(step):
            return
        if not self._capped or self._budget.affords_another():
            self._timed(model, step, epoch=epoch, logged_step=logged_step)

    def observe_last(self, model: nn.Module, *, step: int, epoch: int, logged_step: int) -> None:
        """Observe the end of training, unless that was done just now."""
        if self.has_reference and (len(self.history) == 0 or self.history[-1].step != step):
            self._timed(model, step, epoch=epoch, logged_step=logged_step, last=True)

    def finish(self) -> None:
        """Write the verdict and the report, and say in one line what and where they are."""
        if self._tracker is None or not self.has_reference:
            return
        self.verdict = judge(self.history)
        self._outlet.finish(self._tracker, self.verdict, self.files)
        folder = self.files.folder
        _say(
            f"ntkwatch: {self.verdict.label} (step {self.verdict.step}, {len(self.history)} "
            f"observations, {self._budget.spent:.1f} s or {self._budget.share:.1%} of the time). "
            f"See {folder / 'report.html'} or run: ntkwatch report {folder}"
        )

    def let_go(self) -> None:
        """Free what was only needed while training."""
        self._losses.clear()
        self._gathered, self._kept_state = [], None

    # Failures. ------------------------------------------------------------------------------------

    @contextmanager
    def harmless(self, step: int) -> Iterator[None]:
        """Keep failures of the monitor away from the training, as ``on_error`` says.

        Args:
            step: Optimizer steps taken so far.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        """Say it once, note the gap, and stand down if it cannot or does not get better."""
        self._failures += 1
        text = (
            str(error) if isinstance(error, NtkwatchError) else f"{type(error).__name__}: {error}"
        )
        gap = Gap(step=step, reason=text)
        if self.has_reference:
            self.history.gaps.append(gap)
            try:
                self.files.append(gap)
            except OSError as cause:
                _log.debug("the gap could not be written: %s", cause)
        self.stood_down = not self.has_reference or self._failures >= _FAILURES
        if self._failures == 1 or self.stood_down:
            then = "This run is not watched any further" if self.stood_down else "It goes on"
            warnings.warn(f"ntkwatch could not observe step {step}: {text} {then}.", stacklevel=2)

    # Reference. -----------------------------------------------------------------------------------

    def _new_tracker(self, probe: ProbeBatch) -> KernelTracker:
        first = self._first_step
        words = "before the first update" if first == 0 else f"step {first}, where this fit began"
        tracker = KernelTracker(probe, reference=words, **self._tracker_settings)
        share = int(_WARMUP_SHARE * (self._total_steps or 0))
        tracker.warmup_steps = max(tracker.warmup_steps, share)
        return tracker

    def _gather(self, model: nn.Module, batch: Any) -> None:
        """Collect rows of the first batches, keeping the weights from before the first update."""
        self._gathered.append(ProbeBatch(*split_batch(batch)))
        rows = sum(len(part) for part in self._gathered)
        if rows >= self._probe_size or len(self._gathered) >= _GATHERED_BATCHES:
            origin = f"rows of the first {len(self._gathered)} training batches"
            self._tracker = self._new_tracker(
                gather_rows(self._gathered, self._probe_size, origin=origin)
            )
            self._gathered = []
        elif self._kept_state is None:
            tensors = [*model.named_parameters(), *model.named_buffers()]
            self._kept_state = {name: tensor.detach().clone() for name, tensor in tensors}

    def _go_on(self, model: nn.Module, step: int, interrupted: dict[str, Any]) -> bool:
        """Take up the history of the interrupted run; False if it is gone."""
        earlier = RunFiles(Path(interrupted["folder"]))
        device = next(model.parameters()).device
        start = earlier.read_anchor(device=device) if interrupted["folder"] else None
        if start is None or not earlier.history.is_file():
            warnings.warn(
                f"the files of the interrupted run ({interrupted['folder'] or 'never written'}) "
                "are gone, so its reference is lost: drift is counted from the resumed weights.",
                stacklevel=2,
            )
            return False
        if self.files.folder.resolve() != earlier.folder.resolve():
            self.files = RunFiles(_free_folder(self.files.folder))
            self.files.copy_from(earlier)
        then = read_history(self.files.history)
        # What was seen after the checkpoint was written is about to happen again.
        kept = tuple(observation for observation in then if observation.step <= step)
        history = History(then.run, kept, tuple(gap for gap in then.gaps if gap.step <= step))
        self.files.rewrite(history)
        self._tracker = self._new_tracker(self.files.read_probe())
        warmup = self.files.read_anchor("warmup", device=device)
        in_time = warmup is not None and warmup.step <= step
        self._tracker.resume(history, start, warmup if in_time else None)
        self._schedule.done(history[-1].step if len(history) else step)
        self._outlet.lay_out()
        return True

    # Observing. -----------------------------------------------------------------------------------

    def _timed(self, model: nn.Module, step: int, **place: Any) -> None:
        began = time.perf_counter()
        try:
            self._observe(model, step, **place)
        finally:
            self._budget.spend(time.perf_counter() - began)

    def _observe(
        self,
        model: nn.Module,
        step: int,
        *,
        epoch: int,
        logged_step: int,
        state: dict[str, Tensor] | None = None,
        last: bool = False,
    ) -> None:
        assert self._tracker is not None
        tracker = self._tracker
        is_first, had_warmup = tracker.reference is None, tracker.warmup is not None
        self._schedule.done(step)
        if tracker.loss_start is None and self._loss_start is not None:
            tracker.loss_start = float(self._loss_start)
        observation = tracker.observe(
            model,
            step,
            loss=None if is_first else self._mean_loss(),
            epoch=epoch,
            logged_step=logged_step,
            state=state,
        )
        if is_first:
            self._outlet.begin(tracker, self.files)
        if tracker.warmup is not None and not had_warmup:
            self.files.write_anchor(tracker.warmup, "warmup")
        before, self.verdict = self.verdict, judge(tracker.history)
        self._outlet.observed(
            tracker, observation, self.verdict, self.files, share=self._budget.share, last=last
        )
        self._failures = 0
        changed = before is None or before.strength != self.verdict.strength
        if changed and self._on_verdict is not None:
            self._on_verdict(self.verdict)

    def _mean_loss(self) -> float | None:
        if not self._losses:
            return None
        return float(torch.stack([loss.flatten()[0].float() for loss in self._losses]).mean())


def _free_folder(folder: Path) -> Path:
    """Return the folder, or the next free name beside it: an existing run is not overwritten."""
    number, free = 1, folder
    while (free / HISTORY_FILE).exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _say(message: str) -> None:
    """Say something on the console as Lightning does, where Lightning is installed."""
    try:
        from lightning_utilities.core.rank_zero import rank_zero_info
    except ImportError:
        _log.info(message)
    else:
        rank_zero_info(message)
