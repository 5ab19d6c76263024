"""Bands that agree best with the answers of one half of the trainings."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from calibration.settings import Setting
from calibration.twin import answer_of
from ntkwatch import History, Verdict, judge
from ntkwatch.watch.verdict.bands import Bands, Strength

__all__ = ["Judged", "Run", "fit_bands", "judge_runs"]

_ERRORS = (
    (0.06, 0.08, 0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.2, 0.22, 0.25),
    (0.2, 0.22, 0.25, 0.27, 0.3, 0.31, 0.32, 0.33, 0.35, 0.37, 0.4, 0.45, 0.5),
)
_ANGLES = (
    (0.02, 0.03, 0.04, 0.05, 0.055, 0.06, 0.07, 0.08, 0.1),
    (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
)
# Taking lazy for feature-learning, or the reverse, is far worse than missing a band by one.
_COSTS, _ABSTAINED = (0.0, 1.0, 10.0), 0.5
_ORDER = ("lazy", "transitional", "feature-learning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training that was measured.

    Attributes:
        setting: What was trained.
        history: What was seen.
        gaps: Of its twins by the step of their anchor, in weights and in outputs; none for a
            control.
    """

    setting: Setting
    history: History
    gaps: dict[int, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A run with what is said of it.

    Attributes:
        run: The run.
        verdict: On it.
    """

    run: Run
    verdict: Verdict

    @property
    def label(self) -> str:
        """The verdict's strength."""
        return _label(self.verdict.strength)

    @property
    def answer(self) -> str:
        """That of the twin with the anchor that the verdict speaks of."""
        since = "since start"
        if (self.verdict.qualifier or "").startswith("after"):
            since = "since warm-up"
        return answer_of(self.run.gaps[self.verdict.readings[since].anchor_step][0])

    def readings(self) -> Iterator[tuple[str, str]]:
        """Yield label and answer of every reading by itself, where it says anything."""
        for reading in self.verdict.readings.values():
            if reading.qualifier != "too early":
                yield _label(reading.strength), answer_of(self.run.gaps[reading.anchor_step][0])


def _label(strength: Strength) -> str:
    """Static is the lazy end."""
    return "lazy" if strength is Strength.STATIC else str(strength)


def _cost(label: str, answer: str) -> float:
    if label == "undetermined":
        return _ABSTAINED
    return _COSTS[abs(_ORDER.index(label) - _ORDER.index(answer))]


def judge_runs(runs: Sequence[Run], bands: Bands) -> list[Judged]:
    """Return every run with its verdict."""
    return [Judged(run=run, verdict=judge(run.history, bands=bands)) for run in runs]


def fit_bands(runs: Sequence[Run]) -> Bands:
    """Return the bands of least cost: edges of the error, then those of the angle, until settled.

    Every reading counts, against the twin with its own anchor. Of edges that cost the same, those
    nearest to the ones in use: no band moves without a reason.
    """
    bands = Bands()
    for _ in range(3):
        before = bands
        bands = _best(runs, bands, "lazy_error", "feature_error", _ERRORS)
        bands = _best(runs, bands, "lazy_angle", "feature_angle", _ANGLES)
        if bands == before:
            break
    return bands


def _best(
    runs: Sequence[Run],
    bands: Bands,
    low: str,
    high: str,
    edges: tuple[tuple[float, ...], tuple[float, ...]],
) -> Bands:
    costs = {}
    for edges_tried in product(*edges):
        if edges_tried[0] < edges_tried[1]:
            tried = replace(bands, **dict(zip((low, high), edges_tried, strict=True)))
            said = (pair for judged in judge_runs(runs, tried) for pair in judged.readings())
            costs[edges_tried] = sum(_cost(label, answer) for label, answer in said)
    least = min(costs.values())
    now = getattr(bands, low), getattr(bands, high)
    best = min(
        (pair for pair, cost in costs.items() if cost == least),
        key=lambda pair: sum(
            abs(math.log(edge / old)) for edge, old in zip(pair, now, strict=True)
        ),
    )
    return replace(bands, **{low: best[0], high: best[1]})
