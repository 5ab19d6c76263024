"""An observation put together: its readings, and all other numbers that the settings ask for."""

from dataclasses import fields
from typing import Any

from ntkwatch.watch.readings.between_outputs import full_kernel_numbers
from ntkwatch.watch.readings.counterfactual import held_out_numbers
from ntkwatch.watch.readings.describe import notes_on
from ntkwatch.watch.readings.look import Seen
from ntkwatch.watch.readings.rates import rate_numbers
from ntkwatch.watch.readings.route import Station, route_numbers, weight_path_numbers, weights_of
from ntkwatch.watch.readings.standing import standing_numbers
from ntkwatch.watch.readings.validity import Course
from ntkwatch.watch.readings.whole import whole_set_numbers
from ntkwatch.watch.record.finite import only_finite
from ntkwatch.watch.record.records import Observation, Reading

__all__ = ["observation_of"]

# What compares the kernels of two observations.
_WAY = ("angular_velocity", "path_length", "path_length_ratio")


def observation_of(
    seen: Seen, course: Course, before: Station | None, *, step: int, resampled: bool
) -> Observation:
    """Return what one look says; where training is, and what it took, is the caller's to add.

    Args:
        seen: The look, and how it compares.
        course: What is known of the training.
        before: The observation before, or None at the reference.
        step: Optimizer steps taken so far.
        resampled: Whether every observation has a probe of its own.

    Returns:
        The observation, with 0 seconds.
    """
    reading, spec = seen.reading, seen.now.problem.spec
    values, left_out = _other_numbers(seen, course, before, step=step)
    if resampled:
        values = {key: value for key, value in values.items() if key not in _WAY}
        left_out.update(dict.fromkeys(_WAY, "every observation has a probe of its own"))
    observation = Observation(
        **{f.name: getattr(reading, f.name) for f in fields(Reading) if f.name != "left_out"},
        left_out={**reading.left_out, **left_out, **seen.since.left_out},
        step=step,
        probe_size=len(course.probe),
        probe_fingerprint=course.probe.fingerprint() if resampled else None,
        output_count=spec.output_count,
        training=course.now.to_plain(),
        noise_floor=seen.floors,
        since_warmup=seen.since_warmup,
        since=seen.since.errors,
        since_layer_angle=seen.since.angles,
        batchnorm=spec.batchnorm,
        notes=notes_on(seen.now, seen.settings),
        seconds=0.0,
        **values,
    )
    return only_finite(observation)


def _other_numbers(
    seen: Seen, course: Course, before: Station | None, *, step: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields that are not readings, and the reasons for those left out."""
    settings = seen.settings
    values, left_out = standing_numbers(seen.now, course.probe, settings)
    if settings.metrics == "minimal":
        return values, left_out
    values |= route_numbers(
        None if seen.now.kernel is None else seen.now.kernel.trace,
        step,
        before,
        angle=seen.reading.kernel_angle,
        floor=seen.floors.get("kernel_angle", 0.0),
        left_out=left_out,
    )
    if settings.metrics == "standard":
        return values, left_out
    values |= rate_numbers(seen.now, course, left_out)
    values |= weight_path_numbers(
        weights_of(seen), before, displacement=seen.reading.displacement, left_out=left_out
    )
    if step != seen.start.step:
        values |= full_kernel_numbers(seen.now, seen.start, left_out)
        values |= whole_set_numbers(
            seen.now,
            seen.start,
            course,
            step=step,
            displacement=seen.reading.displacement,
            left_out=left_out,
        )
        values |= held_out_numbers(seen.now, seen.start, course, left_out)
    return values, left_out
