"""The one line on the console with which a watched run ends."""

import shlex
from pathlib import Path

from ntkwatch.report.words import counted
from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["closing_words"]


def closing_words(verdict: Verdict, cost: Cost, folder: Path | None) -> str:
    """Return what a run ended with, what watching it cost, and where to read on.

    Args:
        verdict: As of the last observation.
        cost: All of it, the report included.
        folder: Of the run's files; None where they are not kept.

    Returns:
        A sentence or two.
    """
    brief = f" ({cost.brief} of them without a kernel)" if cost.brief else ""
    over = ""
    if cost.promised is not None and cost.share > cost.promised:
        over = (
            f": more than max_overhead={cost.promised:g}, since the run was too short to pay for "
            "its reference, its last observation and the report"
        )
    where = "Nothing is kept of a trial run."
    if folder is not None:
        where = f"See {folder / 'report.html'} or run: ntkwatch report {shlex.quote(str(folder))}"
    seen = counted(cost.observations, "observation")
    return (
        f"ntkwatch: {verdict.label} (step {verdict.step}, {seen}{brief}, "
        f"{cost.seconds:.1f} s or {cost.share:.1%} of the time{over}). {where}"
    )
