"""The numbers of an observation that a report lists: their names, units and meanings.

Nothing here knows how a column is drawn or which of its values are shown.
"""

from dataclasses import dataclass

from ntkwatch.report.details import TITLES
from ntkwatch.report.words import Number
from ntkwatch.watch.record.records import Observation

__all__ = ["BY_KEY", "COLUMNS", "Column", "title_of", "value_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One number of an observation.

    Attributes:
        key: Its name in the records; ``top_eigenvalue_1`` is the first of ``top_eigenvalues``.
        title: Its name in a sentence.
        head: The same in two short lines, for a narrow table.
        unit: In words, or empty.
        meaning: One sentence for readers new to it.
    """

    key: str
    title: str
    head: tuple[str, str]
    unit: str = ""
    meaning: str = ""


COLUMNS = (
    Column(
        key="step",
        title="step",
        head=("", "step"),
        meaning="Optimizer steps taken; 0 is before the first update.",
    ),
    Column(key="epoch", title="epoch", head=("", "epoch"), meaning="Epochs completed."),
    Column(
        key="loss",
        title="training loss",
        head=("", "loss"),
        meaning="Mean over the last batches before the step.",
    ),
    Column(
        key="linearization_error",
        title="linearization error",
        head=("linear.", "error"),
        meaning="How far the outputs left those of the model linearized at the start, as a share "
        "of how far they moved: 0 is a kernel machine.",
    ),
    Column(
        key="layer_angle_median",
        title="median layer angle",
        head=("layer", "angle"),
        unit="rad",
        meaning="How far the kernel of a typical layer turned since the start; a change of scale "
        "does not count.",
    ),
    Column(
        key="kernel_scale",
        title="ln kernel scale",
        head=("ln", "scale"),
        meaning="Natural logarithm of how much the kernel grew along itself; 0 is no growth.",
    ),
    Column(
        key="relative_kernel_change",
        title="relative kernel change",
        head=("kernel", "change"),
        meaning="Size of the change over size of the kernel at the start: growth and turning "
        "together.",
    ),
    Column(
        key="kernel_distance_offdiag",
        title="kernel distance, off-diagonal",
        head=("offdiag", "dist."),
        meaning="1 minus the cosine between the kernels without their diagonals; hardly depends "
        "on N.",
    ),
    Column(
        key="top_eigenvalue_1",
        title="top eigenvalue",
        head=("top", "eigenv."),
        meaning="Largest eigenvalue of the trace kernel, not divided by N.",
    ),
    Column(
        key="effective_rank",
        title="effective rank",
        head=("eff.", "rank"),
        meaning="How many directions carry the kernel, between 1 and N; compare it only at the "
        "same N.",
    ),
    Column(
        key="relative_displacement",
        title="relative displacement",
        head=("rel.", "displ."),
        meaning="How far the weights moved, as a share of their size at the start; compare it "
        "within one model only.",
    ),
    Column(
        key="target_alignment",
        title="target alignment",
        head=("target", "align."),
        meaning="Centred cosine between the kernel and that of the targets; read its rise, not "
        "its height.",
    ),
)

BY_KEY = {column.key: column for column in COLUMNS}


def value_of(observation: Observation, key: str) -> Number | None:
    """Return one number of an observation by its column's key.

    Args:
        observation: Where to look.
        key: Of a ``Column``.

    Returns:
        The number, or None where it is missing.
    """
    if key == "top_eigenvalue_1":
        return observation.top_eigenvalues[0] if observation.top_eigenvalues else None
    value: Number | None = getattr(observation, key)
    return value


def title_of(key: str) -> str:
    """Return what a reader calls a key of the records.

    Args:
        key: Such as "layer_angle_median" or "layer_angle/fc".

    Returns:
        The column's title, or the key with blanks.
    """
    if key in BY_KEY:
        return BY_KEY[key].title
    return TITLES.get(key, key.replace("_", " "))
