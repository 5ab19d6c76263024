"""Several runs side by side for a terminal: their verdicts, then their numbers at equal loss.

Knows nothing of files or streams.
"""

from collections.abc import Sequence

from ntkwatch.report.columns import BY_KEY
from ntkwatch.report.comparison import compare
from ntkwatch.report.comparison_figures import Run
from ntkwatch.report.matching import Clock, Matching
from ntkwatch.report.page import ANSI, Page
from ntkwatch.report.words import MISSING, clean, counted, number, shorten

__all__ = ["render_comparison_text"]

# What a row has room for; the other forms list all.
_SHOWN = (
    "linearization_error",
    "layer_angle_median",
    "kernel_scale",
    "relative_kernel_change",
    "target_alignment",
)
_BESIDE_NAME, _PER_NUMBER = 18, 10  # columns that loss and step take, and that a number takes
_SHORTEST_NAME = 12


def render_comparison_text(
    runs: Sequence[Run],
    *,
    title: str,
    by: Clock = "ratio",
    colour: bool = False,
    width: int = 100,
) -> str:
    """Return several runs side by side as text.

    Args:
        runs: Name, observations and verdict of each.
        title: Heading.
        by: What runs are matched by: "ratio" of the loss to its start, or "loss".
        colour: Use ANSI colours.
        width: Columns of the terminal, at least 60.

    Returns:
        Lines, the last one ended.
    """
    comparison = compare(runs, {}, by=by)
    page = Page(colour=colour, width=width)
    left = page.width - _BESIDE_NAME - _PER_NUMBER * len(_SHOWN)
    names = [shorten(clean(name), max(_SHORTEST_NAME, left)) for name, _, _ in runs]
    size = max(len(name) for name in [*names, "run"])
    page.line(shorten(f"ntkwatch: {clean(title)}", page.width))
    page.section(f"Verdicts ({counted(len(runs), 'run')})")
    for name, card in zip(names, comparison.cards, strict=True):
        label = page.painted(card.verdict.label, f"1;{ANSI[card.verdict.strength]}")
        page.line(f"  {name:<{size}}  {label}")
    _matched(page, names, size, comparison.matching)
    if comparison.caution:
        page.section("Before comparing")
        page.items(comparison.caution)
    problems = [f"{card.name}: {problem}" for card in comparison.cards for problem in card.problems]
    if problems:
        page.section("Problems of the history files")
        page.items(problems)
    return page.text()


def _matched(page: Page, names: Sequence[str], size: int, matching: Matching) -> None:
    of_start = matching.clock == "ratio"
    what = "share of the loss at the start that is left" if of_start else "training loss"
    page.section(f"At equal loss ({what})")
    if not matching.levels:
        page.prose(matching.why_not)
        return
    shown = _SHOWN[: (page.width - _BESIDE_NAME - size) // _PER_NUMBER]
    heads = [BY_KEY[key].head for key in shown]
    for line in range(2):
        words = "".join(f"{head[line]:>10}" for head in heads)
        left = f"  {'':>6}  {'':<{size}}  {'':>6}" if line == 0 else ""
        left = left or f"  {'loss':>6}  {'run':<{size}}  {'step':>6}"
        page.line(f"{left}{words}")
    for level in matching.levels:
        for place, (name, reached) in enumerate(zip(names, level.runs, strict=True)):
            loss = number(level.level, digits=2) if place == 0 else ""
            cells = "".join(f"{_cell(reached.values[key]):>10}" for key in shown)
            step = MISSING if reached.step is None else f"{reached.step:.0f}"
            page.line(f"  {loss:>6}  {name:<{size}}  {step:>6}{cells}")
    page.line()
    page.prose(matching.said)


def _cell(value: float | None) -> str:
    return MISSING if value is None else number(value, digits=2)
