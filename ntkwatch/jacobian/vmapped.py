"""Jacobian rows by ``torch.func``: ``vmap`` over samples of ``vmap`` over directions of ``vjp``."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vjp, vmap

from ntkwatch.jacobian.functional import ModelFunction, Params, real_entries
from ntkwatch.jacobian.inputs import Inputs, count_samples, leaves, rebuild, take
from ntkwatch.jacobian.memory import saved_bytes
from ntkwatch.jacobian.outputs import Reduction

__all__ = ["VmapRows"]


class VmapRows:
    """Rows of a model's Jacobian, vectorised in chunks of samples.

    Args:
        function: The model as a function.
        inputs: Probe inputs.
        reduction: Which output directions.
        buffers: Buffers to use instead of the model's.
    """

    route = "vmap"

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
        self._bytes_per_sample: int | None = None

    def row_blocks(self, names: Sequence[str], samples: range, budget: int) -> dict[str, Tensor]:
        """Return gradients of shape (n, R, P) per name, made in chunks that fit the budget."""
        theta = {name: self.function.params[name] for name in names}
        entries = sum(tensor.numel() * tensor.element_size() for tensor in theta.values())
        # Rows of a chunk, and what the forward pass keeps, times the directions it is pulled by.
        each = self.rows * entries + (1 + self.rows) * self._activations()
        chunk = max(1, min(len(samples), budget // each))
        inside = max(1, min(self.rows, budget // (entries + self._activations())))
        blocks: dict[str, Tensor] = {}
        for start in range(samples.start, samples.stop, chunk):
            stop = min(start + chunk, samples.stop)
            rows = self._rows(theta, slice(start, stop), inside)
            for name, part in rows.items():
                if name not in blocks:
                    shape = (len(samples), *part.shape[1:])
                    blocks[name] = part.new_empty(shape) if chunk < len(samples) else part
                if chunk < len(samples):
                    blocks[name][start - samples.start : stop - samples.start] = part
        return blocks

    def _rows(self, theta: Params, samples: slice, inside: int) -> dict[str, Tensor]:
        chosen = take(self.inputs, samples)

        def of_one_sample(*tensors: Tensor) -> Params:
            one = rebuild(self.inputs, [tensor[None] for tensor in tensors])

            def outputs_by(block: Params) -> Tensor:
                return self.reduction.flatten(self.function(block, one, self.buffers))[0]

            outputs, pull, *_ = vjp(outputs_by, theta)
            pieces = []
            for start in range(0, self.rows, inside):
                directions = range(start, min(start + inside, self.rows))
                cotangents = self.reduction.cotangents(outputs, directions)
                pieces.append(vmap(lambda u: pull(u)[0])(cotangents))
            return {name: torch.cat([piece[name] for piece in pieces]) for name in theta}

        with warnings.catch_warnings():
            # Torch's own affair: an operation without a batching rule runs sample by sample.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            rows = vmap(of_one_sample)(*leaves(chosen))
        # A scalar parameter has no axis of its own to flatten.
        return {name: real_entries(rows[name].detach())[..., None].flatten(2) for name in theta}

    def _activations(self) -> int:
        if self._bytes_per_sample is None:
            params = self.function.params.items()
            smooth = [name for name, p in params if p.is_floating_point() or p.is_complex()]
            theta = self.function.leaf_params(smooth)
            one = take(self.inputs, slice(0, 1))
            weights = sum(t.nbytes for t in self.function.params.values())
            kept = saved_bytes(lambda: self.function(theta, one, self.buffers))
            # Saved weights are shared by all samples and directions.
            self._bytes_per_sample = max(kept - weights, sum(t.nbytes for t in leaves(one)), 1)
        return self._bytes_per_sample
