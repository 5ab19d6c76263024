"""Eigenvalues of a kernel and how many of them matter.

Tensors in, tensors out: nothing here knows of models, steps or files.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.gram import check_finite, widest_float

__all__ = ["effective_rank", "eigenvalues"]


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
