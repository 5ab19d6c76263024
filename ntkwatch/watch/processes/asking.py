"""Kernels that the processes of a data-parallel training compute together: the one that asks.

The first process measures and asks; the others answer, in ``helping``. Before anything is exchanged
all of them agree that everyone is well, so a failure of one never leaves another waiting: where a
share was not computed, the first process computes the whole kernel itself.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import ProcessError
from ntkwatch.jacobian.forward import GIVEN
from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.inputs import Inputs, map_inputs
from ntkwatch.jacobian.problem import Problem
from ntkwatch.jacobian.spec import EngineName, Kernel
from ntkwatch.kernel.gram import widest_float
from ntkwatch.watch.processes.bits import bits_of
from ntkwatch.watch.processes.request import (
    Done,
    Request,
    Unlike,
    failures_in,
    in_words,
    tensors_of,
)
from ntkwatch.watch.processes.shares import Share, added_up, part_of_problem, shares_of, sums_of
from ntkwatch.watch.processes.team import Team, TeamGoneError

__all__ = ["Asking"]


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
        tensors = tensors_of(problem)
        request = Request(
            inputs=None if self._inputs is problem.inputs else _on_cpu(problem.inputs),
            called=None if problem.spec.forward == GIVEN else problem.spec.forward,
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
        answers = team.gather(Unlike())
        failures = failures_in([a.failure for a in answers])
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
        kernel, done, sums = None, Done(), None
        try:
            if not share.is_empty:
                kernel = part_of_problem(problem, share).kernel(**how)
                done = Done(coverage=kernel.coverage, plan=kernel.plan)
            sums = sums_of(kernel, problem)
        except Exception as error:
            own, done = error, Done(failure=in_words(error))
        everyone: list[Done] = self._team.gather(done)
        if own is not None:
            raise _OwnFailure(own)
        failures = failures_in([one.failure for one in everyone])
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


def _on_cpu(inputs: Inputs) -> Inputs:
    return map_inputs(lambda tensor: tensor.detach().cpu(), inputs)


def _cpu(tensors: Params) -> Params:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
