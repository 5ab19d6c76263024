"""When features formed, in which layers, and since when the network has been a kernel machine.

Read off two things: the linearization error of the last network from several anchors, and the
angles between the kernels of the run. Right after any anchor every training looks lazy, so an
anchor speaks for what came after it only where enough steps lie behind it. No torch here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation, Reading
from ntkwatch.watch.verdict.bands import Bands
from ntkwatch.watch.verdict.wording import number

__all__ = ["Finding", "Timeline", "timeline_of"]

_NAMED = 3  # layers that a sentence names
_NAME = 48  # characters of a name in a sentence
_SOON = 0.1  # share of a run: where less is left, its end came too soon for any number of steps

Finding = Literal["kernel machine from the start", "formed", "still forming", "unknown"]
_Row = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When features formed, as far as the evidence tells.

    Attributes:
        finding: In one or two words.
        sentence: In one sentence, with the evidence.
        formed_until: Step after which the network has been a kernel machine; None where it is not
            known to have become one. Features stopped forming between ``forming_at`` and here.
        forming_at: Last step of which it is known that features formed after it, or None.
        layers: Modules whose features formed, those that turned most first, each with the step
            since which its part of the kernel has kept its shape; None where that is not known.
        errors: Linearization error at the end from each anchor, by the anchor's step; around the
            decayed anchor where weights decayed.
        layer_angles_since: Median layer angle at the end from each anchor, radians.
        steps: Of the kernels that were kept.
        angles: Between each two of them, radians.
        layer_angles: Per module, the angle of its part of each kernel to the last, radians.
    """

    finding: Finding
    sentence: str
    formed_until: int | None = None
    forming_at: int | None = None
    layers: dict[str, int | None] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    layer_angles_since: dict[str, float] = field(default_factory=dict)
    steps: tuple[int, ...] = field(default=(), repr=False)
    angles: tuple[_Row, ...] = field(default=(), repr=False)
    layer_angles: dict[str, _Row] = field(default_factory=dict, repr=False)


class _From(NamedTuple):
    """The last network read from one anchor."""

    step: int
    error: float
    angle: float | None


class _Found(NamedTuple):
    """What the evidence says, before it is put with the evidence."""

    finding: Finding
    sentence: str
    formed_until: int | None = None
    forming_at: int | None = None
    layers: Mapping[str, int | None] = MappingProxyType({})


def timeline_of(history: History, bands: Bands, *, guard: str | None = None) -> Timeline | None:
    """Return when features formed in a run.

    Args:
        history: Observations of one run, with the angles between its kernels.
        bands: Thresholds: what counts as lazy, and how many steps must lie behind an anchor.
        guard: Why no label may rest on this history, or None.

    Returns:
        The timeline, or None where there is nothing to compare the reference with.

    Source:
        Features form early and a kernel taken afterwards stays: Fort et al., NeurIPS 2020,
        arXiv:2010.15110. Reading it off several anchors is this project's own.
    """
    if len(history) < 2 or history[-1].step == history[0].step:
        return None
    anchors, angles = _anchors(history[-1], bands), history.angles
    found = _found(history, anchors, bands, guard)
    return Timeline(
        finding=found.finding,
        sentence=found.sentence,
        formed_until=found.formed_until,
        forming_at=found.forming_at,
        layers=dict(found.layers),
        errors={str(anchor.step): anchor.error for anchor in anchors},
        layer_angles_since={str(a.step): a.angle for a in anchors if a.angle is not None},
        steps=() if angles is None else angles.steps,
        angles=() if angles is None else angles.matrix,
        layer_angles={} if angles is None else angles.layers,
    )


def _found(history: History, anchors: Sequence[_From], bands: Bands, guard: str | None) -> _Found:
    last, start = history[-1], history[0].step
    if guard is not None:
        return _nothing(guard)
    if not anchors or anchors[0].step != last.anchor_step:
        return _nothing("the linearization error from the start is missing")
    first = anchors[0]
    if _is_quiet(first, bands):
        said = f"a kernel machine from the start ({_said(first, last)})"
        return _Found("kernel machine from the start", said)
    layers = _formed_layers(history, bands)
    newest_loud = [anchor for anchor in anchors if not _is_quiet(anchor, bands)][-1]
    if len(anchors) == 1:
        return _nothing(_why_no_later(history))
    if newest_loud is anchors[-1]:
        where = _named(_turned_after(newest_loud.step, layers))
        said = f"features were still forming at the end{where} ({_said(newest_loud, last)})"
        return _Found("still forming", said, forming_at=newest_loud.step, layers=layers)
    settled = anchors[anchors.index(newest_loud) + 1]
    turning, kept = _turned(history, bands)
    until = max(settled.step, settled.step if kept is None else kept)
    forming_at = max(newest_loud.step, newest_loud.step if turning is None else turning)
    behind, needed = last.step - until, round(bands.after_warmup * (until - start))
    if behind >= needed:
        said = (
            f"features formed until step {until} at the latest (still at step {forming_at})"
            f"{_named(list(layers))}; a kernel machine since ({_said(settled, last)})"
        )
        return _Found("formed", said, until, forming_at, layers)
    where = _named(_turned_after(forming_at, layers))
    said = f"features still formed after step {forming_at}{where}; "
    if behind < _SOON * (last.step - start):
        said += (
            f"the run ended at step {last.step}, too soon after step {until} to tell whether they "
            "had stopped"
        )
    else:
        said += (
            f"whether they had stopped by the end cannot be told: it takes {needed} quiet steps "
            f"after step {until}, and the run had {behind}"
        )
    return _Found("unknown", said, None, forming_at, layers)


def _nothing(why: str) -> _Found:
    return _Found("unknown", f"nothing can be said of when features formed: {why.rstrip('.')}")


def _anchors(last: Observation, bands: Bands) -> list[_From]:
    """All anchors that the last observation was read from, in order."""
    found = {last.anchor_step: _read(last, last, bands)}
    if last.since_warmup is not None:
        found[last.since_warmup.anchor_step] = _read(last.since_warmup, last, bands)
    for key, error in last.since.items():
        angle = None if last.unjudged is not None else last.since_layer_angle.get(key)
        found[int(key)] = _From(int(key), error, angle)
    return [one for _, one in sorted(found.items()) if one is not None]


def _read(reading: Reading, last: Observation, bands: Bands) -> _From | None:
    own = reading.of_parameters().past_decay()
    floor = bands.floors * last.noise_floor.get("output", 0.0)
    if own.linearization_error is None:
        return None
    if own.output_change is not None and own.output_change <= floor:
        return None  # nothing moved but by rounding, or by decay and rounding
    angle = None if last.unjudged is not None else own.layer_angle_median
    return _From(own.anchor_step, own.linearization_error, angle)


def _is_quiet(anchor: _From, bands: Bands) -> bool:
    """As in a verdict, the error leads; an angle two bands apart is a disagreement."""
    turned = anchor.angle is not None and anchor.angle > bands.feature_angle
    return anchor.error < bands.lazy_error and not turned


def _said(anchor: _From, last: Observation) -> str:
    turned = "" if anchor.angle is None else f", median layer angle {number(anchor.angle)} rad"
    return (
        f"from step {anchor.step} to step {last.step}: linearization error "
        f"{number(anchor.error)}{turned}"
    )


def _why_no_later(history: History) -> str:
    last = history[-1]
    reasons = [why for key, why in last.left_out.items() if key.partition("/")[0] == "since"]
    if reasons:
        return reasons[0]
    if history.run.spec.get("metrics") == "minimal":
        return "metrics='minimal' keeps no anchors after the warm-up"
    return "no anchor between the start and the end was kept"


# Angles between kernels. --------------------------------------------------------------------------


def _turned(history: History, bands: Bands) -> tuple[int | None, int | None]:
    """The last step whose kernel was turned away from the last one, and the first that was not."""
    angles, last = history.angles, history[-1]
    if angles is None or last.unjudged is not None or last.parameters_only is not None:
        return None, None
    medians = angles.medians
    if not any(value is not None for value in medians):
        medians = angles.matrix[-1] if angles.steps else ()
    return _last_above(angles.steps, medians, bands.lazy_angle)


def _last_above(
    steps: Sequence[int], values: Sequence[float | None], edge: float
) -> tuple[int | None, int | None]:
    places = [i for i, value in enumerate(values) if value is not None and value >= edge]
    if not places:
        return None, None
    later = [i for i, value in enumerate(values) if i > places[-1] and value is not None]
    return steps[places[-1]], steps[later[0]] if later else None


def _formed_layers(history: History, bands: Bands) -> dict[str, int | None]:
    """Modules whose kernel left the lazy band since the start, and since when each kept its own."""
    last, angles = history[-1], history.angles
    if last.unjudged is not None:
        return {}
    turned = {
        name: angle
        for name, angle in last.of_parameters().layer_angle.items()
        if angle is not None and angle >= bands.lazy_angle
    }
    rows = {} if angles is None or last.parameters_only is not None else angles.layers
    steps = () if angles is None else angles.steps
    return {
        name: _last_above(steps, rows.get(name, ()), bands.lazy_angle)[1]
        for name in sorted(turned, key=lambda name: -turned[name])
    }


def _turned_after(step: int, layers: Mapping[str, int | None]) -> list[str]:
    return [name for name, since in layers.items() if since is None or since > step]


def _named(layers: Sequence[str]) -> str:
    if not layers:
        return ""
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return f" in {', '.join(_shortened(name) for name in layers[:_NAMED])}{more}"


def _shortened(name: str) -> str:
    """A sentence of three long names is none; they differ at their ends."""
    if len(name) <= _NAME:
        return name
    return f"{name[: _NAME // 2]}…{name[-(_NAME // 2) :]}"
