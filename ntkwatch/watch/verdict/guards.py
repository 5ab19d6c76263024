"""What forbids a label: the evidence that is missing, named. Lack of it is ``undetermined``."""

from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation, Reading
from ntkwatch.watch.verdict.bands import Bands, Strength
from ntkwatch.watch.verdict.wording import number

__all__ = ["Guard", "guard_of", "only_a_shift"]

Guard = tuple[str, str]  # its name, and the reason in words


def guard_of(history: History, last: Observation, bands: Bands) -> Guard | None:
    """Return the name and the reason of the first guard that forbids a label, or None.

    Args:
        history: Of the run.
        last: Its last observation.
        bands: Thresholds.

    Returns:
        The guard, or None where a label may be given.
    """
    later = [gap for gap in history.gaps if gap.step >= last.step]
    for gap in later:
        if gap.kind == "diverged":
            reason = gap.reason.rstrip(".")
            return "diverged", f"the model diverged by step {gap.step}: {reason}"
    if later:
        reason = later[0].reason.rstrip(".")
        return "last observation failed", f"the last observation failed: {reason}"
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
            f"the training loss is still at {number(ratio)} of its start "
            f"(a verdict needs at most {bands.max_loss_ratio:g})",
        )
    return _nothing_moved(last, bands)


def _nothing_moved(last: Observation, bands: Bands) -> Guard | None:
    """Outputs that stayed where they were say nothing about how they would have moved."""
    floor = bands.floors * last.noise_floor.get("output", 0.0)
    if last.output_change is not None and last.output_change <= floor:
        said = (
            f"the outputs on the probe changed by {number(last.output_change)}, "
            "which is not distinguishable from rounding"
        )
        if last.parameters_only is not None:
            change = number(last.relative_kernel_change)
            said += f"; moving buffers changed the kernel by {change} of its size"
        return "outputs did not move", said
    return None


def only_a_shift(strength: Strength, last: Observation, why: str, bands: Bands) -> Guard | None:
    """Return the guard against what a bias alone could have learned, or None.

    It is no evidence of features, however far weights went: Adam moves all of them for a shift, and
    the noise of batches does so, too.

    Args:
        strength: That the readings give.
        last: The last observation.
        why: What the readings say.
        bands: Thresholds.

    Returns:
        The guard, or None where the strength stands.
    """
    moved = strength in (Strength.TRANSITIONAL, Strength.FEATURE_LEARNING)
    share = last.common_share
    if not moved or share is None or share <= bands.common_share:
        return None
    readings: list[Reading] = [last] if last.since_warmup is None else [last, last.since_warmup]
    known = [reading.change_target_correlation for reading in readings]
    told = max((value for value in known if value is not None), default=None)
    if told is not None and told >= bands.target_correlation:
        return None
    rest = "" if told is None else f" and the rest does not go with the targets ({number(told)})"
    return (
        "only a common shift",
        f"{share:.0%} of the outputs' change is one shift of all probe points{rest}, so that no "
        f"features can have been learned yet; {why}",
    )
