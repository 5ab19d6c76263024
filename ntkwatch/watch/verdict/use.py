"""What the movement of a kernel was good for: a separate question from how strong it was.

No torch here.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.bands import Bands
from ntkwatch.watch.verdict.wording import number

__all__ = ["Answer", "Use", "judge_need", "judge_use"]

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
    """Say what the movement was good for, as far as the numbers tell.

    Args:
        history: Observations of one run, at least one.
        bands: Thresholds.

    Returns:
        The answers with their evidence; "unknown" where the reference itself was not observed.
    """
    first, last = history[0], history[-1]
    if first.step == last.step or first.step != last.anchor_step:
        return Use(why="there is no observation of the reference and of a later step to compare")
    aligned, said = _aligned(first, last, bands)
    needed, why = judge_need(last, bands)
    if not history.run.reference_is_start and needed != "unknown":
        needed, why = "unknown", "features needed: the reference is not the start of training"
    return Use(task_aligned=aligned, features_needed=needed, why="; ".join([*said, why]))


def _aligned(first: Observation, last: Observation, bands: Bands) -> tuple[Answer, list[str]]:
    """Whether the kernel turned toward the targets."""
    share = last.buffer_share
    if share is not None and abs(share) > bands.buffer_share:
        return "unknown", [f"moving buffers make {number(share)} of the kernel's change"]
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
    if (rise is not None and rise > bands.aligned_sd) or (
        norms and all(ratio < bands.aligned_norm for ratio in norms.values())
    ):
        return "yes", said
    if (
        rise is not None
        and rise < bands.unaligned_sd
        and norms
        and all(ratio > bands.unaligned_norm for ratio in norms.values())
    ):
        return "no", said
    return "unknown", said


def judge_need(last: Observation, bands: Bands) -> tuple[Answer, str]:
    """Say whether the network beats regression with its first kernel on held-out samples.

    Args:
        last: An observation after the reference.
        bands: Thresholds.

    Returns:
        The answer, and the comparison in words.
    """
    net, kernel, gain_se = _scores(last)
    if net is None or kernel is None or gain_se is None:
        reason = last.left_out.get("acc_kernel_ref") or last.left_out.get("score_kernel_ref")
        said = reason or "no held-out samples were given to compare with a kernel machine on"
        return "unknown", f"features needed: unknown ({said.rstrip('.')})"
    gain = net - kernel
    why = (
        f"on held-out samples the network gains {number(gain, signed=True)} (s.e. "
        f"{number(gain_se)}) over regression with the kernel at the start"
    )
    removed = gain >= bands.needed_share * (1 - kernel)
    if gain > bands.needed_se * gain_se and gain >= bands.needed_gain and removed:
        return "yes", why
    if bands.unneeded_se * gain_se > bands.needed_gain:
        return "unknown", f"{why}: too few held-out samples to tell"
    if gain < bands.unneeded_se * gain_se or gain < bands.unneeded_gain:
        return "no", why
    return "unknown", f"{why}: a gain, and not so large that the kernel fails"


def _scores(last: Observation) -> tuple[float | None, float | None, float | None]:
    """Of the network, of the kernel at the start, and the standard error of their difference."""
    facts = last.held_out
    if last.acc_net is not None:
        # Binomial, as if the two were scored on samples of their own: no smaller than it is.
        errors = facts.get("net_se"), facts.get("kernel_ref_se")
        known = None if None in errors else math.hypot(*(e for e in errors if e is not None))
        return last.acc_net, last.acc_kernel_ref, known
    return last.score_net, last.score_kernel_ref, facts.get("gain_se")


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
