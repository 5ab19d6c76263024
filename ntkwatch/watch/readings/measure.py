"""One look at a model: its outputs and its kernel on the probe.

What is measured here stands for itself; comparing it with a reference is another file's business.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ntkwatch.errors import CoverageError, DivergedError, RandomForwardError, SampleCouplingError
from ntkwatch.jacobian.batchnorm import batch_statistics
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.outputs import OutputsSpec, Reduction
from ntkwatch.jacobian.parameters import layer_of
from ntkwatch.jacobian.problem import Problem, prepare
from ntkwatch.jacobian.sketch import KernelSketch
from ntkwatch.jacobian.spec import BatchNormMode, EngineName, Kernel
from ntkwatch.kernel.gram import check_finite, widest_float
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.readings.sketching import take_sketch, too_large
from ntkwatch.watch.record.records import NOT_TAKEN

__all__ = [
    "Measurement",
    "Metrics",
    "Settings",
    "WatchEngine",
    "kernel_of",
    "linearized_function",
    "measure",
]

# By cost: "minimal" takes no eigenvalue and no second kernel; "standard" what the (N, N) trace
# kernel gives; "full" also what takes the (N C, N C) kernel, or a null for every layer.
Metrics = Literal["minimal", "standard", "full"]


WatchEngine = EngineName | Literal["sketch"]
_SKETCHING = ("auto", "sketch")
# Where all outputs are wanted and nobody says how, nothing but metrics="full" takes them apart.
_ALL = ("auto", "auto:plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What stays the same for all observations of a run.

    Attributes:
        names: Parameters that the kernel is taken over.
        moving: BatchNorms that training runs on batch statistics.
        batchnorm: Statistics that kernels use for those.
        forward: How to call the model, or None to guess.
        called: How a guess called the model at the reference, in words; None before it.
        outputs: Reduction.
        engine: Engine, or "sketch".
        budget: Bytes.
        dtype: Of the Jacobian.
        metrics: Which numbers are wanted, by their cost.
        top_k: Eigenvalues and eigenmodes wanted.
        keeps_full: Whether anchors keep the kernel between outputs, too.
        no_kernel: Why there is no kernel, as found at the reference; or None.
        coupled: Whether that is because samples depend on each other.
        helpers: Computes a problem's kernel together with other processes, or None.
    """

    names: tuple[str, ...]
    moving: tuple[str, ...]
    batchnorm: BatchNormMode
    forward: ForwardFn | None
    outputs: OutputsSpec
    engine: WatchEngine
    budget: int
    dtype: torch.dtype
    metrics: Metrics = "standard"
    top_k: int = 8
    keeps_full: bool = False
    no_kernel: str | None = None
    coupled: bool = False
    called: str | None = None
    helpers: Callable[..., Kernel] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was seen of a model at one step.

    Attributes:
        problem: Model and probe, ready for an engine.
        outputs: Of the function that is linearized, (N, C), in the widest float.
        kernel: The kernel, or None where there is none, or none that can be held.
        sketch: Of the kernel, where one was taken in its place.
        left_out: Per missing number, the reason.
    """

    problem: Problem
    outputs: Tensor
    kernel: Kernel | None
    sketch: KernelSketch | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def matrix_layers(self) -> set[str]:
        """Modules with a matrix or convolution weight: those that a median is taken over."""
        params = self.problem.function.params
        return {layer_of(name) for name in self.problem.names if params[name].ndim >= 2}

    def as_anchor(self, step: int, *, keeps_full: bool = False) -> Anchor:
        """Return a copy of what later steps are compared with."""
        function = self.problem.function
        has_full = keeps_full and self.kernel is not None and self.kernel.matrix.ndim == 4
        return Anchor(
            step=step,
            params={name: tensor.detach().clone() for name, tensor in function.params.items()},
            buffers={name: tensor.clone() for name, tensor in function.buffers.items()},
            outputs=self.outputs,
            kernel=None if self.kernel is None else self.kernel.trace,
            layers={} if self.kernel is None else self.kernel.layers,
            full=self.kernel.matrix if has_full and self.kernel is not None else None,
            sketch=self.sketch,
        )


def measure(
    model: nn.Module,
    inputs: Inputs,
    settings: Settings,
    *,
    first: bool,
    brief: bool = False,
    reference: Params | None = None,
    state: Params | None = None,
) -> Measurement:
    """Return outputs and kernel of a model; call it inside ``undisturbed``.

    Args:
        model: In evaluation mode.
        inputs: The probe's inputs.
        settings: Of the run.
        first: Whether to test that samples do not depend on each other.
        brief: Whether to leave out the kernel.
        reference: Buffers at the reference step; None if it is this one.
        state: Parameters and buffers to use instead of the model's present ones.

    Returns:
        What was seen. Coupled samples cost the kernel, not the observation.

    Raises:
        RandomForwardError: If the model draws random numbers even in evaluation mode.
        NonFiniteError: If the kernel is NaN or infinite.
        DivergedError: If outputs are NaN or infinite.
    """
    problem = prepare(
        model,
        inputs,
        forward=settings.forward,
        outputs=settings.outputs,
        names=list(settings.names),
        dtype=settings.dtype,
        batchnorm=settings.batchnorm,
        batchnorms=list(settings.moving),
        reference=reference,
        state=state,
        for_kernel=not brief,
        called=settings.called,
    )
    if settings.outputs in _ALL and settings.metrics != "full" and problem.reduction.full:
        problem = problem.traced()
    seen: dict[str, Any] = {"kernel": None, "left_out": {"kernel": NOT_TAKEN}}
    if not brief:
        seen = _kernel_or_sketch(problem, settings, first=first)
    outputs = _own_outputs(problem, settings.moving)
    if not bool(torch.isfinite(outputs).all()):
        raise DivergedError(
            f"the outputs of {type(model).__name__} on the probe's own batch statistics are NaN or "
            "infinite, so nothing can be compared with them. Check the weights for divergence."
        )
    wide = widest_float(outputs.device)
    return Measurement(problem=problem, outputs=outputs.to(wide), **seen)


def _kernel_or_sketch(problem: Problem, settings: Settings, *, first: bool) -> dict[str, Any]:
    """The kernel, or why there is none and, as far as the engine allows it, a sketch of it."""
    why, coupled = settings.no_kernel, settings.coupled
    kernel = None
    try:
        if first:
            problem.check_samples_independent()
        if why is None:
            why = _why_to_sketch(problem, settings)
        if why is None and settings.engine != "sketch":
            kernel = kernel_of(problem, settings)
            check_finite(kernel.matrix)
            return {"kernel": kernel}
    except RandomForwardError:
        raise
    except (SampleCouplingError, CoverageError) as error:
        why, coupled = str(error), isinstance(error, SampleCouplingError)
    sketch = None
    # A sketch puts other weights in the place of shards than those, which cannot be.
    if settings.engine in _SKETCHING and problem.function.replaceable:
        sketch = take_sketch(problem, settings.outputs, coupled=coupled, budget=settings.budget)
    return {"kernel": None, "sketch": sketch, "left_out": {"kernel": why}}


def kernel_of(
    problem: Problem,
    settings: Settings,
    *,
    budget: int | None = None,
    order: Tensor | None = None,
) -> Kernel:
    """Return the kernel of a problem, with the help of other processes where there is any.

    Args:
        problem: Model and probe.
        settings: Of the run.
        budget: Bytes; by default those of the settings.
        order: Of the samples.

    Returns:
        The kernel.
    """
    assert settings.engine != "sketch"
    compute = problem.kernel if settings.helpers is None else partial(settings.helpers, problem)
    budget = settings.budget if budget is None else budget
    return compute(engine=settings.engine, budget=budget, order=order)


def _why_to_sketch(problem: Problem, settings: Settings) -> str | None:
    """Why a kernel that exists is not computed."""
    if settings.engine == "sketch":
        return "engine='sketch' estimates how far it moved without computing it"
    return too_large(problem, settings.budget) if settings.engine == "auto" else None


def linearized_function(
    problem: Problem,
    moving: tuple[str, ...],
    *,
    function: ModelFunction | None = None,
    inputs: Inputs | None = None,
    buffers: Params | None = None,
) -> Callable[[Params], Tensor]:
    """Return the outputs, (N, C), as the function of the parameters that training sees.

    BatchNorms that train on batch statistics run on those of the probe, which are differentiated
    along with everything else. Very many outputs are seen through the kernel's random directions.

    Args:
        problem: Model and probe.
        moving: BatchNorms on batch statistics.
        function: The model as a function, if not the problem's (another dtype).
        inputs: Inputs, if not the problem's.
        buffers: Buffers, if not the model's.

    Returns:
        A function of parameters; those left out are as in the model.
    """
    chosen = problem.function if function is None else function
    probe = problem.inputs if inputs is None else inputs
    reduction = problem.reduction

    def outputs_of(params: Params) -> Tensor:
        with batch_statistics(chosen.model, moving):
            return _reduced(chosen(params, probe, buffers), reduction)

    return outputs_of


def _reduced(outputs: Tensor, reduction: Reduction) -> Tensor:
    outputs = reduction.flatten(outputs)
    if reduction.name.startswith("random"):
        return outputs @ reduction.cotangents(outputs).mT
    return outputs


def _own_outputs(problem: Problem, moving: tuple[str, ...]) -> Tensor:
    """The outputs of the function that is linearized, taken over where they are known already."""
    with torch.no_grad():
        if problem.on_batch is not None and tuple(problem.batchnorms) == moving:
            return _reduced(problem.on_batch, problem.reduction)
        return linearized_function(problem, moving)({})
