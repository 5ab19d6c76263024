"""A model on a batch as one function of its parameters, whose samples may depend on each other.

Differentiated batch statistics, contrastive heads and attention over the batch are legitimate here:
the kernel is that of the batch function. Where samples are independent it is the ordinary one.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ntkwatch.errors import RandomForwardError, SampleCouplingError
from ntkwatch.jacobian.batchnorm import moving_batchnorms
from ntkwatch.jacobian.engine import check_batchnorm
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import jacobian_dtype
from ntkwatch.jacobian.inputs import Inputs, count_samples
from ntkwatch.jacobian.outputs import OutputsSpec, Reduction
from ntkwatch.jacobian.parameters import (
    check_finite_parameters,
    select_parameters,
    unwrapped,
)
from ntkwatch.jacobian.problem import Problem, prepare
from ntkwatch.jacobian.spec import BatchNormMode
from ntkwatch.jacobian.undisturbed import undisturbed

__all__ = ["batch_problem", "is_coupled", "of_all_outputs"]


@contextmanager
def batch_problem(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward: ForwardFn | None,
    outputs: OutputsSpec,
    params: str | Sequence[str] | None,
    batchnorm: BatchNormMode,
    dtype: torch.dtype | None,
) -> Iterator[Problem]:
    """Give a model and a batch, checked and ready to be differentiated; then leave it as found.

    Args:
        model: Any module, in the modes in which it trains.
        inputs: The batch.
        forward: How to call the model, or None to guess.
        outputs: Setting of ``empirical_ntk``; "auto" takes all, which costs no more than one.
        params: Names or patterns of trainable parameters; default all.
        batchnorm: Setting of ``empirical_ntk``.
        dtype: Of the Jacobian.

    Yields:
        The problem.
    """
    check_batchnorm(batchnorm, "auto", ("running", "probe", "batch"))
    count_samples(inputs)
    model = unwrapped(model)
    selected = select_parameters(model, params)
    check_finite_parameters(selected)
    moving = moving_batchnorms(model)
    with undisturbed(model):
        yield prepare(
            model,
            inputs,
            forward=forward,
            outputs="full" if outputs == "auto" else outputs,
            names=list(selected),
            dtype=jacobian_dtype(selected, dtype),
            batchnorm=batchnorm,
            batchnorms=moving,
        )


def of_all_outputs(problem: Problem) -> Problem:
    """Return the same problem with all of the model's outputs, side by side.

    Args:
        problem: Model and batch, whatever outputs it was prepared for.

    Returns:
        One whose kernel is that of outputs "full".
    """
    there, shape = copy.copy(problem), problem.reduction.model_shape
    there.reduction = Reduction(
        name="full",
        full=True,
        directions=None,
        rows=max(1, math.prod(shape)),
        shape=shape,
        model_shape=shape,
    )
    there.spec = dataclasses.replace(problem.spec, outputs="full")
    return there


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
    return problem.spec.coupled
