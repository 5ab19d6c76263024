"""What happens when the monitor fails: it is said, counted, and kept away from the training."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ntkwatch.errors import DivergedError, NtkwatchError, ProcessError, WeightsChangedError
from ntkwatch.jacobian.memory import is_out_of_memory

__all__ = ["Mishaps", "in_words", "say"]

_log = logging.getLogger("ntkwatch")

_FAILURES = 3  # in a row, after which the monitor stands down

_LESS_MEMORY = (
    'Give a smaller probe_size=, fewer outputs (outputs="random:1"), a part of the parameters '
    "(params=) or a smaller memory_budget=."
)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Mishaps:
    """Counts failures to observe, and says the first of a kind.

    Args:
        on_error: "warn" or "raise".

    Attributes:
        raises: Whether failures are raised instead.
        stood_down: Whether failures have ended the watching.
    """

    def __init__(self, on_error: Literal["warn", "raise"]) -> None:
        self.raises = on_error == "raise"
        self.stood_down = False
        self._in_a_row = 0
        self._diverged = False
        self._said: set[str] = set()
        self._unsaid: tuple[int, str] | None = None

    def observed(self) -> None:
        """Note that an observation succeeded."""
        self._in_a_row = 0
        self._diverged = False

    def failed(
        self, step: int, error: Exception, *, has_reference: bool, tries_again: bool = False
    ) -> None:
        """Note that an observation failed, and stand down if it cannot or does not get better.

        Args:
            step: Optimizer steps taken so far.
            error: What stopped it.
            has_reference: Whether there is anything that later observations could be compared with.
            tries_again: Whether there may be, at another step.
        """
        self._in_a_row += 1
        # Processes that remember different things of a run cannot go on together.
        apart = isinstance(error, ProcessError)
        harmful = isinstance(error, WeightsChangedError)
        hopeless = harmful or apart or not (has_reference or tries_again)
        self.stood_down = hopeless or self._in_a_row >= _FAILURES
        if not (has_reference or self.stood_down):
            # Said when it is known what follows: a model that cannot be called costs one warning.
            # In words: the error itself holds on to all that was computed until it was raised.
            self._unsaid = self._unsaid or (step, _with_advice(error))
            return
        self._unsaid = None
        if harmful:
            _log.error("observing step %d changed the training: %s", step, error)
        if self._in_a_row == 1 or self.stood_down:
            then = "This run is not watched any further" if self.stood_down else "Training goes on"
            warnings.warn(
                f"ntkwatch could not observe step {step}: {_with_advice(error)} {then}.",
                stacklevel=3,
            )

    def reference_is(self, step: int | None) -> None:
        """Say what became of a reference that could not be taken when it was due, if so.

        Args:
            step: Where it was taken after all; None where training is over.
        """
        if self._unsaid is None or self.stood_down:
            return
        (due, what), self._unsaid = self._unsaid, None
        then = "Training ended before the reference could be tried again"
        if step is not None:
            then = f"The reference is step {step}: drift is counted from there, without a verdict"
        warnings.warn(f"ntkwatch could not observe step {due}: {what} {then}.", stacklevel=3)

    def diverged(self, step: int, error: DivergedError) -> bool:
        """Say that the training has diverged, which is something observed and no failure of ours.

        Args:
            step: Optimizer steps taken so far.
            error: What was found.

        Returns:
            Whether this is news: it was not found at the observation before.
        """
        news, self._diverged = not self._diverged, True
        if news:
            warnings.warn(
                f"ntkwatch: the model diverged by step {step}: {in_words(error)} Training goes on.",
                stacklevel=3,
            )
        return news

    def short_of_memory(self, step: int, words: str, budget: int) -> None:
        """Say once that memory ran out and a step is observed again in smaller pieces.

        Args:
            step: Optimizer steps taken so far.
            words: The error.
            budget: The memory budget from now on, bytes.
        """
        if self._is_new("memory"):
            warnings.warn(
                f"ntkwatch ran out of memory at step {step} ({words.rstrip('.')}) and observes it "
                f"again within {budget} bytes. {_LESS_MEMORY} This is said once.",
                stacklevel=3,
            )

    @contextmanager
    def unwritten(self, what: str, sink: str) -> Iterator[None]:
        """Say once for each sink that something measured could not be written or handed over.

        Args:
            what: Words for it.
            sink: Where it was to go.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            if self.raises:
                raise
            if self._is_new(sink):
                warnings.warn(
                    f"ntkwatch could not hand over {what}: {in_words(error)} "
                    f"{_cure(error, sink)} Training and observing go on; this is said once.",
                    stacklevel=3,
                )

    def _is_new(self, kind: str) -> bool:
        new = kind not in self._said
        self._said.add(kind)
        return new


def in_words(error: Exception) -> str:
    """Return what went wrong as a sentence."""
    text = str(error) if isinstance(error, NtkwatchError) else f"{type(error).__name__}: {error}"
    return text if text.rstrip().endswith((".", "!", "?")) else f"{text.rstrip()}."


def say(message: str) -> None:
    """Say something on the console as Lightning does, where Lightning is installed."""
    try:
        from lightning_utilities.core.rank_zero import rank_zero_info
    except ImportError:
        _log.info(message)
    else:
        rank_zero_info(message)


def _with_advice(error: Exception) -> str:
    """What went wrong and what to do about it; errors of our own say that themselves."""
    if is_out_of_memory(error):
        return f"{in_words(error)} {_LESS_MEMORY}"
    if isinstance(error, NtkwatchError):
        return in_words(error)
    return f'{in_words(error)} NTKMonitor(on_error="raise") shows where.'


def _cure(error: Exception, sink: str) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL:
        return "Make room on that disk: what is missing in the files is then written after all."
    if code in _READ_ONLY:
        return "Give a folder that can be written to as dirpath=."
    return f"Look at {sink}."
