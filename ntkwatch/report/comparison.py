"""Several runs side by side as plain rows: a card each, at equal loss, and at their ends.

Nothing here knows how a row is drawn or escaped; names are as the caller gave them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ntkwatch.report.colours import run_colours
from ntkwatch.report.columns import COLUMNS, value_of
from ntkwatch.report.comparison_figures import Run
from ntkwatch.report.gauge import Gauge, gauges
from ntkwatch.report.matching import Clock, Matching, match
from ntkwatch.report.unlike import differences
from ntkwatch.report.words import MISSING, number, with_interval
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["Card", "Comparison", "compare"]

# Runs whose losses differ by more than this were not stopped at the same point of training. A loss
# averaged over a few batches scatters by tens of percent near its end, so less would say nothing.
EQUAL_LOSS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One run among others.

    Attributes:
        name: As the caller gave it.
        colour: Of its curves.
        verdict: On it.
        last: Its last observation, or None.
        gauges: The two numbers that its verdict rests on.
        facts: Further lines: name and value.
        problems: What was wrong with its history file.
    """

    name: str
    colour: str
    verdict: Verdict
    last: Observation | None
    gauges: tuple[Gauge, ...]
    facts: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        cards: One per run, in the caller's order.
        finals: Title of a number, and its value at the end of each run, for people.
        matching: Their numbers at equal loss.
        caution: What keeps these runs from being compared as they stand; empty if nothing does.
    """

    cards: tuple[Card, ...]
    finals: tuple[tuple[str, tuple[str, ...]], ...]
    matching: Matching
    caution: tuple[str, ...]


def compare(
    runs: Sequence[Run], facts: Mapping[str, Mapping[str, str]], *, by: Clock = "ratio"
) -> Comparison:
    """Return several runs side by side.

    Args:
        runs: Name, observations and verdict of each.
        facts: Per name of a run, further lines for its card.
        by: What runs are matched by: "ratio" of the loss to its start, or "loss".

    Returns:
        Plain rows.
    """
    colours = run_colours([verdict.strength for _, _, verdict in runs])
    cards = tuple(
        Card(
            name=name,
            colour=colours[place],
            verdict=verdict,
            last=history[-1] if len(history) else None,
            gauges=gauges(history[-1], verdict.bands) if len(history) else (),
            facts=tuple(facts.get(name, {}).items()),
            problems=tuple(history.problems),
        )
        for place, (name, history, verdict) in enumerate(runs)
    )
    unlike = differences(runs)
    said = (f"These kernels are of different kinds: {'; '.join(unlike)}.",) if unlike else ()
    return Comparison(
        cards=cards,
        finals=_finals(cards, runs),
        matching=match(runs, by=by),
        caution=(*said, *_caution(cards)),
    )


def _finals(cards: Sequence[Card], runs: Sequence[Run]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    lasts = [card.last for card in cards]
    rows = [("verdict", tuple(card.verdict.label for card in cards))]
    for column in COLUMNS:
        if any(o is not None and value_of(o, column.key) is not None for o in lasts):
            title = f"{column.title} ({column.unit})" if column.unit else column.title
            rows.append((title, tuple(_final(o, column.key) for o in lasts)))
        if column.key == "loss":
            ratios = tuple(number(None if o is None else o.loss_ratio) for o in lasts)
            rows.append(("loss ratio (loss now over loss at the start)", ratios))
    sizes = tuple(MISSING if o is None else str(o.probe_size) for o in lasts)
    rows.append(("probe points N", sizes))
    rows.append(("observations", tuple(str(len(history)) for _, history, _ in runs)))
    rows.append(("task-aligned", tuple(card.verdict.use.task_aligned for card in cards)))
    return tuple(rows)


def _final(last: Observation | None, key: str) -> str:
    if last is None:
        return MISSING
    value = value_of(last, key)
    if key in ("step", "epoch"):
        return MISSING if value is None else str(value)
    return with_interval(value, last.intervals.get(key))


def _caution(cards: Sequence[Card]) -> tuple[str, ...]:
    """What a reader must know before one run is called lazier than another."""
    ratios = [(card.name, None if card.last is None else card.last.loss_ratio) for card in cards]
    known = [(name, ratio) for name, ratio in ratios if ratio is not None and ratio > 0]
    reached = [ratio for _, ratio in known]
    said = []
    if reached and max(reached) > EQUAL_LOSS * min(reached):
        listed = "; ".join(f"{name}: {number(ratio)}" for name, ratio in known)
        said.append(
            "These runs reached different losses (share of the loss at the start that is left: "
            f"{listed}). Lazy and feature-learning runs should be compared at equal loss, since "
            "every run moves further as its loss falls: read the numbers at equal loss, not "
            "those at the end."
        )
    if unknown := [name for name, ratio in ratios if ratio is None]:
        said.append(
            f"There is no loss ratio for {', '.join(unknown)} (the loss is unknown, or of a kind "
            "that may fall below zero), so it cannot be told whether the runs are compared at "
            "equal loss."
        )
    sizes = {card.last.probe_size for card in cards if card.last is not None}
    if len(sizes) > 1:
        listed = ", ".join(str(size) for size in sorted(sizes))
        said.append(
            f"The probes differ in size (N = {listed}): do not compare effective rank, alignment "
            "or the top eigenvalue."
        )
    kinds = {card.name: card.last.unjudged for card in cards if card.last is not None}
    if len(set(kinds.values())) > 1:
        listed = "; ".join(f"{name}: {kind}" for name, kind in kinds.items() if kind is not None)
        said.append(
            f"The kernels are not of one kind ({listed}): do not compare their angles, scales or "
            "changes. Linearization errors can be compared."
        )
    return tuple(said)
