"""What processes say to each other when they compute a kernel together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.plan import KernelPlan
from ntkwatch.jacobian.problem import Problem
from ntkwatch.jacobian.spec import EngineName
from ntkwatch.watch.processes.shares import Share

__all__ = ["Done", "Request", "Unlike", "failures_in", "in_words", "tensors_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the first process asks of the others: a share of a kernel.

    Attributes:
        inputs: The probe, on the CPU; None for that of the request before.
        called: How a guess called the model, in words; None where every process was told how.
        outputs: Setting of outputs in words; None for the function that every process was given.
        names: All parameters of the kernel.
        dtype: Of the Jacobian.
        moving: BatchNorms on batch statistics.
        buffers: Used in place of the model's, on the CPU.
        order: Of the samples, or None.
        engine: Engine.
        budget: Bytes.
        shares: By process.
        bits: Digests of the tensors that the kernel is taken at.
    """

    inputs: Inputs | None
    called: str | None
    outputs: str | None
    names: tuple[str, ...]
    dtype: torch.dtype
    moving: tuple[str, ...]
    buffers: Params
    order: Tensor | None
    engine: EngineName
    budget: int
    shares: tuple[Share, ...]
    bits: Mapping[str, int]


@dataclass(slots=True)
class Unlike:
    """How a process differs from the first one before a kernel.

    Attributes:
        names: Tensors that are not the same to the last bit.
        failure: Why that cannot be told, in words; empty if it can.
    """

    names: tuple[str, ...] = ()
    failure: str = ""


@dataclass(slots=True, kw_only=True)
class Done:
    """What a process has to say of its share.

    Attributes:
        failure: Why there is none, in words; empty if there is.
        coverage: Route of each of its parameters.
        plan: What was done for them, if anything was to be done.
    """

    failure: str = ""
    coverage: Mapping[str, str] = field(default_factory=dict)
    plan: KernelPlan | None = None


def in_words(error: BaseException) -> str:
    """Return what went wrong in one line."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def failures_in(said: list[str]) -> str:
    """Return who failed, and why; empty if nobody did."""
    return "; ".join(f"process {rank}: {words}" for rank, words in enumerate(said) if words)


def tensors_of(problem: Problem) -> Params:
    """Return what the kernel is taken at: a process that holds other values must be given these."""
    function = problem.function
    params = {f"param:{name}": tensor for name, tensor in function.params.items()}
    return params | {f"buffer:{name}": tensor for name, tensor in function.buffers.items()}
