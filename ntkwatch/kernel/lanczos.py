"""The largest eigenvalues of a kernel that is only known by its products with vectors.

Tensors in, tensors out: nothing here knows of models, steps or files. A full kernel of many samples
and outputs does not fit into memory, its product with a vector does: one backward and one forward
pass. This is Lanczos' method with full reorthogonalization, since without it rounding brings the
eigenvalues that were found back as copies.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError, NonFiniteError

__all__ = ["Ritz", "largest_eigenvalues"]


class Ritz(NamedTuple):
    """Approximate eigenvalues and how far off they can be.

    Attributes:
        values: Largest first, in the unit of the kernel; they approach from below.
        residuals: ``|K v - lambda v|`` for each: an eigenvalue lies within it.
    """

    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]


def largest_eigenvalues(
    product: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]],
    start: Float[Tensor, " n"],
    *,
    k: int = 1,
    products: int = 30,
) -> Ritz:
    """Return the k largest distinct eigenvalues of a symmetric kernel from products with it.

    Args:
        product: ``v -> K v``.
        start: A random vector, in the precision and on the device to work in. Directions that it
            has no part in are never found.
        k: How many; equal eigenvalues count once.
        products: How many products may be taken. The largest eigenvalue usually settles in 10 to
            20; if its residual is not small compared with the value, allow more.

    Returns:
        Values and residuals; fewer than k where the kernel has fewer distinct eigenvalues.

    Raises:
        InputError: If the start is zero, or more values are wanted than products allowed.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Lanczos 1950; for residuals and reorthogonalization Parlett, "The Symmetric Eigenvalue
        Problem".
    """
    size = torch.linalg.vector_norm(start)
    if not (size > 0 and 1 <= k <= products):
        raise InputError(
            f"{k} eigenvalues cannot be had from {products} products with a start of length "
            f"{size:.3g}. Give a random start, and at least as many products as values."
        )
    basis = [start / size]
    diagonal: list[Tensor] = []
    below: list[Tensor] = []
    for _ in range(min(products, len(start))):
        image = product(basis[-1])
        if not bool(torch.isfinite(image).all()):
            raise NonFiniteError(
                "a product with the kernel holds NaN or infinity, so it has no eigenvalues. Try "
                "float64, or look for diverged weights."
            )
        diagonal.append(basis[-1] @ image)
        rest = _without(image, basis)
        below.append(torch.linalg.vector_norm(rest))
        # All that the start has a part in has been seen: what is left is rounding.
        scale = torch.stack([*diagonal, *below[:-1]]).abs().max()
        if below[-1] <= len(start) * torch.finfo(start.dtype).eps * scale:
            break
        basis.append(rest / below[-1])
    return _ritz(diagonal, below, k)


def _without(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """What is left of a vector across the basis."""
    columns = torch.stack(basis, dim=1)
    for _ in range(2):  # once leaves rounding of the size of what was taken off
        vector = vector - columns @ (columns.mT @ vector)
    return vector


def _ritz(diagonal: list[Tensor], below: list[Tensor], k: int) -> Ritz:
    tridiagonal = torch.diag(torch.stack(diagonal))
    if len(diagonal) > 1:
        off = torch.stack(below[: len(diagonal) - 1])
        tridiagonal = tridiagonal + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    residuals = below[-1] * vectors[-1].abs()
    return Ritz(values.flip(0)[:k], residuals.flip(0)[:k])
