"""Kernels that the processes of a data-parallel training compute together: those that answer.

Whatever happens here, this process takes part in every exchange of a kernel: a failure is said and
not raised, and the first process does without.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from ntkwatch.errors import NonFiniteError
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.problem import Problem, prepare
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.watch.processes.apart import apart
from ntkwatch.watch.processes.bits import bits_of
from ntkwatch.watch.processes.request import (
    Done,
    Request,
    Unlike,
    failures_in,
    in_words,
    tensors_of,
)
from ntkwatch.watch.processes.shares import part_of_problem, sums_of
from ntkwatch.watch.processes.team import Team

__all__ = ["Helper"]


class Helper:
    """Another process's side: computes the share that the first one asks for.

    Args:
        team: All processes.
        forward: How to call the model, or None to guess, as every process was told.
        outputs: Function of the outputs, if that is how they were to be reduced.

    Attributes:
        failure: What was found wrong after an answer, or None; no other is then computed.
    """

    def __init__(
        self, team: Team, *, forward: Callable[..., Any] | None, outputs: Any = None
    ) -> None:
        self._team, self._forward, self._outputs = team, forward, outputs
        self._inputs: Inputs | None = None
        self.failure: Exception | None = None

    def answer(self, model: nn.Module, request: Request) -> None:
        """Take part in one kernel, whatever happens here.

        Args:
            model: This process's copy of the model.
            request: What the first process asks for.

        Raises:
            RuntimeError: If another process is gone.
        """
        if request.inputs is not None:
            self._inputs = request.inputs
        try:
            with ExitStack() as stack:
                self._answer(stack, model, request)
        except RuntimeError:
            raise  # a process is gone
        except Exception as error:  # the model is not as it was before: see ``undisturbed``
            self.failure = error

    def _answer(self, stack: ExitStack, model: nn.Module, request: Request) -> None:
        problem, unlike = None, Unlike()
        try:
            if self.failure is not None:
                raise self.failure
            stack.enter_context(undisturbed(model))
            stack.enter_context(apart(model))
            problem = self._problem(model, request)
            own = bits_of(tensors_of(problem))
            names = [name for name, bits in request.bits.items() if own.get(name) != bits]
            unlike = Unlike(tuple(names))
        except Exception as error:
            unlike = Unlike(failure=in_words(error))
        answers = self._team.gather(unlike)
        if failures_in([answer.failure for answer in answers]) or problem is None:
            return
        differ = sorted({name for answer in answers for name in answer.names})
        state = {name.split(":", 1)[1]: self._team.tell() for name in differ}
        share = request.shares[self._team.rank]
        kernel, done, sums = None, Done(), None
        try:
            if state:
                problem = problem.at(state)
            if not share.is_empty:
                kernel = part_of_problem(problem, share).kernel(
                    engine=request.engine, budget=request.budget, order=request.order
                )
                if not bool(kernel.matrix.isfinite().all()):
                    raise NonFiniteError("its share of the kernel is NaN or infinite.")
                done = Done(coverage=kernel.coverage, plan=kernel.plan)
            sums = sums_of(kernel, problem)
        except Exception as error:
            done = Done(failure=in_words(error))
        everyone: list[Done] = self._team.gather(done)
        if sums is not None and not failures_in([one.failure for one in everyone]):
            self._team.add_up(sums)

    def _problem(self, model: nn.Module, request: Request) -> Problem:
        assert self._inputs is not None
        problem = prepare(
            model,
            self._inputs,
            forward=self._forward,
            called=request.called,
            outputs=self._outputs if request.outputs is None else request.outputs,
            names=list(request.names),
            dtype=request.dtype,
            batchnorms=list(request.moving),
        )
        device = next(model.parameters()).device
        problem.buffers = {name: tensor.to(device) for name, tensor in request.buffers.items()}
        return problem
