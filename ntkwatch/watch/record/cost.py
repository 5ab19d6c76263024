"""What watching a run took: the last line of its history. No torch here."""

from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What watching a run took, from drawing the probe to writing the report.

    Attributes:
        seconds: Wall time of all of it.
        elapsed: Wall time since training began, watching included.
        share: The one over the other, in [0, 1].
        promised: Largest share that was allowed, or None where the schedule was to be kept
            whatever it costs.
        observations: How many there were in all.
        brief: How many of them were brief.
    """

    seconds: float
    elapsed: float
    share: float
    promised: float | None = None
    observations: int = 0
    brief: int = 0
