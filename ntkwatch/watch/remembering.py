"""What a tracker remembers, as those see it who ask or tell it.

Nothing is measured here.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ntkwatch.errors import InputError
from ntkwatch.jacobian.spec import Kernel
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.anchors.later_anchors import Shelf
from ntkwatch.watch.counts import whole_in
from ntkwatch.watch.memory import Memory
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.decay import DecayClock
from ntkwatch.watch.readings.look import Seen
from ntkwatch.watch.readings.measure import Settings
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.training import Training, check_optimizers

__all__ = ["Remembering"]


class Remembering:
    """What is kept between observations, and the ways to ask for it and to add to it.

    Args:
        probe: Inputs that kernels are compared on.
        memory: Of earlier looks.
        warmup_steps: Steps of the warm-up.
        notes_trainings: Whether somebody will ask how the model was trained all along.
    """

    def __init__(
        self, probe: ProbeBatch, memory: Memory, *, warmup_steps: float, notes_trainings: bool
    ) -> None:
        self.probe, self.warmup_steps = probe, warmup_steps
        self._notes_trainings = notes_trainings
        self.history = History()
        self.history.pack()
        self.loss_start: float | None = None
        self._memory = memory
        self._settings: Settings | None = None
        self._seen: Seen | None = None
        self._resumed: dict[str, Any] | None = None
        self._reference_words: dict[str, Any] = {}
        self._modes_known = False
        self._trainings: dict[tuple[tuple[str, Any], ...], None] = {}

    @property
    def reference(self) -> Anchor | None:
        """Weights, outputs and kernel (or sketch) at the reference step, or None before it."""
        return self._memory.start

    @property
    def warmup(self) -> Anchor | None:
        """The same at the end of the warm-up, or None before it."""
        return self._memory.warmup

    @property
    def later_anchors(self) -> tuple[Anchor, ...]:
        """Further anchors, at most four; without a shelf on disk they are held in memory."""
        start = self._memory.start
        return () if start is None else tuple(self._memory.later.each(start.outputs.device))

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that anchors and kernels of earlier steps take."""
        return self._memory.nbytes

    @property
    def decay(self) -> DecayClock:
        """What weight decay alone left of the weights, as far as steps were noted."""
        return self._memory.clock

    @decay.setter
    def decay(self, clock: DecayClock) -> None:
        self._memory.clock = clock

    @property
    def kernel(self) -> Kernel | None:
        """The kernel of the last observation, or None."""
        return None if self._seen is None else self._seen.now.kernel

    @property
    def last_weights(self) -> dict[int, dict[str, Tensor]]:
        """Weights at the last whole observations, by step, where their path is followed."""
        return self._memory.route.weights

    @property
    def last_probe(self) -> ProbeBatch:
        """The probe of the last observation."""
        return self.probe if self._seen is None else self._seen.probe

    @property
    def last_reference(self) -> Anchor | None:
        """The reference on that probe, or None before it."""
        return self.reference if self._seen is None else self._seen.start

    def refer_to(self, words: str, *, is_start: bool | None) -> None:
        """Say where the reference will come from; the loss there is not known then.

        Args:
            words: For the record.
            is_start: Whether that is the start of this training; None if step 0 is.
        """
        self._reference_words = {"reference": words, "reference_is_start": is_start}
        self.loss_start = None

    def _words_of_reference(self, step: int) -> dict[str, Any]:
        words = self._reference_words
        if words["reference_is_start"] is not None:
            return words
        where = words["reference"] if step == 0 else f"{words['reference']}, at step {step}"
        return {"reference": where, "reference_is_start": step == 0}

    def _checked_step(self, step: Any) -> int:
        number = whole_in(step)
        if number is None or number < 0:
            raise InputError(
                f"step={step!r} is not a whole number, so it is no count of optimizer steps. Give "
                "how many the optimizer has taken."
            )
        if self.reference is not None and number < self.reference.step:
            raise InputError(
                f"step {number} lies before step {self.reference.step}, where the reference was "
                "taken, so nothing has drifted since. Observe in the order of training, with a new "
                "KernelTracker for a new training."
            )
        return number

    def keep_anchors_on(self, shelf: Shelf) -> None:
        """Keep anchors after the warm-up there (on disk, say) instead of in memory."""
        self._memory.later.shelf = shelf

    def note_step(self, optimizer: torch.optim.Optimizer, number: int = 0) -> None:
        """Count what weight decay does in one optimizer step; say every step from the first on.

        Call it right after ``optimizer.step()`` and before a scheduler changes the learning rate;
        not where a gradient scaler left the step out.
        Without, a run with weight decay is compared with where it started only, which decay alone
        leaves.

        Args:
            optimizer: That stepped.
            number: Which of several optimizers it is.

        Raises:
            InputError: If it is no optimizer.
        """
        check_optimizers([optimizer])
        self._memory.clock.note(optimizer, number)

    def note_start_loss(self, loss: float) -> None:
        """Say what the training loss was at the reference weights, where it is known only later."""
        if not math.isfinite(loss):
            return
        self.loss_start = loss
        if self.reference is None or len(self.history) == 0:
            return
        first = self.history[0]
        if first.step == self.reference.step and first.loss is None:
            self.history.add(replace(first, loss=loss, loss_start=loss))

    def resume(
        self,
        history: History,
        start: Anchor,
        warmup: Anchor | None = None,
        *,
        last_kernel: Tensor | None = None,
        weights: Mapping[int, Mapping[str, Tensor]] | None = None,
        later: Iterable[Anchor] = (),
        kernel_at: Callable[[int], Tensor | None] = lambda step: None,
        decay: Mapping[str, Any] | None = None,
    ) -> None:
        """Go on from an earlier run instead of taking a new reference.

        Args:
            history: What was observed until then.
            start: Its reference.
            warmup: Its anchor at the end of the warm-up, if that was reached.
            last_kernel: Trace kernel of its last whole observation, if that was kept.
            weights: What ``last_weights`` was then, where their path is followed.
            later: Its further anchors, where they are not on the shelf.
            kernel_at: Given a step, its trace kernel, or None where it was not kept.
            decay: What ``decay.state()`` gave, where steps were noted.

        Raises:
            InputError: If the earlier run had another probe.
        """
        then, now = history.run.probe.get("fingerprint"), self.probe.fingerprint()
        if then != now:
            raise InputError(
                f"the run to go on from was observed on probe {then} and this tracker has {now}, "
                "so kernels cannot be compared. Give it the probe saved beside the history."
            )
        self.history = history
        history.pack()
        self._memory.restore(
            history,
            start,
            warmup,
            last_kernel=last_kernel,
            weights={step: dict(there) for step, there in (weights or {}).items()},
            later=later,
            kernel_at=kernel_at,
            decay=decay,
        )
        self._resumed, self._modes_known = history.run.spec, True
        if len(history):
            self.loss_start = history[-1].loss_start
        for observation in history:
            self._note_training(observation)

    def _remember(
        self, seen: Seen, step: int, *, is_reference: bool, from_before: bool, brief: bool
    ) -> None:
        self._settings, self._seen = seen.settings, seen
        if is_reference:
            self._resumed, self._modes_known = None, False
        self._memory.remember(
            seen,
            step,
            is_reference=is_reference,
            from_before=from_before,
            brief=brief,
            warmup_steps=self.warmup_steps,
        )

    def _keep(self, observation: Observation) -> None:
        self.history.add(observation)
        self._note_training(observation)

    def _note_training(self, observation: Observation) -> None:
        """Note how the model is trained, each way once: a history is too long to look it up in."""
        if observation.step == observation.anchor_step:
            self._trainings.clear()
        elif self._notes_trainings:
            self._trainings[tuple(observation.training.items())] = None

    @property
    def _earlier_trainings(self) -> tuple[Training, ...]:
        """How the model was trained at the observations after the reference, if noted."""
        return tuple(Training.from_plain(dict(items)) for items in self._trainings)

    @property
    def _has_kernels(self) -> bool:
        """Whether there is a kernel, or a sketch of one, that an observation could leave out."""
        start = self.reference
        return start is not None and (start.kernel is not None or start.sketch is not None)

    def _note_loss(self, loss: float | None, *, is_reference: bool) -> float | None:
        """The loss at the start, as known without the loss of this observation itself."""
        if loss is not None and is_reference:
            self.loss_start = loss
        known = self.loss_start
        if known is None:
            # A first loss that comes later counts as the start's for what follows; held against
            # itself it would read as no progress at all.
            self.loss_start = loss
        return known
