"""``empirical_ntk``: the kernel of a model on a probe batch."""

import math
import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.batchnorm import moving_batchnorms
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import jacobian_dtype
from ntkwatch.jacobian.inputs import Inputs, count_samples
from ntkwatch.jacobian.memory import is_too_large, kernel_bytes, parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec, Reduction
from ntkwatch.jacobian.parameters import (
    check_finite_parameters,
    select_parameters,
    unwrapped,
)
from ntkwatch.jacobian.problem import Problem, prepare
from ntkwatch.jacobian.sharding_check import check_sharding
from ntkwatch.jacobian.spec import BatchNormMode, EngineName, Kernel
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.kernel.gram import check_finite

__all__ = ["check_batchnorm", "check_choice", "empirical_ntk"]


def empirical_ntk(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward: ForwardFn | None = None,
    outputs: OutputsSpec = "full",
    params: str | Sequence[str] | None = None,
    engine: EngineName = "auto",
    memory_budget: str | int = "1GiB",
    dtype: torch.dtype | None = None,
    batchnorm: BatchNormMode = "running",
    other: Inputs | None = None,
) -> Kernel:
    """Return the empirical NTK ``K[i, j, a, b] = <d f_a(x_i) / d theta, d f_b(x_j) / d theta>``.

    The model is measured in evaluation mode and left as found.

    Args:
        model: Any module whose samples do not depend on each other.
        inputs: A tensor, or a tuple or mapping of tensors, samples first; integers are welcome.
        forward: ``(model, inputs) -> tensor (N, ...)``; guessed by default.
        outputs: "full" | "trace" (sum over outputs) | "sum" (kernel of the summed outputs) |
            "random:k" (k fixed directions orthogonal to the all-ones vector of the last axis, an
            unbiased estimate of the trace kernel without that part) | "random:k:plain" (without
            that restriction, for regression) | "auto" (full up to 10 outputs, else "random:8") |
            a function ``(N, ...) -> (N, C)`` whose trace kernel is taken.
        params: Names or patterns of trainable parameters such as "encoder.*"; default all.
        engine: "structured" (from the autograd graph of one forward pass), "vmap" (torch.func),
            "loop" (plain autograd), or "auto": structured where it agrees with plain autograd,
            parameter by parameter; for the others vmap if it runs and agrees, else loop.
        memory_budget: Bytes that the kernel may take beyond a forward and a backward pass.
        dtype: Of the Jacobian; default that of the parameters, at least float32.
        batchnorm: Statistics of BatchNorms that train on those of their batch: "running" averages,
            as ``model.eval()`` computes; those of the "probe" (of ``inputs``), held constant in the
            derivative; or those of the "batch" (of ``inputs``), differentiated: row (i, a) is then
            the gradient of an output of the whole batch's function, so samples are coupled, and
            each row takes a pass of the whole batch ("loop").
        other: Second inputs, for the cross kernel ``K(inputs, other)``.

    Returns:
        The kernel with its parts by layer.

    Raises:
        InputError: If inputs or settings cannot be used.
        SelectionError: If no trainable parameter is selected.
        ForwardError: If no way to call the model is found.
        OutputError: If outputs are not floating or not per sample.
        SampleCouplingError: If a sample's outputs depend on other samples or on chance.
        NonFiniteError: If weights, outputs or the kernel hold NaN or infinity.
        CoverageError: If the chosen engine cannot differentiate the model.

    Source:
        Jacot, Gabriel and Hongler, NeurIPS 2018, arXiv:1806.07572; finite networks: Novak et al.,
        ICML 2022, arXiv:2206.08720.
    """
    check_choice("engine", engine, ("auto", "structured", "vmap", "loop"))
    check_batchnorm(batchnorm, engine, ("running", "probe", "batch"))
    budget = parse_bytes(memory_budget)
    count_samples(inputs, at_least=1)
    model = unwrapped(model)
    selected = select_parameters(model, params)
    kind = jacobian_dtype(selected, dtype)
    samples = [inputs] if other is None else [inputs, other]
    check_sharding(model, samples, engine=engine, batchnorm=batchnorm, dtype=kind)
    check_finite_parameters(selected)
    moving = moving_batchnorms(model)
    with undisturbed(model):
        problem = prepare(
            model,
            inputs,
            forward=forward,
            outputs=outputs,
            names=list(selected),
            dtype=kind,
            batchnorm=batchnorm,
            batchnorms=moving,
        )
        if problem.spec.coupled and other is not None:
            raise InputError(
                f"other= was given with batchnorm='batch', and {type(model).__name__} normalises "
                "each batch by its own statistics, so there is no one function of which to take a "
                "cross kernel. Use batchnorm='running', or the kernel of both inputs in one batch."
            )
        problem.check_samples_independent(other)
        if outputs == "auto":
            _say_if_random(problem.reduction)
        _check_result_size(problem, other, budget)
        kernel = problem.kernel(engine=engine, budget=budget, other=other)
    check_finite(kernel.matrix)
    return kernel


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of the choices.

    Args:
        name: Of the setting.
        value: As given.
        choices: What is known.

    Raises:
        InputError: If it is none of them.
    """
    if value not in choices:
        raise InputError(
            f"{name}={value!r} is not known, so it is not clear what is wanted. "
            f"Use one of: {', '.join(choices)}."
        )


def check_batchnorm(
    batchnorm: BatchNormMode, engine: EngineName, choices: tuple[BatchNormMode, ...]
) -> None:
    """Refuse statistics of BatchNorms that are not to be had here, or not by this engine.

    Args:
        batchnorm: As given.
        engine: As given.
        choices: What is to be had.

    Raises:
        InputError: If the two do not fit.
    """
    if batchnorm == "reference" and "reference" not in choices:
        raise InputError(
            "batchnorm='reference' takes the buffers of a reference step, and a single kernel has "
            "none. Use KernelTracker or NTKMonitor, which keep them, or load those buffers into "
            "the model and use batchnorm='running'."
        )
    check_choice("batchnorm", batchnorm, choices)
    if batchnorm == "batch" and engine not in ("auto", "loop"):
        raise InputError(
            "batchnorm='batch' differentiates statistics that all samples make together, and "
            f"engine={engine!r} differentiates each sample alone. Use engine='auto' or 'loop'."
        )


def _check_result_size(problem: Problem, other: Inputs | None, budget: int) -> None:
    """A full kernel grows with the square of the outputs; refuse before memory runs out."""
    n = count_samples(problem.inputs)
    m = n if other is None else count_samples(other)
    rows = problem.reduction.rows if problem.reduction.full else 1
    need = kernel_bytes(n * rows, m * rows)
    if is_too_large(n * rows, m * rows, budget):
        raise InputError(
            f"the full kernel of {n} x {m} samples with {rows} outputs each takes "
            f"{need / 2**30:.1f} GiB and memory_budget is {budget / 2**30:.2f} GiB. Use "
            'outputs="trace" or "random:8", fewer samples, or a larger memory_budget.'
        )


def _say_if_random(reduction: Reduction) -> None:
    if reduction.name.startswith("random"):
        count = max(1, math.prod(reduction.shape))
        _say_once(
            f"the model has {count} outputs per sample; outputs='auto' takes {reduction.rows} "
            "fixed random directions of them, an unbiased estimate of the trace kernel. Choose "
            "outputs='trace' for the exact one."
        )


@cache
def _say_once(message: str) -> None:
    # Python's own "once" does not last: whoever enters catch_warnings, as torch does, resets it.
    warnings.warn(message, stacklevel=4)
