"""Eigenvectors of a kernel: whether its leading ones stayed, and what the residual does on them.

Tensors in, tensors out: nothing here knows of models, steps or files. A residual ``r = f - y`` that
a frozen kernel trains falls mode by mode, ``c_k = v_k' r`` at a speed set by ``lambda_k`` alone.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.descent import PLAIN, SGD, decay_factors
from ntkwatch.kernel.gram import check_finite, widest_float

__all__ = [
    "Modes",
    "Overlap",
    "eigenmodes",
    "mode_prediction_error",
    "predicted_modes",
    "relative_gap",
    "residual_modes",
    "subspace_overlap",
]


class Modes(NamedTuple):
    """Eigenvalues and eigenvectors of a symmetric kernel.

    Attributes:
        values: Largest first, in the unit of the kernel.
        vectors: One column for each, of length 1. Signs are arbitrary, and so is the basis where
            eigenvalues are equal.
    """

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n n"]


class Overlap(NamedTuple):
    """How much of a subspace is left, and what two random ones would share.

    Attributes:
        value: In [0, 1]; 1 is the same subspace.
        null: Its mean over random subspaces of these dimensions.
    """

    value: Float[Tensor, ""]
    null: Float[Tensor, ""]


def eigenmodes(kernel: Float[Tensor, "n n"]) -> Modes:
    """Return all eigenvalues and eigenvectors of a symmetric kernel, largest first.

    Args:
        kernel: A trace kernel, or a full one through ``flatten_kernel``.

    Returns:
        Modes with ``K = V diag(lambda) V'`` for the symmetric part of the kernel.

    Raises:
        NonFiniteError: If the kernel holds NaN or infinity.
    """
    check_finite(kernel)
    wide = kernel.to(widest_float(kernel.device))
    values, vectors = torch.linalg.eigh((wide + wide.mT) / 2)
    return Modes(values.flip(0), vectors.flip(1))


def subspace_overlap(vectors: Float[Tensor, "n k"], reference: Float[Tensor, "n l"]) -> Overlap:
    """Return ``|V' V_0|_F^2 / min(k, l)``: how much of the leading eigenspace stayed.

    Args:
        vectors: Leading k eigenvectors now, ``modes.vectors[:, :k]``. Cut where ``relative_gap`` is
            large, since eigenvectors of nearly equal eigenvalues turn freely among themselves; or
            at ``rank_holding``, which may differ between the two.
        reference: Leading l eigenvectors of the reference kernel, on the same probe.

    Returns:
        The overlap in [0, 1], with its mean ``max(k, l) / N`` over random subspaces: print both,
        since at small N the null alone is large. Prefer k far below N.

    Raises:
        InputError: If either subspace is empty, or they are of different probes.

    Source:
        This project's own. The null: ``E[V V'] = k / N I`` for a random basis, so the mean of
        ``|V' V_0|^2 = tr(V V' V_0 V_0')`` is ``k l / N``.
    """
    n, k = vectors.shape
    l = reference.shape[1]  # noqa: E741
    if k == 0 or l == 0 or n != len(reference):
        raise InputError(
            f"subspaces of {k} vectors on {n} points and {l} vectors on {len(reference)} points "
            "share no directions that could be compared. Take at least one eigenvector of each "
            "kernel, on one probe."
        )
    value = (vectors.mT @ reference).square().sum() / min(k, l)
    return Overlap(value.clamp(max=1), value.new_tensor(max(k, l) / n))  # above 1 by rounding only


def relative_gap(spectrum: Float[Tensor, " n"], k: int) -> Float[Tensor, ""]:
    """Return ``(lambda_k - lambda_{k+1}) / lambda_k``: how well the leading k stand apart.

    A change of the kernel turns them by about its norm over this gap (Davis and Kahan 1970).

    Args:
        spectrum: Eigenvalues, largest first.
        k: How many are leading, from 1 to N - 1.

    Returns:
        A ratio without unit in [0, 1] for kernels; 0 where the choice of k is arbitrary.

    Raises:
        InputError: If there is no eigenvalue on both sides of the cut.
    """
    if not 0 < k < spectrum.numel():
        raise InputError(
            f"k={k} does not part {spectrum.numel()} eigenvalues in two. Give k from 1 to "
            f"{spectrum.numel() - 1}."
        )
    return (spectrum[k - 1] - spectrum[k]) / spectrum[k - 1]


def residual_modes(modes: Modes, residual: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Return ``c_k = v_k' (f - y)``, the residual in the kernel's eigenbasis.

    Args:
        modes: Of the kernel at the start: the basis must stay the same for all steps compared. For
            a trace kernel each output has its own column, which is right where the full kernel is
            the trace kernel over C times the identity. For a full kernel flatten it, and give the
            residual as one column in the same order, ``residual.reshape(-1, 1)``.
        residual: ``f - y`` on the **whole** training set; a part of it has no decay of its own.

    Returns:
        Coefficients in the unit of the outputs, largest eigenvalue first.

    Raises:
        KernelMismatchError: If the residual has another size than the modes.
    """
    if len(residual) != len(modes.vectors):
        raise KernelMismatchError(
            f"the kernel has {len(modes.vectors)} rows and the residual {len(residual)}, so it has "
            "no coefficients in that basis. Use the samples of the kernel, and flatten both or "
            "neither."
        )
    return modes.vectors.mT @ residual.to(modes.vectors)


def predicted_modes(
    modes: Modes,
    coefficients: Float[Tensor, "n c"],
    *,
    learning_rate: float,
    steps: int,
    curvature: float = 1.0,
    sgd: SGD = PLAIN,
) -> Float[Tensor, "n c"]:
    """Return what a frozen kernel leaves of each mode: ``c_k(0) (1 - eta h lambda_k)^t``.

    In discrete steps: ``exp(-eta h lambda t)`` is wrong by percents at ``eta h lambda`` of 0.5.
    Valid for full-batch gradient descent on a square loss without weight decay, on the whole
    training set, and for torch's momentum through ``sgd``. Under Adam it means nothing.

    Args:
        modes: Of the kernel at the start.
        coefficients: ``residual_modes`` at the start.
        learning_rate: ``eta``.
        steps: ``t``, steps of the optimizer.
        curvature: ``h``, from ``square_loss_curvature``; 1 for half the sum of squares.
        sgd: Momentum, if any.

    Returns:
        Coefficients after ``steps``, in the unit of the outputs.

    Source:
        Lee et al., NeurIPS 2019, arXiv:1902.06720, in continuous time; in steps from
        ``r <- (I - eta h K) r``, or see ``decay_factors`` for momentum.
    """
    factors = decay_factors(learning_rate * curvature * modes.values, steps=steps, sgd=sgd)
    return factors[:, None] * coefficients


def mode_prediction_error(
    coefficients: Float[Tensor, "n c"], predicted: Float[Tensor, "n c"]
) -> Float[Tensor, ""]:
    """Return ``|c - c_predicted| / |c_predicted|``: how far training left the frozen kernel's path.

    Args:
        coefficients: ``residual_modes`` after training, in the basis of the start.
        predicted: ``predicted_modes`` for the same step.

    Returns:
        A ratio without unit in [0, inf). NaN where the prediction is exactly zero everywhere.

    Source:
        This project's own.
    """
    size = torch.linalg.vector_norm(predicted)
    error = torch.linalg.vector_norm(coefficients - predicted)
    return torch.where(size > 0, error / size, torch.nan)
