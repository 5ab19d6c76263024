"""What is written down once about a run, and what a reader of its numbers should know."""

from datetime import UTC, datetime
from importlib.metadata import version

import torch
from torch import nn

from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.measure import Measurement, Settings
from ntkwatch.watch.record.records import RunInfo

__all__ = ["notes_on", "run_info", "unjudged"]


def run_info(
    model: nn.Module,
    now: Measurement,
    settings: Settings,
    probe: ProbeBatch,
    *,
    reference: str,
    reference_is_start: bool,
) -> RunInfo:
    """Return what all observations of a run have in common.

    Args:
        model: The model at the reference.
        now: What was seen of it.
        settings: Of the run.
        probe: That it was seen on.
        reference: Where the reference comes from, in words.
        reference_is_start: Whether it is the known start of the training.

    Returns:
        The first line of the run's history.
    """
    spec, params = now.problem.spec, parameters_of(model)
    engines = set() if now.kernel is None else set(now.kernel.coverage.values())
    if now.sketch is not None:
        drawn = now.sketch
        engines = {f"sketch ({drawn.form}, {drawn.columns} columns, outputs {drawn.spec.outputs})"}
    return RunInfo(
        spec={
            **spec.to_plain(),
            "batchnorms": list(settings.moving),
            "metrics": settings.metrics,
            "engine": ", ".join(sorted(engines)) or "none",
        },
        probe=probe.describe(),
        model={
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in params.values()),
            "watched": sum(params[name].numel() for name in spec.params),
        },
        reference=reference,
        reference_is_start=reference_is_start,
        versions={"ntkwatch": version("ntkwatch"), "torch": torch.__version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def notes_on(now: Measurement, settings: Settings) -> tuple[str, ...]:
    """Return what a reader of an observation's numbers should know.

    Args:
        now: What was seen.
        settings: Of the run.

    Returns:
        Sentences.
    """
    notes = []
    if now.problem.reduction.name.startswith("random"):
        who = "the linearization error sees"
        if now.sketch is None or now.sketch.spec.outputs == now.problem.spec.outputs:
            who = "the kernel and the linearization error see"
        notes.append(
            f"{who} {now.problem.reduction.rows} fixed "
            f"random directions of the {now.problem.spec.output_count} outputs"
        )
    if settings.moving and settings.batchnorm == "running":
        notes.append("moving batch statistics count as drift of this kernel")
    if now.problem.spec.coupled or (now.sketch is not None and now.sketch.coupled):
        notes.append("the kernel is that of the batch function: its samples are coupled")
    if now.sketch is not None:
        notes.append(
            f"numbers that compare kernels are estimates from a sketch of {now.sketch.columns} "
            "random columns, and their intervals are over the choice of columns"
        )
    return tuple(notes)


def unjudged(now: Measurement) -> str | None:
    """Return why the bands of a verdict do not hold for a kernel's angles, or None if they do.

    They were fitted to kernels of independent samples, summed over outputs. Batch statistics that
    are differentiated and outputs side by side turn further in the same run.

    Args:
        now: What was seen.

    Returns:
        The reason in words.
    """
    sketch = now.sketch
    if now.problem.spec.coupled or (sketch is not None and sketch.coupled):
        return "there are no bands for kernels of coupled samples"
    if sketch is not None and sketch.spec.outputs == "full" and sketch.spec.output_count > 1:
        return "there are no bands for kernels of all outputs side by side"
    return None
