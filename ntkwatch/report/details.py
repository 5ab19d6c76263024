"""The numbers of the last observation that no table over time has room for.

Nothing here knows how a row is drawn or escaped.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ntkwatch.report.words import MISSING, number
from ntkwatch.watch.record.records import Observation

__all__ = ["TITLES", "DetailRow", "detail_rows"]

_FLOAT, _RIDGES, _OVERLAP, _MODES = "float", "ridges", "overlap", "modes"
_SCORE, _BOUNDS = "score", "bounds"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailRow:
    """One number of the last observation.

    Attributes:
        title: Its name in a sentence.
        value: Rounded, with what belongs to it.
        meaning: One sentence for readers new to it.
    """

    title: str
    value: str
    meaning: str


# Key, name, how it is shown, meaning; in the order of docs/metrics.md.
_DETAILS = (
    (
        "linearization_error_centred",
        "linearization error, centred",
        _FLOAT,
        "The same without the mean over probe points, which a common shift would be.",
    ),
    (
        "linearization_error_decayed",
        "linearization error, weight decay followed",
        _FLOAT,
        "Around the start as weight decay alone would have left it: what the verdict reads.",
    ),
    (
        "decayed_norm_ratio",
        "norm that weight decay alone leaves",
        _FLOAT,
        "Of the weights at the start, as a share of theirs.",
    ),
    (
        "common_share",
        "outputs' change common to all samples",
        _FLOAT,
        "Part of its square that one shift makes: what a bias alone could have learned.",
    ),
    (
        "change_target_correlation",
        "outputs' change against the targets",
        _FLOAT,
        "Correlation without the common shift: whether it tells samples apart as the targets do.",
    ),
    (
        "kernel_distance_centred",
        "kernel distance, centred",
        _FLOAT,
        "1 minus the cosine between the kernels without their mean mode.",
    ),
    (
        "subspace_overlap",
        "overlap of leading eigenvectors",
        _OVERLAP,
        "1 if the leading directions stayed; random ones share the number in brackets.",
    ),
    (
        "target_alignment_rise",
        "rise of the target alignment",
        _FLOAT,
        "In permutation s.d.; above 3 the kernel turned toward the targets.",
    ),
    (
        "rkhs_norm_ratio",
        "norm of the targets, now over start",
        _RIDGES,
        "Below 1 if the kernel turned toward the targets; one number per ridge.",
    ),
    (
        "target_alignment_z",
        "target alignment, z-score",
        _FLOAT,
        "In standard deviations of permuted targets.",
    ),
    (
        "condition_number",
        "condition number",
        _FLOAT,
        "Largest over smallest eigenvalue: by how much a solve magnifies errors.",
    ),
    ("min_eigenvalue", "smallest eigenvalue", _FLOAT, "Of the trace kernel, above rounding."),
    (
        "tail_exponent",
        "tail exponent",
        _FLOAT,
        "Eigenvalue k falls as k to minus this, over ranks 2 to N/8.",
    ),
    (
        "angular_velocity",
        "angular velocity (rad per step)",
        _FLOAT,
        "How fast the kernel turned since the observation before.",
    ),
    (
        "path_length_ratio",
        "path length over angle",
        _FLOAT,
        "1 for a steady rotation, far above for wandering; it depends on the schedule.",
    ),
    (
        "displacement_path_ratio",
        "path of the weights over displacement",
        _FLOAT,
        "1 for a straight way; noise of small batches makes it large. It depends on the schedule.",
    ),
    (
        "full_kernel_change",
        "change of the kernel between outputs",
        _FLOAT,
        "Far above that of the trace where the kernel turned class by class.",
    ),
    (
        "full_kernel_angle",
        "angle of the kernel between outputs (rad)",
        _FLOAT,
        "Likewise, direction only.",
    ),
    (
        "max_stable_lr",
        "largest stable learning rate",
        _FLOAT,
        "For this loss and optimizer, on the present kernel.",
    ),
    (
        "max_stable_lr_bounds",
        "largest stable learning rate, between",
        _BOUNDS,
        "As far as the trace kernel tells.",
    ),
    (
        "edge_of_stability",
        "learning rate over that",
        _FLOAT,
        "1 is the edge of stability.",
    ),
    (
        "displacement_ratio",
        "displacement over shortest move",
        _FLOAT,
        "1 if the weights went where frozen features would, below 1 if features helped.",
    ),
    (
        "representer_gap",
        "representer gap",
        _FLOAT,
        "Share of the change on held-out samples that frozen features could not have learned.",
    ),
    ("acc_net", "held-out accuracy: network", _SCORE, "With its binomial standard error."),
    (
        "acc_kernel_ref",
        "held-out accuracy: kernel at the start",
        _SCORE,
        "Regression without moving the features; far below the network if they were needed.",
    ),
    (
        "acc_kernel_final",
        "held-out accuracy: kernel now",
        _SCORE,
        "Regression with the features as they are; alone it proves nothing.",
    ),
    ("score_net", "held-out R^2: network", _FLOAT, "1 is perfect, 0 is the mean of the targets."),
    (
        "score_kernel_ref",
        "held-out R^2: kernel at the start",
        _FLOAT,
        "Regression without moving the features; far below the network if they were needed.",
    ),
    (
        "score_kernel_final",
        "held-out R^2: kernel now",
        _FLOAT,
        "Regression with the features as they are; alone it proves nothing.",
    ),
    (
        "mode_prediction_error",
        "error of the predicted modes",
        _FLOAT,
        "How far the residual is from what a frozen kernel leaves of it.",
    ),
    (
        "residual_modes",
        "residual on the leading modes",
        _MODES,
        "In brackets what a frozen kernel would have left.",
    ),
    (
        "gradient_flow_bound",
        "bound on the loss by gradient flow",
        _FLOAT,
        "What the smallest eigenvalue at the start guarantees by now.",
    ),
    (
        "gradient_flow_steps",
        "steps to 1 % of the loss by that bound",
        _FLOAT,
        "Guaranteed to suffice while the kernel stays as it was.",
    ),
)

TITLES = {key: title for key, title, _, _ in _DETAILS}

_MODES_SHOWN = 3


def detail_rows(last: Observation | None) -> tuple[DetailRow, ...]:
    """Return what the last observation holds beyond the table over time.

    Args:
        last: The last observation, or None without any.

    Returns:
        One row per number that was measured.
    """
    if last is None:
        return ()
    rows = [
        DetailRow(title=title, value=_SHOWN[kind](last, key), meaning=meaning)
        for key, title, kind, meaning in _DETAILS
    ]
    return tuple(row for row in rows if row.value not in (MISSING, ""))


def _as_float(last: Observation, key: str) -> str:
    return number(getattr(last, key))


def _with_error(last: Observation, key: str) -> str:
    value, error = getattr(last, key), last.held_out.get(f"{key.removeprefix('acc_')}_se")
    if value is None or error is None:
        return number(value)
    return f"{number(value)} ± {number(error, digits=2)}"


def _between(last: Observation, key: str) -> str:
    return " and ".join(number(end) for end in getattr(last, key))


def _by_ridge(last: Observation, key: str) -> str:
    ratios = getattr(last, key)
    return ", ".join(f"{number(ratio)} (ridge {ridge})" for ridge, ratio in ratios.items())


def _overlaps(last: Observation, key: str) -> str:
    null = last.subspace_overlap_null
    return ", ".join(
        f"first {name}: {number(value)} ({number(null.get(name))})"
        if name.isdigit()
        else f"{name} of the trace: {number(value)} ({number(null.get(name))})"
        for name, value in getattr(last, key).items()
    )


def _modes(last: Observation, key: str) -> str:
    pairs = list(zip(getattr(last, key), last.predicted_modes, strict=False))[:_MODES_SHOWN]
    return ", ".join(f"{number(value)} ({number(expected)})" for value, expected in pairs)


_SHOWN: dict[str, Callable[[Observation, str], str]] = {
    _FLOAT: _as_float,
    _RIDGES: _by_ridge,
    _OVERLAP: _overlaps,
    _MODES: _modes,
    _SCORE: _with_error,
    _BOUNDS: _between,
}
