"""Targets as the values that outputs are regressed on: codes for classes, numbers as they are."""

import torch
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.triple import class_code

__all__ = ["as_values", "name_classes"]


def name_classes(targets: Tensor, outputs: int) -> bool:
    """Return whether targets say which class a sample is of.

    Args:
        targets: Of some samples.
        outputs: Numbers that the model gives for each.

    Returns:
        True for whole numbers, and for one output that is to be -1 or 1.
    """
    if not targets.is_floating_point():
        return True
    signs = bool(((targets == 1) | (targets == -1)).all())
    return outputs == 1 and targets.numel() == len(targets) and signs


def as_values(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return targets as one row of values per sample.

    Args:
        targets: Class labels (N,), or values of the shape of the outputs.
        outputs: One row per sample, (N, C).

    Returns:
        For labels, one-hot codes less their mean, or -1 and 1 where there is one output; values as
        they are. In the dtype and on the device of the outputs.

    Raises:
        InputError: If whole numbers are no class labels, or values are not finite.
        KernelMismatchError: If there is not one value for each output.
    """
    if not targets.is_floating_point():
        if targets.shape != outputs.shape[:1]:
            raise InputError(
                f"the targets are whole numbers of shape {tuple(targets.shape)} for "
                f"{len(outputs)} samples, so they are no class labels. Give one label per sample, "
                "or values as floating numbers."
            )
        if outputs.shape[1] == 1 and bool(((targets == 0) | (targets == 1)).all()):
            return (2 * targets[:, None].int() - 1).to(outputs)
        return class_code(targets.long().to(outputs.device), classes=outputs.shape[1]).to(outputs)
    if targets.shape[:1] != outputs.shape[:1] or targets.numel() != outputs.numel():
        raise KernelMismatchError(
            f"the targets are of shape {tuple(targets.shape)} and the outputs, one row per sample, "
            f"{tuple(outputs.shape)}, so there is no residual. Give a value for each output, or "
            "class labels as whole numbers."
        )
    values = targets.reshape(outputs.shape).to(outputs)
    bad = int((~torch.isfinite(values)).any(dim=1).sum())
    if bad:
        raise InputError(
            f"{bad} of the {len(values)} targets hold NaN or infinity, so there is nothing to "
            "regress on. Give samples whose targets are all known."
        )
    return values
