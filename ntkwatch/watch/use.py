"""What the movement of a kernel was good for: a separate question from how strong it was.

No torch here.
"""

from dataclasses import dataclass
from typing import Literal

from ntkwatch.watch.bands import Bands
from ntkwatch.watch.history import History
from ntkwatch.watch.records import Observation
from ntkwatch.watch.wording import number

__all__ = ["Answer", "Use", "judge_use"]

Answer = Literal["yes", "no", "unknown"]


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


def judge_use(history: History, bands: Bands) -> Use:
    """Say whether the kernel turned toward the targets, as far as the numbers tell.

    Args:
        history: Observations of one run, at least one.
        bands: Thresholds.

    Returns:
        The answers with their evidence; "unknown" where the reference itself was not observed.
    """
    first, last = history[0], history[-1]
    if first.step == last.step or first.step != last.anchor_step:
        return Use(why="there is no observation of the reference and of a later step to compare")
    share = last.buffer_share
    if share is not None and abs(share) > bands.buffer_share:
        return Use(why=f"moving buffers make {number(share)} of the kernel's change")
    rise = _alignment_rise(first, last)
    norms = _norm_ratios(first, last)
    said = []
    if rise is not None:
        said.append(f"target alignment changed by {number(rise, signed=True)} permutation s.d.")
    if norms:
        said.append(
            "trace-normalised norm of the targets x"
            + ", x".join(f"{number(ratio)} (ridge {ridge})" for ridge, ratio in norms.items())
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
    if last.target_alignment_rise is not None:  # both kernels on one probe, whichever it is
        return last.target_alignment_rise
    if first.target_alignment is None or last.target_alignment is None:
        return None
    if not first.target_alignment_null_sd:
        return None
    return (last.target_alignment - first.target_alignment) / first.target_alignment_null_sd


def _norm_ratios(first: Observation, last: Observation) -> dict[str, float]:
    if last.rkhs_norm_ratio:
        return last.rkhs_norm_ratio
    return {
        ridge: last.rkhs_norm[ridge] / start
        for ridge, start in first.rkhs_norm.items()
        if start > 0 and ridge in last.rkhs_norm
    }
