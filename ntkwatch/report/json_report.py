"""A run's report as versioned, strict JSON, for scripts.

Knows nothing of files; nothing is rounded and no observation is left out.
"""

import json
from typing import Any

from ntkwatch.report.core import summarise
from ntkwatch.report.cost_rows import plain_cost
from ntkwatch.report.words import finite
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.plain import to_plain
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["FORMAT", "render_json"]

# Raised whenever a reader of the older form would misread the newer one.
FORMAT = 1


def render_json(history: History, verdict: Verdict, *, title: str) -> str:
    """Return the report of a run as JSON.

    Args:
        history: The run's observations.
        verdict: What ``judge`` said about them.
        title: Name of the run.

    Returns:
        One object, indented, without NaN or infinity (null instead). Keys: ``ntkwatch_report``
        (the version of this form), ``title``, ``verdict`` (as in ``verdict.json``), ``run``,
        ``observations`` and ``gaps`` (as in ``history.jsonl``), ``missing``, ``problems`` and
        ``cost``.
    """
    summary = summarise(history, verdict)
    report: dict[str, Any] = {
        "ntkwatch_report": FORMAT,
        "title": title,
        "verdict": {**verdict.to_plain(), "label": verdict.label},
        "run": to_plain(history.run),
        "observations": [to_plain(observation) for observation in history],
        "gaps": [to_plain(gap) for gap in history.gaps],
        "missing": [
            {"numbers": list(missing.titles), "reason": missing.reason, "where": missing.where}
            for missing in summary.missing
        ],
        "problems": list(summary.problems),
        "cost": plain_cost(history),
    }
    return json.dumps(finite(report), indent=2, allow_nan=False) + "\n"
