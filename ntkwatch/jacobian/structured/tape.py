"""One forward pass over all samples, kept for as many backward passes as are asked for.

A backward pass here goes to activations only: no gradient of a weight is formed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ntkwatch.jacobian.first_call import guarded
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs, count_samples, fingerprint, take
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.structured.graph import Edge, Graph, Unstructured

__all__ = ["Tape"]


class Tape:
    """A forward pass with its graph.

    A single sample is run twice side by side, since ownership shows only between samples.

    Args:
        function: The model as a function.
        inputs: Samples.
        reduction: Output directions.
        names: Parameters to differentiate by.
        buffers: Buffers to use instead of the model's.

    Attributes:
        function: The model as a function.
        graph: The autograd graph.
        leaves: The parameters, as they entered the forward pass.
        outputs: (N, C).
        count: Samples in the pass.
        kept: Samples that were asked for.
        fingerprint: Of the inputs' values.
        rows: Directions R.
        scale: What cotangents are multiplied by on their way in, a power of two: it keeps the
            gradients of very small or large outputs within the range of their dtype.
    """

    def __init__(
        self,
        function: ModelFunction,
        inputs: Inputs,
        reduction: Reduction,
        names: Sequence[str],
        buffers: Params,
    ) -> None:
        self.kept = count_samples(inputs)
        if self.kept == 1:
            device = next(iter(function.params.values())).device
            inputs = take(inputs, torch.zeros(2, dtype=torch.long, device=device))
        self.count = count_samples(inputs)
        self.fingerprint = fingerprint(inputs)
        self.rows, self._reduction = reduction.rows, reduction
        self.function = function
        # What a first look found harmless may still do harm later: a forward pass that is about to
        # write to the model's own weights is stopped.
        with torch.enable_grad(), guarded(function):
            outputs, self.leaves = function.trace(names, inputs, buffers)
            self.outputs = reduction.flatten(outputs)
        if len(self.outputs) != self.count:
            raise Unstructured(f"{len(self.outputs)} rows of outputs for {self.count} samples")
        self.graph = Graph(self.outputs, self.leaves)
        self.scale = 1.0
        self._only: Tensor | None = None

    def direction(self, row: int) -> Tensor:
        """Return the cotangent (N, C) of one output direction of every sample."""
        if self._only is not None:
            return (self._only * self.scale).expand_as(self.outputs)
        one = self._reduction.cotangents(self.outputs, range(row, row + 1))
        return (one * self.scale).expand_as(self.outputs)

    @contextmanager
    def along(self, direction: Tensor) -> Iterator[None]:
        """Take a single direction (C,) instead of the reduction's."""
        before, self._only = self._only, direction
        try:
            yield
        finally:
            self._only = before

    def cotangents(self, edges: Sequence[Edge], cotangent: Tensor) -> list[Tensor | None]:
        """Pull a cotangent of the outputs back to the outputs of operations.

        Args:
            edges: Where to.
            cotangent: (N, C).

        Returns:
            The cotangent at each edge; None where the outputs do not depend on it.
        """
        if not edges:
            return []
        wanted = [GradientEdge(edge.node, edge.output) for edge in edges]
        found = torch.autograd.grad(
            self.outputs, wanted, cotangent, retain_graph=True, allow_unused=True
        )
        return [None if found is None else found.detach() for found in found]
