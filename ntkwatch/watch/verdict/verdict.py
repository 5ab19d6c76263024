"""From numbers to words: was training lazy or feature-learning, how do we know, what to do next.

``judge`` is pure: it reads a history and writes nothing. It never averages signals that disagree,
and lack of evidence is ``undetermined``. No torch here.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation, Reading
from ntkwatch.watch.verdict.advice import next_step
from ntkwatch.watch.verdict.bands import Bands, Strength, band_of_angle
from ntkwatch.watch.verdict.guards import guard_of, only_a_shift
from ntkwatch.watch.verdict.label import label_reading
from ntkwatch.watch.verdict.timeline import Timeline, timeline_of
from ntkwatch.watch.verdict.use import Use, judge_use
from ntkwatch.watch.verdict.wording import (
    evidence_lines,
    explain_strength,
    needed_sentence,
    number,
    some,
    what_happened,
)

__all__ = [
    "Bands",
    "LayerReading",
    "ReadingVerdict",
    "Strength",
    "Use",
    "Verdict",
    "explain_strength",
    "judge",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReading:
    """One module's part of the kernel.

    Attributes:
        angle: Angle against its part at the start, radians, moving buffers put back; None where
            that was zero.
        relative_displacement: ``|theta - theta_0| / |theta_0|`` of its parameters, or None.
        band: The band that the angle alone lies in, "no reference" or "not judged".
    """

    angle: float | None
    relative_displacement: float | None
    band: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingVerdict:
    """What one reading says by itself; moving buffers are put back in its numbers.

    Attributes:
        anchor_step: Step that this reading starts from.
        strength: Its label.
        qualifier: What the label alone does not say, or None.
        why: The deciding comparison, in words.
        linearization_error: Of this reading, around the decayed anchor where weights decayed; or
            None.
        layer_angle_median: Radians, or None.
        kernel_scale: Natural logarithm of the scale, or None.
        relative_kernel_change: No unit, or None.
    """

    anchor_step: int
    strength: Strength
    qualifier: str | None
    why: str
    linearization_error: float | None
    layer_angle_median: float | None
    kernel_scale: float | None
    relative_kernel_change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a history says, with the evidence.

    Attributes:
        strength: static, lazy, transitional, feature-learning or undetermined.
        qualifier: What the label alone does not say, or None.
        readings: "since start" and, where it was measured, "since warm-up".
        layers: Per module, its angle and band.
        use: Task-aligned? Features needed?
        reason: One sentence: what happened and why we think so.
        evidence: Lines that a sceptical reader asks for.
        next_step: One sentence: what to do.
        timeline: When features formed, as far as that is known; None with nothing to compare.
        bands: The thresholds used.
        step: Step that the verdict is about; None without observations.
        loss: Training loss there, or None.
        loss_ratio: Loss there over loss at the start, or None.
        probe_size: Probe points N.
    """

    strength: Strength
    qualifier: str | None = None
    readings: dict[str, ReadingVerdict] = field(default_factory=dict)
    layers: dict[str, LayerReading] = field(default_factory=dict)
    use: Use = field(default_factory=Use)
    reason: str = ""
    evidence: tuple[str, ...] = ()
    next_step: str = ""
    timeline: Timeline | None = None
    bands: Bands = field(default_factory=Bands)
    step: int | None = None
    loss: float | None = None
    loss_ratio: float | None = None
    probe_size: int | None = None

    @property
    def label(self) -> str:
        """Strength and qualifier in one: "lazy (kernel rescaled)"."""
        if self.qualifier is None:
            return str(self.strength)
        if self.qualifier.startswith("after"):
            return f"{self.strength} {self.qualifier}"
        return f"{self.strength} ({self.qualifier})"

    def to_plain(self) -> dict[str, Any]:
        """Return the verdict as JSON-ready values, with these field names."""
        return dataclasses.asdict(self)


START, WARMUP = "since start", "since warm-up"


def judge(history: History, *, bands: Bands | None = None) -> Verdict:
    """Return the verdict on a run, as of its last observation.

    The label follows from the linearization error (primary) and the median layer angle
    (secondary), each compared with the bands; see ``docs/verdict.md`` for the table. Guards come
    first: what is missing is named and the strength is ``undetermined``.

    Args:
        history: Observations of one run.
        bands: Thresholds, if not the calibrated ones.

    Returns:
        The verdict with its evidence.

    Source:
        Linearization error as a measure of laziness: Chizat, Oyallon and Bach, NeurIPS 2019,
        arXiv:1812.07956. The bands are this project's own.
    """
    bands = bands if bands is not None else Bands()
    if len(history) == 0:
        return Verdict(
            strength=Strength.UNDETERMINED,
            reason="Undetermined: nothing was observed.",
            next_step=next_step(Strength.UNDETERMINED, "nothing"),
            bands=bands,
        )
    last = history[-1]
    readings = {START: _read(last, last.noise_floor, bands)}
    if last.since_warmup is not None:
        readings[WARMUP] = _read_since_warmup(history[0].step, last, last.since_warmup, bands)
    strength, qualifier, why = _combine(readings)
    guard = guard_of(history, last, bands) or only_a_shift(strength, last, why, bands)
    if guard is not None:
        strength, qualifier, why = Strength.UNDETERMINED, guard[0], guard[1]
    layers = _layers(last, bands)
    timeline = timeline_of(history, bands, guard=None if guard is None else guard[1])
    when = () if timeline is None else (f"timeline: {timeline.sentence}",)
    if qualifier is None and _is_mixed(layers):
        qualifier, why = "mixed by layer", f"{why}; {_layers_apart(layers)}"
    use = judge_use(history, bands)
    needed = needed_sentence(strength, use.features_needed)
    return Verdict(
        strength=strength,
        qualifier=qualifier,
        readings=readings,
        layers=layers,
        use=use,
        reason=f"{what_happened(strength, qualifier)} {why[:1].upper()}{why[1:]}.{needed}",
        evidence=(*evidence_lines(history, last), *when),
        next_step=next_step(strength, qualifier, last, use.features_needed),
        timeline=timeline,
        bands=bands,
        step=last.step,
        loss=last.loss,
        loss_ratio=last.loss_ratio,
        probe_size=last.probe_size,
    )


def _read(reading: Reading, floors: dict[str, float], bands: Bands) -> ReadingVerdict:
    strength, qualifier, why = label_reading(reading, floors, bands)
    reading = reading.of_parameters().past_decay()
    return ReadingVerdict(
        anchor_step=reading.anchor_step,
        strength=strength,
        qualifier=qualifier,
        why=why,
        linearization_error=reading.linearization_error,
        layer_angle_median=reading.layer_angle_median,
        kernel_scale=reading.kernel_scale,
        relative_kernel_change=reading.relative_kernel_change,
    )


def _read_since_warmup(
    start: int, last: Observation, reading: Reading, bands: Bands
) -> ReadingVerdict:
    """Whatever the training, little happens in the first steps after an anchor."""
    read = _read(reading, last.noise_floor, bands)
    since, warmup = last.step - reading.anchor_step, reading.anchor_step - start
    if since >= bands.after_warmup * warmup:
        return read
    return dataclasses.replace(
        read,
        strength=Strength.UNDETERMINED,
        qualifier="too early",
        why=f"{since} steps after a warm-up of {warmup} are too few to tell",
    )


def _combine(readings: dict[str, ReadingVerdict]) -> tuple[Strength, str | None, str]:
    """Since start, unless the network settled into a lower band after its warm-up."""
    start, later = readings[START], readings.get(WARMUP)
    if later is None or later.strength.rank is None or start.strength.rank is None:
        return start.strength, start.qualifier, start.why
    if start.strength.rank <= 1 or later.strength.rank >= start.strength.rank:
        # What was lazy from the start on did not reorganise.
        return start.strength, start.qualifier, start.why
    why = (
        f"since step {later.anchor_step} {later.why}; since the start it is "
        f"{number(start.linearization_error)} and {number(start.layer_angle_median)} rad"
    )
    return later.strength, "after an early reorganisation", why


def _layers(last: Observation, bands: Bands) -> dict[str, LayerReading]:
    floor = last.noise_floor.get("layer_angle_median", 0.0)

    def band(angle: float | None) -> str:
        if angle is None:
            return "no reference"
        if last.unjudged is not None:
            return "not judged"
        return str(band_of_angle(angle, floor, bands))

    return {
        name: LayerReading(
            angle=angle,
            relative_displacement=last.layer_relative_displacement.get(name),
            band=band(angle),
        )
        for name, angle in last.of_parameters().layer_angle.items()
    }


def _layers_apart(layers: dict[str, LayerReading]) -> str:
    """Return which layers turned and which did not, the ones that turned furthest first.

    Args:
        layers: With their bands.

    Returns:
        A clause.
    """
    by_angle = sorted(layers.items(), key=lambda item: -(item[1].angle or 0.0))
    turned = [name for name, layer in by_angle if layer.band == Strength.FEATURE_LEARNING]
    stayed = [name for name, layer in by_angle if layer.band in (Strength.STATIC, Strength.LAZY)]
    return f"features formed in {some(turned)} and not in {some(stayed[::-1])}"


def _is_mixed(layers: dict[str, LayerReading]) -> bool:
    found = {layer.band for layer in layers.values()}
    return Strength.FEATURE_LEARNING in found and bool(found & {Strength.STATIC, Strength.LAZY})
