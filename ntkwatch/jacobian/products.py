"""Products of a model's Jacobian, and so of its kernel, with vectors: no row of either is kept.

``J' u`` is one backward pass over the batch and ``J v`` one forward-mode pass, whatever the number
of outputs. The batch is one function, so samples may depend on each other; where they do not, they
are taken in chunks that fit a memory budget.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ntkwatch.jacobian.batchnorm import batch_statistics
from ntkwatch.jacobian.functional import ModelFunction, Params, real_entries
from ntkwatch.jacobian.inputs import Inputs, cast_inputs, count_samples, dense, take
from ntkwatch.jacobian.linearize import OutputsOf, jacobian_vector_product, unchecked_product
from ntkwatch.jacobian.lone_samples import outputs_on
from ntkwatch.jacobian.memory import saved_bytes
from ntkwatch.jacobian.problem import Problem
from ntkwatch.kernel.gram import widest_float

__all__ = ["KernelProducts"]

# A graph that is differentiated twice, or forward mode beside it, next to a plain one.
_GRAPHS = 3
# Rounding units by which ``<u, J J'u>`` and ``|J'u|^2`` may be apart.
_ROUNDING = 1e3


class KernelProducts:
    """Products with the kernel of a model on a batch.

    The kernel is the flat one, (N·C, N·C), of outputs "full", and the sum over output directions,
    (N, N), of other outputs, as in ``empirical_ntk``.

    Args:
        problem: Model and batch.
        budget: Bytes for what passes keep, as far as samples can be taken in chunks.
        coupled: Whether samples depend on each other, so that the batch is taken whole; it always
            is where the problem differentiates batch statistics.

    Attributes:
        problem: Model and batch.
        rows: Samples N.
        directions: Output directions that one kernel vector is pulled by: 1 for a flat kernel.
        size: Number of rows of the kernel.
        method: How ``J v`` is computed, once it was: "jvp", "double-vjp" or "finite-difference".
    """

    def __init__(self, problem: Problem, *, budget: int, coupled: bool) -> None:
        self.problem = problem
        self.rows = count_samples(problem.inputs)
        reduction = problem.reduction
        self.directions = 1 if reduction.full else reduction.rows
        self.size = self.rows * (reduction.rows if reduction.full else 1)
        self.method: str | None = None
        # The largest |J' u| / |u| so far: what is known of |J|.
        self._gain = torch.zeros((), dtype=widest_float(self.device), device=self.device)
        step = self.rows if coupled or problem.spec.coupled else self._chunk(budget)
        self._chunks = [
            slice(start, min(start + step, self.rows)) for start in range(0, self.rows, step)
        ]
        self._graph: tuple[Tensor, Params] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.problem.function.params[self.problem.names[0]].device

    def times(self, vector: Tensor) -> Tensor:
        """Return ``K v``.

        Args:
            vector: Of length ``size``.

        Returns:
            The product, in the widest float of the device.
        """
        product = torch.zeros(self.size, dtype=widest_float(self.device), device=self.device)
        for direction in range(self.directions):
            u = self.cotangent(vector, direction)
            product += self._seen_along(self._image(u), direction).flatten()
        return product

    def cotangent(self, vector: Tensor, direction: int) -> Tensor:
        """Return what to pull back for a kernel vector and one output direction, (N, C)."""
        reduction, function = self.problem.reduction, self.problem.function
        vector = vector.to(self.device, function.dtype)
        if reduction.full:
            return vector.view(self.rows, -1)
        (along,) = reduction.cotangents(vector, range(direction, direction + 1))
        return vector[:, None] * along

    def pull(self, cotangent: Tensor, names: Sequence[str] | None = None) -> Params:
        """Return ``J' u``: per parameter, the gradient of ``<u, f>``.

        Args:
            cotangent: ``u``, (N, C).
            names: Of the parameters; default all of the problem's.

        Returns:
            Dense gradients, zero where a parameter is not used.
        """
        names = self.problem.names if names is None else list(names)
        total: Params = {}
        for chunk in self._chunks:
            outputs, at = self._outputs(chunk)
            found: tuple[Tensor | None, ...] = (None,) * len(names)
            if outputs.requires_grad:
                found = torch.autograd.grad(
                    outputs,
                    [at[name] for name in names],
                    cotangent[chunk],
                    retain_graph=self._graph is not None,
                    allow_unused=True,
                )
            for name, gradient in zip(names, found, strict=True):
                part = torch.zeros_like(at[name]) if gradient is None else dense(gradient.detach())
                total[name] = total[name] + part if name in total else part
        return total

    def push(self, tangents: Params) -> Tensor:
        """Return ``J v``, (N, C), checked against reverse mode the first time.

        Args:
            tangents: ``v``, per parameter of the problem.

        Returns:
            The product.

        Raises:
            CoverageError: If the model cannot be linearized.
        """
        return torch.cat([self._push(tangents, chunk, self.method) for chunk in self._chunks])

    def _image(self, u: Tensor) -> Tensor:
        """``J J' u``, held against ``|J' u|^2``, which costs nothing."""
        pulled = self.pull(u)
        image = self.push(pulled)
        if self._agrees(u, pulled, image):
            return image
        # Another method, perhaps: this direction meets what the first one did not.
        return torch.cat([self._push(pulled, chunk, None) for chunk in self._chunks])

    def _agrees(self, u: Tensor, pulled: Params, image: Tensor) -> bool:
        if self.method == "finite-difference":  # checked each time, to what it can
            return True
        wide = widest_float(u.device)
        u, image = u.to(wide), image.to(wide)
        entries = [real_entries(gradient).to(wide) for gradient in pulled.values()]
        square = torch.stack([part.square().sum() for part in entries]).sum()
        length = torch.linalg.vector_norm(u)
        if length > 0:
            self._gain = torch.maximum(self._gain, square.sqrt() / length)
        # Rounding of J g is a share of |J| |g|: where u is next to nothing to J, of more than J g.
        size = length * (square.sqrt() * self._gain + torch.linalg.vector_norm(image))
        allowed = _ROUNDING * torch.finfo(self.problem.function.dtype).eps * size
        # Written this way round so that NaN, which has a refusal of its own, passes.
        return not bool(((u * image).sum() - square).abs() > allowed)

    def _seen_along(self, image: Tensor, direction: int) -> Tensor:
        reduction = self.problem.reduction
        if reduction.full:
            return image
        (along,) = reduction.cotangents(image, range(direction, direction + 1))
        return image @ along

    def _push(self, tangents: Params, chunk: slice, method: str | None) -> Tensor:
        outputs_of = self._function_on(self.problem.function, take(self.problem.inputs, chunk))
        at = {name: self.problem.function.params[name] for name in self.problem.names}
        if method in ("jvp", "double-vjp"):
            return unchecked_product(method, outputs_of, at, tangents)
        wide = None if self.device.type == "mps" else lambda: self._in_float64(chunk)
        found = jacobian_vector_product(outputs_of, at, tangents, in_float64=wide)
        self.method = found.method
        return found.change

    def _in_float64(self, chunk: slice) -> OutputsOf:
        function = self.problem.make(torch.float64)
        inputs = cast_inputs(
            take(self.problem.inputs, chunk), device=self.device, dtype=torch.float64
        )
        return self._function_on(function, inputs)

    def _function_on(self, function: ModelFunction, inputs: Inputs) -> OutputsOf:
        buffers = {
            name: buffer.to(function.dtype) if buffer.is_floating_point() else buffer
            for name, buffer in self.problem.buffers.items()
        }
        on_batch = self.problem.batchnorms if self.problem.spec.coupled else ()

        def outputs_of(params: Params) -> Tensor:
            with batch_statistics(function.model, on_batch):
                outputs = outputs_on(lambda some: function(params, some, buffers), inputs)
            return self.problem.reduction.flatten(outputs)

        return outputs_of

    def _outputs(self, chunk: slice) -> tuple[Tensor, Params]:
        """Outputs in the graph of all parameters; the graph is kept if it is the only one."""
        if self._graph is not None:
            return self._graph
        function = self.problem.function
        at = function.leaf_params(self.problem.names)
        outputs = self._function_on(function, take(self.problem.inputs, chunk))(at)
        if len(self._chunks) == 1:
            self._graph = outputs, at
        return outputs, at

    def _chunk(self, budget: int) -> int:
        """Samples whose graph fits the budget."""
        if self.rows == 1:
            return 1
        function = self.problem.function
        at = function.leaf_params(self.problem.names)

        def kept(samples: int) -> int:
            few = take(self.problem.inputs, slice(0, samples))
            return saved_bytes(lambda: function(at, few, self.problem.buffers))

        # A second sample shares the weights that the first one made the graph keep.
        each = max(kept(2) - kept(1), 1)
        return max(1, min(self.rows, budget // (_GRAPHS * each)))
