"""The label of one reading: two numbers held against the bands, and what if they differ."""

from ntkwatch.watch.record.records import Reading
from ntkwatch.watch.verdict.bands import Bands, Strength, band_of_angle, band_of_error
from ntkwatch.watch.verdict.wording import number, place

__all__ = ["label_reading"]


def label_reading(
    reading: Reading, floors: dict[str, float], bands: Bands
) -> tuple[Strength, str | None, str]:
    """Apply the bands to one reading: label, qualifier, and the comparison that decided."""
    # What moving buffers did to the kernel decides nothing: it is no feature learning.
    own_part = " (moving buffers put back)" if reading.parameters_only is not None else ""
    # And weights that decay alone moved are no sign of features either.
    around = ", around the start as weight decay alone leaves it," if _decays(reading) else ""
    reading = reading.of_parameters().past_decay()
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
            f"the linearization error, the primary evidence, is missing: {reason.rstrip('.')}",
        )
    by_angle: Strength | None
    by_error = band_of_error(error, _error_floor(reading, floors), bands)
    said = f"the linearization error{around} is {number(error)}, {place(by_error)}"
    if angle is None:
        reason = reading.left_out.get("layer_angle_median", "it was not measured")
        by_angle = None
        said += f"; the median layer angle is missing ({reason.rstrip('.')})"
    elif reading.unjudged is not None:
        by_angle = None
        said += (
            f"; the median layer angle, {number(angle)} rad{own_part}{_estimated(reading)}, is "
            f"shown and not judged ({reading.unjudged})"
        )
    else:
        by_angle = band_of_angle(angle, floors.get("layer_angle_median", 0.0), bands)
        said += (
            f", and the median layer angle is {number(angle)} rad{own_part}{_estimated(reading)}, "
            f"{place(by_angle)}"
        )
    if by_error is Strength.STATIC and by_angle is not Strength.STATIC:
        by_error = Strength.LAZY  # static needs both
    edges = _edges_spanned(reading, bands)
    if by_error is Strength.LAZY and by_angle is Strength.FEATURE_LEARNING:
        return Strength.UNDETERMINED, "signals disagree", f"{said}: the two signals disagree"
    if edges > 1:
        low, high = reading.intervals["linearization_error"]
        return (
            Strength.UNDETERMINED,
            "interval too wide",
            f"{said}, but its interval over probe points [{number(low)}, {number(high)}] "
            "reaches from the lazy to the feature-learning band",
        )
    kept_shape = by_angle is not None and angle is not None and angle < bands.lazy_angle
    if kept_shape and by_error is Strength.FEATURE_LEARNING:
        return _rich_error_small_angle(change, said, bands)
    grew = change is not None and change > bands.rescaled_change
    if kept_shape and grew and by_error in (Strength.STATIC, Strength.LAZY):
        return Strength.LAZY, "kernel rescaled", f"{said}, while the kernel changed its scale"
    return by_error, "borderline" if edges == 1 else None, said


def _decays(reading: Reading) -> bool:
    return reading.linearization_error_decayed is not None


def _estimated(reading: Reading) -> str:
    """What an angle rests on, where that is not the whole kernel."""
    if reading.sketch_columns is None:
        return ""
    return f" (by a sketch of {reading.sketch_columns} columns)"


def _rich_error_small_angle(
    change: float | None, said: str, bands: Bands
) -> tuple[Strength, str | None, str]:
    """A large linearization error without rotation: the relative change tells which kind it is."""
    if change is not None and change > bands.rescaled_change:
        return (
            Strength.FEATURE_LEARNING,
            "low-rank or scale change",
            f"{said}; the kernel changed by {number(change)} of its size, so it grew in a few "
            "directions instead of turning",
        )
    if change is not None and change < bands.small_change:
        return (
            Strength.UNDETERMINED,
            "derivative does not fit",
            f"{said}, and the kernel hardly changed ({number(change)}): the derivative at the "
            "start is not that of the function compared (weight decay, or state that is kept "
            "outside parameters and buffers)",
        )
    return (
        Strength.TRANSITIONAL,
        None,
        f"{said}; with so little rotation the error alone does not make it feature-learning",
    )


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
