"""One look at a model, compared with what was kept of earlier ones. Nothing is remembered here."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ntkwatch.errors import DivergedError, NonFiniteError
from ntkwatch.jacobian.exchanged import put_in_place
from ntkwatch.jacobian.inputs import cast_inputs
from ntkwatch.jacobian.parameters import check_finite_parameters, parameters_of
from ntkwatch.jacobian.sharding_check import check_sharding
from ntkwatch.jacobian.shards import sharding_modules
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.anchors.later_anchors import LaterAnchors
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.processes.apart import apart
from ntkwatch.watch.readings.compare import compare, replicates
from ntkwatch.watch.readings.decay import NO_DECAY, Shrunk
from ntkwatch.watch.readings.measure import Measurement, Settings, measure
from ntkwatch.watch.readings.noise import noise_floor
from ntkwatch.watch.readings.settle import check_same_model, kept_state
from ntkwatch.watch.readings.since import Since, read_since
from ntkwatch.watch.record.records import Reading

__all__ = ["Kept", "Seen", "look"]

_TOO_DEAR = "a brief observation does not read further anchors from disk"


class Kept(NamedTuple):
    """What is kept of earlier looks.

    Attributes:
        start: The reference.
        warmup: The anchor at the end of the warm-up, or None before it.
        floors: What the numbers read at the reference when nothing changed but rounding.
        later: Further anchors, or None where they are not asked.
        shrunk: What weight decay alone would have left of an anchor's weights.
    """

    start: Anchor
    warmup: Anchor | None
    floors: dict[str, float]
    later: LaterAnchors | None = None
    shrunk: Callable[[Anchor], Shrunk] = lambda anchor: NO_DECAY


class Seen(NamedTuple):
    """One look at a model, compared with what was kept.

    Attributes:
        settings: Of the run, with what this look adds to them.
        now: The look itself.
        probe: What it was taken on.
        start: The reference on that probe: the one kept, or made of this look.
        floors: Its noise floors.
        reading: Since the reference.
        since_warmup: Since the end of the warm-up, or None before it.
        since: Since further anchors.
    """

    settings: Settings
    now: Measurement
    probe: ProbeBatch
    start: Anchor
    floors: dict[str, float]
    reading: Reading
    since_warmup: Reading | None
    since: Since


def look(
    model: nn.Module,
    probe: ProbeBatch,
    settings: Settings,
    kept: Kept | None,
    *,
    step: int,
    first: bool,
    fresh: bool = False,
    brief: bool = False,
    state: Mapping[str, Tensor] | None,
) -> Seen:
    """Measure a model and compare it with what was kept; the model is left as found.

    Args:
        model: The model, in the modes in which it trains.
        probe: What to measure it on.
        settings: Of the run.
        kept: Of earlier looks; None to take this one as the reference.
        step: Optimizer steps taken so far.
        first: Whether to test that samples do not depend on each other.
        fresh: Whether what was kept was seen on another probe, and is to be measured on this one.
        brief: Whether to leave out the kernel, and all that compares it.
        state: Weights and buffers to measure instead of the model's present ones, or None.

    Returns:
        The look and its readings.

    Raises:
        DivergedError: If weights, or the outputs on a probe that was seen before, are NaN or
            infinite.
        NonFiniteError: If the kernel is, or the outputs on a fresh probe.
    """
    tensors: dict[str, Tensor] | None = None
    params: Mapping[str, Tensor] = parameters_of(model)
    if state is not None:
        tensors, params = kept_state(model, state)
    if kept is not None:
        check_same_model(model, kept.start)
    check_finite_parameters(params)
    try:
        return _looked(
            model,
            probe,
            settings,
            kept,
            step=step,
            first=first,
            fresh=fresh,
            brief=brief,
            state=tensors,
        )
    except DivergedError as error:
        if not fresh:
            raise
        # Weights are finite, and a probe that was not seen before may hold what is not.
        raise NonFiniteError(str(error)) from error


def _looked(
    model: nn.Module,
    probe: ProbeBatch,
    settings: Settings,
    kept: Kept | None,
    *,
    step: int,
    first: bool,
    fresh: bool,
    brief: bool,
    state: dict[str, Tensor] | None,
) -> Seen:
    weights = None if settings.metrics == "minimal" else replicates(probe)
    anchors = [] if kept is None else [kept.start, *([kept.warmup] if kept.warmup else [])]
    copies = [{**anchor.params, **anchor.buffers} for anchor in anchors]
    with undisturbed(model, copies=copies), apart(model), put_in_place(model, state or {}):
        if first or fresh:
            _check_processes(model, probe, settings)
        buffers = None if kept is None else kept.start.buffers
        how: dict[str, Any] = {"first": first, "brief": brief}
        now = measure(model, probe.inputs, settings, **how, reference=buffers, state=state)
        if kept is None:
            anchor = now.as_anchor(step, keeps_full=settings.keeps_full)
            kept = Kept(anchor, None, noise_floor(now, settings))
        elif fresh:
            kept = _kept_on(probe, model, settings, kept, brief=brief)
        how = {"settings": settings, "weights": weights, "targets": probe.targets}
        reading = compare(now, kept.start, shrunk=kept.shrunk(kept.start), **how)
        since_warmup = None
        if kept.warmup is not None and step > kept.warmup.step:
            since_warmup = compare(now, kept.warmup, shrunk=kept.shrunk(kept.warmup), **how)
        since = _since(now, kept, reading, settings, step=step, fresh=fresh, brief=brief)
    if brief:
        return Seen(settings, now, probe, kept.start, kept.floors, reading, since_warmup, since)
    without = now.left_out.get("kernel") if kept.start.kernel is None else None
    coupled = now.sketch is not None and now.sketch.coupled
    called = now.problem.spec.forward if settings.forward is None else None
    settings = replace(settings, no_kernel=without, coupled=coupled, called=called)
    return Seen(settings, now, probe, kept.start, kept.floors, reading, since_warmup, since)


def _since(
    now: Measurement,
    kept: Kept,
    reading: Reading,
    settings: Settings,
    *,
    step: int,
    fresh: bool,
    brief: bool,
) -> Since:
    """The readings from further anchors, where there are any and they are wanted."""
    if kept.later is None:
        return Since({}, {}, {})
    if brief and kept.later.steps and not kept.later.at_hand:
        return Since({}, {}, {"since": _TOO_DEAR})
    since = read_since(
        now,
        kept.later.each(now.outputs.device),
        settings,
        step=step,
        method=reading.linearization_method,
        shrunk=kept.shrunk,
        floor=kept.floors.get("output", 0.0),
        fresh=fresh,
        buffers_moved=reading.parameters_only is not None,
    )
    since.left_out.update({f"since/{key}": why for key, why in kept.later.lost.items()})
    return since


def _check_processes(model: nn.Module, probe: ProbeBatch, settings: Settings) -> None:
    """Where processes share a model's parameters, all of them must measure the same."""
    if not sharding_modules(model):
        return
    device = next(model.parameters()).device
    inputs = cast_inputs(probe.inputs, device=device, dtype=settings.dtype)
    how: dict[str, Any] = {"engine": settings.engine, "batchnorm": settings.batchnorm}
    check_sharding(model, [inputs], dtype=settings.dtype, **how)


def _kept_on(
    probe: ProbeBatch, model: nn.Module, settings: Settings, kept: Kept, *, brief: bool
) -> Kept:
    """The same anchors as seen on another probe: from the weights that were kept of them."""

    def again(anchor: Anchor) -> Anchor:
        state = {**anchor.params, **anchor.buffers}
        how: dict[str, Any] = {"first": False, "brief": brief, "reference": kept.start.buffers}
        with put_in_place(model, state):
            seen = measure(model, probe.inputs, settings, **how, state=state)
        there = seen.as_anchor(anchor.step, keeps_full=settings.keeps_full)
        return replace(there, clock=anchor.clock)

    warmup = None if kept.warmup is None else again(kept.warmup)
    return kept._replace(start=again(kept.start), warmup=warmup)
