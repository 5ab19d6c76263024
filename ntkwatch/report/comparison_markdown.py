"""Several runs side by side as Markdown with tables. Knows nothing of files."""

from collections.abc import Sequence

from ntkwatch.report.columns import BY_KEY
from ntkwatch.report.comparison import compare
from ntkwatch.report.comparison_figures import Run
from ntkwatch.report.markdown import escape, items, table
from ntkwatch.report.matching import MATCHED, Clock, Matching
from ntkwatch.report.words import MISSING, number

__all__ = ["render_comparison_markdown"]


def render_comparison_markdown(runs: Sequence[Run], *, title: str, by: Clock = "ratio") -> str:
    """Return several runs side by side as Markdown.

    Args:
        runs: Name, observations and verdict of each.
        title: Heading.
        by: What runs are matched by: "ratio" of the loss to its start, or "loss".

    Returns:
        Lines, the last one ended; raw HTML nowhere.
    """
    comparison = compare(runs, {}, by=by)
    names = [escape(name) for name, _, _ in runs]
    verdicts = [
        (name, escape(card.verdict.label), escape(card.verdict.reason))
        for name, card in zip(names, comparison.cards, strict=True)
    ]
    finals = [(what, *values) for what, values in comparison.finals]
    problems = [f"{card.name}: {text}" for card in comparison.cards for text in card.problems]
    parts = [
        f"# ntkwatch: {escape(title)}",
        table(("run", "verdict", "why"), verdicts, "lll"),
        "## At equal loss",
        *_matched(names, comparison.matching),
        *(["## Before comparing", items(comparison.caution)] if comparison.caution else []),
        "## At the last observation",
        table(("", *names), finals, "l" + "r" * len(names)),
        *(["## Problems of the history files", items(problems)] if problems else []),
    ]
    return "\n\n".join(parts) + "\n"


def _matched(names: Sequence[str], matching: Matching) -> list[str]:
    if not matching.levels:
        return [escape(matching.why_not)]
    what = "loss, share of its start" if matching.clock == "ratio" else "loss"
    shown = [
        key
        for key in MATCHED
        if any(r.values[key] is not None for level in matching.levels for r in level.runs)
    ]
    head = (what, "run", "step", *(BY_KEY[key].title for key in shown))
    rows = [
        (
            number(level.level),
            name,
            MISSING if reached.step is None else f"{reached.step:.0f}",
            *(number(reached.values[key], signed=key == "kernel_scale") for key in shown),
        )
        for level in matching.levels
        for name, reached in zip(names, level.runs, strict=True)
    ]
    return [escape(matching.said), table(head, rows, "rl" + "r" * (len(head) - 2))]
