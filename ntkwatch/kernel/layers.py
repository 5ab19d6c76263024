"""How far each layer's own part of the kernel has turned, and the median over layers.

Tensors in, tensors out: nothing here knows of models, steps or files. The kernel of a network is
the sum of its layers' kernels, ``K = sum_l K_l``. A layer rescaled against another (``w -> c w``,
``a -> a / c`` between ReLUs) leaves the function as it was and turns ``K``, but no ``K_l``.
"""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.drift import kernel_angle
from ntkwatch.kernel.gram import check_same_shape, widest_float

__all__ = ["layer_angle_median", "layer_angles", "layer_trace_shares"]


def layer_angles(
    kernels: Mapping[str, Float[Tensor, "n n"]], references: Mapping[str, Float[Tensor, "n n"]]
) -> dict[str, Float[Tensor, ""]]:
    """Return each layer's angle ``arccos cos(K_l, R_l)``.

    Args:
        kernels: Trace kernel of each layer now.
        references: Those at the reference step, on the same probe batch.

    Returns:
        Radians in [0, pi/2] by layer. NaN where either part is exactly zero (frozen layers, blocks
        initialised to zero such as LoRA's A): it has no direction, and must not be counted as 0.

    Raises:
        KernelMismatchError: If the two name different layers, or shapes differ.

    Source:
        This project's own; the angle itself is ``kernel_angle``.
    """
    if kernels.keys() != references.keys():
        odd = sorted(kernels.keys() ^ references.keys())
        raise KernelMismatchError(
            f"layers {odd} are in one set of kernels only ({len(kernels)} now, {len(references)} "
            "in the reference), so they cannot be compared. Watch the same parameters in both."
        )
    return {layer: _angle_or_nan(part, references[layer]) for layer, part in kernels.items()}


def layer_angle_median(
    angles: Mapping[str, Float[Tensor, ""]], *, counted: Collection[str] | None = None
) -> Float[Tensor, ""]:
    """Return the median of the layers' angles: one number that no single layer's scale decides.

    It averages a mixture away (half of the layers frozen, half turning): read the largest angle
    and its layer beside it.

    Args:
        angles: From ``layer_angles``; NaN counts as absent.
        counted: Layers that vote: those with a matrix or convolution weight, since blocks of norm
            weights are many and small. None counts all.

    Returns:
        Radians in [0, pi/2]; of an even number, the mean of the middle two. NaN if none is left.

    Raises:
        KernelMismatchError: If a counted layer has no angle.
    """
    names = list(angles) if counted is None else list(counted)
    unknown = sorted(set(names) - angles.keys())
    if unknown:
        raise KernelMismatchError(
            f"layers {unknown} are to be counted and have no angle; known are {sorted(angles)}. "
            "Name layers as the kernel does."
        )
    if not names:
        return torch.tensor(torch.nan, dtype=torch.float64, device="cpu")
    # nanquantile, not nanmedian: with an even count that is the lower of the middle two.
    return torch.stack([angles[name] for name in names]).nanquantile(0.5)


def layer_trace_shares(
    kernels: Mapping[str, Float[Tensor, "n n"]],
) -> dict[str, Float[Tensor, ""]]:
    """Return ``tr K_l / tr K``: how much of the kernel each layer makes.

    Args:
        kernels: Trace kernel of each layer.

    Returns:
        Shares in [0, 1] that add up to 1.

    Raises:
        KernelMismatchError: If all of them are zero.
    """
    traces = {
        layer: part.diagonal().to(widest_float(part.device)).sum()
        for layer, part in kernels.items()
    }
    total = torch.stack(list(traces.values())).sum() if traces else torch.zeros(())
    if total == 0:
        raise KernelMismatchError(
            f"the kernels of all {len(traces)} layers have trace zero, so none has a share. Is "
            "every watched parameter frozen or the output detached?"
        )
    return {layer: trace / total for layer, trace in traces.items()}


def _angle_or_nan(kernel: Tensor, reference: Tensor) -> Tensor:
    check_same_shape(kernel, reference)
    if not (bool(kernel.any()) and bool(reference.any())):
        wide = widest_float(kernel.device)
        return torch.tensor(torch.nan, dtype=wide, device=kernel.device)
    return kernel_angle(kernel, reference)
