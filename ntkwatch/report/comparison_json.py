"""Several runs side by side as versioned, strict JSON, for scripts. Nothing is rounded."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ntkwatch.report.comparison import compare
from ntkwatch.report.comparison_figures import Run
from ntkwatch.report.matching import Clock
from ntkwatch.report.words import finite
from ntkwatch.watch.record.plain import to_plain

__all__ = ["FORMAT", "render_comparison_json"]

# Raised whenever a reader of the older form would misread the newer one.
FORMAT = 1


def render_comparison_json(runs: Sequence[Run], *, title: str, by: Clock = "ratio") -> str:
    """Return several runs side by side as JSON.

    Args:
        runs: Name, observations and verdict of each.
        title: Heading.
        by: What runs are matched by: "ratio" of the loss to its start, or "loss".

    Returns:
        One object, indented, without NaN or infinity (null instead). Keys:
        ``ntkwatch_comparison`` (the version of this form), ``title``, ``runs`` (name, verdict,
        last observation, problems), ``matching`` (``clock``, ``levels`` with one entry per run in
        the same order, ``order`` from the laziest on, ``said``, ``why_not``) and ``caution``.
    """
    comparison = compare(runs, {}, by=by)
    page: dict[str, Any] = {
        "ntkwatch_comparison": FORMAT,
        "title": title,
        "runs": [
            {
                "name": card.name,
                "verdict": {**card.verdict.to_plain(), "label": card.verdict.label},
                "last": None if card.last is None else to_plain(card.last),
                "observations": len(history),
                "problems": list(card.problems),
            }
            for card, (_, history, _) in zip(comparison.cards, runs, strict=True)
        ],
        "matching": dataclasses.asdict(comparison.matching),
        "caution": list(comparison.caution),
    }
    return json.dumps(finite(page), indent=2, allow_nan=False) + "\n"
