"""What every format of a report shows: a history and its verdict as plain rows.

Nothing here knows how a row is drawn, coloured or escaped; names are as the model gave them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from ntkwatch.report.columns import BY_KEY, COLUMNS, Column, title_of, value_of
from ntkwatch.report.cost_rows import cost_rows
from ntkwatch.report.details import DetailRow, detail_rows
from ntkwatch.report.words import flatten
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Gap, Observation, Reading
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["LayerRow", "Missing", "Summary", "summarise", "thin"]

# Rows spread evenly over a run; the extremes of each column come on top.
_EVEN_ROWS = 12

# The key under which a record says why it has no kernel, and the numbers that need none.
_KERNEL = "kernel"
# Numbers of the way since the reference, which has none itself, and of what training allows.
_SINCE = {
    "angular_velocity",
    "path_length",
    "path_length_ratio",
    "displacement_path",
    "displacement_path_ratio",
    "full_kernel_change",
    "full_kernel_angle",
    "displacement_ratio",
    "representer_gap",
    "acc_net",
    "acc_kernel_ref",
    "acc_kernel_final",
    "score_net",
    "score_kernel_ref",
    "score_kernel_final",
    "residual_modes",
    "gradient_flow_bound",
}
_WITHOUT_KERNEL = ("loss", "linearization_error", "displacement", "relative_displacement")


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
    """Numbers that some or all observations lack, for one reason.

    Attributes:
        titles: Of the numbers.
        reason: As the records give it.
        where: "never measured", or at how many observations they are missing.
    """

    titles: tuple[str, ...]
    reason: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What every format shows.

    Attributes:
        columns: Those that hold a number anywhere in the run.
        rows: The observations to list: first, last, extremes, and some evenly between.
        total: Observations in the history.
        details: Further numbers of the last observation.
        layers: By angle, largest first; layers without a reference last.
        missing: What was not measured, and why.
        gaps: Steps at which observing failed.
        problems: What was wrong with the history file.
        settings: What all observations share, as name and value.
        cost: What watching took, as name and value.
    """

    columns: tuple[Column, ...]
    rows: tuple[Observation, ...]
    total: int
    details: tuple[DetailRow, ...]
    layers: tuple[LayerRow, ...]
    missing: tuple[Missing, ...]
    gaps: tuple[Gap, ...]
    problems: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    cost: tuple[tuple[str, str], ...]


def summarise(history: History, verdict: Verdict) -> Summary:
    """Return what every format shows of a run.

    Args:
        history: Its observations.
        verdict: What ``judge`` said about them.

    Returns:
        Plain rows.
    """
    observations = history.observations
    return Summary(
        columns=tuple(
            column
            for column in COLUMNS
            if column.key == "step"
            or any(value_of(observation, column.key) is not None for observation in observations)
        ),
        rows=thin(observations),
        total=len(observations),
        details=detail_rows(observations[-1] if observations else None),
        layers=_layer_rows(verdict),
        missing=_missing(observations),
        gaps=tuple(sorted(history.gaps, key=lambda gap: gap.step)),
        problems=tuple(history.problems),
        settings=_settings(history),
        cost=cost_rows(history),
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
    warmed = [o.since_warmup for o in observations if o.since_warmup is not None]
    # Nor has it a training loss: no batch came before it.
    readings = {"loss", *_SINCE, *(field.name for field in fields(Reading))}
    keys = [column.key for column in COLUMNS if column.key not in ("step", "epoch")]
    keys += [key for key in _keys_left_out(observations) if key not in (*keys, _KERNEL)]
    explained: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        asked = compared if key.partition("/")[0] in readings else observations
        explained |= _explained(asked, key, title_of(key))
    for key in _keys_left_out(warmed):
        if key != _KERNEL:
            explained |= _explained(warmed, key, f"since warm-up: {title_of(key)}")
    groups: dict[tuple[str, str], list[str]] = {}
    for title, reasons in explained.items():
        for why in reasons:
            groups.setdefault(why, []).append(title)
    return tuple(
        Missing(titles=tuple(titles), reason=reason, where=where)
        for (reason, where), titles in groups.items()
    )


def _keys_left_out(readings: Iterable[Reading]) -> list[str]:
    return list(dict.fromkeys(key for reading in readings for key in reading.left_out))


def _explained(
    readings: Sequence[Reading], key: str, title: str
) -> dict[str, list[tuple[str, str]]]:
    """Return, if a number is missing, its title with the reasons and where each holds."""
    reasons = Counter(_reason(reading, key) for reading in readings if _lacks(reading, key))
    found = []
    for reason, count in reasons.items():
        where = f"missing at {count} of {len(readings)} observations"
        found.append((reason, "never measured" if count == len(readings) else where))
    return {title: found} if found else {}


def _reason(reading: Reading, key: str) -> str:
    """Without a kernel there is nothing that is computed from one."""
    if key in reading.left_out:
        return reading.left_out[key]
    if key not in _WITHOUT_KERNEL and _KERNEL in reading.left_out:
        return reading.left_out[_KERNEL]
    return "no reason was recorded"


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
