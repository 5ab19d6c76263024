"""What only TensorBoard shows: its Custom Scalars page, margins for its charts, a histogram.

Everything here is handed a summary writer (torch's, or one with its methods) and decides nothing.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ntkwatch.kernel.spectrum import rounding_floor
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["SCALARS", "layout_of", "log_spectrum", "margins_of", "scalars_of"]

# Tag under the monitor's name -> field of the observation. See docs/metrics.md.
SCALARS = {
    "relative_kernel_change": "relative_kernel_change",
    "kernel_scale": "kernel_scale",
    "kernel_angle": "kernel_angle",
    "layer_angle_median": "layer_angle_median",
    "linearization_error": "linearization_error",
    "effective_rank": "effective_rank",
    "relative_displacement": "relative_displacement",
    "target_alignment": "target_alignment",
    "edge_of_stability": "edge_of_stability",
}
# The numbers that a verdict hangs on: these are shown with margins.
_DECIDING = {
    "linearization_error": "linearization error",
    "layer_angle_median": "median layer angle",
}
_EDGES = {
    "linearization_error": ("lazy_error", "feature_error"),
    "layer_angle_median": ("lazy_angle", "feature_angle"),
}
_BAND, _INTERVAL = ("lazy_below", "features_above"), ("lo", "hi")

# No writer can switch smoothing off, and it would show regimes that were none.
_REGIME, _DRIFT = "regime (set Smoothing to 0)", "drift"
# Group -> chart -> tags under the monitor's name.
_CURVES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    _REGIME: {
        "0 static, 1 lazy, 2 transitional, 3 features": ("strength",),
    },
    _DRIFT: {
        "linearization error, weight decay followed": ("linearization_error_decayed",),
        "angle of the kernel (rad)": ("kernel_angle",),
        "relative change: scale and direction": ("relative_kernel_change",),
        "scale of the kernel (natural logarithm)": ("kernel_scale",),
    },
    "spectrum and stability": {
        "largest eigenvalue": ("top_eigenvalue_1",),
        "effective rank": ("effective_rank",),
        "alignment with the targets": ("target_alignment",),
        "learning rate over the largest stable one": ("edge_of_stability",),
    },
    "parameters": {"relative displacement of the weights": ("relative_displacement",)},
    "cost": {"share of wall time spent watching": ("overhead_share",)},
}


def scalars_of(observation: Observation, verdict: Verdict) -> dict[str, float]:
    """Return the scalars that a run's loggers get, without prefix; what is unknown is left out.

    Args:
        observation: The last observation.
        verdict: As of the last whole one.

    Returns:
        Values by tag.
    """
    values: dict[str, float | None] = {
        tag: getattr(observation, name) for tag, name in SCALARS.items()
    }
    if observation.top_eigenvalues:
        values["top_eigenvalue_1"] = observation.top_eigenvalues[0]
    # Only where weights decay; the verdict then reads this one.
    values["linearization_error_decayed"] = observation.linearization_error_decayed
    values["strength"] = verdict.strength.rank
    values["overhead_share"] = observation.overhead_share
    return {tag: float(value) for tag, value in values.items() if value is not None}


def margins_of(observation: Observation, verdict: Verdict) -> dict[str, float]:
    """Return what margin charts shade: bands of the verdict, and intervals over probe points.

    Args:
        observation: The last observation.
        verdict: As of it.

    Returns:
        Values by tag, for the numbers that this observation has and that its bands hold for.
    """
    margins: dict[str, float] = {}
    for key, edges in _EDGES.items():
        if getattr(observation, key) is None:
            continue
        if key == "linearization_error" or not observation.unjudged:
            ends = (getattr(verdict.bands, edge) for edge in edges)
            margins |= {f"{key}_{e}": v for e, v in zip(_BAND, ends, strict=True)}
        if (interval := observation.intervals.get(key)) is not None:
            margins |= {f"{key}_{e}": v for e, v in zip(_INTERVAL, interval, strict=True)}
    return margins


def layout_of(
    name: str, tags: Collection[str], margins: Collection[str], *, losses: bool = False
) -> dict[str, dict[str, list[Any]]]:
    """Return the Custom Scalars page: charts in groups, and none that would stay empty.

    Args:
        name: Prefix of the tags.
        tags: Of the scalars that there are, without prefix.
        margins: Of the margins that there are, without prefix.
        losses: Whether the run logs something that is called a loss.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes: group, chart, kind and tags.
    """
    groups: dict[str, dict[str, list[Any]]] = {}
    for group, charts in _CURVES.items():
        found: dict[str, list[Any]] = {}
        for title, wanted in charts.items():
            if shown := [_only(f"{name}/{tag}") for tag in wanted if tag in tags]:
                found[title] = ["Multiline", shown]
        groups[group] = found
    if losses:
        groups[_REGIME]["every loss that this run logs"] = ["Multiline", ["(?i).*loss"]]
    bands = _margin_charts(name, margins, _BAND, "shaded: transitional")
    groups[_REGIME] |= bands
    groups[_DRIFT] |= _margin_charts(name, margins, _INTERVAL, "95 % interval")
    return {f"{name}: {group}": charts for group, charts in groups.items() if charts}


def _only(tag: str) -> str:
    """Tags of a multi-line chart are patterns, matched from the start of a tag."""
    return f"{re.escape(tag)}$"


def _margin_charts(
    name: str, margins: Collection[str], ends: tuple[str, str], words: str
) -> dict[str, list[Any]]:
    return {
        f"{title} ({words})": [
            "Margin",
            [f"{name}/{key}", *(f"{name}_margins/{key}_{end}" for end in ends)],
        ]
        for key, title in _DECIDING.items()
        if f"{key}_{ends[0]}" in margins
    }


def log_spectrum(
    writer: Any, tag: str, spectrum: Tensor, *, step: int, precision: torch.dtype
) -> None:
    """Write the distribution of the kernel's eigenvalues as base-10 logarithms.

    Args:
        writer: Summary writer.
        tag: Of the histogram.
        spectrum: Eigenvalues, largest first.
        step: x axis.
        precision: Of the arithmetic that built the kernel: what it cannot tell from 0 is left out.
    """
    known = spectrum[spectrum > rounding_floor(spectrum, precision=precision)]
    if len(known):
        writer.add_histogram(tag, known.log10().cpu(), step)
