"""No number of a record is NaN or infinite: what overflowed is left out, and says so.

No torch here. It is the last look at every observation, whatever its numbers come from.
"""

import math
from dataclasses import fields, replace
from typing import Any, TypeVar

from ntkwatch.watch.record.records import Reading

__all__ = ["OVERFLOWS", "only_finite"]

OVERFLOWS = "it is not finite: the weights, outputs or targets that it is made of are too large"

_Record = TypeVar("_Record", bound=Reading)


def only_finite(record: _Record) -> _Record:
    """Return a record without numbers that are NaN or infinite.

    Args:
        record: An observation or a reading; what it holds of other readings is looked at as well.

    Returns:
        The same record if all of it is finite, else one with the reasons in ``left_out``.
    """
    changed: dict[str, Any] = {}
    left_out = dict(record.left_out)
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Reading):
            kept: Any = only_finite(value)
        elif _is_finite(value):
            continue
        else:
            kept = _finite_part(value)
            left_out.setdefault(field.name, OVERFLOWS)
        if kept is not value:
            changed[field.name] = kept
    if not changed:
        return record
    return replace(record, **{**changed, "left_out": left_out})


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_is_finite(part) for part in value.values())
    if isinstance(value, tuple):
        return all(_is_finite(part) for part in value)
    return True


def _finite_part(value: Any) -> Any:
    """What is left of a value: the finite entries of a mapping, nothing of anything else."""
    if isinstance(value, dict):
        return {key: part for key, part in value.items() if _is_finite(part)}
    return () if isinstance(value, tuple) else None
