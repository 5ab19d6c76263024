"""From numbers to words: was training lazy or feature-learning, how do we know, what to do next.

``judge`` is pure: it reads a history and writes nothing. It never averages signals that disagree,
and lack of evidence is ``undetermined``. No torch here.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from ntkwatch.watch.history import History
from ntkwatch.watch.records import Observation, Reading

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

Answer = Literal["yes", "no", "unknown"]


class Strength(StrEnum):
    """How non-linear training was, from frozen to moving features."""

    STATIC = "static"
    LAZY = "lazy"
    TRANSITIONAL = "transitional"
    FEATURE_LEARNING = "feature-learning"
    UNDETERMINED = "undetermined"

    @property
    def rank(self) -> int | None:
        """0 static, 1 lazy, 2 transitional, 3 feature-learning; None when undetermined."""
        return None if self is Strength.UNDETERMINED else list(Strength).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """Every threshold that a verdict depends on. Provisional: fitted on small networks.

    Attributes:
        static: Below this (or ``floors`` noise floors) an error or angle counts as nothing.
        lazy_error: Linearization error below which training was lazy.
        feature_error: Linearization error above which features were learned.
        lazy_angle: Median layer angle in radians below which the kernel kept its shape.
        feature_angle: Median layer angle in radians above which it turned.
        rescaled_change: Relative kernel change above which a kernel of small angle was rescaled.
        small_change: Relative kernel change below which a kernel of small angle stayed as it was.
        floors: How many noise floors a number must exceed to count.
        max_loss_ratio: Loss now over loss at the start above which it is too early to say.
        min_probe: Fewest probe points for a verdict.
        aligned_sd: Rise of the target alignment, in permutation s.d., that counts as aligned.
        unaligned_sd: Rise below which it did not align.
        aligned_norm: Ratio of the trace-normalised norm of the targets below which the kernel
            turned toward the task, at both ridges.
        unaligned_norm: Ratio above which it did not.
    """

    static: float = 1e-4
    lazy_error: float = 0.15
    feature_error: float = 0.35
    lazy_angle: float = 0.05
    feature_angle: float = 0.2
    rescaled_change: float = 0.5
    small_change: float = 0.1
    floors: float = 3.0
    max_loss_ratio: float = 0.9
    min_probe: int = 32
    aligned_sd: float = 3.0
    unaligned_sd: float = 1.0
    aligned_norm: float = 0.7
    unaligned_norm: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReading:
    """One module's part of the kernel.

    Attributes:
        angle: Angle against its part at the start, radians; None where that was zero.
        relative_displacement: ``|theta - theta_0| / |theta_0|`` of its parameters, or None.
        band: The band that the angle alone lies in, or "no reference".
    """

    angle: float | None
    relative_displacement: float | None
    band: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingVerdict:
    """What one reading says by itself.

    Attributes:
        anchor_step: Step that this reading starts from.
        strength: Its label.
        qualifier: What the label alone does not say, or None.
        why: The deciding comparison, in words.
        linearization_error: Of this reading, or None.
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
class Use:
    """What the movement was good for: a separate question from how strong it was.

    Attributes:
        task_aligned: Whether the kernel turned toward the targets.
        features_needed: Whether a kernel machine with the starting features does as well.
        why: The evidence for both, in words.
    """

    task_aligned: Answer = "unknown"
    features_needed: Answer = "unknown"
    why: str = ""


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
        bands: Thresholds; the default ones are provisional.

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
            next_step=_AFTER_GUARD["nothing"],
            bands=bands,
        )
    last = history[-1]
    readings = {START: _read(last, last.noise_floor, bands)}
    if last.since_warmup is not None:
        readings[WARMUP] = _read(last.since_warmup, last.noise_floor, bands)
    guard = _guard(history, last, bands)
    strength, qualifier, why = _combine(readings)
    if guard is not None:
        strength, qualifier, why = Strength.UNDETERMINED, guard[0], guard[1]
    layers = _layers(last, bands)
    if qualifier is None and _is_mixed(layers):
        qualifier = "mixed by layer"
    return Verdict(
        strength=strength,
        qualifier=qualifier,
        readings=readings,
        layers=layers,
        use=_use(history, bands),
        reason=f"{_what_happened(strength, qualifier)} {why[:1].upper()}{why[1:]}.",
        evidence=_evidence(history, last),
        next_step=_next_step(strength, qualifier),
        bands=bands,
        step=last.step,
        loss=last.loss,
        loss_ratio=last.loss_ratio,
        probe_size=last.probe_size,
    )


# Guards: what must be there before a label may be given. ------------------------------------------


def _guard(history: History, last: Observation, bands: Bands) -> tuple[str, str] | None:
    """Return the name and the reason of the first guard that forbids a label, or None."""
    if any(gap.step >= last.step for gap in history.gaps):
        reason = next(gap.reason for gap in history.gaps if gap.step >= last.step)
        return "last observation failed", f"the last observation failed: {reason.rstrip('.')}"
    if len(history) < 2 or last.step == history[0].step:
        return "one observation", "there is only the reference, and nothing to compare it with"
    if not history.run.reference_is_start:
        return (
            "reference is not the start",
            f"the reference is {history.run.reference or 'not a known start of training'}",
        )
    if last.probe_size < bands.min_probe:
        return (
            "probe too small",
            f"the probe has {last.probe_size} points and fewer than {bands.min_probe} "
            "make angles and alignments too noisy",
        )
    ratio = last.loss_ratio
    if ratio is not None and ratio > bands.max_loss_ratio:
        return (
            "too early",
            f"the training loss is still at {_number(ratio)} of its start "
            f"(a verdict needs at most {bands.max_loss_ratio:g})",
        )
    return _nothing_moved(last, bands)


def _nothing_moved(last: Observation, bands: Bands) -> tuple[str, str] | None:
    """Outputs that stayed where they were say nothing about how they would have moved."""
    floor = bands.floors * last.noise_floor.get("output", 0.0)
    if last.output_change is not None and last.output_change <= floor:
        return (
            "outputs did not move",
            f"the outputs on the probe changed by {_number(last.output_change)}, "
            "which is not distinguishable from rounding",
        )
    return None


# Bands: one reading. ------------------------------------------------------------------------------


def _read(reading: Reading, floors: dict[str, float], bands: Bands) -> ReadingVerdict:
    strength, qualifier, why = _label(reading, floors, bands)
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


def _label(
    reading: Reading, floors: dict[str, float], bands: Bands
) -> tuple[Strength, str | None, str]:
    """Apply the bands to one reading: label, qualifier, and the comparison that decided."""
    error, angle, change = (
        reading.linearization_error,
        reading.layer_angle_median,
        reading.relative_kernel_change,
    )
    if error is None:
        reason = reading.left_out.get("linearization_error", "it was not measured")
        return (
            Strength.UNDETERMINED,
            "no linearization error",
            f"the linearization error, the primary evidence, is missing: {reason}",
        )
    by_error = _band_of_error(error, _error_floor(reading, floors), bands)
    said = f"the linearization error is {_number(error)}, {_place(by_error)}"
    if angle is None:
        reason = reading.left_out.get("layer_angle_median", "it was not measured")
        return by_error, None, f"{said}; the median layer angle is missing ({reason})"
    by_angle = _band_of_angle(angle, floors.get("layer_angle_median", 0.0), bands)
    said += f", and the median layer angle is {_number(angle)} rad, {_place(by_angle)}"

    if Strength.STATIC in (by_error, by_angle) and by_error != by_angle:
        # Static needs both; one that merely falls below its floor is lazy evidence.
        by_error = Strength.LAZY if by_error is Strength.STATIC else by_error
        by_angle = Strength.LAZY if by_angle is Strength.STATIC else by_angle
    if by_error is Strength.LAZY and by_angle is Strength.FEATURE_LEARNING:
        return Strength.UNDETERMINED, "signals disagree", f"{said}: the two signals disagree"
    if by_error is Strength.FEATURE_LEARNING and angle < bands.lazy_angle:
        return _rich_error_small_angle(change, said, bands)
    edges = _edges_spanned(reading, bands)
    if edges > 1:
        low, high = reading.intervals["linearization_error"]
        return (
            Strength.UNDETERMINED,
            "interval too wide",
            f"{said}, but its interval over probe points [{_number(low)}, {_number(high)}] "
            "reaches from the lazy to the feature-learning band",
        )
    if by_error is Strength.LAZY and change is not None and change > bands.rescaled_change:
        return by_error, "kernel rescaled", f"{said}, while the kernel as a whole changed scale"
    return by_error, "borderline" if edges == 1 else None, said


def _rich_error_small_angle(
    change: float | None, said: str, bands: Bands
) -> tuple[Strength, str | None, str]:
    """A large linearization error without rotation: the relative change tells which kind it is."""
    if change is not None and change > bands.rescaled_change:
        return (
            Strength.FEATURE_LEARNING,
            "low-rank or scale change",
            f"{said}; the kernel changed by {_number(change)} of its size, so it grew in a few "
            "directions instead of turning",
        )
    if change is not None and change < bands.small_change:
        return (
            Strength.UNDETERMINED,
            "derivative does not fit",
            f"{said}, and the kernel hardly changed ({_number(change)}): the derivative at the "
            "start is not that of the function compared (moving buffers, batch statistics or "
            "weight decay)",
        )
    return (
        Strength.TRANSITIONAL,
        None,
        f"{said}; with so little rotation the error alone does not make it feature-learning",
    )


def _band_of_error(error: float, floor: float, bands: Bands) -> Strength:
    if error < max(bands.static, bands.floors * floor):
        return Strength.STATIC
    if error < bands.lazy_error:
        return Strength.LAZY
    return Strength.TRANSITIONAL if error <= bands.feature_error else Strength.FEATURE_LEARNING


def _band_of_angle(angle: float, floor: float, bands: Bands) -> Strength:
    if angle < max(bands.static, bands.floors * floor):
        return Strength.STATIC
    if angle < bands.lazy_angle:
        return Strength.LAZY
    return Strength.TRANSITIONAL if angle <= bands.feature_angle else Strength.FEATURE_LEARNING


def _error_floor(reading: Reading, floors: dict[str, float]) -> float:
    """What the error reads if there is none: rounding of the outputs over their change."""
    if not reading.output_change:
        return 0.0
    return floors.get("output", 0.0) / reading.output_change


def _edges_spanned(reading: Reading, bands: Bands) -> int:
    if "linearization_error" not in reading.intervals:
        return 0
    low, high = reading.intervals["linearization_error"]
    return sum(low < edge < high for edge in (bands.lazy_error, bands.feature_error))


def _combine(readings: dict[str, ReadingVerdict]) -> tuple[Strength, str | None, str]:
    """Since start, unless the network settled into a lower band after its warm-up."""
    start, later = readings[START], readings.get(WARMUP)
    if later is None or later.strength.rank is None or start.strength.rank is None:
        return start.strength, start.qualifier, start.why
    if later.strength.rank >= start.strength.rank:
        return start.strength, start.qualifier, start.why
    why = (
        f"since step {later.anchor_step} {later.why}; since the start it is "
        f"{_number(start.linearization_error)} and {_number(start.layer_angle_median)} rad"
    )
    return later.strength, "after an early reorganisation", why


# Layers and use. ----------------------------------------------------------------------------------


def _layers(last: Observation, bands: Bands) -> dict[str, LayerReading]:
    floor = last.noise_floor.get("layer_angle_median", 0.0)
    return {
        name: LayerReading(
            angle=angle,
            relative_displacement=last.layer_relative_displacement.get(name),
            band="no reference" if angle is None else str(_band_of_angle(angle, floor, bands)),
        )
        for name, angle in last.layer_angle.items()
    }


def _is_mixed(layers: dict[str, LayerReading]) -> bool:
    found = {layer.band for layer in layers.values()}
    return Strength.FEATURE_LEARNING in found and bool(found & {Strength.STATIC, Strength.LAZY})


def _use(history: History, bands: Bands) -> Use:
    first, last = history[0], history[-1]
    rise = _alignment_rise(first, last)
    norms = _norm_ratios(first, last)
    said = []
    if rise is not None:
        said.append(f"target alignment rose by {_number(rise)} permutation s.d.")
    if norms:
        said.append(
            "trace-normalised norm of the targets x"
            + ", x".join(f"{_number(ratio)} (ridge {ridge})" for ridge, ratio in norms.items())
        )
    aligned: Answer = "unknown"
    if (rise is not None and rise > bands.aligned_sd) or (
        norms and all(ratio < bands.aligned_norm for ratio in norms.values())
    ):
        aligned = "yes"
    elif (
        rise is not None
        and rise < bands.unaligned_sd
        and norms
        and all(ratio > bands.unaligned_norm for ratio in norms.values())
    ):
        aligned = "no"
    said.append("features needed: unknown without a comparison to a kernel machine")
    return Use(task_aligned=aligned, features_needed="unknown", why="; ".join(said))


def _alignment_rise(first: Observation, last: Observation) -> float | None:
    if first.target_alignment is None or last.target_alignment is None:
        return None
    if not first.target_alignment_null_sd:
        return None
    return (last.target_alignment - first.target_alignment) / first.target_alignment_null_sd


def _norm_ratios(first: Observation, last: Observation) -> dict[str, float]:
    return {
        ridge: last.rkhs_norm[ridge] / start
        for ridge, start in first.rkhs_norm.items()
        if start > 0 and ridge in last.rkhs_norm
    }


# Words. -------------------------------------------------------------------------------------------

_PLACE = {
    Strength.STATIC: "not distinguishable from none",
    Strength.LAZY: "in the lazy band",
    Strength.TRANSITIONAL: "between the bands",
    Strength.FEATURE_LEARNING: "in the feature-learning band",
}

_EXPLANATION = {
    Strength.STATIC: "The features did not move: the network is exactly a linear model of them.",
    Strength.LAZY: "The features hardly moved: the network acted as a kernel machine.",
    Strength.TRANSITIONAL: "The features moved some: neither a kernel machine nor clearly beyond.",
    Strength.FEATURE_LEARNING: "The features moved: the network is not the kernel machine it "
    "started as.",
    Strength.UNDETERMINED: "The evidence does not allow a verdict.",
}

_NEXT = {
    Strength.STATIC: "If features should train, check what is frozen; if not, a linear model on "
    "these features does the same for less.",
    Strength.LAZY: "A linearized fine-tune or kernel regression would do about as well. For "
    "feature learning, lower the output scale, raise the learning rate toward the stable limit, "
    "or use muP.",
    Strength.TRANSITIONAL: "Look at the layers: lower the output scale or raise the learning rate "
    "to move further into feature learning, or train longer.",
    Strength.FEATURE_LEARNING: "Nothing to mend. Whether the features were needed takes a "
    "comparison with kernel regression at the start.",
}

_AFTER_GUARD = {
    "nothing": "Add NTKMonitor() to the Trainer's callbacks, or call KernelTracker.observe.",
    "one observation": "Observe again after some training.",
    "last observation failed": "See the gap's reason; the observations before it are kept.",
    "reference is not the start": "Resume from a checkpoint that holds the monitor's state, or "
    "read the numbers as drift since that point.",
    "probe too small": "Use probe_size=64 or more.",
    "too early": "Train on, and judge again when the loss has fallen.",
    "outputs did not move": "Check that the watched parameters receive gradients.",
    "no linearization error": "See the reason above; a verdict rests on this number.",
    "signals disagree": "Look at the layers, and use a larger probe to see which signal holds.",
    "derivative does not fit": "Look for buffers that training moves, or for weight decay.",
    "interval too wide": "Use a larger probe.",
}


def explain_strength(strength: Strength) -> str:
    """Return one plain sentence on what a strength means, for readers new to the subject."""
    return _EXPLANATION[strength]


def _what_happened(strength: Strength, qualifier: str | None) -> str:
    if strength is Strength.UNDETERMINED:
        return f"Undetermined ({qualifier})." if qualifier else "Undetermined."
    if qualifier == "after an early reorganisation":
        return (
            f"After an early reorganisation: {_EXPLANATION[strength][0].lower()}"
            + (_EXPLANATION[strength][1:])
        )
    return _EXPLANATION[strength]


def _next_step(strength: Strength, qualifier: str | None) -> str:
    if strength is Strength.UNDETERMINED:
        return _AFTER_GUARD.get(qualifier or "", "Observe longer, with a larger probe.")
    return _NEXT[strength]


def _place(strength: Strength) -> str:
    return _PLACE[strength]


def _evidence(history: History, last: Observation) -> tuple[str, ...]:
    """Always the same lines in the same order, so that two verdicts can be laid side by side."""
    loss = "training loss unknown"
    if last.loss is not None:
        loss = f"training loss {_number(last.loss)}"
        if last.loss_ratio is not None:
            loss += f" ({_number(last.loss_ratio)} of the start)"
    epoch = "" if last.epoch is None else f", epoch {last.epoch}"
    lines = [f"step {last.step}{epoch}, {loss}"]
    outputs = history.run.spec.get("outputs", "?")
    lines.append(
        f"probe N = {last.probe_size}, {last.output_count} outputs ({outputs}), "
        f"reference: {history.run.reference or 'first observation'}"
    )
    lines.append(_reading_line(START, last))
    if last.since_warmup is not None:
        since = f"since step {last.since_warmup.anchor_step} (warm-up)"
        lines.append(_reading_line(since, last.since_warmup))
    floor = last.noise_floor
    if floor:
        lines.append(
            "noise floors: "
            + ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in floor.items())
        )
    missing = {**last.left_out}
    lines.extend(f"not measured: {key} ({reason})" for key, reason in missing.items())
    lines.extend(last.notes)
    return tuple(lines)


def _reading_line(name: str, reading: Reading) -> str:
    parts = [
        f"linearization error {_with_interval(reading, 'linearization_error')}",
        f"median layer angle {_with_interval(reading, 'layer_angle_median')} rad",
        f"ln kernel scale {_number(reading.kernel_scale, signed=True)}",
        f"relative kernel change {_with_interval(reading, 'relative_kernel_change')}",
    ]
    return f"{name}: " + ", ".join(parts)


def _with_interval(reading: Reading, key: str) -> str:
    text = _number(getattr(reading, key))
    if key in reading.intervals and getattr(reading, key) is not None:
        low, high = reading.intervals[key]
        text += f" [{_number(low)}, {_number(high)}]"
    return text


def _number(value: float | None, *, signed: bool = False) -> str:
    """Two significant digits; 0 only for exactly 0."""
    if value is None:
        return "unknown"
    sign = "+" if signed else ""
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 1000:
        digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 10 else 0
        return f"{value:{sign}.{digits}f}"
    return f"{value:{sign}.1e}"
