"""The strengths that a verdict can name, and every threshold that decides between them."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Bands", "Strength", "band_of_angle", "band_of_error"]


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
    """Every threshold that a verdict depends on; its edges are fitted by benchmarks/calibrate.py.

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
        after_warmup: Steps since the warm-up, as a multiple of its length, from which on that
            reading may decide: right after any anchor every training looks lazy.
        common_share: Part of the outputs' change common to all samples above which no features can
            have been learned, unless the rest goes with the targets.
        target_correlation: Correlation of the rest with the targets from which on it does.
        aligned_sd: Rise of the target alignment, in permutation s.d., that counts as aligned.
        unaligned_sd: Rise below which it did not align.
        aligned_norm: Ratio of the trace-normalised norm of the targets below which the kernel
            turned toward the task, at both ridges.
        unaligned_norm: Ratio above which it did not.
        buffer_share: Part of the kernel's change, made by moving buffers (or hidden by them), above
            which alignment says nothing about what was learned.
        needed_gain: Accuracy on held-out samples, beyond that of the kernel at the start, from
            which on features were needed; with the next two.
        needed_se: How many standard errors that gain must exceed.
        needed_share: Part of the frozen kernel's mistakes that must be gone.
        unneeded_gain: Gain below which features were not needed.
        unneeded_se: Standard errors below which they were not.
    """

    static: float = 1e-4
    lazy_error: float = 0.13
    feature_error: float = 0.32
    lazy_angle: float = 0.06
    feature_angle: float = 0.2
    rescaled_change: float = 0.5
    small_change: float = 0.1
    floors: float = 3.0
    max_loss_ratio: float = 0.9
    min_probe: int = 32
    after_warmup: float = 4.0
    common_share: float = 0.8
    target_correlation: float = 0.3
    aligned_sd: float = 3.0
    unaligned_sd: float = 1.0
    aligned_norm: float = 0.7
    unaligned_norm: float = 0.8
    buffer_share: float = 0.5
    needed_gain: float = 0.05
    needed_se: float = 3.0
    needed_share: float = 0.5
    unneeded_gain: float = 0.02
    unneeded_se: float = 2.0


def band_of_error(error: float, floor: float, bands: Bands) -> Strength:
    """Return the band of a linearization error.

    Args:
        error: Linearization error.
        floor: What it reads if there is none.
        bands: Thresholds.

    Returns:
        static, lazy, transitional or feature-learning.
    """
    if error < max(bands.static, bands.floors * floor):
        return Strength.STATIC
    if error < bands.lazy_error:
        return Strength.LAZY
    return Strength.TRANSITIONAL if error <= bands.feature_error else Strength.FEATURE_LEARNING


def band_of_angle(angle: float, floor: float, bands: Bands) -> Strength:
    """Return the band of a kernel angle.

    Args:
        angle: Radians.
        floor: What it reads if there is none.
        bands: Thresholds.

    Returns:
        static, lazy, transitional or feature-learning.
    """
    if angle < max(bands.static, bands.floors * floor):
        return Strength.STATIC
    if angle < bands.lazy_angle:
        return Strength.LAZY
    return Strength.TRANSITIONAL if angle <= bands.feature_angle else Strength.FEATURE_LEARNING
