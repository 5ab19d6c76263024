"""The same measurements in any training loop: a tracker with memory, and nothing of a framework.

It keeps the reference kernel, parameters and outputs, and compares the model with them each time
it is shown it. When to look, and where numbers are written, is the caller's business.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.batchnorm import moving_batchnorms
from ntkwatch.jacobian.forward import GIVEN, ForwardFn
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec
from ntkwatch.jacobian.spec import BatchNormMode, Kernel
from ntkwatch.watch.memory import Memory
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.describe import run_info
from ntkwatch.watch.readings.held_out import HeldOut, check_held_out
from ntkwatch.watch.readings.look import Seen, look
from ntkwatch.watch.readings.measure import Metrics, WatchEngine
from ntkwatch.watch.readings.numbers import observation_of
from ntkwatch.watch.readings.route import station_of
from ntkwatch.watch.readings.settle import Wanted, check_same_settings, check_settings, settle
from ntkwatch.watch.readings.validity import course_of
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.remembering import Remembering
from ntkwatch.watch.training import Training

__all__ = ["KernelTracker", "Metrics"]

_QUARTER = 4  # of the memory budget, where it proves too much
_LEAST_BUDGET = 2**20  # bytes, below which a budget saves nothing
_WARMUP_STEPS = 20  # ordinary AdamW reorganises a network in its first few steps


_OTHERWISE = (
    "the reference was called by forward=, and this is {}: the two compare only if they are one "
    "function"
)
_NO_LOSS = "the training loss of the last batches is NaN or infinite"


class KernelTracker(Remembering):
    """Watches the empirical NTK of a model on a probe batch.

    The first ``observe`` sets the reference; observing its step again replaces it, and the history
    then starts over. Where the next one shows that training runs other BatchNorms in evaluation
    mode than it seemed, the reference is computed again from the weights kept of it. All numbers
    are taken in evaluation mode, and the model is left as found.

    Args:
        probe: Inputs, and targets where there are any, that kernels are compared on.
        forward: ``(model, inputs) -> tensor (N, ...)``; guessed by default.
        outputs: Which outputs enter the kernel, as in ``empirical_ntk``; "auto" takes all up to 10
            (summed, unless ``metrics="full"``) and 8 random directions beyond (orthogonal to the
            all-ones vector for class targets).
        params: Names or patterns of parameters for the kernel; default all trainable ones.
        engine: As in ``empirical_ntk``; or "sketch", which estimates how far the kernel has moved,
            with errors. "auto" takes it where samples are coupled or the kernel cannot be held.
        batchnorm: Statistics of BatchNorms that train on batch statistics, in kernels: those of the
            "probe" (default); "running" averages, whose motion then counts as drift; those of the
            "reference" step, with every other buffer; or those of the "batch", differentiated
            (exact, coupled and slow: see ``empirical_ntk``). One that trains in evaluation mode
            keeps its running averages.
        memory_budget: Bytes that a kernel may take beyond a forward and a backward pass.
        dtype: Of the Jacobian; default that of the parameters, at least float32.
        top_k: Eigenvalues to record.
        metrics: "minimal" (drift, linearization error, displacement), "standard" (also intervals,
            spectrum, alignment and path: all that the (N, N) trace kernel gives) or "full" (also
            what takes the kernel between outputs, or a null for every layer).
        fresh_probe: Given the step, returns the probe of that observation: the reference and the
            present model are then both measured on it, so that no number hinges on one probe. The
            reference itself is taken on ``probe``.
        helpers: Computes a problem's kernel together with other processes, as ``NTKMonitor`` has
            them; None to compute it here.
        held_out: Samples with targets that the model is not trained on, where ``probe`` is the
            whole training set (at most 4000 samples times outputs) and ``metrics`` is "full": every
            observation after the reference then says what regression with the kernels at the start
            and now would have told there, beside the network. It takes three solves with the
            kernel, three passes each over the training set and the held-out samples and, once, the
            eigenvectors of the kernel at the start.
        warmup_steps: The reading since warm-up starts at the first observation at or after this
            step; further anchors follow, at twice the distance each.
        reference: Where the reference comes from, in words, for the record.
        reference_is_start: Whether that is the start of this training; drift since any later
            point says nothing about the training as a whole, and gets no verdict. None: if it is
            taken at step 0.

    Attributes:
        history: What was observed so far.
        loss_start: Training loss at the reference weights, as far as it is known.
    """

    def __init__(
        self,
        probe: ProbeBatch,
        *,
        forward: ForwardFn | None = None,
        outputs: OutputsSpec = "auto",
        params: str | Sequence[str] | None = None,
        engine: WatchEngine = "auto",
        batchnorm: BatchNormMode = "probe",
        memory_budget: str | int = "1GiB",
        dtype: torch.dtype | None = None,
        top_k: int = 8,
        metrics: Metrics = "standard",
        fresh_probe: Callable[[int], ProbeBatch] | None = None,
        helpers: Callable[..., Kernel] | None = None,
        held_out: ProbeBatch | None = None,
        warmup_steps: float = _WARMUP_STEPS,
        reference: str = "the first observation",
        reference_is_start: bool | None = None,
    ) -> None:
        check_settings(
            forward=forward,
            outputs=outputs,
            engine=engine,
            batchnorm=batchnorm,
            memory_budget=memory_budget,
            top_k=top_k,
            metrics=metrics,
            params=params,
        )
        if not isinstance(probe, ProbeBatch):
            raise InputError(
                f"probe is a {type(probe).__name__}, and it is not known which part of it are the "
                "inputs. Give ProbeBatch(inputs, targets), or ProbeBatch(inputs)."
            )
        if held_out is not None:
            check_held_out(probe, held_out, metrics=metrics)
        minimal = "metrics='minimal' keeps none" if metrics == "minimal" else None
        resampled = None if fresh_probe is None else "every observation has a probe of its own"
        memory = Memory(why_little=minimal, why_no_kernels=resampled)
        super().__init__(
            probe, memory, warmup_steps=warmup_steps, notes_trainings=metrics == "full"
        )
        self._fresh_probe = fresh_probe
        self._held_out = None if held_out is None else HeldOut(held_out)
        self._wanted = Wanted(
            params=params,
            outputs=outputs,
            forward=forward,
            engine=engine,
            batchnorm=batchnorm,
            budget=parse_bytes(memory_budget),
            dtype=dtype,
            metrics=metrics,
            top_k=int(top_k),
            helpers=helpers,
        )
        self.refer_to(reference, is_start=reference_is_start)
        self._notes: tuple[str, ...] = ()
        self._called_otherwise: tuple[str, ...] = ()

    def observe(
        self,
        model: nn.Module,
        step: int,
        *,
        loss: float | Tensor | None = None,
        epoch: int | None = None,
        logged_step: int | None = None,
        state: Mapping[str, Tensor] | None = None,
        training: Training | None = None,
        brief: bool = False,
    ) -> Observation:
        """Measure a model and return what was seen.

        Args:
            model: The model, in the modes in which it trains.
            step: Optimizer steps taken so far.
            loss: Training loss, if known; the first one given counts as that of the start.
            epoch: Epochs completed, if known.
            logged_step: The x axis of the run's loggers, if that is another one.
            state: Weights and buffers to measure instead of the model's present ones, by name: a
                checkpoint's, say.
            training: Optimizer, learning rate and loss at this step, from ``training_of``: numbers
                that hang on them are left out without.
            brief: Whether to leave out the kernel and all that compares it, which is most of the
                work: outputs, linearization error and displacement are as in any observation. The
                reference is never brief.

        Returns:
            The observation, which is also added to ``history``.

        Raises:
            DivergedError: If weights or outputs are NaN or infinite.
            NonFiniteError: If the kernel is.
            InputError: If the step is no whole number, or lies before the reference.
        """
        began, step = time.perf_counter(), self._checked_step(step)
        loss = None if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
        lost = (_NO_LOSS,) if loss is not None and not math.isfinite(loss) else ()
        loss = None if lost else loss
        is_reference = self.reference is None or step == self.reference.step
        if not is_reference:
            self._check_modes(model)
        # The first look at a model in a process finds out what a brief one takes for granted.
        brief = brief and not is_reference and self._settings is not None and self._has_kernels
        training = Training() if training is None else training
        seen = self._look(
            model,
            step,
            state,
            is_reference=is_reference,
            decay=training.weight_decay,
            brief=brief,
        )
        course = course_of(
            model,
            training,
            seen.probe,
            seen.settings,
            earlier=self._earlier_trainings,
            reference_is_start=self.history.run.reference_is_start,
            held_out=self._held_out,
        )
        before = None if is_reference else self._memory.route.before(step)
        observed = observation_of(
            seen, course, before, step=step, resampled=self._fresh_probe is not None
        )
        # Whatever could fail is over: only a whole observation changes what the tracker knows.
        if is_reference:
            words = self._words_of_reference(step)
            about = run_info(model, seen.now, seen.settings, self.probe, **words)
            if self._fresh_probe is not None:
                about = replace(about, probe={**about.probe, "resampled": True})
            self.history.start_over(about)
        self._remember(
            seen, step, is_reference=is_reference, from_before=state is not None, brief=brief
        )
        observation = replace(
            observed,
            logged_step=logged_step,
            epoch=epoch,
            loss=loss,
            loss_start=self._note_loss(loss, is_reference=is_reference),
            notes=(*observed.notes, *self._notes, *self._called_otherwise, *lost),
            seconds=time.perf_counter() - began,
        )
        self._keep(observation)
        self.history.angles = self._memory.kernels.angles
        if not brief:
            self._memory.route.pass_by(station_of(seen, observation))
        return observation

    def lower_memory_budget(self) -> int:
        """Compute in smaller pieces from now on: a quarter of the budget. Returns it, in bytes."""
        budget = max(_LEAST_BUDGET, self._wanted.budget // _QUARTER)
        self._wanted = replace(self._wanted, budget=budget)
        if self._settings is not None:
            self._settings = replace(self._settings, budget=budget)
        self._notes = (f"memory ran out, so the memory budget was lowered to {budget} bytes",)
        return budget

    # One look, and what is kept of it. ------------------------------------------------------------

    def _look(
        self,
        model: nn.Module,
        step: int,
        state: Mapping[str, Tensor] | None,
        *,
        is_reference: bool,
        decay: float | None,
        brief: bool,
    ) -> Seen:
        """Measure and compare, without changing what the tracker knows."""
        settings, kept = self._settings, None
        if settings is None or is_reference:
            settings = settle(model, self._wanted, self.probe, self._resumed)
        if not is_reference:
            kept = self._memory.kept(model, decay)
        first = is_reference or self._settings is None
        probe, fresh = self.probe, kept is not None and self._fresh_probe is not None
        if fresh and self._fresh_probe is not None:
            probe = self._fresh_probe(step)
        how: dict[str, Any] = {"first": first, "fresh": fresh, "brief": brief, "state": state}
        seen = look(model, probe, settings, kept, step=step, **how)
        if self._resumed is not None:
            check_same_settings(seen.now.problem.spec, self._resumed)
            if self._resumed.get("forward") == GIVEN != seen.now.problem.spec.forward:
                self._called_otherwise = (_OTHERWISE.format(seen.now.problem.spec.forward),)
        return seen

    def _check_modes(self, model: nn.Module) -> None:
        """Take the reference again if training runs BatchNorms in other modes than it showed.

        Many a training step sets what it freezes to evaluation mode by itself, so that before the
        first step nothing of it is seen.
        """
        settings, start = self._settings, self.reference
        if self._modes_known or settings is None or start is None or not model.training:
            return
        moving = moving_batchnorms(model)
        if moving != list(settings.moving) and len(self.history) > 0:
            first, gaps = self.history[0], list(self.history.gaps)
            place: dict[str, Any] = {"epoch": first.epoch, "logged_step": first.logged_step}
            state = {**start.params, **start.buffers}
            self._resumed = {
                "params": list(settings.names),
                "batchnorms": moving,
                "forward": settings.called,
            }
            try:
                self.observe(model, start.step, loss=first.loss, **place, state=state)
            finally:
                self._resumed = None
            self.history.gaps.extend(gaps)
        self._modes_known = True
