"""Runs written by hand: plausible numbers, real records, real files. Nothing here trains."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ntkwatch.watch.record.angles import KernelAngles
from ntkwatch.watch.record.history import History, append_record, read_history
from ntkwatch.watch.record.records import Gap, Observation, Reading, RunInfo

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1><b>bold</b>"
LAYERS = ("features.0", "features.2", "features.5", "features.7", "classifier.0", "classifier.2")
STEPS = (0, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300, 450, 675, 900, 1200)


def run_info(**changes: Any) -> RunInfo:
    return RunInfo(
        spec={"outputs": "full", "dtype": "float32", "batchnorm": "probe", "params": None},
        probe={
            "size": 64,
            "origin": "validation set, class-balanced, seed 0",
            "fingerprint": "9f2c41d07be3",
            "classes": {"0": 7, "1": 7, "2": 7, "3": 7, "4": 6, "5": 6, "6": 6, "7": 6, "8": 6},
        },
        model={"class": "DigitsCNN", "parameters": 38_282},
        reference="the weights before the first update",
        versions={"ntkwatch": "0.1.0", "torch": "2.13.0"},
        created="2026-10-02T09:30:00Z",
        **changes,
    )


def observation(step: int, *, error: float, angle: float, end: int = 1200) -> Observation:
    """One step of a run that ends with this linearization error and median layer angle."""
    gone = 1 - math.exp(-4 * step / end)  # share of the way, fast at first
    wobble = 1 + 0.06 * math.sin(1.7 * math.sqrt(step))
    here = gone * wobble
    spread = (0.35, 0.7, 1.0, 1.15, 1.6, 0.2)
    growth = 1 + 1.8 * gone * min(1.0, error)
    if step == 0:
        reading: dict[str, Any] = {
            "left_out": {"linearization_error": "this is the reference step"},
            "relative_kernel_change": 0.0,
            "kernel_scale": 0.0,
            "kernel_angle": 0.0,
            "kernel_distance": 0.0,
            "kernel_distance_offdiag": 0.0,
            "layer_angle_median": 0.0,
            "layer_angle": dict.fromkeys(LAYERS, 0.0),
            "relative_displacement": 0.0,
            "layer_relative_displacement": dict.fromkeys(LAYERS, 0.0),
        }
    else:
        e, a = error * here**0.6, angle * here**0.8
        change = math.sqrt((growth - 1) ** 2 + growth**2 * math.tan(min(a, 1.3)) ** 2)
        reading = {
            "linearization_error": e,
            "linearization_method": "jvp",
            "relative_kernel_change": change,
            "kernel_scale": math.log(growth),
            "kernel_angle": a,
            "kernel_distance": 1 - math.cos(a),
            "kernel_distance_offdiag": 1 - math.cos(1.2 * a),
            "layer_angle_median": a,
            "layer_angle": {n: a * s for n, s in zip(LAYERS, spread, strict=True)},
            "output_change": 3 * gone,
            "displacement": 0.8 * error * gone,
            "relative_displacement": 0.08 * error * gone,
            "layer_relative_displacement": {
                n: 0.08 * error * gone * s for n, s in zip(LAYERS, spread, strict=True)
            },
            "intervals": {
                "linearization_error": (0.87 * e, 1.14 * e),
                "layer_angle_median": (0.85 * a, 1.18 * a),
                "relative_kernel_change": (0.93 * change, 1.06 * change),
            },
        }
    observed = Observation(
        anchor_step=0,
        step=step,
        logged_step=step,
        epoch=step // 24,
        loss=2.303 * math.exp(-5.2 * gone) * wobble + 0.004,
        loss_start=2.31,
        probe_size=64,
        output_count=10,
        top_eigenvalues=tuple(
            410.0 * growth**1.3 / (k + 1) ** (1.1 + 0.3 * gone * min(1, error)) for k in range(8)
        ),
        trace=2100.0 * growth,
        effective_rank=21.5 - 9 * gone * min(1, error),
        target_alignment=0.14 + 0.22 * gone * min(1, error),
        target_alignment_z=8.0 + 12 * gone * error,
        target_alignment_null_sd=0.011,
        rkhs_norm={"1e-06": 1 - 0.6 * gone * error, "0.001": 1 - 0.5 * gone * error},
        noise_floor={"linearization_error": 2.1e-6, "layer_angle_median": 1.4e-7, "output": 3e-7},
        seconds=0.21 + 0.02 * wobble,
        **reading,
    )
    if step <= 20:
        return observed
    later = Reading(
        anchor_step=18,
        linearization_error=0.7 * reading["linearization_error"],
        layer_angle_median=0.8 * reading["layer_angle_median"],
        kernel_scale=0.9 * reading["kernel_scale"],
        relative_kernel_change=0.8 * reading["relative_kernel_change"],
    )
    return replace(observed, since_warmup=later)


def angles_of(layers: Sequence[str] = LAYERS) -> KernelAngles:
    """A kernel that turns until step 60 and stays there, with one gap."""
    places = [min(step, 60) / 100 for step in STEPS]
    below = [[abs(a - b) for b in places[:i]] for i, a in enumerate(places)]
    below[3][1] = None
    rows = {
        name: tuple(abs(0.6 - a) * (1 + k / 10) for a in places) for k, name in enumerate(layers)
    }
    return KernelAngles(
        steps=STEPS,
        below=tuple(map(tuple, below)),
        layers=rows,
        medians=rows[layers[0]],
    )


def lazy_observations() -> tuple[Observation, ...]:
    return tuple(observation(step, error=0.052, angle=0.021) for step in STEPS)


def feature_observations() -> tuple[Observation, ...]:
    return tuple(observation(step, error=0.71, angle=0.62) for step in STEPS)


def written(
    folder: Path,
    observations: tuple[Observation, ...],
    *,
    info: RunInfo | None = None,
    gaps: tuple[Gap, ...] = (),
) -> Path:
    """Write a run's folder as a training would, and return its history file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "history.jsonl"
    for record in (info or run_info(), *observations, *gaps):
        append_record(path, record)
    return path


def read_back(folder: Path, observations: tuple[Observation, ...], **rest: Any) -> History:
    return read_history(written(folder, observations, **rest))


def renamed(observed: Observation, names: dict[str, str]) -> Observation:
    """The same observation of a model whose layers have other names."""

    def other(old: dict[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): value for name, value in old.items()}

    return replace(
        observed,
        layer_angle=other(observed.layer_angle),
        layer_relative_displacement=other(observed.layer_relative_displacement),
    )
