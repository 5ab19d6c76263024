"""A run's report for a terminal: the verdict first, then the numbers it rests on.

Knows nothing of files or streams; control characters in names never reach the terminal.
"""

import math
from collections.abc import Sequence

from ntkwatch.report.columns import Column, value_of
from ntkwatch.report.core import Summary, summarise
from ntkwatch.report.page import ANSI, Page
from ntkwatch.report.since_rows import ANCHOR_HEAD, LAYER_HEAD, anchor_rows, layer_rows
from ntkwatch.report.words import MISSING, clean, counted, number, shorten
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["render_text"]

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 20  # layers, gaps and problems beyond this many are counted, not listed
_COUNTS = ("step", "epoch")
_BESIDE_NAME = 44  # columns that the rest of a layer's row takes


def render_text(
    history: History, verdict: Verdict, *, title: str, colour: bool = False, width: int = 100
) -> str:
    """Return the report of a run as text.

    Args:
        history: The run's observations.
        verdict: What ``judge`` said about them.
        title: Name of the run.
        colour: Use ANSI colours. Without, there is not one escape character in the text.
        width: Columns of the terminal, at least 60; tables are cut into blocks that fit.

    Returns:
        Lines, the last one ended.
    """
    summary = summarise(history, verdict)
    page = Page(colour=colour, width=width)
    page.line(shorten(f"ntkwatch: {clean(title)}", width))
    page.line()
    page.line(page.painted(f"Verdict: {verdict.label}", f"1;{ANSI[verdict.strength]}"))
    page.prose(verdict.reason)
    page.section("Evidence")
    page.items(verdict.evidence)
    page.section("Use")
    page.prose(
        f"Task-aligned: {verdict.use.task_aligned}. Features needed: {verdict.use.features_needed}."
    )
    if verdict.use.why:
        page.prose(f"({verdict.use.why})")
    page.section("Next step")
    page.prose(verdict.next_step)
    _numbers(page, history, summary)
    _details(page, summary)
    _timeline(page, verdict)
    _layers(page, summary)
    _left_out(page, summary)
    if summary.cost:
        page.section("Cost")
        page.items(f"{name}: {value}" for name, value in summary.cost)
    return page.text()


# Numbers over time. -------------------------------------------------------------------------------


def _numbers(page: Page, history: History, summary: Summary) -> None:
    if not summary.rows:
        return
    listed = counted(summary.total, "observation")
    if len(summary.rows) < summary.total:
        listed = f"{len(summary.rows)} of {listed}: first, last, extremes, some between"
    page.section(f"Numbers over time ({listed})")
    cells = [[_cell(column, row) for row in summary.rows] for column in summary.columns]
    shapes = [
        "" if column.key in _COUNTS else _spark([value_of(o, column.key) for o in history])
        for column in summary.columns
    ]
    if any(shapes):
        shapes[0] = "course"
    blocks = _blocks(page.width - 2, summary.columns, cells, shapes)
    for place, block in enumerate(blocks):
        if place:
            page.line()
        for line in block:
            page.line(f"  {line}")


def _cell(column: Column, row: Observation) -> str:
    value = value_of(row, column.key)
    if column.key in _COUNTS:
        return MISSING if value is None else str(value)
    return number(value, digits=2)


def _blocks(
    width: int, columns: Sequence[Column], cells: list[list[str]], shapes: list[str]
) -> list[list[str]]:
    """Cut a table into blocks no wider than ``width``; each begins with the first column."""
    drawn = [
        _column([*column.head, *body, shape])
        for column, body, shape in zip(columns, cells, shapes, strict=True)
    ]
    first, others = drawn[0], drawn[1:]
    blocks: list[list[str]] = []
    block = first
    for column in others:
        if block is not first and len(block[0]) + 2 + len(column[0]) > width:
            blocks.append(block)
            block = first
        block = [f"{left}  {right}" for left, right in zip(block, column, strict=True)]
    return [*blocks, block]


def _column(lines: list[str]) -> list[str]:
    size = max(len(line) for line in lines)
    return [line.rjust(size) for line in lines]


def _spark(values: Sequence[float | None], size: int = 5) -> str:
    """The course of a number in a few bars, from its least to its greatest value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 3 or min(known) == max(known):
        return ""
    picked = [known[round(i * (len(known) - 1) / (size - 1))] for i in range(size)]
    low, high = min(known), max(known)
    return "".join(
        _BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in picked
    )


def _details(page: Page, summary: Summary) -> None:
    if not summary.details:
        return
    page.section("Further numbers of the last observation")
    for row in summary.details:
        page.prose(f"{row.title}: {row.value}", "  - ", "    ")


def _timeline(page: Page, verdict: Verdict) -> None:
    timeline = verdict.timeline
    if timeline is None or not timeline.errors:
        return
    page.section("When features formed")
    page.prose(f"{timeline.sentence[:1].upper()}{timeline.sentence[1:]}.")
    rows = [ANCHOR_HEAD, *anchor_rows(timeline)]
    columns = [_column(list(cells)) for cells in zip(*rows, strict=True)]
    for cells in zip(*columns, strict=True):
        page.line("  " + "  ".join(cells))
    listed = layer_rows(timeline)
    for name, since in listed[:_SHOWN]:
        page.prose(f"{name}: {LAYER_HEAD[1]} {since}", "  - ", "    ")
    _and_more(page, len(listed), "layers")


# Layers, and what is not there. -------------------------------------------------------------------


def _layers(page: Page, summary: Summary) -> None:
    if not summary.layers:
        return
    page.section(f"Layers, by how far their kernel turned ({len(summary.layers)})")
    shown = summary.layers[:_SHOWN]
    names = [shorten(clean(layer.name), page.width - _BESIDE_NAME) for layer in shown]
    size = max([len(name) for name in names] + [len("layer")])
    page.line(f"  {'layer':<{size}}  {'angle/rad':>9}  {'band':<16}  rel. displ.")
    for name, layer in zip(names, shown, strict=True):
        page.line(
            f"  {name:<{size}}  {number(layer.angle):>9}  {layer.band:<16}  "
            f"{number(layer.relative_displacement):>11}"
        )
    _and_more(page, len(summary.layers), "layers that turned less")


def _left_out(page: Page, summary: Summary) -> None:
    if summary.missing:
        page.section("Not measured")
        page.items(f"{', '.join(m.titles)} ({m.where}): {m.reason}" for m in summary.missing)
    if summary.gaps:
        page.section(f"Steps without an observation ({len(summary.gaps)})")
        page.items(f"step {gap.step}: {gap.words}" for gap in summary.gaps[:_SHOWN])
        _and_more(page, len(summary.gaps), "gaps")
    if summary.problems:
        page.section(f"Problems of the history file ({len(summary.problems)})")
        page.items(summary.problems[:_SHOWN])
        _and_more(page, len(summary.problems), "problems")


def _and_more(page: Page, total: int, what: str) -> None:
    if total > _SHOWN:
        page.line(f"  ... and {total - _SHOWN} more {what}")
