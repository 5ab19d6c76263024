"""Jacobian rows by plain autograd, one sample and one direction at a time: slow, obvious, right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ntkwatch.jacobian.functional import ModelFunction, Params, real_entries
from ntkwatch.jacobian.inputs import Inputs, count_samples, dense, take
from ntkwatch.jacobian.outputs import Reduction

__all__ = ["LoopRows"]


class LoopRows:
    """Rows of a model's Jacobian, from ``torch.autograd.grad``.

    Args:
        function: The model as a function.
        inputs: Probe inputs.
        reduction: Which output directions.
        buffers: Buffers to use instead of the model's.
    """

    route = "loop"

    def __init__(
        self,
        function: ModelFunction,
        inputs: Inputs,
        reduction: Reduction,
        buffers: Params | None = None,
    ) -> None:
        self.function, self.inputs, self.reduction = function, inputs, reduction
        self.buffers = buffers or {}
        self.count, self.rows = count_samples(inputs), reduction.rows

    def row_blocks(self, names: Sequence[str], samples: range, budget: int) -> dict[str, Tensor]:
        """Return gradients of shape (n, R, P) per name; one sample's graph is held at a time."""
        blocks: dict[str, list[Tensor]] = {name: [] for name in names}
        for sample in samples:
            rows = self._rows_of(names, sample, range(self.rows))
            for name, row in rows.items():
                blocks[name].append(row)
        return {name: torch.stack(rows) for name, rows in blocks.items()}

    def one_row(self, names: Sequence[str], sample: int, direction: int) -> dict[str, Tensor]:
        """Return the gradient of one direction of one sample, (P,) per named parameter."""
        rows = self._rows_of(names, sample, range(direction, direction + 1))
        return {name: row[0] for name, row in rows.items()}

    def _rows_of(self, names: Sequence[str], sample: int, directions: range) -> dict[str, Tensor]:
        leaves = self.function.leaf_params(list(names))
        one = take(self.inputs, slice(sample, sample + 1))
        outputs = self.reduction.flatten(self.function(leaves, one, self.buffers))
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        for direction in directions:
            (cotangent,) = self.reduction.cotangents(outputs, range(direction, direction + 1))
            # A sample whose path meets none of these parameters (another expert's) has no graph.
            gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
            if outputs.requires_grad:
                gradients = torch.autograd.grad(
                    outputs[0],
                    list(leaves.values()),
                    cotangent,
                    retain_graph=True,
                    allow_unused=True,
                )
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                used = torch.zeros_like(leaf) if gradient is None else dense(gradient)
                rows[name].append(real_entries(used.detach()).flatten())
        return {name: torch.stack(row) for name, row in rows.items()}
