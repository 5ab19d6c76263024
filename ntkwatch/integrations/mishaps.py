"""What happens when the monitor fails: it is said, counted, and kept away from the training."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ntkwatch.errors import NtkwatchError, ProcessError

__all__ = ["Mishaps", "in_words", "say"]

_log = logging.getLogger("ntkwatch")

_FAILURES = 3  # in a row, after which the monitor stands down


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
        self._said_unwritten = False

    def observed(self) -> None:
        """Note that an observation succeeded."""
        self._in_a_row = 0

    def failed(self, step: int, error: Exception, *, has_reference: bool) -> None:
        """Note that an observation failed, and stand down if it cannot or does not get better.

        Args:
            step: Optimizer steps taken so far.
            error: What stopped it.
            has_reference: Whether there is anything that later observations could be compared with.
        """
        self._in_a_row += 1
        # Processes that remember different things of a run cannot go on together.
        apart = isinstance(error, ProcessError)
        self.stood_down = not has_reference or apart or self._in_a_row >= _FAILURES
        if self._in_a_row == 1 or self.stood_down:
            then = "This run is not watched any further" if self.stood_down else "Training goes on"
            warnings.warn(
                f"ntkwatch could not observe step {step}: {in_words(error)} {then}.", stacklevel=3
            )

    @contextmanager
    def unwritten(self, what: str) -> Iterator[None]:
        """Say once that something which was measured could not be written or handed over.

        Args:
            what: Words for it.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            if self.raises:
                raise
            if not self._said_unwritten:
                warnings.warn(
                    f"ntkwatch could not hand over {what}: {in_words(error)} Training and "
                    "observing go on; this is said once.",
                    stacklevel=3,
                )
            self._said_unwritten = True


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
