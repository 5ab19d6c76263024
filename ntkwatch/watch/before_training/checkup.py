"""What is said about a model before it trains: can it be watched, how, and at what cost.

No torch here: a record is shown where it was not made.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Checkup", "Cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What observing takes at one probe size.

    Attributes:
        probe_size: Probe points N.
        reference_seconds: Wall time of the first observation, which also checks the model.
        seconds: Wall time of a later one.
        peak_bytes: Memory at the height of the later one, beyond what was there before; None where
            the system does not tell.
    """

    probe_size: int
    reference_seconds: float
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What was found out about a model.

    Attributes:
        model: Its class.
        spec: Settings of its kernel, as ``KernelSpec.to_plain`` gives them.
        probe: Fingerprint, size, origin and class counts of the probe.
        elements: Numbers in each watched parameter, by name.
        routes: How each one's part of the kernel is computed: "structured", "generic", "vmap" or
            "loop"; empty where samples have no kernel of their own.
        no_kernel: Why they have none (coupled samples, say), or None.
        plan: What the structured engine does for each parameter, as plain values.
        forecast: The fields of a ``Forecast`` on the largest probe that was tried, as plain values;
            empty where there is none.
        no_forecast: Why there is none, or None.
        costs: By probe size, from small to large.
        notes: What a reader of its numbers should know.
        suggestions: What to do, in sentences.
        settings: The same as arguments of ``NTKMonitor``.
    """

    model: str
    spec: dict[str, Any]
    probe: dict[str, Any]
    elements: dict[str, int]
    routes: dict[str, str]
    no_kernel: str | None
    plan: tuple[dict[str, Any], ...] = ()
    forecast: dict[str, Any] = field(default_factory=dict)
    no_forecast: str | None = None
    costs: tuple[Cost, ...]
    notes: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
