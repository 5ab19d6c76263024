"""Largest eigenvalues of a kernel that is known only by its products with vectors.

Tensors in, tensors out: nothing here knows of models, steps or files. A block of k random vectors
is multiplied by the kernel and the basis grows by what the products add to it: block Lanczos, whose
block is as large as the number of eigenvalues wanted, so that a repeated eigenvalue is found as
often as it occurs. The basis is kept orthogonal in full and its images are kept, so the Ritz values
and their residuals are those of the vectors returned, whatever rounding did on the way.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError
from ntkwatch.kernel.gram import check_finite, widest_float

__all__ = ["TopEigenvalues", "lanczos"]

_SEED = 0x4C414E
# A new direction is used if at least this share of a residual is outside the basis: less is
# rounding, and would bring in a vector that is not orthogonal.
_INDEPENDENT = 1e-8
# Basis vectors at which a restart is due, and those that it keeps: per eigenvalue, and at least.
_FULL, _FULL_AT_LEAST = 8, 48
_KEPT, _KEPT_AT_LEAST = 2, 12


class TopEigenvalues(NamedTuple):
    """Largest eigenvalues with what vouches for them.

    Attributes:
        values: Descending, in the unit of the kernel. There is an eigenvalue of the kernel within
            the residual of each of them.
        vectors: Orthonormal, one per column.
        residuals: ``|K v - value v|``, in the unit of the kernel.
        products: Products with the kernel that it took.
        converged: Whether every residual is within the tolerance.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "n k"]
    residuals: Float[Tensor, " k"]
    products: int
    converged: bool


def lanczos(
    times: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]],
    n: int,
    k: int = 8,
    *,
    tolerance: float = 1e-10,
    max_products: int | None = None,
    device: torch.device | None = None,
) -> TopEigenvalues:
    """Return the k largest eigenvalues of a symmetric positive semi-definite kernel.

    Args:
        times: ``v -> K v``.
        n: Size of the kernel.
        k: How many eigenvalues; all n if there are fewer.
        tolerance: Residual that will do, as a share of the largest eigenvalue. Products in float32
            reach about 1e-6.
        max_products: Products after which to stop in any case; default 100 k.
        device: Where the vectors are to be.

    Returns:
        Eigenvalues, vectors and residuals, in the widest float of the device.

    Raises:
        InputError: If no eigenvalue is asked for, or max_products does not allow for one block.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Block Lanczos with restarts: Golub and Underwood, in Mathematical Software III, 1977; Wu
        and Simon, SIAM J. Matrix Anal. Appl. 22, 2000 (thick restart).
    """
    limit = 100 * max(k, 1) if max_products is None else max_products
    if k < 1 or n < 1 or limit < min(k, n):
        raise InputError(
            f"k={k} eigenvalues of a kernel of size {n} within {limit} products cannot be had. Ask "
            "for one eigenvalue or more, and allow for k products or more."
        )
    k = min(k, n)
    generator = torch.Generator().manual_seed(_SEED)
    device = torch.device("cpu") if device is None else device

    def draw(columns: int) -> Tensor:
        # Drawn on the CPU, so that the result is the same on every device.
        block = torch.randn(n, columns, generator=generator, dtype=torch.float64, device="cpu")
        return block.to(device, widest_float(device))

    def image_of(block: Tensor) -> Tensor:
        columns = [times(column).to(block) for column in block.mT]
        image = torch.stack(columns, dim=1)
        check_finite(image, "kernel times a vector")
        return image

    basis = torch.linalg.qr(draw(k))[0]
    images = image_of(basis)
    products = k
    while True:
        values, turn = _ritz(basis, images)
        vectors, sent = basis @ turn, images @ turn
        off = sent[:, :k] - vectors[:, :k] * values[:k]
        residuals = torch.linalg.vector_norm(off, dim=0)
        open_ones = residuals > tolerance * values[0]
        if not bool(open_ones.any()) or products >= limit:
            break
        if vectors.shape[1] + k > max(_FULL * k, _FULL_AT_LEAST):
            kept = max(_KEPT * k, _KEPT_AT_LEAST)
            basis, images = vectors[:, :kept], sent[:, :kept]
        block = _outside(basis, off[:, open_ones])
        if block.shape[1] == 0:  # the basis holds all that its vectors lead to: look elsewhere
            block = _outside(basis, draw(min(k, n - basis.shape[1])))
        if block.shape[1] == 0:  # it holds everything, and residuals are the rounding of products
            break
        block = block[:, : limit - products]
        basis = torch.cat([basis, block], dim=1)
        images = torch.cat([images, image_of(block)], dim=1)
        products += block.shape[1]
    return TopEigenvalues(
        values[:k], vectors[:, :k], residuals, products, not bool(open_ones.any())
    )


def _ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors of the kernel seen within the basis."""
    small = basis.mT @ images
    values, turn = torch.linalg.eigh((small + small.mT) / 2)
    return values.flip(0), turn.flip(1)


def _outside(basis: Tensor, block: Tensor) -> Tensor:
    """Orthonormal vectors for what a block adds to a basis; none where that is rounding."""
    kept: list[Tensor] = []
    for column in block.mT:
        vector = column / torch.linalg.vector_norm(column)
        for _ in range(2):  # once leaves rounding as large as the part that was taken off
            vector = vector - basis @ (basis.mT @ vector)
            for other in kept:
                vector = vector - other * (other @ vector)
            size = torch.linalg.vector_norm(vector)
            if size <= _INDEPENDENT:
                break
            vector = vector / size
        else:
            kept.append(vector)
    return torch.stack(kept, dim=1) if kept else block[:, :0]
