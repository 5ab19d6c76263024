"""Counts as users give them: whole numbers of whatever type."""

from typing import Any

__all__ = ["number_in", "whole_in"]


def number_in(value: Any) -> float | None:
    """Return a number, of Python, numpy or torch, as a float; None for anything else."""
    try:
        return None if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def whole_in(value: Any) -> int | None:
    """Return a whole number such as 3, 3.0 or ``torch.tensor(3)``; None for anything else."""
    number = number_in(value)
    if number is None or not number.is_integer():
        return None
    return int(value)
