"""One observation by all processes that hold shards of a model: each tracks, the first one tells.

The others' trackers remember what the first one's does, each with its own shards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import NtkwatchError, ProcessError
from ntkwatch.jacobian.inputs import leaves, map_inputs
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.records import Observation
from ntkwatch.watch.request import in_words
from ntkwatch.watch.team import Team, TeamGoneError
from ntkwatch.watch.tracker import KernelTracker

__all__ = ["LeadingTracker", "Mirror"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """A probe on its way, on the CPU.

    Attributes:
        batch: The probe.
        on_device: Whether it was where the model is.
    """

    batch: ProbeBatch
    on_device: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begin:
    """A new tracker.

    Attributes:
        probe: Its probe.
        fresh: Whether every observation has a probe of its own.
        words: Where its reference comes from.
    """

    probe: _Probe
    fresh: bool
    words: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Observe:
    """One observation.

    Attributes:
        step: Optimizer steps taken so far.
        warmup_steps: Of the tracker.
        brief: Whether the first process leaves out what takes longest.
        buffers: From before the first update, where its weights are to be measured; or None.
    """

    step: int
    warmup_steps: float
    brief: bool
    buffers: dict[str, Tensor] | None


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
        team.tell(_Begin(probe=_packed(probe), fresh=fresh_probe is not None, words=words))

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
        self._team.tell(_Observe(step=step, **how, buffers=buffers))
        observation, failure = None, None
        self._is_observing = True
        try:
            observation = super().observe(model, step, **rest)
        except Exception as error:
            failure = error
        finally:
            self._is_observing = False
        try:
            said = self._team.gather("" if failure is None else in_words(failure))
        except TeamGoneError:  # this was the last look
            said = [in_words(failure)] if failure else [""]
        if all(said) and failure is not None:
            raise failure
        if any(said):
            words = "; ".join(f"process {i}: {what}" for i, what in enumerate(said) if what)
            raise ProcessError(
                f"step {step} could not be observed by all processes ({words}), so what they "
                "remember of the run differs, and it is not watched any further. Is the model's "
                "forward pass the same in each?"
            )
        assert observation is not None
        return observation


def _told_by(team: Team, draw: Callable[[int], ProbeBatch]) -> Callable[[int], ProbeBatch]:
    """The first process draws a probe, and tells the others which."""

    def fresh(step: int) -> ProbeBatch:
        try:
            probe = draw(step)
        except Exception as error:
            team.tell(in_words(error))
            raise
        team.tell(_packed(probe))
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
        if isinstance(message, _Begin):
            draw = self._heard_probe(model) if message.fresh else None
            probe = _unpacked(message.probe, model)
            self._tracker = KernelTracker(
                probe, fresh_probe=draw, **message.words, **self._settings
            )
        elif isinstance(message, _Observe):
            failure = ""
            try:
                self._observe(message, model)
            except Exception as error:
                failure = in_words(error)
            self._team.gather(failure)

    def _observe(self, message: _Observe, model: nn.Module) -> None:
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
            return _unpacked(heard, model)

        return fresh


def _packed(probe: ProbeBatch) -> _Probe:
    tensors = leaves(probe.inputs)
    return _Probe(
        batch=_moved(probe, torch.device("cpu")),
        on_device=any(tensor.device.type != "cpu" for tensor in tensors),
    )


def _unpacked(probe: _Probe, model: nn.Module) -> ProbeBatch:
    return _moved(probe.batch, next(model.parameters()).device) if probe.on_device else probe.batch


def _moved(probe: ProbeBatch, device: torch.device) -> ProbeBatch:
    inputs = map_inputs(lambda tensor: tensor.to(device), probe.inputs)
    targets = None if probe.targets is None else probe.targets.to(device)
    return replace(probe, inputs=inputs, targets=targets)
