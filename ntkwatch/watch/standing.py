"""Numbers of one kernel alone: its spectrum, and how it fits the targets."""

import math
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.jacobian.spec import Kernel
from ntkwatch.kernel.alignment import rkhs_norm, target_alignment, target_matrix
from ntkwatch.kernel.spectrum import effective_rank, eigenvalues
from ntkwatch.watch.probe import ProbeBatch

__all__ = ["standing_numbers"]

_RIDGES = (1e-6, 1e-3)  # two of them, since an answer that hinges on the ridge is no answer


def standing_numbers(
    kernel: Kernel | None, probe: ProbeBatch, *, top_k: int, minimal: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of an observation that need no reference.

    Args:
        kernel: The present kernel, or None where there is none.
        probe: Its probe.
        top_k: Eigenvalues wanted.
        minimal: Whether to leave all but the trace out.

    Returns:
        Values by field name, and reasons for those left out.
    """
    if kernel is None:
        return {}, {}
    matrix = kernel.trace
    values: dict[str, Any] = {"trace": float(matrix.diagonal().sum())}
    if minimal:
        return values, {}
    spectrum = eigenvalues(matrix)
    values["top_eigenvalues"] = tuple(spectrum[:top_k].tolist())
    left_out: dict[str, str] = {}
    try:
        values["effective_rank"] = float(effective_rank(spectrum))
    except KernelMismatchError as error:
        left_out["effective_rank"] = str(error)
    values |= _alignment(matrix, probe, left_out)
    return values, left_out


def _alignment(kernel: Tensor, probe: ProbeBatch, left_out: dict[str, str]) -> dict[str, Any]:
    """How the kernel fits the targets, as far as that is defined."""
    if probe.targets is None:
        left_out["target_alignment"] = "the probe has no targets"
        return {}
    values: dict[str, Any] = {}
    try:
        matrix = target_matrix(probe.targets, device=kernel.device)
        value, mean, deviation = (float(part) for part in target_alignment(kernel, matrix))
    except (InputError, KernelMismatchError) as error:
        left_out["target_alignment"] = str(error)
        return {}
    values["target_alignment"] = value
    values["target_alignment_null_sd"] = deviation
    if deviation > 0:
        values["target_alignment_z"] = (value - mean) / deviation
    try:
        norms = {f"{ridge:g}": float(rkhs_norm(kernel, matrix, ridge=ridge)) for ridge in _RIDGES}
    except (KernelMismatchError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        left_out["rkhs_norm"] = str(error)
        return values
    values["rkhs_norm"] = {ridge: norm for ridge, norm in norms.items() if math.isfinite(norm)}
    return values
