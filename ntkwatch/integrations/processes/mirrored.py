"""One observation by all processes that hold shards of a model: each tracks, the first one tells.

The others' trackers remember what the first one's does, each with its own shards.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ntkwatch.errors import NtkwatchError, ProcessError
from ntkwatch.integrations.processes.mirror_messages import Begin, GoOn, Observe, packed, unpacked
from ntkwatch.integrations.processes.shared_shards import ReadPart, WritePart, read_own, write_own
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.processes.request import in_words
from ntkwatch.watch.processes.team import Team, TeamGoneError
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.tracker import KernelTracker

__all__ = ["LeadingTracker", "Mirror"]


class LeadingTracker(KernelTracker):
    """The first process's tracker: what it does, the others do with it.

    Args:
        team: All processes.
        probe: As in ``KernelTracker``.
        fresh_probe: The same.
        settings: The same.
    """

    def __init__(
        self,
        team: Team,
        probe: ProbeBatch,
        *,
        fresh_probe: Callable[[int], ProbeBatch] | None = None,
        **settings: Any,
    ) -> None:
        draw = None if fresh_probe is None else _told_by(team, fresh_probe)
        super().__init__(probe, fresh_probe=draw, **settings)
        self._team, self._is_observing = team, False
        words = {key: settings[key] for key in ("reference", "reference_is_start")}
        team.tell(Begin(probe=packed(probe), fresh=fresh_probe is not None, words=words))

    def observe(self, model: nn.Module, step: int, **rest: Any) -> Observation:
        """Measure a model together with the other processes; see ``KernelTracker.observe``.

        Args:
            model: The model.
            step: Optimizer steps taken so far.
            rest: As there.

        Returns:
            What was seen.

        Raises:
            ProcessError: If it failed on some processes only, whose memories differ from then on.
        """
        if self._is_observing:  # the tracker takes its reference anew, as those of the others do
            return super().observe(model, step, **rest)
        state: Mapping[str, Tensor] | None = rest.get("state")
        own = {name for name, _ in model.named_buffers()}
        buffers = None
        if state is not None:
            buffers = {n: t.detach().cpu() for n, t in state.items() if n in own}
        how: dict[str, Any] = {"warmup_steps": self.warmup_steps, "brief": rest.get("brief", False)}
        self._team.tell(Observe(step=step, **how, buffers=buffers))
        observation, failure = None, None
        self._is_observing = True
        try:
            observation = super().observe(model, step, **rest)
        except Exception as error:
            failure = error
        finally:
            self._is_observing = False
        self._agree(failure, f"step {step} could not be observed")
        assert observation is not None
        return observation

    def resume(
        self, history: History, start: Anchor, warmup: Anchor | None = None, **rest: Any
    ) -> None:
        """Go on from an earlier run, as all processes do; see ``KernelTracker.resume``.

        Args:
            history: What was observed until then.
            start: This process's part of its reference; the others have read theirs.
            warmup: The same of its anchor at the end of the warm-up, or None.
            rest: As there.
        """
        kernel: Tensor | None = rest.get("last_kernel")
        kernel = None if kernel is None else kernel.cpu()
        self._team.tell(GoOn(history=history, has_warmup=warmup is not None, last_kernel=kernel))
        failure = None
        try:
            super().resume(history, start, warmup, **rest)
        except Exception as error:
            failure = error
        self._agree(failure, "the earlier part of this run could not be taken up")

    def _agree(self, failure: Exception | None, what: str) -> None:
        """Raise what failed everywhere, or that processes remember different things."""
        try:
            said = self._team.gather("" if failure is None else in_words(failure))
        except TeamGoneError:  # this was the last look
            said = [in_words(failure)] if failure else [""]
        if all(said) and failure is not None:
            raise failure
        if any(said):
            words = "; ".join(f"process {i}: {what}" for i, what in enumerate(said) if what)
            raise ProcessError(
                f"{what} by all processes ({words}), so what they "
                "remember of the run differs, and it is not watched any further. Is the model's "
                "forward pass the same in each?"
            )


def _told_by(team: Team, draw: Callable[[int], ProbeBatch]) -> Callable[[int], ProbeBatch]:
    """The first process draws a probe, and tells the others which."""

    def fresh(step: int) -> ProbeBatch:
        try:
            probe = draw(step)
        except Exception as error:
            team.tell(in_words(error))
            raise
        team.tell(packed(probe))
        return probe

    return fresh


class Mirror:
    """Another process's tracker, which does what the first one's does.

    Args:
        team: All processes.
        settings: Arguments of ``KernelTracker``, as every process was given them.
    """

    def __init__(self, team: Team, settings: Mapping[str, Any]) -> None:
        self._team, self._settings = team, settings
        self._tracker: KernelTracker | None = None
        self._first_state: dict[str, Tensor] | None = None
        self._read: dict[str, Anchor | None] = {}

    def keep_first_state(self, model: nn.Module) -> None:
        """Keep this process's shards from before the first update while a probe is gathered."""
        if self._tracker is None and self._first_state is None:
            self._first_state = {n: p.detach().clone() for n, p in model.named_parameters()}

    def do(self, message: object, model: nn.Module) -> None:
        """Do what the first process does.

        Args:
            message: What that is.
            model: This process's shards.
        """
        if isinstance(message, Begin):
            draw = self._heard_probe(model) if message.fresh else None
            probe = unpacked(message.probe, model)
            self._tracker = KernelTracker(
                probe, fresh_probe=draw, **message.words, **self._settings
            )
        elif isinstance(message, Observe):
            self._answer(lambda: self._observe(message, model))
        elif isinstance(message, GoOn):
            self._answer(lambda: self._go_on(message))
        elif isinstance(message, WritePart):
            write_own(self._team, message, self._anchor(message.kind))
        elif isinstance(message, ReadPart):
            self._read[message.kind], _ = read_own(self._team, message, model)

    def _answer(self, act: Callable[[], None]) -> None:
        """Do something, and say how it went."""
        failure = ""
        try:
            act()
        except Exception as error:
            failure = in_words(error)
        self._team.gather(failure)

    def _anchor(self, kind: str) -> Anchor | None:
        """This process's part of an anchor: its tracker's, or what was read for one to come."""
        if self._tracker is None:
            return self._read.get(kind)
        return self._tracker.reference if kind == "start" else self._tracker.warmup

    def _go_on(self, message: GoOn) -> None:
        start, warmup = self._read.get("start"), self._read.get("warmup")
        self._read = {}
        assert self._tracker is not None
        assert start is not None
        self._tracker.resume(
            message.history,
            start,
            warmup if message.has_warmup else None,
            last_kernel=message.last_kernel,
        )

    def _observe(self, message: Observe, model: nn.Module) -> None:
        assert self._tracker is not None
        self._tracker.warmup_steps = message.warmup_steps
        state = None
        if message.buffers is not None:
            device = next(model.parameters()).device
            buffers = {name: b.to(device) for name, b in message.buffers.items()}
            state = {**(self._first_state or {}), **buffers}
        self._first_state = None
        self._tracker.observe(model, message.step, state=state, brief=message.brief)

    def _heard_probe(self, model: nn.Module) -> Callable[[int], ProbeBatch]:
        def fresh(_step: int) -> ProbeBatch:
            heard = self._team.tell()
            if isinstance(heard, str):
                raise NtkwatchError(f"the first process could not draw a probe: {heard}")
            return unpacked(heard, model)

        return fresh
