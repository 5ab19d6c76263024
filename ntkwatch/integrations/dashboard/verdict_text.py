"""The verdict and how it came about, as Markdown for a logger's page of texts.

Names in it come from models and data, so every sentence is escaped: nothing becomes markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ntkwatch.report.markdown import escape, items, table
from ntkwatch.report.words import number
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import Verdict, judge

__all__ = ["Turn", "turns_of", "verdict_text"]

_MOST_TURNS = 12  # listed; a verdict that wavers more often than that is told by its last ones
_HEAD = ("step", "verdict", "training loss", "linearization error", "median layer angle (rad)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A step at which the verdict became another one.

    Attributes:
        step: Optimizer steps taken.
        label: The verdict from there on.
        loss: Training loss there, or None.
        error: Linearization error there, or None.
        angle: Median layer angle there, radians, or None.
    """

    step: int
    label: str
    loss: float | None
    error: float | None
    angle: float | None

    @classmethod
    def at(cls, observation: Observation, verdict: Verdict) -> Self:
        """Return the turn at an observation and the verdict as of it."""
        return cls(
            step=observation.step,
            label=verdict.label,
            loss=observation.loss,
            error=observation.linearization_error,
            angle=observation.layer_angle_median,
        )


def turns_of(history: History) -> list[Turn]:
    """Return the turns of a run whose verdicts nobody kept, judged as each observation came.

    Args:
        history: Of the run, or of its part until now.

    Returns:
        The first verdict, and each that was another one than the verdict before it.
    """
    turns: list[Turn] = []
    so_far = History(history.run)
    for observation in history:
        so_far.add(observation)
        if turns and observation.is_brief:  # which has too little to judge by
            continue
        verdict = judge(so_far)
        if not turns or turns[-1].label != verdict.label:
            turns.append(Turn.at(observation, verdict))
    return turns


def verdict_text(verdict: Verdict, turns: Sequence[Turn]) -> str:
    """Return a verdict with its evidence and its past.

    Args:
        verdict: As of now.
        turns: By step.

    Returns:
        Markdown without raw HTML.
    """
    parts = [
        f"## {escape(verdict.label)}",
        escape(verdict.reason),
        items(verdict.evidence),
        f"task-aligned: **{verdict.use.task_aligned}**, "
        f"features needed: **{verdict.use.features_needed}**",
        f"**Next:** {escape(verdict.next_step)}" if verdict.next_step else "",
        *_past(turns),
        "*Set Smoothing to 0: sparse curves are distorted by it.*",
    ]
    return "\n\n".join(part for part in parts if part)


def _past(turns: Sequence[Turn]) -> list[str]:
    if not turns:
        return []
    rows = [
        (str(t.step), escape(t.label), number(t.loss), number(t.error), number(t.angle))
        for t in turns[-_MOST_TURNS:]
    ]
    before = len(turns) - len(rows)
    words = f" after {before} earlier changes" if before else ""
    return [f"**How the verdict came about{words}:**", table(_HEAD, rows, "rlrrr")]
