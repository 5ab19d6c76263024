"""A reference that could not be taken when it was due: when it is tried again, and what is noted.

What is wrong with the model or the probe is another matter: that does not pass.
"""

import math
from dataclasses import dataclass, field

from ntkwatch.errors import ForwardError, NtkwatchError
from ntkwatch.watch.record.records import Gap

__all__ = ["LateReference", "may_pass"]

_WAITS = (1, 8)  # optimizer steps until the second and the third try


@dataclass(slots=True)
class LateReference:
    """The tries so far.

    Attributes:
        gaps: One for each try that failed.
    """

    gaps: list[Gap] = field(default_factory=list)

    def failed(self, gap: Gap) -> None:
        """Note that a try failed."""
        self.gaps.append(gap)

    def is_due(self, step: int) -> bool:
        """Return whether to try at a step: soon again, and then once something may have changed."""
        return step >= self._next_step

    @property
    def _next_step(self) -> float:
        if not self.gaps:
            return -math.inf
        return self.gaps[-1].step + _WAITS[min(len(self.gaps), len(_WAITS)) - 1]

    def words(self, step: int) -> str | None:
        """Return where a reference at a step comes from, or None where it is not late."""
        if not self.gaps or step == self.gaps[0].step:
            return None
        return f"step {step}, since step {self.gaps[0].step} could not be observed"


def may_pass(error: Exception) -> bool:
    """Return whether what stopped an observation may be gone at the next one.

    Args:
        error: What stopped it.

    Returns:
        False for what this package refuses: it is the model or the probe that it does not fit.
    """
    # A forward pass that fails for once looks like one that nobody knows how to call.
    return isinstance(error, ForwardError) or not isinstance(error, NtkwatchError)
