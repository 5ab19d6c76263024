"""Kernels that the processes of a data-parallel training compute together, each a share.

The first process measures and asks; the others answer. Before anything is exchanged all of them
agree that everyone is well, so a failure of one never leaves another waiting: a share that was not
computed makes the first process compute the whole kernel itself.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import NonFiniteError, ProcessError
from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.inputs import Inputs, map_inputs
from ntkwatch.jacobian.problem import Problem, prepare
from ntkwatch.jacobian.spec import EngineName, Kernel
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.kernel.gram import widest_float
from ntkwatch.watch.apart import apart
from ntkwatch.watch.bits import bits_of
from ntkwatch.watch.shares import Share, added_up, part_of_problem, shares_of, sums_of
from ntkwatch.watch.team import Team, TeamGoneError

__all__ = ["Asking", "Helper", "Request", "in_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the first process asks of the others: a share of a kernel.

    Attributes:
        inputs: The probe, on the CPU; None for that of the request before.
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


@dataclass(slots=True, kw_only=True)
class _Done:
    """What a process has to say of its share."""

    failure: str = ""
    coverage: Mapping[str, str] = field(default_factory=dict)
    plan: Any = None


class _OwnFailure(Exception):  # noqa: N818 - never seen by users
    """The first process's own share failed."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Asking:
    """The first process's side: computes kernels with the help of the others.

    Args:
        team: All processes.
        raises: Whether the failure of another process is raised instead of made up for.

    Attributes:
        alone: Whether this process measures by itself from now on.
        shared: Kernels that were computed together so far.
    """

    def __init__(self, team: Team, *, raises: bool = False) -> None:
        self._team, self._raises = team, raises
        self._inputs: Inputs | None = None
        self._costs: dict[str, float] = {}
        self.alone = False
        self.shared = 0

    def kernel(
        self,
        problem: Problem,
        *,
        engine: EngineName,
        budget: int,
        order: Tensor | None = None,
    ) -> Kernel:
        """Return the kernel of a problem; call it inside ``undisturbed``.

        Args:
            problem: Model and probe.
            engine: Engine.
            budget: Bytes, for each process.
            order: Of the samples, or None.

        Returns:
            The kernel, as one process would have it.

        Raises:
            ProcessError: If another process failed, where that is to be raised.
        """
        how: dict[str, Any] = {"engine": engine, "budget": budget, "order": order}
        if self.alone or problem.spec.coupled:
            return problem.kernel(**how)
        try:
            kernel, failure = self._together(problem, how)
        except _OwnFailure as failed:
            raise failed.error from None  # as it would be without helpers
        except TeamGoneError:  # what is to be the last look is this process's own
            self.alone = True
            return problem.kernel(**how)
        except RuntimeError as error:  # a process is gone, and with it the connection
            kernel, failure = None, f"it cannot be reached ({in_words(error)})"
        if kernel is not None:
            return kernel
        self.alone = True
        if self._raises:
            raise ProcessError(failure)
        warnings.warn(
            f"another process could not help ntkwatch to measure, so the first one measures by "
            f"itself from now on: {failure}",
            stacklevel=2,
        )
        return problem.kernel(**how)

    def _together(self, problem: Problem, how: dict[str, Any]) -> tuple[Kernel | None, str]:
        team = self._team
        shares = shares_of(problem, team.size, self._costs)
        tensors = _tensors(problem)
        request = Request(
            inputs=None if self._inputs is problem.inputs else _on_cpu(problem.inputs),
            outputs=None if problem.reduction.function is not None else problem.reduction.name,
            names=tuple(problem.names),
            dtype=problem.function.dtype,
            moving=tuple(problem.batchnorms),
            buffers=_cpu(problem.buffers),
            shares=tuple(shares),
            bits=bits_of(tensors),
            **how,
        )
        team.tell(request)
        self._inputs = problem.inputs
        answers = team.gather(_Unlike())
        failures = _failures([a.failure for a in answers])
        if failures:
            return None, failures
        differ = sorted({name for answer in answers for name in answer.names})
        for name in differ:  # one by one: together they may be as large as the model
            team.tell(tensors[name].detach().cpu())
        return self._computed(problem, shares[0], how)

    def _computed(
        self, problem: Problem, share: Share, how: dict[str, Any]
    ) -> tuple[Kernel | None, str]:
        own: Exception | None = None
        kernel, done, sums = None, _Done(), None
        try:
            if not share.is_empty:
                kernel = part_of_problem(problem, share).kernel(**how)
                done = _Done(coverage=kernel.coverage, plan=kernel.plan)
            sums = sums_of(kernel, problem)
        except Exception as error:
            own, done = error, _Done(failure=in_words(error))
        everyone: list[_Done] = self._team.gather(done)
        if own is not None:
            raise _OwnFailure(own)
        failures = _failures([one.failure for one in everyone])
        if failures or sums is None:
            return None, failures
        sums = self._team.add_up(sums)
        device = problem.function.params[problem.names[0]].device
        like = torch.empty(0, dtype=widest_float(device), device=device)
        plans = [one.plan for one in everyone if one.plan is not None]
        whole = added_up(sums, problem, [one.coverage for one in everyone], plans, like)
        self._costs = {s.parameter: s.multiplications for s in whole.plan.steps}
        self.shared += 1
        return whole, ""


@dataclass(slots=True)
class _Unlike:
    """Names of the tensors that are not as in the first process, or why it cannot be told."""

    names: tuple[str, ...] = ()
    failure: str = ""


class Helper:
    """Another process's side: computes the share that the first one asks for.

    Args:
        team: All processes.
        forward: How to call the model, or None to guess, as every process was told.
        outputs: Function of the outputs, if that is how they were to be reduced.
    """

    def __init__(
        self, team: Team, *, forward: Callable[..., Any] | None, outputs: Any = None
    ) -> None:
        self._team, self._forward, self._outputs = team, forward, outputs
        self._inputs: Inputs | None = None

    def answer(self, model: nn.Module, request: Request) -> None:
        """Take part in one kernel, whatever happens here.

        Args:
            model: This process's copy of the model.
            request: What the first process asks for.
        """
        if request.inputs is not None:
            self._inputs = request.inputs
        with ExitStack() as stack:
            self._answer(stack, model, request)

    def _answer(self, stack: ExitStack, model: nn.Module, request: Request) -> None:
        problem, unlike = None, _Unlike()
        try:
            stack.enter_context(undisturbed(model))
            stack.enter_context(apart(model))
            problem = self._problem(model, request)
            own = bits_of(_tensors(problem))
            names = [name for name, bits in request.bits.items() if own.get(name) != bits]
            unlike = _Unlike(tuple(names))
        except Exception as error:
            unlike = _Unlike(failure=in_words(error))
        answers = self._team.gather(unlike)
        if _failures([answer.failure for answer in answers]) or problem is None:
            return
        differ = sorted({name for answer in answers for name in answer.names})
        state = {name.split(":", 1)[1]: self._team.tell() for name in differ}
        share = request.shares[self._team.rank]
        kernel, done, sums = None, _Done(), None
        try:
            if state:
                problem = problem.at(state)
            if not share.is_empty:
                kernel = part_of_problem(problem, share).kernel(
                    engine=request.engine, budget=request.budget, order=request.order
                )
                if not bool(kernel.matrix.isfinite().all()):
                    raise NonFiniteError("its share of the kernel is NaN or infinite.")
                done = _Done(coverage=kernel.coverage, plan=kernel.plan)
            sums = sums_of(kernel, problem)
        except Exception as error:
            done = _Done(failure=in_words(error))
        everyone: list[_Done] = self._team.gather(done)
        if sums is not None and not _failures([one.failure for one in everyone]):
            self._team.add_up(sums)

    def _problem(self, model: nn.Module, request: Request) -> Problem:
        assert self._inputs is not None
        problem = prepare(
            model,
            self._inputs,
            forward=self._forward,
            outputs=self._outputs if request.outputs is None else request.outputs,
            names=list(request.names),
            dtype=request.dtype,
            batchnorms=list(request.moving),
        )
        device = next(model.parameters()).device
        problem.buffers = {name: tensor.to(device) for name, tensor in request.buffers.items()}
        return problem


def in_words(error: BaseException) -> str:
    """Return what went wrong in one line."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _failures(said: list[str]) -> str:
    """Who failed, and why; empty if nobody did."""
    return "; ".join(f"process {rank}: {words}" for rank, words in enumerate(said) if words)


def _tensors(problem: Problem) -> Params:
    """What the kernel is taken at: a process that holds other values must be given these."""
    function = problem.function
    params = {f"param:{name}": tensor for name, tensor in function.params.items()}
    return params | {f"buffer:{name}": tensor for name, tensor in function.buffers.items()}


def _on_cpu(inputs: Inputs) -> Inputs:
    return map_inputs(lambda tensor: tensor.detach().cpu(), inputs)


def _cpu(tensors: Params) -> Params:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
