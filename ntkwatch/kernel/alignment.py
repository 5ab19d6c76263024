"""How well a kernel's geometry fits the targets.

Tensors in, tensors out: nothing here knows of models, steps or files. Absolute values depend on
the number of probe points and carry no meaning; compare values of one probe, or their z-scores.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.gram import centre, inner, widest_float

__all__ = [
    "RIDGES",
    "Alignment",
    "layer_alignments",
    "rkhs_norm",
    "rkhs_norm_ratio",
    "target_alignment",
    "target_matrix",
]

# Two of them, since an answer that hinges on the ridge is no answer.
RIDGES = (1e-6, 1e-3)


class Alignment(NamedTuple):
    """Kernel-target alignment with its permutation null.

    Attributes:
        value: Centred cosine in [-1, 1]; in [0, 1] in practice.
        null_mean: Mean over permutations of the targets.
        null_sd: Standard deviation over them.
    """

    value: Float[Tensor, ""]
    null_mean: Float[Tensor, ""]
    null_sd: Float[Tensor, ""]

    @property
    def z(self) -> Tensor:
        """The alignment in standard deviations of its null; NaN where that has none."""
        deviation = torch.where(self.null_sd > 0, self.null_sd, torch.nan)
        return (self.value - self.null_mean) / deviation


def target_matrix(
    targets: Int[Tensor, " n *c"] | Float[Tensor, " n *c"], *, device: torch.device
) -> Float[Tensor, "n c"]:
    """Return targets as a centred matrix: one-hot for class labels, as they are for regression.

    Args:
        targets: Class labels, or regression targets of any trailing shape.
        device: Where the result should be.

    Returns:
        A matrix whose columns have mean 0.

    Raises:
        InputError: If targets are not finite, are several labels per sample, or are all equal, so
            that nothing could align with them.
    """
    wide = widest_float(device)
    if targets.is_floating_point():
        matrix = targets.detach().to(device).to(wide).reshape(len(targets), -1)
        bad = int((~torch.isfinite(matrix)).any(dim=1).sum())
        if bad:
            raise InputError(
                f"{bad} of the {len(targets)} targets hold NaN or infinity, so alignment with them "
                "is undefined. Draw a probe whose targets are all known."
            )
    else:
        if targets.numel() != len(targets):
            raise InputError(
                f"the targets are whole numbers of shape {tuple(targets.shape)}, more than one per "
                "sample, so they are no class labels. Give one label per sample, or values as "
                "floating numbers (0.0 and 1.0 for several labels)."
            )
        labels = targets.detach().to(device).unique(return_inverse=True)[1].flatten()
        matrix = torch.nn.functional.one_hot(labels).to(wide)
    centred = matrix - matrix.mean(dim=0)
    if centred.square().sum() <= torch.finfo(wide).eps * matrix.square().sum():
        raise InputError(
            f"all {len(targets)} targets of the probe are equal, so alignment with them is "
            "undefined. Draw a probe with at least two classes or values."
        )
    return centred


def target_alignment(
    kernel: Float[Tensor, "n n"],
    targets: Float[Tensor, "n c"],
    *,
    permutations: int = 200,
    generator: torch.Generator | None = None,
) -> Alignment:
    """Return ``<H K H, Y Y'> / (|H K H| |Y Y'|)`` and what shuffled targets give.

    Args:
        kernel: Trace kernel ``K``.
        targets: Centred targets ``Y`` from ``target_matrix``.
        permutations: How many shuffles make the null.
        generator: Source of the shuffles, on the CPU; the default is seeded, so that all kernels
            of a run meet the same null.

    Returns:
        The alignment with mean and standard deviation of its null.

    Raises:
        InputError: If the kernel has another size than the targets, or is one constant (only an
            output bias is watched, say), so that nothing of it is left once it is centred.

    Source:
        Baratin et al., AISTATS 2021, arXiv:2008.00938 (centred alignment of the NTK).
    """
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    if kernel.shape != (len(targets), len(targets)):
        raise InputError(
            f"the kernel is {tuple(kernel.shape)} and there are {len(targets)} targets, so samples "
            "cannot be matched. Give the targets of the probe that the kernel was computed on."
        )
    centred = centre(kernel.to(targets.dtype))
    if _is_constant(kernel, targets):
        raise InputError(
            f"all {kernel.numel()} entries of the kernel are equal up to rounding, so nothing of "
            "it is left to align with targets. Watch more than an output bias."
        )
    gram = targets @ targets.mT
    size = (inner(centred, centred) * inner(gram, gram)).sqrt()
    orders = torch.stack(
        [
            torch.randperm(len(targets), generator=generator, device="cpu")
            for _ in range(permutations)
        ]
    ).to(targets.device)
    shuffled = targets[orders]
    # <HKH, PY(PY)'> = trace((PY)' HKH PY), for all shuffles at once.
    null = ((centred @ shuffled) * shuffled).sum(dim=(1, 2)) / size
    return Alignment(inner(centred, gram) / size, null.mean(), null.std())


def layer_alignments(
    kernels: Mapping[str, Float[Tensor, "n n"]],
    targets: Float[Tensor, "n c"],
    *,
    permutations: int = 200,
) -> dict[str, Alignment]:
    """Return the alignment of each layer's own part of the kernel.

    Args:
        kernels: Trace kernel of each layer.
        targets: Centred targets ``Y`` from ``target_matrix``.
        permutations: How many shuffles make the null; they are the same for all layers.

    Returns:
        Alignments by layer. All three numbers are NaN for a layer whose part is one constant (an
        output bias alone) or zero (frozen, or initialised to zero): it has no geometry.

    Raises:
        InputError: If a kernel has another size than the targets.

    Source:
        As ``target_alignment``.
    """
    nothing = targets.new_full((), torch.nan)
    return {
        layer: Alignment(nothing, nothing, nothing)
        if kernel.shape == (len(targets), len(targets)) and _is_constant(kernel, targets)
        else target_alignment(kernel, targets, permutations=permutations)
        for layer, kernel in kernels.items()
    }


def rkhs_norm(
    kernel: Float[Tensor, "n n"], targets: Float[Tensor, "n c"], *, ridge: float
) -> Float[Tensor, ""]:
    """Return ``tr(K) tr(Y' (K + eps I)^-1 Y) / N^2``: how hard the targets are for this kernel.

    Args:
        kernel: Trace kernel ``K``.
        targets: Centred targets ``Y`` from ``target_matrix``.
        ridge: ``eps`` as a share of the mean eigenvalue ``tr(K) / N``.

    Returns:
        A number without unit that does not change when the kernel is rescaled. Its ratio to that
        of the starting kernel falls below 1 when the kernel turned toward the task.

    Raises:
        KernelMismatchError: If the kernel is zero.
    """
    wide = kernel.to(targets.dtype)
    n = wide.shape[0]
    mean = wide.diagonal().mean()
    if mean == 0:
        raise KernelMismatchError(
            f"the kernel ({n} samples) is exactly zero, so no target has a norm in it. Is every "
            "watched parameter frozen, its layer initialised to zero, or the output detached?"
        )
    ridged = (wide + wide.mT) / 2 + ridge * mean * torch.eye(
        n, dtype=wide.dtype, device=wide.device
    )
    solved = torch.linalg.solve(ridged, targets)
    norm: Tensor = mean * (targets * solved).sum() / n
    return norm


def rkhs_norm_ratio(
    kernel: Float[Tensor, "n n"],
    reference: Float[Tensor, "n n"],
    targets: Float[Tensor, "n c"],
    *,
    ridges: tuple[float, ...] = RIDGES,
) -> Float[Tensor, " r"]:
    """Return ``R / R_0``, the RKHS norm of the targets over that in the reference kernel.

    Args:
        kernel: Trace kernel now.
        reference: Trace kernel at the reference step, on the same probe.
        targets: Centred targets ``Y`` from ``target_matrix``.
        ridges: Shares of the mean eigenvalue. Where their answers fall on two sides of a threshold
            the smallest eigenvalues decide, and there is no answer.

    Returns:
        A ratio without unit per ridge, above 0. Below 1 the kernel turned toward the task; it does
        not change when either kernel is rescaled.

    Raises:
        KernelMismatchError: If either kernel is zero.

    Source:
        This project's own; see ``rkhs_norm``.
    """
    ratios = [
        rkhs_norm(kernel, targets, ridge=ridge) / rkhs_norm(reference, targets, ridge=ridge)
        for ridge in ridges
    ]
    return torch.stack(ratios)


def _is_constant(kernel: Tensor, targets: Tensor) -> bool:
    """Whether nothing but rounding is left of a kernel once it is centred."""
    wide = kernel.to(targets.dtype)
    centred = centre(wide)
    rounding = len(targets) * torch.finfo(kernel.dtype).eps
    return bool(inner(centred, centred) <= rounding**2 * inner(wide, wide))
