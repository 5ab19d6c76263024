"""What is written down about a run, in plain numbers: one record per line of ``history.jsonl``.

No torch here, so that a history is read and drawn where torch is not installed. A record knows
nothing of how its numbers were computed; ``left_out`` says why a number is missing.
"""

import dataclasses
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

__all__ = ["SCHEMA", "Gap", "Observation", "Reading", "RunInfo"]

# The numbers of a reading that compare two kernels.
_OF_KERNELS = (
    "relative_kernel_change",
    "kernel_scale",
    "kernel_angle",
    "kernel_distance",
    "kernel_distance_offdiag",
    "layer_angle",
    "layer_angle_median",
)

# Fields that hold a reading within a reading.
_NESTED = ("since_warmup", "parameters_only")
_TUPLES = {"top_eigenvalues", "notes", "moving_buffers"}

# Raised whenever a reader of the older number would misread the file.
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How far the network is from one anchor: a step whose weights and kernel were kept.

    Attributes:
        anchor_step: Optimizer steps taken at the anchor.
        relative_kernel_change: ``|K - K_0|_F / |K_0|_F``, no unit, in [0, inf).
        kernel_scale: ``ln(<K, K_0> / <K_0, K_0>)``, no unit.
        kernel_angle: ``arccos`` of the cosine between ``K`` and ``K_0``, radians, in [0, pi/2].
        kernel_distance: ``1 - cos(K, K_0)``, no unit, in [0, 1].
        kernel_distance_offdiag: The same with both diagonals set to zero; nearly unbiased in N.
        layer_angle: Per module, the angle of its part of the kernel, radians; None where its part
            was zero at the anchor.
        layer_angle_median: Median of the counted angles (modules with a matrix weight), radians.
        linearization_error: ``|f - f_lin| / |f - f_0|`` on the probe, no unit, in [0, inf).
        linearization_method: "jvp", "double-vjp" or "finite-difference".
        output_change: Root mean square of ``f - f_0`` over probe points and outputs, with ``f``,
            here and in the linearization error, of the present parameters and the anchor's buffers.
        displacement: ``|theta - theta_0|_2``.
        relative_displacement: ``|theta - theta_0|_2 / |theta_0|_2``, no unit.
        layer_displacement: Per module, the displacement of its parameters.
        layer_relative_displacement: Per module, relative to its norm; None where that is zero.
        buffer_share: Part of ``|K - K_0|_F`` that is gone with the anchor's buffers, in (-inf, 1];
            None where no buffer that the kernel reads has moved.
        parameters_only: The numbers that compare kernels, with the anchor's buffers: the
            parameters' part of the drift. None where no buffer that the kernel reads has moved.
        moving_buffers: In ``parameters_only``: the buffers that have changed since the anchor.
        sketch_columns: Random columns of the sketches that the numbers comparing kernels were
            estimated from; None where they are those of whole kernels.
        unjudged: Why the bands of a verdict do not hold for the angles; None where they do.
        intervals: Per key, a central 95 % interval over the choice of probe points; where there are
            ``sketch_columns``, those of the numbers that compare kernels are over columns instead.
        left_out: Per key that is None, the reason.
    """

    anchor_step: int
    relative_kernel_change: float | None = None
    kernel_scale: float | None = None
    kernel_angle: float | None = None
    kernel_distance: float | None = None
    kernel_distance_offdiag: float | None = None
    layer_angle: dict[str, float | None] = field(default_factory=dict)
    layer_angle_median: float | None = None
    linearization_error: float | None = None
    linearization_method: str | None = None
    output_change: float | None = None
    displacement: float | None = None
    relative_displacement: float | None = None
    layer_displacement: dict[str, float] = field(default_factory=dict)
    layer_relative_displacement: dict[str, float | None] = field(default_factory=dict)
    buffer_share: float | None = None
    parameters_only: "Reading | None" = None
    moving_buffers: tuple[str, ...] = ()
    sketch_columns: int | None = None
    unjudged: str | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def of_parameters(self) -> Self:
        """Return this reading with the parameters' part of the drift in place of all of it."""
        own = self.parameters_only
        if own is None:
            return self
        kept = {key: pair for key, pair in self.intervals.items() if key not in _OF_KERNELS}
        return dataclasses.replace(
            self,
            **{key: getattr(own, key) for key in _OF_KERNELS},
            intervals={**kept, **own.intervals},
            left_out={**self.left_out, **own.left_out},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation(Reading):
    """What the monitor saw at one step. The fields of ``Reading`` are read since the start.

    Attributes:
        step: Optimizer steps taken so far; 0 is before the first update.
        logged_step: The x axis that the run's loggers used at this moment, or None.
        epoch: Epochs completed, or None.
        loss: Training loss, mean over the last batches before this step, or None.
        loss_start: Training loss of the first batch, at the reference weights, or None.
        probe_size: Probe points N.
        output_count: Outputs per probe point C that the model has.
        top_eigenvalues: Largest eigenvalues of the trace kernel, descending, not divided by N.
        trace: Trace of the trace kernel, not divided by N.
        effective_rank: ``exp(entropy of the normalised eigenvalues)``, in [1, N].
        target_alignment: Centred cosine between the kernel and that of the targets.
        target_alignment_z: The same in standard deviations of its permutation null.
        target_alignment_null_sd: That standard deviation.
        rkhs_norm: Per ridge (as a share of the mean eigenvalue), the trace-normalised squared
            norm that the targets have in the kernel's function space.
        noise_floor: Per key, what the number reads when nothing changed but the arithmetic's
            order; "output" is the root mean square change of the outputs.
        since_warmup: The same network read from the end of its warm-up, once that is over.
        batchnorm: How moving batch statistics were treated in the kernel, or "none" without any.
        notes: What a reader of these numbers should know.
        seconds: Wall time this observation took.
    """

    step: int
    logged_step: int | None = None
    epoch: int | None = None
    loss: float | None = None
    loss_start: float | None = None
    probe_size: int
    output_count: int
    top_eigenvalues: tuple[float, ...] = ()
    trace: float | None = None
    effective_rank: float | None = None
    target_alignment: float | None = None
    target_alignment_z: float | None = None
    target_alignment_null_sd: float | None = None
    rkhs_norm: dict[str, float] = field(default_factory=dict)
    noise_floor: dict[str, float] = field(default_factory=dict)
    since_warmup: Reading | None = None
    batchnorm: str = "none"
    notes: tuple[str, ...] = ()
    seconds: float

    @property
    def loss_ratio(self) -> float | None:
        """Training loss now over training loss at the start, or None where that says nothing.

        That is where either is unknown, or not positive: a loss that may fall below zero, such as
        a log-density, has no ratio that tells how far training is.
        """
        if self.loss is None or self.loss_start is None or self.loss_start <= 0 or self.loss < 0:
            return None
        return self.loss / self.loss_start


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A step at which an observation was due and could not be made.

    Attributes:
        step: Optimizer steps taken so far.
        reason: What stopped it, as the error said it.
    """

    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What all observations of a run have in common.

    Attributes:
        schema: Version of this record's form.
        spec: Settings of the kernel, as ``KernelSpec.to_plain`` gives them.
        probe: Fingerprint, size, origin and class counts of the probe batch.
        model: Class name and numbers of parameters.
        reference: Where the reference comes from, in words: "before the first update", say.
        reference_is_start: Whether it is the known start of this training.
        versions: Of this package and torch.
        created: UTC time, ISO 8601.
    """

    schema: int = SCHEMA
    spec: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    reference_is_start: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""


def to_plain(record: Reading | Gap | RunInfo) -> dict[str, Any]:
    """Return a record as JSON-ready values; empty fields are left out.

    Args:
        record: Any record of this module.

    Returns:
        A dictionary of numbers, strings, lists and dictionaries.
    """
    plain = dataclasses.asdict(record)
    for key in _NESTED:
        inner = getattr(record, key, None)
        if inner is not None:
            plain[key] = to_plain(inner)
    return {key: value for key, value in plain.items() if value not in (None, {}, (), [])}


def observation_from_plain(plain: dict[str, Any]) -> Observation:
    """Return the observation that ``to_plain`` wrote; unknown keys are ignored.

    Args:
        plain: One parsed line of a history.

    Returns:
        The observation.

    Raises:
        TypeError: If a required key is missing, or a value is not of its kind.
    """
    values = _reading_values(plain, Observation)
    return Observation(**_checked(values, Observation))


def _reading_values(plain: dict[str, Any], kind: type[Reading]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    values = {key: value for key, value in plain.items() if key in names}
    values["intervals"] = {key: tuple(pair) for key, pair in plain.get("intervals", {}).items()}
    for key in _TUPLES & values.keys():
        values[key] = tuple(values[key])
    for key in _NESTED:
        if isinstance(values.get(key), dict):
            inner = _reading_values(values[key], Reading)
            values[key] = Reading(**_checked(inner, Reading))
    return values


def _checked(values: dict[str, Any], kind: type[Reading]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise TypeError(f"{key} is {value!r}, which is not {hints[key]}")
    return values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of an annotated kind."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(part, inner[1]) for part in value.values())
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        fits = isinstance(value, tuple) and len(value) == len(kinds)
        return fits and all(map(_fits, value, kinds))
    if isinstance(value, bool) or kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def run_info_from_plain(plain: dict[str, Any]) -> RunInfo:
    """Return the run information that ``to_plain`` wrote; unknown keys are ignored.

    Args:
        plain: The parsed first line of a history.

    Returns:
        The run information.
    """
    names = {f.name for f in dataclasses.fields(RunInfo)}
    return RunInfo(**{key: value for key, value in plain.items() if key in names})
