"""A model on a batch as one function of its parameters, whose samples may depend on each other.

Differentiated batch statistics, contrastive heads and attention over the batch are legitimate here:
the kernel is that of the batch function. Where samples are independent it is the ordinary one.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from ntkwatch.errors import RandomForwardError, SampleCouplingError
from ntkwatch.jacobian.batchnorm import batch_statistics, moving_batchnorms
from ntkwatch.jacobian.engine import check_choice
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import jacobian_dtype
from ntkwatch.jacobian.inputs import Inputs, count_samples
from ntkwatch.jacobian.outputs import OutputsSpec
from ntkwatch.jacobian.parameters import (
    check_finite_parameters,
    select_parameters,
    unwrapped,
)
from ntkwatch.jacobian.problem import Problem, prepare
from ntkwatch.jacobian.undisturbed import undisturbed

__all__ = ["BatchStatistics", "as_batch_function", "batch_problem", "is_coupled"]

BatchStatistics = Literal["running", "probe", "batch"]


@contextmanager
def batch_problem(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward: ForwardFn | None,
    outputs: OutputsSpec,
    params: str | Sequence[str] | None,
    batchnorm: BatchStatistics,
    dtype: torch.dtype | None,
) -> Iterator[Problem]:
    """Give a model and a batch, checked and ready to be differentiated; then leave it as found.

    Args:
        model: Any module, in the modes in which it trains.
        inputs: The batch.
        forward: How to call the model, or None to guess.
        outputs: Setting of ``empirical_ntk``; "auto" takes all, which costs no more than one.
        params: Names or patterns of trainable parameters; default all.
        batchnorm: "running" statistics, those of the "probe" held constant in the derivative, or
            those of the "batch", differentiated, for each BatchNorm that trains on them.
        dtype: Of the Jacobian.

    Yields:
        The problem.
    """
    check_choice("batchnorm", batchnorm, ("running", "probe", "batch"))
    count_samples(inputs)
    model = unwrapped(model)
    selected = select_parameters(model, params)
    check_finite_parameters(selected)
    moving = moving_batchnorms(model)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        if batchnorm == "batch":  # what is checked first, too, is to be the batch function
            stack.enter_context(batch_statistics(model, moving))
        problem = prepare(
            model,
            inputs,
            forward=forward,
            outputs="full" if outputs == "auto" else outputs,
            names=list(selected),
            dtype=jacobian_dtype(selected, dtype),
            batchnorms=moving if batchnorm == "probe" else [],
        )
        if batchnorm == "batch":
            problem = stack.enter_context(as_batch_function(problem, moving))
        yield problem


@contextmanager
def as_batch_function(problem: Problem, moving: Sequence[str]) -> Iterator[Problem]:
    """Give a problem with the batch's own statistics, differentiated, in place of any others.

    Args:
        problem: Model and batch, whatever statistics they were prepared with.
        moving: BatchNorms that training runs on batch statistics.

    Yields:
        The problem of the batch function, to be differentiated inside this only.
    """
    spec = replace(problem.spec, batchnorm="batch") if moving else problem.spec
    with batch_statistics(problem.function.model, moving):
        yield Problem(
            problem.make,
            problem.function,
            problem.inputs,
            problem.reduction,
            problem.names,
            {},
            spec,
        )


def is_coupled(problem: Problem) -> bool:
    """Return whether samples depend on each other.

    Args:
        problem: Model and batch.

    Returns:
        True for a batch function that has no per-sample kernel; always where batch statistics are
        differentiated.

    Raises:
        RandomForwardError: If the model draws random numbers, and so is no function at all.
    """
    try:
        problem.check_samples_independent()
    except RandomForwardError:
        raise
    except SampleCouplingError:
        return True
    # Whatever the check could see: a batch function taken in parts is another function.
    return problem.spec.batchnorm == "batch"
