"""A model and a probe made ready for an engine: every check passed, every setting resolved.

Which engine computes what is decided in ``compute``.
"""

import copy
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError, OutputError
from ntkwatch.jacobian.acquaintance import acquainted, kind_of_use
from ntkwatch.jacobian.batchnorm import batch_statistics, on_probe, outputs_on, statistics_in
from ntkwatch.jacobian.compute import Ingredients, compute
from ntkwatch.jacobian.coupling import check_repeatable, check_samples_independent
from ntkwatch.jacobian.first_call import first_call, guessed_on
from ntkwatch.jacobian.forward import (
    GIVEN,
    ForwardFn,
    check_outputs,
    check_outputs_finite,
)
from ntkwatch.jacobian.functional import ModelFunction, Params, real_size
from ntkwatch.jacobian.inputs import Inputs, cast_inputs, count_samples, take
from ntkwatch.jacobian.outputs import OutputsSpec, Reduction, resolve_outputs
from ntkwatch.jacobian.sharded import function_of
from ntkwatch.jacobian.spec import BatchNormMode, EngineName, Kernel, KernelSpec
from ntkwatch.kernel.gram import unflatten_kernel

__all__ = ["Problem", "prepare"]


class Problem:
    """A model, a probe and the settings of a kernel, checked and ready to be differentiated.

    Attributes:
        make: Gives the model as a function in any dtype.
        function: The model as a function.
        inputs: The probe on the model's device, in the function's dtype.
        reduction: Output directions.
        names: Parameters to differentiate by.
        buffers: Buffers to use instead of the model's own.
        spec: Settings.
        batchnorms: BatchNorms that training runs on batch statistics.
        use: What this use of the model is remembered by.
        on_batch: Outputs on the probe's own batch statistics, as the model gives them, where they
            were needed to make the problem ready; or None.
    """

    def __init__(
        self,
        make: Callable[[torch.dtype], ModelFunction],
        function: ModelFunction,
        inputs: Inputs,
        reduction: Reduction,
        names: list[str],
        buffers: Params,
        spec: KernelSpec,
        batchnorms: Sequence[str] = (),
        use: Hashable = None,
        on_batch: Tensor | None = None,
    ) -> None:
        self.make = make
        self.function, self.inputs, self.reduction = function, inputs, reduction
        self.names, self.buffers, self.spec = names, buffers, spec
        self.batchnorms, self.use, self.on_batch = batchnorms, use, on_batch

    @property
    def row_bytes(self) -> int:
        """Bytes of all Jacobian rows together: what is never held at once beyond the budget."""
        entries = sum(real_size(self.function.params[name]) for name in self.names)
        samples = count_samples(self.inputs)
        return samples * self.reduction.rows * entries * self.function.dtype.itemsize

    def at(self, state: Params) -> "Problem":
        """Return the same problem at other parameters."""

        def make(kind: torch.dtype) -> ModelFunction:
            function = self.make(kind)
            function.put_state(state)
            return function

        there = copy.copy(self)
        there.make, there.function = make, make(self.function.dtype)
        there.on_batch = None
        return there

    def traced(self) -> "Problem":
        """Return the same problem with the kernel summed over its outputs: much less work."""
        there = copy.copy(self)
        there.reduction = replace(self.reduction, name="trace", full=False)
        there.spec = replace(self.spec, outputs="trace")
        return there

    def with_buffers(self, buffers: Params) -> "Problem":
        """Return the same problem with these buffers in place of the model's present ones."""
        there = copy.copy(self)
        there.buffers = {**self.function.own_buffers(buffers), **self.buffers}
        return there

    def on(self, inputs: Inputs) -> "Problem":
        """Return the same problem on other inputs, refused unless their outputs are of one kind."""
        there = copy.copy(self)
        there.inputs = self._columns(inputs)
        return there

    def check_samples_independent(self, other: Inputs | None = None) -> None:
        """Refuse a model that depends on chance, or whose samples depend on each other unasked.

        Args:
            other: Second inputs, looked at where there is but one first.
        """
        inputs = self.inputs
        if self.spec.coupled:
            with batch_statistics(self.function.model, self.batchnorms):
                check_repeatable(
                    self.make, inputs, self.names, dtype=self.function.dtype, buffers=self.buffers
                )
            return
        if count_samples(inputs) == 1 and other is not None:
            inputs = self._columns(other)
        known = acquainted(self.function.model, self.use)
        if count_samples(inputs) > 1 and not known.independent:
            check_samples_independent(
                self.make,
                inputs,
                self.reduction,
                self.names,
                dtype=self.function.dtype,
                buffers=self.buffers,
            )
            known.independent = inputs is self.inputs

    def kernel(
        self,
        *,
        engine: EngineName,
        budget: int,
        other: Inputs | None = None,
        order: Tensor | None = None,
        checked: bool = False,
    ) -> Kernel:
        """Return the kernel; ``order`` takes the samples in another order and puts them back.

        ``checked`` spares the engine's look at itself, where it was made on more of these samples.
        """
        inputs = self.inputs if order is None else take(self.inputs, order)
        columns = None if other is None else self._columns(other)
        ingredients = Ingredients(
            make=self.make,
            function=self.function,
            reduction=self.reduction,
            names=tuple(self.names),
            buffers=self.buffers,
            coupled=self.spec.coupled,
            batchnorms=tuple(self.batchnorms),
            checked=checked,
        )
        matrix, layers, coverage, plan = compute(ingredients, inputs, columns, engine, budget)
        if self.reduction.full:
            matrix = unflatten_kernel(matrix, (self.reduction.rows,) * 2)
        if order is not None:
            back = order.argsort()
            across = back if other is None else slice(None)
            matrix = matrix[back][:, across]
            layers = {name: part[back][:, across] for name, part in layers.items()}
        if not bool(matrix.any()):
            self._check_connected()
        return Kernel(matrix=matrix, layers=layers, coverage=coverage, spec=self.spec, plan=plan)

    def _columns(self, other: Inputs) -> Inputs:
        """The second inputs of a cross kernel, refused unless their outputs are of one kind."""
        device = self.function.params[self.names[0]].device
        columns = cast_inputs(other, device=device, dtype=self.function.dtype)
        with torch.no_grad():
            values = self.function({}, columns, self.buffers)
        shape = (count_samples(columns), *self.reduction.model_shape)
        squeezed = shape[0] == 1 and values.numel() == math.prod(shape)
        if values.shape != shape and not squeezed:
            raise InputError(
                f"the outputs on other= have shape {tuple(values.shape)} and those on the inputs "
                f"are of shape {shape[1:]} per sample, so outputs cannot be paired. Give both in "
                "one shape: pad or cut them alike."
            )
        return columns

    def _check_connected(self) -> None:
        """A kernel of zeros may be right (a layer that starts at zero), or nothing was watched."""
        params = self.function.params
        smooth = [n for n, p in params.items() if p.is_floating_point() or p.is_complex()]
        first = take(self.inputs, slice(0, 1))
        outputs, leaves = self.function.trace(smooth, first, self.buffers)
        used = outputs.requires_grad and any(
            gradient is not None
            for block in self.function.blocks([n for n in smooth if leaves[n].requires_grad])
            for gradient in torch.autograd.grad(
                outputs.sum(), [leaves[n] for n in block], allow_unused=True, retain_graph=True
            )
        )
        if not used:
            raise OutputError(
                f"the outputs of {type(self.function.model).__name__} do not depend on any of its "
                "parameters as autograd sees it, so there is nothing to differentiate. Does "
                "forward run under no_grad, detach its result, or call another model than the one "
                "it is given?"
            )


def prepare(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward: ForwardFn | None,
    outputs: OutputsSpec,
    names: list[str],
    dtype: torch.dtype,
    batchnorms: list[str],
    batchnorm: BatchNormMode = "running",
    reference: Params | None = None,
    state: Params | None = None,
    for_kernel: bool = True,
    called: str | None = None,
) -> Problem:
    """Return a problem whose inputs, outputs and weights are checked.

    Call it inside ``undisturbed``; whether samples are independent is a check of its own.

    Args:
        model: The model, in evaluation mode.
        inputs: The probe.
        forward: How to call the model, or None to guess.
        outputs: Setting of ``empirical_ntk``.
        names: Clean names of the parameters to differentiate by.
        dtype: Of the Jacobian.
        batchnorms: Clean names of the BatchNorms that training runs on batch statistics.
        batchnorm: Statistics for these.
        reference: Buffers at the reference step, for ``batchnorm="reference"``; by default the
            present ones.
        state: Parameters and buffers by clean name, to use instead of the model's present ones.
        for_kernel: Whether a kernel is wanted; else statistics for it are not gathered.
        called: How a guess called the model before, in the words of ``KernelSpec.forward``: it is
            then called in no other way. None to try them all.

    Returns:
        The problem.
    """
    n = count_samples(inputs)
    device = next(model.parameters()).device
    inputs = cast_inputs(inputs, device=device, dtype=dtype)
    use = kind_of_use(
        model, inputs, forward, outputs, tuple(names), dtype, batchnorm, tuple(batchnorms)
    )
    known = acquainted(model, use)
    words = GIVEN
    if forward is None:
        if known.guess is None or called not in (None, known.guess[1]):
            known.guess = guessed_on(model, inputs, dtype, only=called)
        forward, words = known.guess
    written: list[str] = []

    def make(kind: torch.dtype) -> ModelFunction:
        function = function_of(model, forward, dtype=kind)
        if state is not None:
            function.put_state(state)
        function.copy_params(written)
        return function

    if known.output_shape is None:
        values, found = first_call(make(dtype), inputs)
        known.written = tuple(found)
    else:
        values = torch.zeros(known.output_shape, dtype=dtype, device=device)
    written.extend(known.written)
    function = make(dtype)
    statistics = statistics_in(model, batchnorm, batchnorms)
    buffers = function.own_buffers(reference or {}) if statistics == "reference" else {}
    on_batch: Tensor | None = None
    if statistics == "probe" and not for_kernel:
        values = on_batch = outputs_on("batch", function, inputs, batchnorms, {})
    elif statistics == "probe":
        buffers, values, on_batch = on_probe(function, inputs, batchnorms)
    elif buffers or statistics == "batch":
        values = outputs_on(statistics, function, inputs, batchnorms, buffers)
    check_outputs(values, n)
    check_outputs_finite(values, model)
    known.output_shape = tuple(values.shape)
    reduction = resolve_outputs(outputs, values)
    spec = KernelSpec(
        outputs=reduction.name,
        output_shape=tuple(values.shape[1:]),
        params=tuple(names),
        dtype=str(dtype).removeprefix("torch."),
        batchnorm=statistics,
        forward=words,
    )
    return Problem(
        make, function, inputs, reduction, names, buffers, spec, batchnorms, use, on_batch
    )
