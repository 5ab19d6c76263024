"""What every format of a report shows: a history and its verdict as plain rows.

Nothing here knows how a row is drawn, coloured or escaped; names are as the model gave them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from ntkwatch.report.columns import BY_KEY, COLUMNS, Column, title_of, value_of
from ntkwatch.report.words import flatten
from ntkwatch.watch.history import History
from ntkwatch.watch.records import Gap, Observation, Reading
from ntkwatch.watch.verdict import Verdict

__all__ = ["LayerRow", "Missing", "Summary", "summarise", "thin"]

# Rows spread evenly over a run; the extremes of each column come on top.
_EVEN_ROWS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One module's part of the kernel at the last observation.

    Attributes:
        name: As the model gave it.
        angle: Radians, or None where its part was zero at the start.
        band: The band that the angle alone lies in.
        relative_displacement: Of its parameters, or None.
    """

    name: str
    angle: float | None
    band: str
    relative_displacement: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A number that some or all observations lack.

    Attributes:
        title: Of the number.
        reason: As the records give it.
        where: "never measured", or at how many observations it is missing.
    """

    title: str
    reason: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What every format shows.

    Attributes:
        columns: Those that hold a number anywhere in the run.
        rows: The observations to list: first, last, extremes, and some evenly between.
        total: Observations in the history.
        layers: By angle, largest first; layers without a reference last.
        missing: What was not measured, and why.
        gaps: Steps at which observing failed.
        problems: What was wrong with the history file.
        settings: What all observations share, as name and value.
        seconds: Wall time of all observations together.
        slowest: Wall time of the slowest, seconds.
    """

    columns: tuple[Column, ...]
    rows: tuple[Observation, ...]
    total: int
    layers: tuple[LayerRow, ...]
    missing: tuple[Missing, ...]
    gaps: tuple[Gap, ...]
    problems: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    seconds: float
    slowest: float


def summarise(history: History, verdict: Verdict) -> Summary:
    """Return what every format shows of a run.

    Args:
        history: Its observations.
        verdict: What ``judge`` said about them.

    Returns:
        Plain rows.
    """
    observations = history.observations
    seconds = [observation.seconds for observation in observations]
    return Summary(
        columns=tuple(
            column
            for column in COLUMNS
            if column.key == "step"
            or any(value_of(observation, column.key) is not None for observation in observations)
        ),
        rows=thin(observations),
        total=len(observations),
        layers=_layer_rows(verdict),
        missing=_missing(observations),
        gaps=tuple(history.gaps),
        problems=tuple(history.problems),
        settings=_settings(history),
        seconds=sum(seconds),
        slowest=max(seconds, default=0.0),
    )


def thin(observations: Sequence[Observation], *, even: int = _EVEN_ROWS) -> tuple[Observation, ...]:
    """Return a readable number of observations that misses no extreme.

    Args:
        observations: Ordered by step.
        even: How many to take evenly spaced, first and last among them; at least 2.

    Returns:
        These, and the least and the greatest of every column, ordered by step.
    """
    last = len(observations) - 1
    if last < even:
        return tuple(observations)
    kept = {round(i * last / (even - 1)) for i in range(even)}
    for column in COLUMNS:
        values = [
            (value, place)
            for place, observation in enumerate(observations)
            if (value := value_of(observation, column.key)) is not None
        ]
        if values:
            kept |= {min(values)[1], max(values)[1]}
    return tuple(observations[place] for place in sorted(kept))


def _layer_rows(verdict: Verdict) -> tuple[LayerRow, ...]:
    rows = [
        LayerRow(
            name=name,
            angle=layer.angle,
            band=layer.band,
            relative_displacement=layer.relative_displacement,
        )
        for name, layer in verdict.layers.items()
    ]
    return tuple(sorted(rows, key=lambda row: (row.angle is None, -(row.angle or 0.0))))


def _missing(observations: Sequence[Observation]) -> tuple[Missing, ...]:
    """The reference cannot be compared with itself, so it is not asked for readings."""
    compared = [o for o in observations if o.step != o.anchor_step]
    found = _missing_of(observations, compared)
    warmed = [o.since_warmup for o in observations if o.since_warmup is not None]
    found += _grouped(warmed, _keys_left_out(warmed), "since warm-up: ")
    return tuple(found)


def _missing_of(observations: Sequence[Observation], compared: list[Observation]) -> list[Missing]:
    readings = {field.name for field in fields(Reading)}
    keys = [column.key for column in COLUMNS if column.key not in ("step", "epoch")]
    keys += [key for key in _keys_left_out(observations) if key not in keys]
    of_reading = [key for key in keys if key.partition("/")[0] in readings]
    of_step = [key for key in keys if key not in of_reading]
    return _grouped(observations, of_step) + _grouped(compared, of_reading)


def _keys_left_out(readings: Iterable[Reading]) -> list[str]:
    return list(dict.fromkeys(key for reading in readings for key in reading.left_out))


def _grouped(readings: Sequence[Reading], keys: Iterable[str], prefix: str = "") -> list[Missing]:
    """One line per key and reason, with the number of observations that it explains."""
    found = []
    for key in keys:
        reasons: dict[str, int] = {}
        for reading in readings:
            if _lacks(reading, key):
                reason = reading.left_out.get(key, "no reason was recorded")
                reasons[reason] = reasons.get(reason, 0) + 1
        for reason, count in reasons.items():
            where = (
                "never measured"
                if count == len(readings)
                else f"missing at {count} of {len(readings)} observations"
            )
            found.append(Missing(title=prefix + title_of(key), reason=reason, where=where))
    return found


def _lacks(reading: Reading, key: str) -> bool:
    if key in reading.left_out:
        return True
    if isinstance(reading, Observation) and key in BY_KEY:
        return value_of(reading, key) is None
    return getattr(reading, key, 0) is None


def _settings(history: History) -> tuple[tuple[str, str], ...]:
    run = history.run
    pairs = [("reference", run.reference or "first observation")]
    pairs += flatten(run.model, "model: ") + flatten(run.probe, "probe: ")
    pairs += flatten(run.spec, "kernel: ")
    if len(history):
        pairs.append(("batch normalisation", history[-1].batchnorm))
    pairs += flatten(run.versions, "version of ")
    if run.created:
        pairs.append(("created", run.created))
    return (*pairs, ("schema", str(run.schema)))
