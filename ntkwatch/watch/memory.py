"""What a tracker keeps from one look to the next: anchors, floors, the way, kernels, decay.

How a model is looked at is another file's business, and so is what is concluded.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.shards import is_shard
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.anchors.kept_kernels import KeptKernels
from ntkwatch.watch.anchors.later_anchors import LaterAnchors
from ntkwatch.watch.readings.decay import DecayClock, Shrunk
from ntkwatch.watch.readings.look import Kept, Seen
from ntkwatch.watch.readings.route import Route, Station
from ntkwatch.watch.record.angles import KernelAngles
from ntkwatch.watch.record.history import History

__all__ = ["Memory"]

_SHARDED = "further anchors take whole weights; these are sharded"


class Memory:
    """What is kept of earlier looks.

    Args:
        why_little: Why neither further anchors nor kernels are to be kept, or None.
        why_no_kernels: Why kernels are not to be kept, or None.

    Attributes:
        start: The reference.
        warmup: The anchor at the end of the warm-up.
        later: Further anchors.
        floors: What numbers read at the reference when nothing changed but rounding.
        route: The last observations' kernels.
        kernels: Kernels to be compared with each other.
        clock: What weight decay alone left of the weights.
    """

    def __init__(self, *, why_little: str | None = None, why_no_kernels: str | None = None) -> None:
        self.start: Anchor | None = None
        self.warmup: Anchor | None = None
        self.later = LaterAnchors()
        self.floors: dict[str, float] = {}
        self.route, self.kernels, self.clock = Route(), KeptKernels(), DecayClock()
        self._keeps_anchors = why_little is None
        self._why_no_kernels = why_little or why_no_kernels
        self._uncounted = -1  # up to this step nothing is known of weight decay

    @property
    def nbytes(self) -> int:
        """Bytes of anchors and kernels that are held in memory."""
        anchors = [anchor.nbytes for anchor in (self.start, self.warmup) if anchor is not None]
        return sum(anchors) + self.later.shelf.nbytes + self.kernels.nbytes

    def kept(self, model: nn.Module, weight_decay: float | None) -> Kept | None:
        """Return what a look is compared with, or None before the reference.

        Args:
            model: That is looked at.
            weight_decay: As far as it is known to be in use now.

        Returns:
            Anchors and what goes with them.
        """
        if self.start is None:
            return None
        later = self.later if self._keeps_anchors else None
        not_counted = None
        if weight_decay and not self.clock.counts:
            not_counted = Shrunk(
                {},
                f"weight decay ({weight_decay:g}) was not counted; say each step with note_step",
            )

        def shrunk(anchor: Anchor) -> Shrunk:
            known = anchor.step > self._uncounted
            return not_counted or self.clock.since(anchor.clock if known else None, model)

        return Kept(self.start, self.warmup, self.floors, later, shrunk)

    def remember(
        self,
        seen: Seen,
        step: int,
        *,
        is_reference: bool,
        from_before: bool,
        brief: bool,
        warmup_steps: float,
    ) -> None:
        """Keep of a look what later ones need.

        Args:
            seen: The look.
            step: Optimizer steps taken then.
            is_reference: Whether it is the one that all is compared with.
            from_before: Whether its weights were kept, so that steps counted since are not theirs.
            brief: Whether its kernel was left out, so that it can be neither anchor nor kept.
            warmup_steps: Length of the warm-up; infinite where a run has no known end of it.
        """
        clock, self.floors = self.clock.reading(), seen.floors
        if is_reference:
            if from_before:
                clock = {} if self.start is None else self.start.clock or {}
            self._start_over(replace(seen.start, clock=clock))
        assert self.start is not None
        if brief:
            return
        start = self.start.step
        if step - start >= max(1, warmup_steps) and (
            self.warmup is None or self.warmup.step == step
        ):
            self.warmup = replace(seen.now.as_anchor(step), clock=clock)
        elif self._keeps_anchors and (self.warmup is not None or math.isinf(warmup_steps)):
            ended = None if self.warmup is None else self.warmup.step
            if any(map(is_shard, self.start.params.values())):
                self.later.lost = {"all": _SHARDED}
            elif step > start and self.later.is_due(step, start=start, warmup=ended):
                here = replace(seen.now.as_anchor(step), clock=clock)
                self.later.take(here, start=start, warmup=ended)
        self._keep_kernel(seen, step)

    def _start_over(self, start: Anchor) -> None:
        self.start, self.warmup = start, None
        self.later.start_over()
        self.route.start_over()
        self.kernels.start_over(self._why_no_kernels)

    def _keep_kernel(self, seen: Seen, step: int) -> None:
        kernel = seen.now.kernel
        if self._why_no_kernels is None and kernel is not None:
            self.kernels.add(step, kernel.trace, kernel.layers, seen.now.matrix_layers)
        elif kernel is None and not self.kernels.angles.steps:
            self.kernels.start_over(self._why_no_kernels or "there is no kernel that can be kept")

    def restore(
        self,
        history: History,
        start: Anchor,
        warmup: Anchor | None,
        *,
        last_kernel: Tensor | None,
        weights: Mapping[int, Params],
        later: Iterable[Anchor],
        kernel_at: Callable[[int], Tensor | None],
        decay: Mapping[str, Any] | None,
    ) -> None:
        """Go on from an earlier run.

        Args:
            history: What was observed until then.
            start: Its reference.
            warmup: Its anchor at the end of the warm-up, or None.
            last_kernel: Trace kernel of its last whole observation, or None.
            weights: Of its last whole observations, by step, where their path is followed.
            later: Further anchors that are not on the shelf yet.
            kernel_at: The trace kernel of a step, or None where it was not kept.
            decay: What ``DecayClock.state`` gave, or None where that is not known.
        """
        self.start, self.warmup = start, warmup
        last = history[-1] if len(history) else None
        until = start.step if last is None else last.step
        if last is not None:
            self.floors = dict(last.noise_floor)
        whole = history.last_whole
        if whole is not None:
            there = weights.get(whole.step)
            if there is not None:
                there = {name: there[name].to(start.params[name].device) for name in there}
            ways = (whole.path_length, there, whole.displacement_path)
            self.route.pass_by(Station(whole.step, last_kernel, *ways))
        if decay is None:
            self._uncounted = until
        else:
            self.clock.put_back(decay)
        for anchor in later:
            self.later.shelf.put(anchor)
        self.later.go_on({observation.step for observation in history} - {start.step})
        past_warmup = whole is not None and warmup is not None and whole.step > warmup.step
        if past_warmup and any(map(is_shard, start.params.values())):
            self.later.lost = {"all": _SHARDED}
        self._restore_kernels(history.angles, kernel_at)

    def _restore_kernels(
        self, angles: KernelAngles | None, kernel_at: Callable[[int], Tensor | None]
    ) -> None:
        assert self.start is not None
        self.kernels.start_over(self._why_no_kernels)
        if self._why_no_kernels is not None:
            return
        further = self.later.each(self.start.outputs.device)
        anchors = [anchor for anchor in (self.start, self.warmup, *further) if anchor is not None]
        if angles is not None:
            self.kernels.put_back(angles, kernel_at, {a.step: a.layers for a in anchors})
            return
        for anchor in anchors:
            if anchor.kernel is not None:
                self.kernels.add(anchor.step, anchor.kernel, anchor.layers, ())
