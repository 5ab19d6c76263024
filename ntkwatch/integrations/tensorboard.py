"""What a watched run shows in TensorBoard besides scalars: pictures, a histogram, text, a layout.

Everything here is handed a summary writer (torch's, or one with its methods) and decides nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkwatch.watch.records import Observation
from ntkwatch.watch.verdict import Verdict

__all__ = [
    "SCALARS",
    "is_writer",
    "log_kernel_picture",
    "log_layout",
    "log_spectrum",
    "log_verdict",
    "scalars_of",
]

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
}
_DRIFT = ("linearization_error", "layer_angle_median", "kernel_angle", "relative_kernel_change")


def is_writer(thing: Any) -> bool:
    """Return whether something has the methods of a summary writer that are used here."""
    methods = ("add_custom_scalars", "add_image", "add_histogram", "add_text")
    return all(callable(getattr(thing, method, None)) for method in methods)


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
    values["strength"] = verdict.strength.rank
    values["overhead_share"] = observation.overhead_share
    return {tag: float(value) for tag, value in values.items() if value is not None}


def log_layout(writer: Any, name: str) -> None:
    """Write the Custom Scalars page: drift, spectrum, regime and cost in groups.

    Args:
        writer: Summary writer.
        name: Prefix of the tags.
    """
    layout = {
        f"NTK ({name})": {
            "regime: 0 static, 1 lazy, 2 transitional, 3 feature-learning": [
                "Multiline",
                [f"{name}/strength"],
            ],
            "drift since start": ["Multiline", [f"{name}/{tag}" for tag in _DRIFT]],
            "kernel scale (natural logarithm)": ["Multiline", [f"{name}/kernel_scale"]],
            "largest eigenvalue": ["Multiline", [f"{name}/top_eigenvalue_1"]],
            "effective rank": ["Multiline", [f"{name}/effective_rank"]],
            "alignment with the targets": ["Multiline", [f"{name}/target_alignment"]],
            "relative displacement of the weights": [
                "Multiline",
                [f"{name}/relative_displacement"],
            ],
            "share of wall time spent watching": ["Multiline", [f"{name}/overhead_share"]],
        }
    }
    writer.add_custom_scalars(layout)


def log_kernel_picture(
    writer: Any,
    tag: str,
    kernel: Tensor,
    reference: Tensor,
    *,
    step: int,
    classes: Sequence[int] | None = None,
) -> None:
    """Write the kernel beside its change against the reference, samples ordered by class.

    Args:
        writer: Summary writer.
        tag: Of the image.
        kernel: Trace kernel now.
        reference: Trace kernel at the reference.
        step: x axis.
        classes: Class of each sample, to order by.
    """
    order = np.arange(len(kernel)) if classes is None else np.argsort(classes, kind="stable")
    now = kernel.detach().cpu().double().numpy()[np.ix_(order, order)]
    then = reference.detach().cpu().double().numpy()[np.ix_(order, order)]
    writer.add_image(tag, _draw_kernel(now, now - then, step), step, dataformats="HWC")


def _draw_kernel(kernel: NDArray[np.float64], change: NDArray[np.float64], step: int) -> Any:
    # Imported here: 0.7 s that a run without TensorBoard need not pay. Never pyplot, which would
    # touch the user's backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    shown = left.imshow(kernel, cmap="viridis", interpolation="nearest")
    left.set_title(f"kernel, step {step}")
    figure.colorbar(shown, ax=left, shrink=0.85)
    limit = float(np.abs(change).max()) or 1.0
    shown = right.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    right.set_title("change since the reference")
    figure.colorbar(shown, ax=right, shrink=0.85)
    for axes in (left, right):
        axes.set_xlabel("probe point")
        axes.set_xticks([])
        axes.set_yticks([])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def log_spectrum(writer: Any, tag: str, eigenvalues: Tensor, *, step: int) -> None:
    """Write the distribution of the kernel's eigenvalues as base-10 logarithms.

    Args:
        writer: Summary writer.
        tag: Of the histogram.
        eigenvalues: Largest first; what is below the rounding of the largest is left out.
        step: x axis.
    """
    floor = eigenvalues[0].abs() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    known = eigenvalues[eigenvalues > floor]
    if len(known):
        writer.add_histogram(tag, known.log10().cpu(), step)


def log_verdict(writer: Any, tag: str, verdict: Verdict, *, step: int) -> None:
    """Write the verdict as Markdown text.

    Args:
        writer: Summary writer.
        tag: Of the text.
        verdict: What to write.
        step: x axis.
    """
    lines = [
        f"## {verdict.label}",
        "",
        verdict.reason,
        "",
        *[f"- {line}" for line in verdict.evidence],
        "",
        f"task-aligned: **{verdict.use.task_aligned}**, "
        f"features needed: **{verdict.use.features_needed}**",
        "",
        f"**Next:** {verdict.next_step}",
        "",
        "*Set Smoothing to 0: sparse curves are distorted by it.*",
    ]
    writer.add_text(tag, "\n".join(lines), step)
