"""What watching a run took, as rows of a page and as plain data.

Nothing here knows how a row is drawn.
"""

from typing import Any

from ntkwatch.report.words import counted, duration
from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.record.history import History

__all__ = ["cost_rows", "plain_cost"]


def cost_rows(history: History) -> tuple[tuple[str, str], ...]:
    """Return what watching a run took, in words.

    Args:
        history: Its observations, and its cost where it ended.

    Returns:
        Name and value; none without an observation.
    """
    seconds = [observation.seconds for observation in history]
    if not seconds:
        return ()
    rows = [
        ("observations", _counts(history)),
        ("all observations", duration(sum(seconds))),
        ("slowest observation", duration(max(seconds))),
    ]
    cost = history.cost
    if cost is not None:
        rows += [
            ("watching, all in all", duration(cost.seconds)),
            ("training, watching included", duration(cost.elapsed)),
            ("share of the time", _share(cost.share)),
            ("allowed share", _allowed(cost)),
        ]
    elif (share := history[-1].overhead_share) is not None:
        rows.append(("share of the time so far", _share(share)))
    return tuple(rows)


def _counts(history: History) -> str:
    brief = sum(observation.is_brief for observation in history)
    said = counted(len(history), "observation").partition(" ")[0]
    return f"{said}, {brief} of them brief (without a kernel)" if brief else said


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "below 0.1%"


def _allowed(cost: Cost) -> str:
    if cost.promised is None:
        return "no limit: the schedule was to be kept"
    if cost.share <= cost.promised:
        return _share(cost.promised)
    return (
        f"{_share(cost.promised)}, exceeded: the run was too short to pay for its reference, its "
        "last observation and the report"
    )


def plain_cost(history: History) -> dict[str, Any]:
    """Return what watching a run took, for scripts.

    Args:
        history: Its observations, and its cost where it ended.

    Returns:
        Counts, seconds and shares; None for what is not known.
    """
    seconds = [observation.seconds for observation in history]
    cost = history.cost
    return {
        "observations": len(seconds),
        "brief": sum(observation.is_brief for observation in history),
        "seconds": sum(seconds, 0.0),
        "slowest_seconds": max(seconds, default=0.0),
        "watching_seconds": None if cost is None else cost.seconds,
        "elapsed_seconds": None if cost is None else cost.elapsed,
        "share": None if cost is None else cost.share,
        "promised": None if cost is None else cost.promised,
    }
