"""Examining a model before it trains: it is observed, at several probe sizes, as training would.

Costs are measured rather than estimated: the observations are real ones, and thrown away.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ntkwatch.errors import NtkwatchError
from ntkwatch.jacobian.inputs import MIN_SAMPLES, take
from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.jacobian.spec import Kernel
from ntkwatch.watch.before_training.checkup import Checkup, Cost
from ntkwatch.watch.before_training.forecast import forecast
from ntkwatch.watch.before_training.peak_memory import peak_memory
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict.bands import Bands

__all__ = ["examine", "sizes_up_to"]

_SMALLEST = 16
_USUAL = 64  # probe points: NTKMonitor's default
_TOO_LONG = 10.0  # seconds of an observation beyond which a smaller probe is suggested
_LONGEST = 60.0  # seconds of an observation after which no larger probe is tried
_OVERHEAD = 0.02  # NTKMonitor's default
# Settings of a tracker that a forecast takes as well; its outputs are always all of them.
_FORECAST = ("params", "engine", "memory_budget", "forward", "dtype")


def sizes_up_to(largest: int) -> list[int]:
    """Return probe sizes to try: doubling from 16 on, and the largest."""
    sizes = [_SMALLEST]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return [size for size in sizes if size < largest] + [largest]


def examine(
    model: nn.Module,
    probe: ProbeBatch,
    *,
    on_size: Callable[[int], object] = lambda size: None,
    **settings: Any,
) -> Checkup:
    """Return whether a model can be watched, how its kernel is computed, and what that takes.

    Args:
        model: In the modes in which it trains; left as found.
        probe: The largest probe to try.
        on_size: Called with each probe size after it was tried.
        settings: Arguments of ``KernelTracker``.

    Returns:
        What was found out.

    """
    costs: list[Cost] = []
    seen: tuple[KernelTracker, Observation] | None = None
    # Whatever is loaded or compiled at first use belongs to no probe size.
    KernelTracker(_rows(probe, MIN_SAMPLES), **settings).observe(model, 0)
    for part in (_rows(probe, size) for size in sizes_up_to(len(probe))):
        seen, cost = _observed(model, part, settings)
        costs.append(cost)
        on_size(cost.probe_size)
        if cost.seconds > _LONGEST:
            break
    assert seen is not None  # a probe has samples
    tracker, observation = seen
    kernel, run = tracker.kernel, tracker.history.run
    reason = observation.left_out.get("kernel")
    suggestions, chosen = _suggested(costs, kernel, reason, len(probe), settings)
    parameters = parameters_of(model)
    foretold, no_forecast = _foretold(model, tracker.probe, costs[-1], settings)
    return Checkup(
        model=type(model).__name__,
        spec=run.spec,
        probe=probe.describe(),
        elements={name: parameters[name].numel() for name in run.spec["params"]},
        routes={} if kernel is None else dict(kernel.coverage),
        no_kernel=reason,
        plan=() if kernel is None else tuple(map(dataclasses.asdict, kernel.plan.steps)),
        forecast=foretold,
        no_forecast=no_forecast,
        costs=tuple(costs),
        notes=observation.notes,
        suggestions=tuple(suggestions),
        settings=chosen,
    )


def _rows(probe: ProbeBatch, size: int) -> ProbeBatch:
    """Rows spread evenly: a probe is ordered by class."""
    rows = torch.linspace(0, len(probe) - 1, size).round().long()
    targets = None if probe.targets is None else probe.targets[rows.to(probe.targets.device)]
    return ProbeBatch(take(probe.inputs, rows), targets, origin=probe.origin)


def _observed(
    model: nn.Module, probe: ProbeBatch, settings: dict[str, Any]
) -> tuple[tuple[KernelTracker, Observation], Cost]:
    device = next(model.parameters()).device
    tracker = KernelTracker(probe, **settings)
    first = tracker.observe(model, 0)
    with peak_memory(device) as peak:
        later = tracker.observe(model, 1)
    cost = Cost(
        probe_size=len(probe),
        reference_seconds=first.seconds,
        seconds=later.seconds,
        peak_bytes=peak.nbytes,
    )
    return (tracker, later), cost


def _foretold(
    model: nn.Module, probe: ProbeBatch, cost: Cost, settings: dict[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """The regime of a training on the probe as plain values, or why nothing is foretold."""
    if probe.targets is None:
        return {}, "the data has no targets, and a forecast is about learning them"
    if cost.seconds > _TOO_LONG:
        return {}, (
            f"it takes several kernels, and one observation took {cost.seconds:.2g} s; call "
            "ntkwatch.forecast with fewer samples"
        )
    taken = {key: settings[key] for key in _FORECAST if settings.get(key) is not None}
    if taken.get("engine") == "sketch":
        del taken["engine"]
    try:
        found = forecast(model, probe.inputs, probe.targets, **taken)
    except NtkwatchError as error:
        return {}, str(error)
    return {**dataclasses.asdict(found), "strength": str(found.strength)}, None


def _suggested(
    costs: list[Cost],
    kernel: Kernel | None,
    no_kernel: str | None,
    probe_size: int,
    settings: dict[str, Any],
) -> tuple[list[str], dict[str, Any]]:
    said, least = [], Bands().min_probe
    bearable = [c for c in costs if c.seconds <= _TOO_LONG and c.probe_size >= least]
    best = max(bearable or costs, key=lambda c: min(c.probe_size, _USUAL))
    chosen: dict[str, Any] = {"probe_size": max(least, best.probe_size)}
    chosen |= {k: v for k, v in settings.items() if v not in (None, "auto", "1GiB", "probe")}
    if probe_size < least:
        said.append(f"Give a probe of {least} points or more: a verdict needs as many.")
    said.append(
        f"An observation of {best.probe_size} points takes {best.seconds:.2g} s: with "
        f"max_overhead={_OVERHEAD:g}, the default, one is made at most every "
        f"{best.seconds / _OVERHEAD:.2g} s of training."
    )
    if best.seconds > _TOO_LONG:
        said.append(
            "That is long. Watch fewer parameters (params=), fewer outputs "
            '(outputs="random:1") or, on a machine that has one, an accelerator.'
        )
    slow = [] if kernel is None else [n for n, r in kernel.coverage.items() if r != "structured"]
    if kernel is not None and slow:
        said.append(
            f"{len(slow)} of {len(kernel.coverage)} parameters ({', '.join(slow[:3])}"
            f"{', ...' if len(slow) > 3 else ''}) are computed sample by sample, exactly but "
            "more slowly; params= can leave them out."
        )
    if no_kernel is not None and settings.get("engine") == "sketch":
        said.append("The drift of the kernel is estimated from random columns; see the notes.")
    elif no_kernel is not None:
        said.append(
            "Without a kernel per sample, the linearization error and the displacement are still "
            'watched, and engine="sketch" estimates the drift of the batch function\'s kernel. For '
            "an exact one, change what couples the samples or pass forward=."
        )
    return said, chosen
