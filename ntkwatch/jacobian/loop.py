"""Jacobian rows by plain autograd, one sample and one direction at a time: slow, obvious, right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ntkwatch.jacobian.backward import gradients
from ntkwatch.jacobian.batchnorm import batch_statistics
from ntkwatch.jacobian.functional import ModelFunction, Params, real_entries
from ntkwatch.jacobian.inputs import Inputs, count_samples, dense, take
from ntkwatch.jacobian.lone_samples import outputs_on
from ntkwatch.jacobian.outputs import Reduction

__all__ = ["BatchRows", "LoopRows"]


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
        outputs = self._outputs_of(leaves, sample)
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        for direction in directions:
            (cotangent,) = self.reduction.cotangents(outputs[None], range(direction, direction + 1))
            # A sample whose path meets none of these parameters (another expert's) has no graph.
            found: tuple[Tensor | None, ...] = (None,) * len(leaves)
            if outputs.requires_grad:
                wanted = list(leaves.values())
                found = gradients(self.function.model, outputs, wanted, cotangent)
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
                used = torch.zeros_like(leaf) if gradient is None else dense(gradient)
                rows[name].append(real_entries(used.detach()).flatten())
        return {name: torch.stack(row) for name, row in rows.items()}

    def _outputs_of(self, leaves: Params, sample: int) -> Tensor:
        """One sample's outputs, (C,), from a forward pass of that sample alone."""
        one = take(self.inputs, slice(sample, sample + 1))
        outputs = outputs_on(lambda some: self.function(leaves, some, self.buffers), one)
        return self.reduction.flatten(outputs)[0]


class BatchRows(LoopRows):
    """Rows of the batch function, whose samples are coupled by their common batch statistics.

    Row (i, a) is the gradient of output a of sample i, through statistics that all samples make
    together: the Jacobian of the function that training runs. Each takes a pass of the whole batch.

    Args:
        function: The model as a function.
        inputs: Probe inputs.
        reduction: Which output directions.
        buffers: Buffers to use instead of the model's.
        batchnorms: Clean names of the BatchNorms that run on the statistics of the batch.
    """

    def __init__(
        self,
        function: ModelFunction,
        inputs: Inputs,
        reduction: Reduction,
        buffers: Params | None = None,
        *,
        batchnorms: Sequence[str],
    ) -> None:
        super().__init__(function, inputs, reduction, buffers)
        self.batchnorms = batchnorms

    def _rows_of(self, names: Sequence[str], sample: int, directions: range) -> dict[str, Tensor]:
        # The backward pass too: a checkpointed part of the model runs again in it.
        with batch_statistics(self.function.model, self.batchnorms):
            return super()._rows_of(names, sample, directions)

    def _outputs_of(self, leaves: Params, sample: int) -> Tensor:
        outputs = self.function(leaves, self.inputs, self.buffers)
        return self.reduction.flatten(outputs)[sample]
