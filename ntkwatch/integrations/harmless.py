"""A run that is kept from harm: what fails while it is watched stays the watching's own affair.

Time is counted here, too, since failures cost like successes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from ntkwatch.errors import DivergedError
from ntkwatch.integrations.late_reference import LateReference, may_pass
from ntkwatch.integrations.mishaps import Mishaps, in_words
from ntkwatch.integrations.observer import Observer
from ntkwatch.integrations.outlet import Outlet
from ntkwatch.watch.budget import OverheadBudget
from ntkwatch.watch.history import History
from ntkwatch.watch.records import Gap
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict import Verdict

__all__ = ["Harmless"]


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
        self._observer = Observer(outlet, self._budget, self._mishaps, on_verdict)
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
            except DivergedError as error:
                if not self.has_reference:
                    self._failed(step, error)
                elif self._mishaps.diverged(step, error):
                    self._missed(Gap(step=step, reason=in_words(error), kind="diverged"))
            except Exception as error:
                self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        if self._mishaps.raises:
            raise error
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
