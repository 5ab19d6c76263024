"""A run that is kept from harm: what fails while it is watched stays the watching's own affair.

Time is counted here, too, since failures cost like successes.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Literal

from ntkwatch.errors import DivergedError
from ntkwatch.integrations.run.held_signals import HeldSignals
from ntkwatch.integrations.run.late_reference import LateReference, may_pass
from ntkwatch.integrations.run.mishaps import Mishaps, in_words
from ntkwatch.integrations.run.observer import Observer
from ntkwatch.integrations.run.outlet import Outlet
from ntkwatch.watch.budget import OverheadBudget
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["Harmless", "Kept"]


class Harmless:
    """What a watched run knows of its tracker, and what it does where that fails.

    Args:
        files: The run's folder.
        outlet: Where numbers go.
        max_overhead: Largest share of wall time, or None for any.
        on_error: "warn" or "raise".
        on_verdict: Called with the verdict when its strength changes.

    Attributes:
        files: The run's folder.
        signals: That are put off while the model is measured.
    """

    def __init__(
        self,
        files: RunFiles,
        outlet: Outlet,
        *,
        max_overhead: float | None,
        on_error: Literal["warn", "raise"],
        on_verdict: Callable[[Verdict], object] | None,
    ) -> None:
        self.files, self._outlet, self._promised = files, outlet, max_overhead
        self._budget = OverheadBudget(1.0 if max_overhead is None else max_overhead)
        self._mishaps = Mishaps(on_error)
        self.signals = HeldSignals()
        self._observer = Observer(outlet, self._budget, self._mishaps, self.signals, on_verdict)
        self._tracker: KernelTracker | None = None
        self._late = LateReference()

    @property
    def history(self) -> History:
        """What was observed so far."""
        return History() if self._tracker is None else self._tracker.history

    @property
    def verdict(self) -> Verdict | None:
        """The verdict as of the last observation, or None."""
        return self._observer.verdict

    @property
    def has_probe(self) -> bool:
        """Whether it is known what to observe on."""
        return self._tracker is not None

    @property
    def has_reference(self) -> bool:
        """Whether there is something to compare with."""
        return self._tracker is not None and self._tracker.reference is not None

    @property
    def stood_down(self) -> bool:
        """Whether failures have ended the watching."""
        return self._mishaps.stood_down

    def harmless(self, step: int | Callable[[], int]) -> "Kept":
        """Keep failures away from the training, as ``on_error`` says, and count the time.

        Args:
            step: Optimizer steps taken so far, or what tells them if that is asked.

        Returns:
            A context.
        """
        return Kept(self, self._budget, step)

    def caught(self, step: int, error: Exception) -> bool:
        """Do what follows a failure, and return whether it goes no further."""
        if isinstance(error, DivergedError) and self.has_reference:
            if self._mishaps.diverged(step, error):
                self._missed(Gap(step=step, reason=in_words(error), kind="diverged"))
            return True
        if self._mishaps.raises:
            return False
        self._failed(step, error)
        return True

    def _failed(self, step: int, error: Exception) -> None:
        tries_again = self._tracker is not None and may_pass(error)
        has_reference, gap = self.has_reference, Gap(step=step, reason=in_words(error))
        self._mishaps.failed(step, error, has_reference=has_reference, tries_again=tries_again)
        if has_reference:
            self._missed(gap)
        else:
            self._late.failed(gap)

    def _missed(self, gap: Gap) -> None:
        assert self._tracker is not None
        self._observer.missed(self._tracker, self.files, gap)


class Kept:
    """The context of ``Harmless.harmless``: no generator, since it is entered at every step.

    Args:
        run: That is kept from harm.
        budget: Counts the time.
        step: Optimizer steps taken so far, or what tells them.
    """

    __slots__ = ("_budget", "_run", "_step")

    def __init__(
        self, run: Harmless, budget: OverheadBudget, step: int | Callable[[], int]
    ) -> None:
        self._run, self._budget, self._step = run, budget, step

    def __enter__(self) -> None:
        self._budget.start()
        self._budget.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        try:
            if not isinstance(error, Exception):
                return False
            step = self._step if isinstance(self._step, int) else self._step()
            return self._run.caught(step, error)
        finally:
            self._budget.__exit__()
            self._run.signals.release()  # what handlers raise is the training's
