"""Drift of the kernel between outputs, beside that of its trace: what turns class by class.

The trace averages over outputs, so that a rotation among classes can pass it by.
"""

from typing import Any

from ntkwatch.errors import NtkwatchError
from ntkwatch.kernel.drift import kernel_angle, relative_kernel_change
from ntkwatch.kernel.gram import flatten_kernel
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.readings.measure import Measurement

__all__ = ["full_kernel_numbers"]

_KEYS = ("full_kernel_change", "full_kernel_angle")


def full_kernel_numbers(
    now: Measurement, start: Anchor, left_out: dict[str, str]
) -> dict[str, Any]:
    """Return change and angle of the kernel between outputs since the reference.

    Args:
        now: The present look at the model.
        start: The reference.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name; none for a single output, whose trace is all of it.
    """
    if now.kernel is None or now.outputs.shape[1] == 1:
        return {}
    if start.full is None or now.kernel.matrix.ndim != 4:
        reason = "the kernel between outputs is not kept: it takes outputs='full'"
    else:
        present, then = flatten_kernel(now.kernel.matrix), flatten_kernel(start.full)
        try:
            change, angle = relative_kernel_change(present, then), kernel_angle(present, then)
            return dict(zip(_KEYS, (float(change), float(angle)), strict=True))
        except NtkwatchError as error:
            reason = str(error)
    left_out.update(dict.fromkeys(_KEYS, reason))
    return {}
