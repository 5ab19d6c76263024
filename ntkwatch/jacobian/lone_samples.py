"""Outputs of a single sample whose gradients are right, where torch would give wrong ones.

Nothing here knows of kernels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ntkwatch.jacobian.inputs import Inputs, count_samples, leaves, take

__all__ = ["outputs_on"]


def outputs_on(run: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """Return the outputs of a model; one sample that meets a batch norm has its twin beside it.

    A cotangent that was tokens before, ``(1, C, H W)`` transposed and viewed as ``(1, C, H, W)``,
    has an odd stride along its axis of size 1. Torch's processor code for the backward pass of
    batch and instance norms then reads it, or what it normalises, in a wrong order and returns
    wrong gradients without a word (seen in 2.13). With two samples the strides are as they say.

    Args:
        run: Makes the outputs, in their graph, of samples that do not depend on each other.
        inputs: The samples.

    Returns:
        The outputs of these samples.
    """
    outputs = run(inputs)
    if count_samples(inputs) > 1 or not _meets_a_batch_norm(outputs):
        return outputs
    twice = torch.zeros(2, dtype=torch.long, device=leaves(inputs)[0].device)
    return run(take(inputs, twice))[:1]


def _meets_a_batch_norm(outputs: Tensor) -> bool:
    """Iterative: deep networks exceed Python's limit on recursion."""
    waiting: list[Node] = [] if outputs.grad_fn is None else [outputs.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if "BatchNorm" in node.name():
            return True
        children = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= children
        waiting += children
    return False
