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
    normal = (node._saved_input - mean) * rate  # type: ignore[attr-defined]
    return elementwise(use, lambda cotangent: cotangent * normal)


@rule("NativeGroupNormBackward0")
def _group_norm(use: Use) -> Outer | Rows | None:
    node = use.node
    if use.slot == 2:
        return elementwise(use, lambda cotangent: cotangent, axes=(1,))
    image: Tensor = node._saved_input  # type: ignore[attr-defined]
    mean, rate = node._saved_result1, node._saved_result2  # type: ignore[attr-defined]
    grouped = image.reshape(*mean.shape, -1)
    normal = ((grouped - mean[..., None]) * rate[..., None]).view(image.shape)
    return elementwise(use, lambda cotangent: cotangent * normal, axes=(1,))


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
    rate = torch.rsqrt(variance + node._saved_eps)  # type: ignore[attr-defined]
    normal = (image - mean.view(channel)) * rate.view(channel)
    return elementwise(use, lambda cotangent: cotangent * normal, axes=(1,))
