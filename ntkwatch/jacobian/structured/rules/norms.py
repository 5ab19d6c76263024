"""Rules for the scales and shifts of normalisations: the scale sees the normalised input."""

import torch
from torch import Tensor

from ntkwatch.jacobian.structured.graph import shape_of
from ntkwatch.jacobian.structured.rules.forms import Outer, Rows, elementwise, rule
from ntkwatch.jacobian.structured.uses import Use

__all__: list[str] = []


@rule("NativeLayerNormBackward0")
def _layer_norm(use: Use) -> Outer | Rows | None:
    node = use.node
    if use.slot == 2:
        return elementwise(use, lambda cotangent: cotangent)
    mean, rate = node._saved_result1, node._saved_result2  # type: ignore[attr-defined]
    # Here and below the normalised input is made anew for each direction: kept for every layer of a
    # deep network it would take as much memory as the forward pass itself.
    return elementwise(
        use,
        lambda cotangent: cotangent * ((node._saved_input - mean) * rate),  # type: ignore[attr-defined]
    )


@rule("NativeGroupNormBackward0")
def _group_norm(use: Use) -> Outer | Rows | None:
    node = use.node
    if use.slot == 2:
        return elementwise(use, lambda cotangent: cotangent, axes=(1,))
    image: Tensor = node._saved_input  # type: ignore[attr-defined]
    mean, rate = node._saved_result1, node._saved_result2  # type: ignore[attr-defined]

    def values(cotangent: Tensor) -> Tensor:
        grouped = image.reshape(*mean.shape, -1)
        normal = ((grouped - mean[..., None]) * rate[..., None]).view(image.shape)
        return cotangent * normal

    return elementwise(use, values, axes=(1,))


@rule("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")
def _batch_norm(use: Use) -> Outer | Rows | None:
    """In evaluation mode only: with statistics of the batch the samples are coupled."""
    node = use.node
    if getattr(node, "_saved_training", True):
        return None
    if use.slot == 2:
        return elementwise(use, lambda cotangent: cotangent, axes=(1,))
    image: Tensor = node._saved_input  # type: ignore[attr-defined]
    channel = (1, -1) + (1,) * (len(shape_of(use.edges[0])) - 2)
    mean, variance = node._saved_running_mean, node._saved_running_var  # type: ignore[attr-defined]
    mean = mean.view(channel)
    rate = torch.rsqrt(variance + node._saved_eps).view(channel)  # type: ignore[attr-defined]
    return elementwise(use, lambda cotangent: cotangent * ((image - mean) * rate), axes=(1,))
