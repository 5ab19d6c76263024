"""What is written down about a run, in plain numbers: one record per line of ``history.jsonl``.

No torch here, so that a history is read and drawn where torch is not installed. A record knows
nothing of how its numbers were computed; ``left_out`` says why a number is missing.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Self

__all__ = [
    "NOT_TAKEN",
    "SCHEMA",
    "TIMINGS",
    "Gap",
    "GapKind",
    "Observation",
    "Reading",
    "RunInfo",
]

GapKind = Literal["failed", "diverged"]

# The numbers of a reading that compare two kernels.
_OF_KERNELS = (
    "relative_kernel_change",
    "kernel_scale",
    "kernel_angle",
    "kernel_distance",
    "kernel_distance_offdiag",
    "kernel_distance_centred",
    "subspace_overlap",
    "subspace_overlap_null",
    "layer_angle",
    "layer_angle_median",
)

# Said of what a brief observation leaves out.
NOT_TAKEN = "no kernel was taken at this step, which would have cost several times as much"

# Fields of an observation that differ between two runs of the same training.
TIMINGS = ("seconds", "overhead_seconds", "overhead_share")

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
        kernel_distance_centred: The same of the centred kernels, without their mean mode.
        subspace_overlap: Share of the leading eigenspace that stayed, in [0, 1]: of the first k
            eigenvectors (by k), and of those that hold 90 % of the trace ("90%").
        subspace_overlap_null: What two random subspaces of those sizes share.
        layer_angle: Per module, the angle of its part of the kernel, radians; None where its part
            was zero at the anchor.
        layer_angle_median: Median of the counted angles (modules with a matrix weight), radians.
        linearization_error: ``|f - f_lin| / |f - f_0|`` on the probe, no unit, in [0, inf).
        linearization_error_centred: The same once the mean over probe points of each output is
            taken off both: without what a shift common to all samples makes of it.
        linearization_error_decayed: The same around ``c theta_0`` instead, ``c`` what weight decay
            alone would have left of ``theta_0``; None where nothing decayed or it is not known.
        decayed_norm_ratio: ``|c theta_0|_2 / |theta_0|_2``, no unit; None likewise.
        output_change_decayed: ``output_change`` from ``f(c theta_0)`` instead; None likewise.
        linearization_method: "jvp", "double-vjp", "vjp-rows" or "finite-difference".
        output_change: Root mean square of ``f - f_0`` over probe points and outputs, with ``f``,
            here and in the linearization error, of the present parameters and the anchor's buffers.
        common_share: Part of its square that is one shift of all probe points, in [0, 1]: what a
            bias alone could have learned.
        change_target_correlation: Correlation of ``f - f_0`` with the targets (one-hot or values),
            both without their mean over samples, in [-1, 1]; None where outputs and targets are of
            different kinds.
        displacement: ``|theta - theta_0|_2``.
        relative_displacement: ``|theta - theta_0|_2 / |theta_0|_2``, no unit.
        layer_displacement: Per module, the displacement of its parameters.
        layer_relative_displacement: Per module, relative to its norm; None where that is zero.
        target_alignment_rise: Target alignment less that at the anchor on the same probe, in
            standard deviations of the anchor's permutation null.
        rkhs_norm_ratio: Per ridge, ``rkhs_norm`` over that at the anchor on the same probe.
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
    kernel_distance_centred: float | None = None
    subspace_overlap: dict[str, float] = field(default_factory=dict)
    subspace_overlap_null: dict[str, float] = field(default_factory=dict)
    layer_angle: dict[str, float | None] = field(default_factory=dict)
    layer_angle_median: float | None = None
    linearization_error: float | None = None
    linearization_error_centred: float | None = None
    linearization_error_decayed: float | None = None
    decayed_norm_ratio: float | None = None
    output_change_decayed: float | None = None
    linearization_method: str | None = None
    output_change: float | None = None
    common_share: float | None = None
    change_target_correlation: float | None = None
    displacement: float | None = None
    relative_displacement: float | None = None
    layer_displacement: dict[str, float] = field(default_factory=dict)
    layer_relative_displacement: dict[str, float | None] = field(default_factory=dict)
    target_alignment_rise: float | None = None
    rkhs_norm_ratio: dict[str, float] = field(default_factory=dict)
    buffer_share: float | None = None
    parameters_only: "Reading | None" = None
    moving_buffers: tuple[str, ...] = ()
    sketch_columns: int | None = None
    unjudged: str | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def past_decay(self) -> Self:
        """Return this reading with the error around the decayed anchor, where there is one."""
        if self.linearization_error_decayed is None:
            return self
        kept = {key: pair for key, pair in self.intervals.items() if key != "linearization_error"}
        if "linearization_error_decayed" in kept:
            kept["linearization_error"] = kept["linearization_error_decayed"]
        return dataclasses.replace(
            self,
            linearization_error=self.linearization_error_decayed,
            output_change=self.output_change_decayed,
            intervals=kept,
        )

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
        probe_fingerprint: Of the probe, where every observation has one of its own.
        output_count: Outputs per probe point C that the model has.
        top_eigenvalues: Largest eigenvalues of the trace kernel, descending, not divided by N.
        trace: Trace of the trace kernel, not divided by N.
        effective_rank: ``exp(entropy of the normalised eigenvalues)``, in [1, N].
        min_eigenvalue: Smallest eigenvalue of the trace kernel, where it is above rounding.
        condition_number: Largest over smallest eigenvalue, likewise.
        tail_exponent: ``a`` of ``lambda_k ~ k^-a`` over ranks 2 to N/8, for N of at least 160.
        target_alignment: Centred cosine between the kernel and that of the targets.
        target_alignment_z: The same in standard deviations of its permutation null.
        target_alignment_null_sd: That standard deviation.
        layer_target_alignment: Per module, the alignment of its part of the kernel; None where
            that part has no geometry.
        layer_target_alignment_z: The same in standard deviations of its null.
        rkhs_norm: Per ridge (as a share of the mean eigenvalue), the trace-normalised squared
            norm that the targets have in the kernel's function space.
        max_stable_lr: Learning rate at which descent on the present kernel begins to diverge, for
            the loss and the optimizer in use.
        max_stable_lr_bounds: Between which rates it lies, where only the trace kernel is at hand.
        edge_of_stability: Learning rate in use over that; 1 is the edge of stability.
        displacement_ratio: Displacement over the shortest move that frozen features need for the
            same outputs, on the whole training set.
        displacement_ratio_ridge: Ridge of that shortest move, as a share of the mean eigenvalue.
        representer_gap: Share of the change of outputs on the held-out samples that a model with
            frozen features could not have learned from the training set, in [0, inf).
        acc_net: Accuracy of the network on the held-out samples.
        acc_kernel_ref: Of regression on the training set with the kernel at the start.
        acc_kernel_final: Of regression with the kernel now.
        score_net: Where targets are values, ``R^2`` in place of the accuracy, in (-inf, 1].
        score_kernel_ref: Likewise.
        score_kernel_final: Likewise.
        held_out: Of these: samples ("n_train", "n_test"), the "ridge" as a share of the mean
            eigenvalue (chosen by leaving out training samples one by one), the standard error of
            the gain of the network over the kernel at the start ("gain_se", over test samples), and
            binomial ones of accuracies ("net_se", "kernel_ref_se", "kernel_final_se").
        residual_modes: ``|v_k' (f - y)|`` on the leading eigenvectors of the kernel at the start.
        predicted_modes: What a frozen kernel would have left of them by now.
        mode_prediction_error: ``|c - c_predicted| / |c_predicted|`` over all modes.
        gradient_flow_bound: Loss that gradient flow on the kernel at the start guarantees by now.
        gradient_flow_steps: Steps by which it guarantees a hundredth of the loss at the start.
        angular_velocity: Angle to the kernel of the observation before, radians per optimizer step.
        path_length: Sum of the angles from observation to observation since the start, radians.
        path_length_ratio: That over the angle to the start, at least 1.
        displacement_path: Sum of the displacements from observation to observation since the start.
        displacement_path_ratio: That over the displacement, at least 1 as far as observed.
        full_kernel_change: Relative change since the start of the kernel between outputs, of which
            the other numbers see the trace.
        full_kernel_angle: Its angle, radians.
        training: Optimizer, learning rate and loss at this step, as far as they are known.
        noise_floor: Per key, what the number reads when nothing changed but the arithmetic's
            order; "output" is the root mean square change of the outputs.
        since_warmup: The same network read from the end of its warm-up, once that is over.
        since: Linearization error from each further anchor, by the anchor's step as text; around
            the decayed anchor where weights decayed.
        since_layer_angle: Median layer angle from each of them, radians.
        batchnorm: How moving batch statistics were treated in the kernel, or "none" without any.
        notes: What a reader of these numbers should know.
        at_end: Whether it was made because training ended there, when none was due.
        seconds: Wall time this observation took.
        overhead_seconds: Wall time that watching has taken so far in all, or None outside of a run.
        overhead_share: That over the time since training began, in [0, 1].
    """

    step: int
    logged_step: int | None = None
    epoch: int | None = None
    loss: float | None = None
    loss_start: float | None = None
    probe_size: int
    probe_fingerprint: str | None = None
    output_count: int
    top_eigenvalues: tuple[float, ...] = ()
    trace: float | None = None
    effective_rank: float | None = None
    min_eigenvalue: float | None = None
    condition_number: float | None = None
    tail_exponent: float | None = None
    target_alignment: float | None = None
    target_alignment_z: float | None = None
    target_alignment_null_sd: float | None = None
    layer_target_alignment: dict[str, float | None] = field(default_factory=dict)
    layer_target_alignment_z: dict[str, float | None] = field(default_factory=dict)
    rkhs_norm: dict[str, float] = field(default_factory=dict)
    max_stable_lr: float | None = None
    max_stable_lr_bounds: tuple[float, ...] = ()
    edge_of_stability: float | None = None
    displacement_ratio: float | None = None
    displacement_ratio_ridge: float | None = None
    representer_gap: float | None = None
    acc_net: float | None = None
    acc_kernel_ref: float | None = None
    acc_kernel_final: float | None = None
    score_net: float | None = None
    score_kernel_ref: float | None = None
    score_kernel_final: float | None = None
    held_out: dict[str, float] = field(default_factory=dict)
    residual_modes: tuple[float, ...] = ()
    predicted_modes: tuple[float, ...] = ()
    mode_prediction_error: float | None = None
    gradient_flow_bound: float | None = None
    gradient_flow_steps: float | None = None
    angular_velocity: float | None = None
    path_length: float | None = None
    path_length_ratio: float | None = None
    displacement_path: float | None = None
    displacement_path_ratio: float | None = None
    full_kernel_change: float | None = None
    full_kernel_angle: float | None = None
    training: dict[str, str | float | bool] = field(default_factory=dict)
    noise_floor: dict[str, float] = field(default_factory=dict)
    since_warmup: Reading | None = None
    since: dict[str, float] = field(default_factory=dict)
    since_layer_angle: dict[str, float] = field(default_factory=dict)
    batchnorm: str = "none"
    notes: tuple[str, ...] = ()
    at_end: bool = False
    seconds: float
    overhead_seconds: float | None = None
    overhead_share: float | None = None

    @property
    def is_brief(self) -> bool:
        """Whether the kernel was left out to save time, though there is one."""
        return self.left_out.get("kernel") == NOT_TAKEN

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
        kind: "failed": observing failed. "diverged": there was nothing left to observe, since
            weights or outputs had become NaN or infinite; only the first such step is kept.
    """

    step: int
    reason: str
    kind: GapKind = "failed"

    @property
    def words(self) -> str:
        """What happened at this step."""
        return f"the model diverged: {self.reason}" if self.kind == "diverged" else self.reason


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
