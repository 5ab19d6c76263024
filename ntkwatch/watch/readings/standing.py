"""Numbers of one kernel alone: its spectrum, and how it fits the targets."""

import math
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.spectrum import (
    condition_number,
    effective_rank,
    eigenvalues,
    min_eigenvalue,
    tail_exponent,
)
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.measure import Measurement, Settings
from ntkwatch.watch.readings.task import layer_task_numbers, task_numbers

__all__ = ["standing_numbers"]


def standing_numbers(
    now: Measurement, probe: ProbeBatch, settings: Settings
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of an observation that need no reference.

    Args:
        now: A look at the model.
        probe: What it was taken on.
        settings: Of the run.

    Returns:
        Values by field name, and reasons for those left out.
    """
    if now.kernel is None:
        return {}, {}
    matrix = now.kernel.trace
    values: dict[str, Any] = {"trace": float(matrix.diagonal().sum())}
    if settings.metrics == "minimal":
        return values, {}
    left_out: dict[str, str] = {}
    values |= _spectrum(matrix, settings, left_out)
    values |= task_numbers(matrix, probe.targets, left_out)
    if settings.metrics == "full":
        values |= layer_task_numbers(now.kernel, probe.targets)
    return values, left_out


def _spectrum(matrix: Tensor, settings: Settings, left_out: dict[str, str]) -> dict[str, Any]:
    spectrum = eigenvalues(matrix)
    values: dict[str, Any] = {"top_eigenvalues": tuple(spectrum[: settings.top_k].tolist())}
    try:
        values["effective_rank"] = float(effective_rank(spectrum))
    except KernelMismatchError as error:
        left_out["effective_rank"] = str(error)
    precision: torch.dtype = settings.dtype
    at_floor = f"the smallest eigenvalue is at the rounding floor of {_name(precision)}"
    found = {
        "min_eigenvalue": (min_eigenvalue(spectrum, precision=precision), at_floor),
        "condition_number": (condition_number(spectrum, precision=precision), at_floor),
        "tail_exponent": (
            tail_exponent(spectrum, precision=precision),
            "no honest fit: it takes 160 probe points, and eigenvalues above rounding",
        ),
    }
    for key, (value, reason) in found.items():
        number = float(value)
        if math.isfinite(number):
            values[key] = number
        else:
            left_out[key] = reason
    return values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
