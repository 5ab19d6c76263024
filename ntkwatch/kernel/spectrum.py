"""Eigenvalues of a kernel: how many matter, how small the smallest is, how fast they fall.

Tensors in, tensors out: nothing here knows of models, steps or files. A number that rounding or too
few probe points would make up is NaN; the caller says why. Eigenvectors are in ``modes.py``.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.gram import check_finite, widest_float

__all__ = [
    "condition_number",
    "effective_rank",
    "eigenvalues",
    "min_eigenvalue",
    "rank_holding",
    "rounding_floor",
    "tail_exponent",
]

# A power law is fitted over at least a decade of ranks, and over ranks well below N / 4 only: those
# above are bent down by the finite number of probe points.
_DECADE = 10
_TAIL_SHARE = 1 / 8


def eigenvalues(kernel: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Return all eigenvalues of a symmetric kernel, largest first.

    Args:
        kernel: A trace kernel, or a full one through ``flatten_kernel``.

    Returns:
        Eigenvalues in the unit of the kernel, not divided by N; rounding may leave the smallest
        slightly negative. The largest one divided by N is biased upward at small N.

    Raises:
        NonFiniteError: If the kernel holds NaN or infinity.
    """
    check_finite(kernel)
    wide = kernel.to(widest_float(kernel.device))
    return torch.linalg.eigvalsh((wide + wide.mT) / 2).flip(0)


def effective_rank(spectrum: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return ``exp(-sum_k p_k ln p_k)`` with ``p = lambda / sum lambda``.

    Args:
        spectrum: Eigenvalues of a positive semi-definite kernel; negative rounding counts as 0.

    Returns:
        A number in [1, N]. It is biased down at small N: print it with N and compare it only
        between kernels of the same probe.

    Raises:
        KernelMismatchError: If no eigenvalue is positive.

    Source:
        Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    positive = spectrum.clamp(min=0)
    total = positive.sum()
    if total == 0:
        raise KernelMismatchError(
            f"none of the {spectrum.numel()} eigenvalues is positive, so an effective rank is "
            "undefined. Is every watched parameter frozen or the output detached?"
        )
    share = positive / total
    return torch.special.entr(share).sum().exp()


def rank_holding(spectrum: Float[Tensor, " n"], *, share: float) -> Int[Tensor, ""]:
    """Return the smallest k whose k largest eigenvalues hold ``share`` of the trace.

    Args:
        spectrum: Eigenvalues of a positive semi-definite kernel, largest first; negative rounding
            counts as 0.
        share: In (0, 1].

    Returns:
        A whole number in [1, N]: where to cut for a subspace that does not depend on a gap.

    Raises:
        InputError: If the share is not in (0, 1].
        KernelMismatchError: If no eigenvalue is positive.
    """
    if not 0 < share <= 1:
        raise InputError(
            f"share={share} of the trace cannot be held by eigenvalues. Give a number above 0 and "
            "not above 1, such as 0.9."
        )
    positive = spectrum.clamp(min=0)
    held = positive.cumsum(0)
    total = held[-1]  # not a sum of its own: another order of adding could end beyond it
    if total == 0:
        raise KernelMismatchError(
            f"none of the {spectrum.numel()} eigenvalues is positive, so there is no trace to "
            "share. Is every watched parameter frozen or the output detached?"
        )
    return (held < share * total).sum() + 1


def rounding_floor(spectrum: Float[Tensor, " n"], *, precision: torch.dtype) -> Float[Tensor, ""]:
    """Return ``n eps lambda_max``: eigenvalues under it are made by rounding.

    Args:
        spectrum: All n eigenvalues; n is N, or N C for a full kernel.
        precision: Of the arithmetic that built the kernel, so that of its Jacobian: a kernel added
            up in float64 from float32 derivatives has the floor of float32.

    Returns:
        A size in the unit of the kernel.

    Source:
        By Weyl's inequality an eigenvalue moves by no more than the norm of the error, and rounding
        every entry by ``eps`` of its size is an error of at most ``n eps lambda_max``.
    """
    return spectrum.numel() * torch.finfo(precision).eps * spectrum.abs().max()


def min_eigenvalue(spectrum: Float[Tensor, " n"], *, precision: torch.dtype) -> Float[Tensor, ""]:
    """Return the smallest eigenvalue where it is more than rounding.

    Args:
        spectrum: All eigenvalues, in any order.
        precision: Of the arithmetic that built the kernel; see ``rounding_floor``.

    Returns:
        A size in the unit of the kernel, above the floor. NaN at the floor, as with two equal probe
        points or more outputs than parameters, where the true value may be 0.
    """
    smallest = spectrum.min()
    return torch.where(
        smallest > rounding_floor(spectrum, precision=precision), smallest, torch.nan
    )


def condition_number(spectrum: Float[Tensor, " n"], *, precision: torch.dtype) -> Float[Tensor, ""]:
    """Return ``lambda_max / lambda_min``: by how much a solve with the kernel magnifies errors.

    Args:
        spectrum: All eigenvalues, in any order.
        precision: Of the arithmetic that built the kernel; see ``rounding_floor``.

    Returns:
        A ratio without unit, at least 1. NaN where the smallest eigenvalue is at the floor: the
        kernel then takes a ridge, and the ratio would be one of rounding.
    """
    return spectrum.max() / min_eigenvalue(spectrum, precision=precision)


def tail_exponent(spectrum: Float[Tensor, " n"], *, precision: torch.dtype) -> Float[Tensor, ""]:
    """Return ``a`` of the power law ``lambda_k ~ k^-a`` fitted to the head of the spectrum.

    A least-squares line through ``ln lambda_k`` against ``ln k``, over ranks 2 to N/8: rank 1 is
    mostly the mean mode, and ranks near N/4 and beyond bend down because the probe is finite,
    whatever the true law. Ranks count alike per unit of ``ln k``, not one by one.

    Args:
        spectrum: All N eigenvalues of a trace kernel, largest first.
        precision: Of the arithmetic that built the kernel; see ``rounding_floor``.

    Returns:
        An exponent without unit; about 0 for a flat spectrum. NaN where no fit is honest: when
        ranks 2 to N/8 span less than a decade (N below 160), or reach the rounding floor.

    Source:
        This project's own; there is no published range of ranks for empirical kernels.
    """
    last = int(spectrum.numel() * _TAIL_SHARE)
    nothing = spectrum.new_full((), torch.nan)
    if last < 2 * _DECADE:
        return nothing
    ranks = torch.arange(2, last + 1, dtype=spectrum.dtype, device=spectrum.device)
    values = spectrum[1:last]
    x = ranks.log()
    weights = 1 / ranks  # d ln k = dk / k
    weights = weights / weights.sum()
    # The floor itself stands in for what lies under it, so that no logarithm fails.
    floor = rounding_floor(spectrum, precision=precision)
    y = values.maximum(floor).clamp(min=torch.finfo(spectrum.dtype).tiny).log()
    dx, dy = x - (weights * x).sum(), y - (weights * y).sum()
    slope = (weights * dx * dy).sum() / (weights * dx * dx).sum()
    return torch.where(values.min() > floor, -slope, nothing)
