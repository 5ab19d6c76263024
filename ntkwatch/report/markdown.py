"""A run's report as Markdown with tables, for an issue, a pull request or a notebook.

Knows nothing of files; names from a model or a data set are escaped and cannot form markup.
"""

import re
from collections.abc import Iterable, Sequence

from ntkwatch.report.columns import value_of
from ntkwatch.report.core import Summary, summarise
from ntkwatch.report.since_rows import ANCHOR_HEAD, LAYER_HEAD, anchor_rows, layer_rows
from ntkwatch.report.words import MISSING, Number, clean, counted, number
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["escape", "items", "render_markdown", "table"]

# What Markdown and its tables read as markup anywhere, before a link's slashes, and at the start
# of a line. Parentheses are safe, as no bracket before them stays unescaped.
_MARKUP = re.compile(r"([\\`*_{}\[\]|~<>&$]|:(?=//)|^[#+=-]|(?<=^[0-9])[.)])")
_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def render_markdown(history: History, verdict: Verdict, *, title: str) -> str:
    """Return the report of a run as Markdown.

    Args:
        history: The run's observations.
        verdict: What ``judge`` said about them.
        title: Name of the run.

    Returns:
        Lines, the last one ended; raw HTML nowhere.
    """
    summary = summarise(history, verdict)
    parts = [
        f"# ntkwatch: {escape(title)}",
        f"**Verdict: {escape(verdict.label)}**",
        escape(verdict.reason),
        "## Evidence",
        items(verdict.evidence),
        "## Use",
        f"Task-aligned: {verdict.use.task_aligned}. "
        f"Features needed: {verdict.use.features_needed}. {escape(verdict.use.why)}".rstrip(),
        "## Next step",
        escape(verdict.next_step),
        *_numbers(summary),
        *_details(summary),
        *_timeline(verdict),
        *_layers(summary),
        *_left_out(summary),
        "## Cost" if summary.cost else "",
        table(("watching", "took"), [(escape(k), escape(v)) for k, v in summary.cost], "ll")
        if summary.cost
        else "",
        "## Settings",
        table(("setting", "value"), [(escape(k), escape(v)) for k, v in summary.settings], "ll"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: object) -> str:
    """Return text that Markdown shows as it is.

    Args:
        text: A name, a sentence, a reason.

    Returns:
        One line with every mark escaped that could open markup, a table cell or HTML.
    """
    return _MARKUP.sub(_escaped, clean(text))


def _escaped(match: re.Match[str]) -> str:
    mark = match[1]
    return _HTML.get(mark, f"\\{mark}")


def items(texts: Iterable[str]) -> str:
    """Return texts as a list."""
    return "\n".join(f"- {escape(text)}" for text in texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return a table of cells that are escaped already; ``align`` holds "l" or "r" per column."""
    rule = ["---:" if side == "r" else ":---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _numbers(summary: Summary) -> list[str]:
    if not summary.rows:
        return []
    head = [
        f"{column.title} ({column.unit})" if column.unit else column.title
        for column in summary.columns
    ]
    rows = []
    for row in summary.rows:
        values = [(column.key, value_of(row, column.key)) for column in summary.columns]
        rows.append([_cell(key, value) for key, value in values])
    return [
        "## Numbers over time",
        table(head, rows, "r" * len(head)),
        f"Listed: {len(summary.rows)} of {counted(summary.total, 'observation')}. "
        f"{MISSING} means: not measured.",
    ]


def _cell(key: str, value: Number | None) -> str:
    if key in ("step", "epoch"):
        return MISSING if value is None else str(value)
    return number(value, signed=key == "kernel_scale")


def _details(summary: Summary) -> list[str]:
    if not summary.details:
        return []
    rows = [(escape(row.title), escape(row.value), escape(row.meaning)) for row in summary.details]
    return [
        "## Further numbers of the last observation",
        table(("number", "value", "read it as"), rows, "lll"),
    ]


def _timeline(verdict: Verdict) -> list[str]:
    timeline = verdict.timeline
    if timeline is None or not timeline.errors:
        return []
    layers = [(escape(name), step) for name, step in layer_rows(timeline)]
    return [
        "## When features formed",
        escape(f"{timeline.sentence[:1].upper()}{timeline.sentence[1:]}."),
        table(ANCHOR_HEAD, anchor_rows(timeline), "rrr"),
        table(LAYER_HEAD, layers, "lr") if layers else "",
    ]


def _layers(summary: Summary) -> list[str]:
    if not summary.layers:
        return []
    rows = [
        (
            escape(layer.name),
            number(layer.angle),
            escape(layer.band),
            number(layer.relative_displacement),
        )
        for layer in summary.layers
    ]
    return [
        "## Layers",
        table(("layer", "angle (rad)", "band", "relative displacement"), rows, "lrlr"),
    ]


def _left_out(summary: Summary) -> list[str]:
    parts = []
    if summary.missing:
        parts += [
            "## Not measured",
            items(f"{', '.join(m.titles)} ({m.where}): {m.reason}" for m in summary.missing),
        ]
    if summary.gaps:
        gaps = [f"step {gap.step}: {gap.words}" for gap in summary.gaps]
        parts += ["## Steps without an observation", items(gaps)]
    if summary.problems:
        parts += ["## Problems of the history file", items(summary.problems)]
    return parts
