"""One look at a model, compared with what was kept of earlier ones. Nothing is remembered here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ntkwatch.errors import DivergedError, NonFiniteError
from ntkwatch.jacobian.parameters import check_finite_parameters, parameters_of
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.watch.anchors import Anchor
from ntkwatch.watch.apart import apart
from ntkwatch.watch.compare import compare, replicates
from ntkwatch.watch.measure import Measurement, Settings, measure
from ntkwatch.watch.noise import noise_floor
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.records import Reading
from ntkwatch.watch.settle import check_same_model, kept_state

__all__ = ["Kept", "Seen", "look"]


class Kept(NamedTuple):
    """What is kept of earlier looks.

    Attributes:
        start: The reference.
        warmup: The anchor at the end of the warm-up, or None before it.
        floors: What the numbers read at the reference when nothing changed but rounding.
    """

    start: Anchor
    warmup: Anchor | None
    floors: dict[str, float]


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
    """

    settings: Settings
    now: Measurement
    probe: ProbeBatch
    start: Anchor
    floors: dict[str, float]
    reading: Reading
    since_warmup: Reading | None


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
    with undisturbed(model, copies=copies), apart(model):
        buffers = None if kept is None else kept.start.buffers
        how: dict[str, Any] = {"first": first, "brief": brief}
        now = measure(model, probe.inputs, settings, **how, reference=buffers, state=state)
        if kept is None:
            anchor = now.as_anchor(step, keeps_full=settings.keeps_full)
            kept = Kept(anchor, None, noise_floor(now, settings))
        elif fresh:
            kept = _kept_on(probe, model, settings, kept, brief=brief)
        how = {"settings": settings, "weights": weights, "targets": probe.targets}
        reading = compare(now, kept.start, **how)
        since_warmup = None
        if kept.warmup is not None and step > kept.warmup.step:
            since_warmup = compare(now, kept.warmup, **how)
    if brief:
        return Seen(settings, now, probe, kept.start, kept.floors, reading, since_warmup)
    without = now.left_out.get("kernel") if kept.start.kernel is None else None
    coupled = now.sketch is not None and now.sketch.coupled
    settings = replace(settings, no_kernel=without, coupled=coupled)
    return Seen(settings, now, probe, kept.start, kept.floors, reading, since_warmup)


def _kept_on(
    probe: ProbeBatch, model: nn.Module, settings: Settings, kept: Kept, *, brief: bool
) -> Kept:
    """The same anchors as seen on another probe: from the weights that were kept of them."""

    def again(anchor: Anchor) -> Anchor:
        state = {**anchor.params, **anchor.buffers}
        how: dict[str, Any] = {"first": False, "brief": brief, "reference": kept.start.buffers}
        seen = measure(model, probe.inputs, settings, **how, state=state)
        return seen.as_anchor(anchor.step, keeps_full=settings.keeps_full)

    return Kept(again(kept.start), None if kept.warmup is None else again(kept.warmup), kept.floors)
