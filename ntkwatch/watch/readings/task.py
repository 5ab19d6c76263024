"""How a kernel fits the targets of its probe: by itself, by layer, against an anchor's.

And whether what the network learned tells them apart.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.jacobian.spec import Kernel
from ntkwatch.kernel.alignment import (
    RIDGES,
    layer_alignments,
    rkhs_norm,
    rkhs_norm_ratio,
    target_alignment,
    target_matrix,
)
from ntkwatch.kernel.gram import widest_float

__all__ = ["change_target_correlation", "layer_task_numbers", "task_numbers", "task_rise"]

_SOLVE_ERRORS = (KernelMismatchError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


def task_numbers(
    kernel: Tensor, targets: Tensor | None, left_out: dict[str, str]
) -> dict[str, Any]:
    """Return how the kernel fits the targets, as far as that is defined.

    Args:
        kernel: Trace kernel.
        targets: Of its probe, or None.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name.
    """
    matrix = _matrix(kernel, targets, "target_alignment", left_out)
    if matrix is None:
        return {}
    try:
        aligned = target_alignment(kernel, matrix)
    except (InputError, KernelMismatchError) as error:
        left_out["target_alignment"] = str(error)
        return {}
    values: dict[str, Any] = {
        "target_alignment": float(aligned.value),
        "target_alignment_null_sd": float(aligned.null_sd),
        "target_alignment_z": _finite(aligned.z),
    }
    if values["target_alignment_z"] is None:
        left_out["target_alignment_z"] = "every permutation of the targets aligns alike"
    try:
        norms = {f"{ridge:g}": float(rkhs_norm(kernel, matrix, ridge=ridge)) for ridge in RIDGES}
    except _SOLVE_ERRORS as error:
        left_out["rkhs_norm"] = str(error)
        return values
    values["rkhs_norm"] = _finite_only(norms)
    return values


def change_target_correlation(change: Tensor, targets: Tensor | None) -> float | None:
    """Return whether what was learned tells samples apart as the targets do.

    ``<H df, H Y> / (|H df| |H Y|)`` with ``H`` centring over samples: a shift common to all of them
    counts for nothing, and neither does a smooth function that happens to cluster like the classes.

    Args:
        change: ``df = f - f_0`` on the probe, (N, C).
        targets: Of the probe: class numbers below C, or as many values as outputs; or None.

    Returns:
        The correlation in [-1, 1], or None where the outputs are not those of the targets.
    """
    code = _code(change, targets)
    if code is None:
        return None
    change, code = (part - part.mean(dim=0) for part in (change.to(code), code))
    value = float((change * code).sum() / (change.norm() * code.norm()))
    return value if math.isfinite(value) else None


def _code(outputs: Tensor, targets: Tensor | None) -> Tensor | None:
    """Targets in the form of outputs: one-hot, or the values."""
    if targets is None or len(targets) != len(outputs):
        return None
    place: dict[str, Any] = {"device": outputs.device, "dtype": widest_float(outputs.device)}
    if targets.is_floating_point():
        return targets.to(**place).view_as(outputs) if targets.numel() == outputs.numel() else None
    known = targets.ndim == 1 and 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]
    return functional.one_hot(targets.long(), outputs.shape[1]).to(**place) if known else None


def layer_task_numbers(kernel: Kernel, targets: Tensor | None) -> dict[str, Any]:
    """Return the alignment of each layer's own part of the kernel, each with its null.

    Args:
        kernel: With its parts by layer.
        targets: Of its probe, or None.

    Returns:
        Values by field name; none where the targets themselves allow none.
    """
    matrix = _matrix(kernel.trace, targets, "", {})
    if matrix is None:
        return {}
    found = layer_alignments(kernel.layers, matrix)
    return {
        "layer_target_alignment": {name: _finite(part.value) for name, part in found.items()},
        "layer_target_alignment_z": {name: _finite(part.z) for name, part in found.items()},
    }


def task_rise(
    kernel: Tensor, reference: Tensor, targets: Tensor | None, left_out: dict[str, str]
) -> dict[str, Any]:
    """Return how much better a kernel fits the targets than that of an anchor, on one probe.

    Args:
        kernel: Trace kernel now.
        reference: That of the anchor.
        targets: Of the probe, or None.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name.
    """
    key = "target_alignment_rise"
    matrix = _matrix(kernel, targets, key, left_out)
    if matrix is None:
        return {}
    values: dict[str, Any] = {}
    try:
        now, then = target_alignment(kernel, matrix), target_alignment(reference, matrix)
        values[key] = _finite((now.value - then.value) / then.null_sd)
        if values[key] is None:
            left_out[key] = "every permutation of the targets aligns alike"
    except (InputError, KernelMismatchError) as error:
        left_out[key] = str(error)
    try:
        ratios = rkhs_norm_ratio(kernel, reference, matrix).tolist()
    except _SOLVE_ERRORS as error:
        left_out["rkhs_norm_ratio"] = str(error)
        return values
    named = zip(RIDGES, ratios, strict=True)
    values["rkhs_norm_ratio"] = _finite_only({f"{ridge:g}": ratio for ridge, ratio in named})
    return values


def _matrix(
    kernel: Tensor, targets: Tensor | None, key: str, left_out: dict[str, str]
) -> Tensor | None:
    if targets is None:
        left_out[key] = "the probe has no targets"
        return None
    try:
        return target_matrix(_counted(targets), device=kernel.device)
    except InputError as error:
        left_out[key] = str(error)
        return None


def _counted(targets: Tensor) -> Tensor:
    """Yes and no are two classes."""
    return targets.long() if targets.dtype == torch.bool else targets


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _finite_only(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}
